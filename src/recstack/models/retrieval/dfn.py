"""Deep Feedback Network for Recommendation (Xie et al., IJCAI 2020), as a retriever.

https://www.ijcai.org/proceedings/2020/349
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError, SchemaError, unknown
from recstack.features import Inputs
from recstack.models.base import Batch, Retriever
from recstack.models.in_batch import InBatchSoftmax, shown
from recstack.nn.mlp import linear
from recstack.nn.sequence.feedback import Feedback
from recstack.nn.tower import Tower
from recstack.schema import Schema

PROFILE = ("user", "context", "domain")


class DFN(Retriever):
    r"""Clicks, exposures without a click and explicit dislikes are read apart, then together; a click beats what was passed by.

    .. math::
        u = \mathrm{MLP}\big([\mathrm{Feedback}(c, e, d); x]\big), \quad s = \cos(u, v_i), \qquad
        L = -\log \frac{e^{s(u, i) / \tau - \log q_i}}{\sum_j e^{s(u, j) / \tau - \log q_j}}
        + \lambda \operatorname*{mean}_{j\ \text{passed by}} \max\big(0,\ m - s(u, i) + s(u, j)\big)

    Histories ``[R, T]`` go through `nn.sequence.feedback.Feedback`, with a learned vector for the target, which a retriever
    does not know; x are the user's other features. The items clicked in other rows are the softmax' negatives; those that
    the same list showed and that were not clicked are the triplet's, so train on lists: ``Log(..., request=...)``.
    Exposures are never negatives of the softmax, which would teach the model that whatever is shown is bad.

    Departs from the paper, which ranks: towers in place of wide, FM and deep parts; the softmax and the triplet in place
    of the weighted log loss; dislikes are read, and not trained on.

    Args:
        schema: a fitted schema; a history of what was not clicked is declared by ``History(..., where=...)`` of a task
            that says so.
        feedback: names of the histories: clicked, shown and not clicked, disliked; the last ones may be missing. ``()``
            takes the schema's, in their order.
        dim: embedding width.
        width: of steps in the encoder.
        heads: of its transformers.
        hidden: widths of both towers; the last is D.
        temperature: τ.
        triplet: λ.
        margin: m, of cosines.
        dropout: in encoder and towers.

    Xie et al., IJCAI 2020, https://www.ijcai.org/proceedings/2020/349

    >>> import recstack as rs
    >>> log = rs.simulator.small(lists=True)
    >>> log.events = log.events.with_columns(passed=1 - log.events["click"])
    >>> log.schema = log.schema.replace(
    ...     features=[*log.schema.features, rs.History("unclicked", of=("item_id", "category"), where="passed")],
    ...     tasks=[rs.Task("click"), rs.Task("passed", weight=0)],
    ... )
    >>> train, valid, test = rs.split.by_time(log)
    >>> model = rs.retrieval.DFN(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("history", "item")
    trainer: ClassVar[dict[str, Any]] = {"negatives": 0}  # what has label 0 was shown

    def __init__(
        self,
        schema: Schema,
        *,
        feedback: Sequence[str] = (),
        dim: int = 32,
        width: int = 32,
        heads: int = 2,
        hidden: Sequence[int] = (128, 64),
        temperature: float = 0.05,
        triplet: float = 0.3,
        margin: float = 0.1,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        known = [h.name for h in schema.histories]
        for name in feedback:
            if name not in known:
                raise unknown("history", name, known)
        self.feedback = tuple(feedback or known)
        if not 1 <= len(self.feedback) <= 3:
            raise SchemaError(
                f"DFN reads what was clicked, not clicked and disliked, and the schema has {len(known)} histories; "
                "name up to three in feedback=."
            )
        if temperature <= 0 or triplet < 0:
            raise ConfigError(f"temperature is above 0 and triplet at least 0; got {temperature:g} and {triplet:g}.")
        self.temperature, self.triplet, self.margin = temperature, triplet, margin
        unread = [f.name for f in schema.fields if f.role == "pair"]
        unread += [name for name in known if name not in self.feedback]
        self.inputs = Inputs(schema.without(*unread), dim, history=None, std=0.02)
        read = [next(h for h in schema.histories if h.name == name) for name in self.feedback]
        self.steps = nn.ModuleList(linear(sum(self.inputs.widths[n] for n in h.of), width) for h in read)
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.encoder = Feedback(width, max(h.max_len for h in read), len(read), heads, dropout)
        self.profile = self.inputs.width(*PROFILE)
        self.user_tower = Tower(self.encoder.width + self.profile, hidden, dropout=dropout)
        self.item_tower = Tower(self.inputs.width("item"), hidden, dropout=dropout)
        self.softmax = InBatchSoftmax(schema.feature(schema.item).size)  # type: ignore[arg-type, attr-defined]

    def user_vectors(self, batch: Batch) -> Tensor:
        slots = self.inputs(batch, *PROFILE, "history")
        histories = []
        for name, project in zip(self.feedback, self.steps, strict=True):
            steps, mask = slots.sequence(name)
            histories.append((project(steps), mask))
        x = self.encoder(self.query.to(histories[0][0].dtype).expand(histories[0][0].shape[0], -1), *histories)
        if self.profile:
            x = torch.cat([x, slots.flat(*PROFILE)], -1)
        return self.user_tower(x) / self.temperature

    def item_vectors(self, batch: Batch) -> Tensor:
        return self.item_tower(self.inputs(batch, "item").flat()).squeeze(-2)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The softmax of what was clicked, and the triplets of each list. Items out of vocabulary count nothing."""
        ids, label, live, weight = shown(batch, self.schema)
        users, items = self.user_vectors(batch), self.item_vectors(batch).view(*ids.shape, -1)
        cosine = (users * self.temperature * items).sum(-1)
        triplet = losses.pairwise_hinge(cosine, label, where=live, weight=weight, margin=self.margin)
        softmax = self.softmax(users, items, ids, live & (label > 0), weight=weight)
        return {"softmax": softmax, "triplet": self.triplet * triplet}
