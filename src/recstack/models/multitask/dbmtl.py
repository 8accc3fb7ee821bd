"""Deep Bayesian Multi-Target Learning for Recommender Systems (Wang et al., 2019).

https://arxiv.org/abs/1902.09154
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import ConfigError, unknown
from recstack.features import Heads
from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.mlp import MLP
from recstack.nn.names import ByName
from recstack.schema import Schema


class DBMTL(MultiTask):
    r"""A Bayesian network over the targets, whose links are hidden layers: a task reads what its parents made of the row.

    .. math:: p(t_1 \ldots t_T \mid x) = \prod_k p(t_k \mid \mathrm{parents}(t_k),\, x), \qquad
        r_k = \mathrm{MLP}'_k\big([\mathrm{MLP}_k(z);\, r_j : j \in \mathrm{parents}(k)]\big), \qquad
        \mathrm{logit}_k = w_k^\top r_k + b_k

    r_k ``[R, L, H]``. Departs from the paper: its shared layers are the `trunk`, as in
    ``trunk=partial(rs.multitask.SharedBottom, hidden=(256, 128), towers=())``; without, towers read the embeddings.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of each task's tower.
        relation: widths of the layers between a task's tower, its parents and its head.
        parents: ``{task: its parents}``, by default the task that each is `given`.
        detach: what a task reads of its parents does not shape them.
        norm: "batch", "layer" or None.
        dropout: in towers and relations.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what towers read in the place of all embeddings; a model class, such as ``rs.multitask.PLE``.

    Raises:
        ConfigError: no task has a parent, a name that is no task with a head of its own, parents in a circle.

    Wang et al., 2019, https://arxiv.org/abs/1902.09154

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel"))
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> model = rs.multitask.DBMTL(schema, parents={"cart": ("click",), "order": ("click", "cart")})
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['cart', 'carted', 'click', 'order', 'ordered']
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        relation: Sequence[int] = (32,),
        parents: Mapping[str, Sequence[str]] | None = None,
        detach: bool = False,
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, history, trunk)
        if parents is None:
            parents = {t.name: (t.given,) for t in schema.tasks if t.given is not None}
        if not relation or not any(parents.values()):
            raise ConfigError(
                'DBMTL links tasks by hidden layers. Give parents={"order": ("click",)}, or declare tasks as given others, '
                "and relation=, the widths of the layers between them."
            )
        self.order = _ordered(self.names, parents)
        self.parents = {name: tuple(parents.get(name, ())) for name in self.order}
        self.detach = detach
        self.towers_on(self.trunk.width, hidden, each=self.trunk.each, norm=norm, dropout=dropout)
        own = self.towers.width
        self.relations = ByName()
        for name in self.order:
            width = own + len(self.parents[name]) * relation[-1]
            self.relations[name] = MLP(width, relation, norm=norm, dropout=dropout)
        self.heads = Heads(schema, relation[-1])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        mask = batch.get("@mask")
        own = self.by_task(self.towers(x, mask))
        r: dict[str, Tensor] = {}
        for name in self.order:
            above = [r[p].detach() if self.detach else r[p] for p in self.parents[name]]
            r[name] = self.relations[name](torch.cat([own[name], *above], -1), mask)
        return self.heads(r, plus)


def _ordered(names: Sequence[str], parents: Mapping[str, Sequence[str]]) -> list[str]:
    """All names, parents before children, else in the given order."""
    for name in (*parents, *(p for above in parents.values() for p in above)):
        if name not in names:
            raise unknown("task in parents=", name, names)
    out: list[str] = []
    while len(out) < len(names):
        ready = [n for n in names if n not in out and all(p in out for p in parents.get(n, ()))]
        if not ready:
            left = [n for n in names if n not in out]
            raise ConfigError(f"Tasks {', '.join(left)} are each other's parents in a circle; a network has no circle.")
        out.append(ready[0])
    return out
