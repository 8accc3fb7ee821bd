"""Embedding-based Retrieval in Facebook Search (Huang et al., KDD 2020).

https://arxiv.org/abs/2006.11632
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError
from recstack.models.base import Retriever
from recstack.models.in_batch import shown
from recstack.models.scored import chosen_only
from recstack.models.two_towers import Towers, task_of
from recstack.nn.sequence import Pooling
from recstack.schema import Schema


class EBR(Retriever):
    r"""Two towers and a triplet loss: what was chosen lies nearer than random items, and than the batch's hardest.

    .. math:: L = \sum_i \max(0, D(q, d^+) - D(q, d_i^-) + m), \qquad D(q, d) = 1 - \cos(q, d)

    The negatives of a row are its own candidates with label 0, which `fit` draws from the whole catalogue (20 of them,
    unless ``negatives=`` says otherwise; what was shown and not chosen makes a retriever worse, and is left out unless the
    log has lists), and the items of other rows that are most similar to the user: online hard negatives.
    ``fit(train, hard=recstack.training.HardNegatives())`` adds offline ones, of the ranks 101 to 500.

    Several members are an ensemble: each has towers and tables of its own, hence its own mistakes, and

    .. math:: E_q = \big[\alpha_1 q_1, \dots, \alpha_n q_n\big], \quad E_d = \big[d_1, \dots, d_n\big], \qquad
        \langle E_q, E_d \rangle = \sum_n \alpha_n \cos(q_n, d_n)

    is one vector ``[n · D]`` a side, in one index. ``weights=(0.7, 0.3), hard=(0, 2)`` joins a member that has met no online
    hard negatives with one that has.

    Departs from the paper: each row counts the mean over its negatives; no text, no location.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of all towers; the last is D.
        margin: m; worth tuning.
        weights: α of each member, on the user's side.
        hard: online hard negatives of each member; 2 at most, says the paper.
        history: pooling of histories, by name or class; not one that looks at the target.
        dropout: in the towers.

    Huang et al., KDD 2020, https://arxiv.org/abs/2006.11632

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.EBR(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")
    trainer: ClassVar[dict[str, Any]] = {"negatives": 20}

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (256, 128, 64),
        margin: float = 0.2,
        weights: tuple[float, ...] = (1.0,),
        hard: tuple[int, ...] = (2,),
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if not weights or len(weights) != len(hard) or min(weights) <= 0 or min(hard) < 0:
            raise ConfigError(
                "weights= and hard= say of each member a weight above 0 and a number of hard negatives, at least 0; "
                f"got {tuple(weights)} and {tuple(hard)}."
            )
        self.task, self.margin, self.weights, self.hard = task_of(schema, None), margin, tuple(weights), tuple(hard)
        self.members = nn.ModuleList(Towers(schema, dim, hidden, history=history, dropout=dropout) for _ in weights)

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        parts = [w * towers.user(batch) for w, towers in zip(self.weights, self.members, strict=True)]  # type: ignore[operator]
        return torch.cat(parts, -1).unsqueeze(1)

    def item_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([towers.item(batch) for towers in self.members], -1)  # type: ignore[operator]

    def training_columns(self, train: Any) -> Any:
        return chosen_only(train, self.task)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each member's triplet loss, over the rows' positives."""
        found = shown(batch, self.schema, self.task)
        row, place = (found.live & (found.label > 0)).nonzero(as_tuple=True)
        easy = (found.live & (found.label == 0))[row]  # [n, L]
        weight = None if found.weight is None else found.weight[row, place].unsqueeze(-1)
        out = {}
        for k, (towers, hard) in enumerate(zip(self.members, self.hard, strict=True)):
            users = towers.user(batch)[row]  # type: ignore[operator]
            items = towers.item(batch).view(*found.ids.shape, -1)  # type: ignore[operator]
            near, others = losses.hardest_others(users, items[row, place], found.ids[row, place], hard, row)
            with torch.autocast(users.device.type, enabled=False):
                score = (items[row] @ users.unsqueeze(-1)).squeeze(-1)
            own = score.gather(1, place.unsqueeze(1))
            score, where = torch.cat([own, score, near], 1), torch.cat([torch.ones_like(own) > 0, easy, others], 1)
            label = torch.zeros_like(score)
            label[:, 0] = 1
            out[f"triplet {k + 1}"] = losses.triplet(score, label, where=where, weight=weight, margin=self.margin)
        return out
