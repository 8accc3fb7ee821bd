"""PAL: A Position-bias Aware Learning Framework for CTR Prediction in Live Recommender Systems (Guo et al., RecSys 2019).

https://doi.org/10.1145/3298689.3347033
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recstack.features import tasks
from recstack.losses import product_logit
from recstack.models.base import Model
from recstack.models.position import Examined, ShallowTower
from recstack.schema import Schema


class PAL(Examined):
    r"""A click is the product of being seen, which the position decides, and of being liked; only the second is served.

    .. math:: p(y \mid x, \text{pos}) = p_{\text{seen}}(\text{pos}) \; p_{\text{ctr}}(x), \qquad
        p_{\text{seen}} = \sigma(s(\text{pos})), \quad p_{\text{ctr}} = \sigma(f(x))

    Both are learned together, from the loss of the product. In training logits ``[R, L]`` are those of the product, in evaluation,
    serving and exported graphs those of :math:`p_{\text{ctr}}`: batches need no position then. It holds for binary tasks that are
    given no other. Only the product is seen, so both factors are known up to one number; the order by :math:`p_{\text{ctr}}` is not
    touched by it, and `Calibrator`s set its level. `examination()` is the curve that was learned.

    Departs from the paper: the tower of the position has one hidden layer; the paper does not say.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the layers of f.
        position: Categorical (or bucketised) features of where an item was shown; nothing else reads them. None: a plain MLP.
        norm: "batch", "layer" or None, in the layers of f.
        dropout: in the layers of f.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what f's layers read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: a position that is not declared or has no ids.

    Guo et al., RecSys 2019, https://doi.org/10.1145/3298689.3347033

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.PAL(rs.Encoder(train.schema).fit(train).schema, hidden=(16,), position=("position",))
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
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, hidden, position, norm, dropout, history, trunk)
        self.seen = ShallowTower(schema, position, dim, len(self.biased), bias=True) if self.biased else None

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self.relevance(batch)
        if not self.training or self.seen is None:
            return logits
        for name, seen in zip(self.biased, self.seen(batch).float().unbind(-1), strict=True):
            logits[name] = product_logit(*(x.contiguous() for x in (seen.expand_as(logits[name]), logits[name])))
        return tasks.derive(logits, self.schema)

    def curve(self, task: str) -> Tensor:
        assert self.seen is not None
        (name,) = self.seen.columns  # of several features there is no one curve
        ids = torch.arange(self.schema.feature(name).size, device=self.seen.out.weight.device)  # type: ignore[attr-defined]
        logit = self.seen.of({name: ids.unsqueeze(0) if self.seen.columns[name] else ids}).reshape(len(ids), -1)
        return logit[:, self.biased.index(task)].sigmoid()
