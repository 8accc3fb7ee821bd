"""Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts (Ma et al., KDD 2018).

https://doi.org/10.1145/3219819.3220007
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.experts import Experts
from recstack.nn.gates import Gate, mixture, utilisation
from recstack.nn.mlp import MLP
from recstack.nn.names import ByName
from recstack.schema import Schema


class MMoE(Model):
    r"""Shared experts, and a gate for each task that chooses among them.

    .. math:: z_k = \sum_e g^k_e(x)\, f_e(x), \qquad g^k(x) = \mathrm{softmax}(W_k x), \qquad
        \mathrm{logit}_k = \mathrm{MLP}_k(z_k)

    Experts ``[R, L, E, H]`` are computed together, gates ``[R, L, E]`` have no bias. Departs from the paper: nothing; the
    default sizes are those of its synthetic experiment.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        experts: E.
        hidden: widths of each expert.
        towers: widths of each task's tower.
        norm: "batch", "layer" or None, in the towers.
        dropout: in experts and towers.

    Ma et al., KDD 2018, https://doi.org/10.1145/3219819.3220007

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.multitask.MMoE(rs.Encoder(train.schema).fit(train).schema, experts=4)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        experts: int = 8,
        hidden: Sequence[int] = (16,),
        towers: Sequence[int] = (8,),
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim)
        width, tasks = self.inputs.width(), [t.name for t in schema.tasks if not t.derived]
        self.experts = Experts(width, hidden, experts, dropout)
        self.gates = ByName({task: Gate(width, experts) for task in tasks})
        self.towers = ByName({task: MLP(hidden[-1], towers, norm=norm, dropout=dropout) for task in tasks})
        self.heads = Heads(schema, towers[-1] if towers else hidden[-1])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, mask = self.inputs(batch).sides(), batch.get("@mask")
        shared = self.experts(x)  # [R, L, E, H]
        return self.heads(
            {task: self.towers[task](mixture(gate(x), shared), mask) for task, gate in self.gates.items()}
        )

    @torch.no_grad()
    def measures(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the gates do on a batch, as scalars to log.

        ``"click/gate/3"`` is the mean weight of expert 3, ``"click/gate/entropy"`` the mean entropy of a row's weights.
        """
        x, mask = self.inputs(batch).sides(), batch.get("@mask")
        out: dict[str, Tensor] = {}
        for task, gate in self.gates.items():
            share, out[f"{task}/gate/entropy"] = utilisation(gate(x), mask)
            out |= {f"{task}/gate/{i}": one for i, one in enumerate(share)}
        return out
