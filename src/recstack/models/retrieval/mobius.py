"""MOBIUS: Towards the Next Generation of Query-Ad Matching in Baidu's Sponsored Search (Fan et al., KDD 2019).

https://doi.org/10.1145/3292500.3330651
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from recstack import losses
from recstack.errors import ConfigError, SchemaError
from recstack.features import Inputs
from recstack.features.columns import column
from recstack.models.base import Batch, Retriever
from recstack.models.in_batch import shown
from recstack.nn.sequence import Pooling
from recstack.nn.tower import Tower
from recstack.schema import Numeric, Schema

USER = ("user", "context", "domain", "history")
CLICK, UNCLICK, BAD = range(3)


class MOBIUS(Retriever):
    r"""What would be clicked without being relevant is made up while training, and learned as a class of its own.

    .. math::
        P(y \mid u, i) = \mathrm{softmax}_y \frac{\cos(u_y, v_i^y)}{\tau}, \quad y \in \{\text{click, unclick, bad}\},
        \qquad s(u, i) = \frac{\cos(u_{\text{click}}, v_i^{\text{click}})}{\tau} \cdot \mathrm{bid}_i

    Each tower ends in a vector that is cut in three, one for each class. A click log holds only what an older, relevant
    retrieval had let through, so a model of clicks may ask for anything. Therefore all users of a batch are joined with
    all of its items; pairs that the teacher scores low are drawn in proportion to the click rate that the student
    predicts, and trained as *bad*. The score is one weighted inner product: items are as long as their bid.

    The teacher is a fitted retriever of two towers, given to `fit`; without one there are no bad cases, which is the
    ablation::

        teacher = DSSM(schema).fit(train)
        model = MOBIUS(schema, bid="bid").fit(train, teacher=teacher)

    Departs from the paper: the classes are cosines too, so that what is searched is what was trained; how low is low is a
    quantile of the teacher's scores of the pairs that were shown, whatever its scale; vectors are not compressed (an
    `index` does that).

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of both towers before the vectors.
        width: of each of the three vectors.
        temperature: τ.
        bid: a Numeric item feature without a transform, by which items are weighed (below 0 counts as 0) and which the
            towers do not read; None weighs all alike.
        relevance: a pair is irrelevant that the teacher scores below this quantile of the pairs that were shown.
        bad: bad cases for each pair that was shown, at most.
        history: pooling of histories, by name or class; not one that looks at the target.
        dropout: in the towers.

    Fan et al., KDD 2019, https://doi.org/10.1145/3292500.3330651

    >>> import recstack as rs
    >>> log = rs.simulator.small(ads=0.5)
    >>> log.schema = log.schema.replace(features=[*log.schema.features, rs.Numeric("bid", "item", fill=0.0)])
    >>> train, valid, test = rs.split.by_time(log)
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> teacher = rs.retrieval.DSSM(schema, hidden=(32, 16)).fit(train, epochs=1, progress=False)
    >>> model = rs.retrieval.MOBIUS(schema, hidden=(32,), bid="bid")
    >>> model = model.fit(train, epochs=1, progress=False, teacher=teacher)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")
    trainer: ClassVar[dict[str, Any]] = {"negatives": 0, "batch_size": 512}  # all users by all items of a batch

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (256, 128),
        width: int = 32,
        temperature: float = 0.2,
        bid: str | None = None,
        relevance: float = 0.1,
        bad: float = 0.5,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if not 0 <= relevance <= 1 or bad < 0 or temperature <= 0:
            raise ConfigError(
                "relevance is a share from 0 to 1, bad at least 0 and temperature above 0; "
                f"got {relevance:g}, {bad:g} and {temperature:g}."
            )
        unread = [f.name for f in schema.fields if f.role == "pair"]
        if bid is not None:
            unread.append(_checked(schema, bid))
        self.bid, self.temperature, self.relevance, self.bad = bid, temperature, relevance, bad
        self.inputs = Inputs(schema.without(*unread), dim, history=history, std=0.02)
        self.user_tower = Tower(self.inputs.width(*USER), (*hidden, width), parts=3, dropout=dropout)
        self.item_tower = Tower(self.inputs.width("item"), (*hidden, width), parts=3, dropout=dropout)
        self.teacher: tuple[Retriever, ...] = ()  # in a tuple: no part of this model

    def fit(self, train: Any, valid: Any = None, *, teacher: Retriever | None = None, **options: Any) -> Self:
        """As `Retriever.fit`; `teacher` is a fitted retriever over the same schema that knows what is relevant.

        Raises:
            ConfigError: a teacher that is not fitted, has no vectors or counts other items.
        """
        if teacher is not None:
            if not isinstance(teacher, Retriever) or not teacher.fitted:
                raise ConfigError("teacher= takes a fitted retriever of two towers, such as DSSM(schema).fit(train).")
            if teacher.schema.feature(self.schema.item).size != self.schema.feature(self.schema.item).size:  # type: ignore
                raise ConfigError("The teacher knows another number of items; fit it with the same Encoder.")
            self.teacher = (teacher.eval(),)
        try:
            return super().fit(train, valid, **options)
        finally:
            self.teacher = ()

    # -- what it says -------------------------------------------------------------------------------------------------
    def user_vectors(self, batch: Batch) -> Tensor:
        return self._of_users(batch)[:, CLICK : CLICK + 1] / self.temperature

    def item_vectors(self, batch: Batch) -> Tensor:
        vectors = self._of_items(batch)[..., CLICK, :]
        if self.bid is None:
            return vectors
        return vectors * column(batch, self.bid).to(vectors.dtype).clamp(min=0).unsqueeze(-1)

    def chances(self, batch: Batch) -> Tensor:
        """The probabilities of click, unclick and bad of each candidate, ``[R, L, 3]``, whatever it bids."""
        return self._logits(self._of_users(batch).unsqueeze(1), self._of_items(batch)).softmax(-1)

    def _of_users(self, batch: Batch) -> Tensor:
        return self.user_tower(self.inputs(batch, *USER).flat())

    def _of_items(self, batch: Batch) -> Tensor:
        return self.item_tower(self.inputs(batch, "item").flat())

    def _logits(self, users: Tensor, items: Tensor) -> Tensor:
        return (users * items).sum(-1) / self.temperature

    # -- training -----------------------------------------------------------------------------------------------------
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the three classes, over what was shown and, in training with a teacher, what was made up."""
        ids, label, live, weight = shown(batch, self.schema)
        users, items = self._of_users(batch), self._of_items(batch).view(*ids.shape, 3, -1)
        score = self._logits(users.unsqueeze(1), items).flatten(0, 1)
        kind, where = torch.where(label > 0, CLICK, UNCLICK).flatten(), live.flatten()
        weight = torch.ones_like(label) if weight is None else weight
        if self.training and self.teacher and self.bad:
            row, cell = self.bad_cases(batch, users, items, ids, live)
            score = torch.cat([score, self._logits(users[row], items.flatten(0, 1)[cell])])
            kind, where = torch.cat([kind, torch.full_like(row, BAD)]), torch.cat([where, torch.ones_like(row).bool()])
            weight = torch.cat([weight.flatten(), torch.ones_like(row, dtype=weight.dtype)])
        return {"classes": losses.cross_entropy(score, kind, where=where, weight=weight.flatten())}

    @torch.no_grad()
    def bad_cases(self, batch: Batch, users: Tensor, items: Tensor, ids: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and flat cells ``[n]`` of pairs that were not shown: irrelevant, drawn without replacement by click rate."""
        cells = live.flatten().nonzero().squeeze(1)
        row, place = cells // ids.shape[1], torch.arange(len(cells), device=cells.device)
        if not len(cells):
            return row, cells
        teacher = self.teacher[0].to(users.device)
        theirs = teacher.candidate_vectors(batch).float().flatten(0, 1)[cells]
        relevance = (teacher.user_vectors(batch).float() @ theirs.T).amax(1)  # [R, n]
        low = relevance < relevance[row, place].quantile(self.relevance)
        distinct, which = ids.flatten()[cells].unique(return_inverse=True)
        met = torch.zeros(len(ids), len(distinct), dtype=torch.bool, device=cells.device)
        met[row, which] = True

        rate = self._logits(users.unsqueeze(1), items.flatten(0, 1)[cells]).log_softmax(-1)[..., CLICK]
        noise = (
            -torch.empty_like(rate).exponential_().log()
        )  # the largest of log p + Gumbel are a draw in proportion to p
        key = (rate + noise).masked_fill(~low | met[:, which], -torch.inf).flatten()
        best = key.topk(min(round(self.bad * len(cells)), len(key)))
        found = best.indices[best.values.isfinite()]
        return found // len(cells), cells[found % len(cells)]


def _checked(schema: Schema, bid: str) -> str:
    feature = schema.feature(bid)
    if not isinstance(feature, Numeric) or feature.role != "item" or feature.transform is not None:
        raise SchemaError(f"bid={bid!r} weighs items as it is: declare Numeric({bid!r}, 'item') without a transform.")
    return bid
