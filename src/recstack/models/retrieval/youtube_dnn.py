"""Deep Neural Networks for YouTube Recommendations (Covington et al., RecSys 2016).

https://doi.org/10.1145/2959100.2959190
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recstack.models.next_item import NextItem, Profile, positives_only
from recstack.nn.mlp import MLP
from recstack.nn.sequence.pooling import Mean
from recstack.schema import Numeric, Schema


class YouTubeDNN(NextItem):
    r"""The mean of what a user watched, who and where they are, and how old the example is, say what they watch next.

    .. math:: u = \mathrm{MLP}\big([\textstyle\frac1n \sum_l e_{i_l};\, x;\, x^2;\, \sqrt x;\, a]\big), \qquad
        P(i \mid u) = \frac{e^{\langle u, o_i \rangle}}{\sum_j e^{\langle u, o_j \rangle}}

    One example a request ``[R]``, its target the first candidate; `fit` takes the same number of each user, so that heavy
    users do not outvote the rest. Attributes of the user (not the id) and contexts are read, numbers with their square
    and root. a is the age of the example, :math:`t_\max - t`, as a share of the log's length: with it the model learns
    that items age; it is 0 at serving, and in training where the History is not `timed`. Items that are looked for have
    a table o of their own, of the last hidden layer's width.

    Departs from the paper: no search tokens.

    Args:
        schema: a fitted schema with a History.
        dim: width of the items that were watched.
        hidden: widths of the MLP; 1024, 512, 256 in the paper.
        dropout: in the MLP.
        examples: of each user, the newest positive ones.
        loss: "sampled_softmax" (corrected by logQ), "softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for an example.
        alpha: of drawing them by popularity ** alpha; 0 is uniformly.

    Covington et al., RecSys 2016, https://doi.org/10.1145/2959100.2959190

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.YouTubeDNN(rs.Encoder(train.schema).fit(train).schema, dim=16, hidden=(32, 16))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        hidden: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
        examples: int = 20,
        loss: str = "sampled_softmax",
        negatives: int = 2048,
        alpha: float = 0.0,
    ):
        super().__init__(schema, dim, loss=loss, negatives=negatives, alpha=alpha, out=hidden[-1])
        self.examples = examples
        own = [
            replace(f, powers=(1.0, 2.0, 0.5)) if isinstance(f, Numeric) and not (f.embedded or f.embedding) else f
            for f in schema.features
        ]
        self.profile = Profile(schema.replace(features=own), "user", "context", "domain", dim=dim)
        self.mean = Mean(dim)
        self.mlp = MLP(dim + self.profile.width + 3, hidden, dropout=dropout)
        self.span: tuple[float, float] | None = None  # of the training log's times

    def prepare(self, train: Any) -> None:
        super().prepare(train)
        if train.times is not None and len(train.times):
            self.span = float(train.times.min()), float(train.times.max())

    def training_columns(self, train: Any) -> Any:
        found = train.select(train.positives()[train.lists[:-1]])  # the first candidate is what was found
        return positives_only(found.select(found.newer() < self.examples))

    def vectors(self, batch: Mapping[str, Tensor], age: Tensor | None) -> Tensor:
        """``[R, 1, D]`` of examples of this age ``[R]``, between 0 and 1; None is 0."""
        mean = self.mean(None, *self.inputs(batch, "history").sequence(self.history.name))
        a = mean.new_zeros(mean.shape[0]) if age is None else age.to(mean)
        parts = [mean, torch.stack([a, a.square(), a.sqrt()], -1), self.profile(batch, mean)]
        return self.mlp(torch.cat(parts, -1)).unsqueeze(1)

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.vectors(batch, None)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each request found: its first candidate, if its label is positive."""
        wanted, age = self.sought(batch), None
        if "@time" in batch and self.span is not None:
            oldest, newest = self.span
            age = ((newest - batch["@time"].double()) / max(newest - oldest, 1.0)).clamp(0, 1)
        return {"next": self.item_loss(self.vectors(batch, age)[wanted > 1], wanted[wanted > 1])}
