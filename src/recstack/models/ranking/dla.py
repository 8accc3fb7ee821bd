"""Unbiased Learning to Rank with Unbiased Propensity Estimation (Ai et al., SIGIR 2018).

https://arxiv.org/abs/1804.05938
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack import losses
from recstack.features import tasks
from recstack.models.base import Model
from recstack.models.position import Examined
from recstack.schema import Schema


class DLA(Examined):
    r"""Dual learning: a ranker and a model of positions, each weighing the other's clicks by its own inverse chances.

    .. math:: L_f = -\sum_{i: y_i = 1} \frac{g_1}{g_i} \log \frac{e^{f(x_i)}}{\sum_j e^{f(x_j)}}, \qquad
              L_g = -\sum_{i: y_i = 1} \frac{f_1}{f_i} \log \frac{e^{g(k_i)}}{\sum_j e^{g(k_j)}}

    where :math:`g_1 / g_i` and :math:`f_1 / f_i` are ratios of those softmaxes, of the first of the list to i, without a gradient and at
    most `clip`. Lists ``[R, L]`` come in the order in which they were shown (``Log(request=...)``). Scores f order, they are no
    probabilities: calibrate them. Binary tasks that are given no other learn so; the rest as ever. `examination()` is
    :math:`e^g`. Logits ``[R, L]`` never read a position.

    Departs from the paper: the clicks of a list share one vote before they are weighed, and ratios are clipped.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the layers of f.
        position: the Categorical (or bucketised) feature of where an item was shown; nothing else reads it.
        clip: the greatest weight of a click.
        norm: "batch", "layer" or None, in the layers of f.
        dropout: in the layers of f.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what f's layers read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: a position that is not declared or has no ids.

    Ai et al., SIGIR 2018, https://arxiv.org/abs/1804.05938

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.ranking.DLA(rs.Encoder(train.schema).fit(train).schema, hidden=(16,), position=("position",))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> sorted(model.examination())
    [1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (128, 64),
        position: Sequence[str] = (),
        clip: float = 20.0,
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, hidden, position[:1], norm, dropout, history, trunk)
        self.clip = clip
        self.places = None
        if self.biased:
            self.places = nn.Parameter(torch.zeros(len(self.biased), schema.feature(position[0]).size))  # type: ignore[attr-defined]

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Both losses of each biased task, the second as ``"click/position"``; those of other tasks as ever."""
        logits = self(batch)
        out = tasks.losses(logits, batch, self.schema) | self.auxiliary_losses(batch)
        if not self.training or self.places is None:
            return out
        for name, places in zip(self.biased, self.places, strict=True):
            if name not in out:
                continue
            label, where, weight = tasks.target(batch, self.schema, name)
            f, share = logits[name], self.schema.task(name).weight
            g = places.float()[self.place(batch, label.shape)]
            each = torch.ones_like(label) if weight is None else weight
            out[name] = losses.softmax(f, label, where=where, weight=each * self._ratio(g)) * share
            out[f"{name}/position"] = losses.softmax(g, label, where=where, weight=each * self._ratio(f)) * share
        return out

    def _ratio(self, score: Tensor) -> Tensor:
        """The weight of each of a list, ``[R, L]``: the first one's chance over its own."""
        score = score.detach()
        return (score[..., :1] - score).clamp(max=30).exp().clamp(max=self.clip)

    def curve(self, task: str) -> Tensor:
        assert self.places is not None
        g = self.places[self.biased.index(task)]
        return (g - g[2:].max()).exp()
