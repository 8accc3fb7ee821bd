"""Sampling Is All You Need on Modeling Long-Term User Behaviors for CTR Prediction (Cao et al., CIKM 2022).

https://arxiv.org/abs/2205.10249
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.sequence.hashing import HashAttention
from recstack.schema import Schema


class SDIM(Model):
    r"""Past steps that fall into the target's buckets under random hashes are its interest; nothing is compared.

    .. math:: v_u(t) = \frac{1}{G} \sum_g \mathrm{norm}\Big(\sum_{l:\, b_g(e_l) = b_g(e_t)} e_l\Big), \qquad
        z = \mathrm{MLP}([v_u(t); v^s_u(t); e_t; \dots])

    Buckets are filled once per request from ``[R, T]``; each of the candidates ``[R, L]`` looks G of them up, however long
    the history is. Hashes are random, fixed and saved. The newest steps are read by DIN's attention besides, v^s.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        hashes: in all; 48 in the paper.
        bits: hashes in each of the G groups; 3 in the paper.
        recent: newest steps that target attention reads besides.
        hidden: widths of the MLP.
        activation: in the MLP.
        dropout: in the MLP.

    Cao et al., CIKM 2022, https://arxiv.org/abs/2205.10249

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.SDIM(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs = ("history", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hashes: int = 48,
        bits: int = 3,
        recent: int = 20,
        hidden: Sequence[int] = (200, 80),
        activation: str = "dice",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        own = partial(HashAttention, hashes=hashes, bits=bits, recent=recent)
        self.inputs = Inputs(schema, dim, history=own, std=0.01)
        self.mlp = MLP(self.inputs.width(), hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(self.mlp(self.inputs(batch).sides(), batch.get("@mask")))
