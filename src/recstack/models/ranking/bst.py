"""Behavior Sequence Transformer for E-commerce Recommendation in Alibaba (Chen et al., DLP-KDD 2019).

https://arxiv.org/abs/1905.06874
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.sequence.target_transformer import TargetTransformer
from recstack.schema import Schema


class BST(Model):
    r"""A transformer reads the history with the target item at its end; all it gives goes into an MLP.

    .. math:: S = \mathrm{Transformer}([e_1 + p_T; \dots; e_T + p_1; e_t + p_0]), \qquad z = \mathrm{MLP}([S; \dots])

    Histories ``[R, T]``, candidates ``[R, L]``. What each step becomes depends on the target, so that ``[R, L, T, W]`` is
    built; ``reduction="target"`` with one layer needs none of it. Departs from the paper: positions count steps from
    the target instead of seconds, and are added, not concatenated.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        layers, heads: of the transformer; 1 and 8 in the paper.
        reduction: what the MLP reads: "concat", all of the history by position, as in the paper; "mean" of all;
            "target", what the target became.
        hidden: widths of the MLP; (1024, 512, 256) in the paper.
        dropout: in transformer and MLP.

    Chen et al., DLP-KDD 2019, https://arxiv.org/abs/1905.06874

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.BST(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
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
        layers: int = 1,
        heads: int = 8,
        reduction: str = "concat",
        hidden: Sequence[int] = (1024, 512, 256),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        steps = max(h.max_len for h in schema.histories)
        own = partial(TargetTransformer, layers=layers, heads=heads, steps=steps, reduction=reduction, dropout=dropout)
        self.inputs = Inputs(schema, dim, history=own, std=0.01)
        self.mlp = MLP(self.inputs.width(), hidden, "leaky_relu", dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(self.mlp(self.inputs(batch).sides(), batch.get("@mask")))
