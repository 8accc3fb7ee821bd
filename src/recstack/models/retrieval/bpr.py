"""BPR: Bayesian Personalized Ranking from Implicit Feedback (Rendle et al., UAI 2009).

https://arxiv.org/abs/1205.2618
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError, unknown
from recstack.features.tasks import target
from recstack.kernels.factorisation import bpr_epoch
from recstack.models.counting import user_items
from recstack.models.id_tables import IdTables
from recstack.schema import Schema

Batch = Mapping[str, Tensor]


class BPR(IdTables):
    r"""Matrix factorisation that puts what a user chose above what they did not.

    .. math:: \min \sum_{(u, i, j)} \mathrm{softplus}(-x_{uij}) + \tfrac{\lambda}{2}
        \big(\|p_u\|^2 + \|q_i\|^2 + \|q_j\|^2\big), \qquad x_{uij} = p_u^\top (q_i - q_j)

    `fit` takes the paper's steps: one triple at a time, as many an epoch as there are interactions, in native code on one
    thread, so that a seed gives one result; j is drawn uniformly from the items that u has not, or is the one with the highest
    score of `drawn` such items (Zhang et al., SIGIR 2013, https://doi.org/10.1145/2484028.2484126), which is what a list's top
    is made of. Given options of a Trainer, ``fit(train, epochs=100)``, it trains the same loss in batches, by Adam unless told
    otherwise, and reads none of `sampling`, `drawn`, `epochs` and `lr`.

    A user is an id here: a user whom training has not met is refused, in one sentence.

    Args:
        schema: a fitted schema with a user and an item key; other features are not read.
        dim: length of the vectors.
        sampling: "interaction" draws (u, i) uniformly from all interactions, the paper's; "user" draws u uniformly, then
            i of theirs, as LightGCN's PyTorch code does, so that light users count as much as heavy ones.
        drawn: items of which the hardest is j; 1 in the paper.
        epochs: passes.
        lr: learning rate of `fit`.
        l2: λ.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        seed: of what `fit` draws; the initial vectors (deviation 0.1) are torch's.

    Rendle et al., UAI 2009, https://arxiv.org/abs/1205.2618

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.BPR(rs.Encoder(train.schema).fit(train).schema, dim=8, epochs=5).fit(train)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch_size": 2048, "negatives": 1}

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        sampling: str = "interaction",
        drawn: int = 1,
        epochs: int = 100,
        lr: float = 0.05,
        l2: float = 0.01,
        task: str | None = None,
        seed: int = 0,
    ):
        super().__init__(schema, dim, std=0.1)
        if sampling not in ("interaction", "user"):
            raise unknown("sampling of BPR", sampling, ("interaction", "user"))
        if drawn < 1:
            raise ConfigError(f"drawn is at least 1; got {drawn}.")
        self.sampling, self.drawn, self.epochs, self.lr, self.l2, self.seed = sampling, drawn, epochs, lr, l2, seed
        self.positive = None if task is None else schema.task(task).name
        for table in (self.users, self.items):
            nn.init.zeros_(table.weight[1])  # who is not known

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        label, where, weight = target(batch, self.schema, self.task)
        user, item = self.user_vectors(batch).float(), self.item_vectors(batch).float()
        score = (user * item).sum(-1)
        length = user.square().sum() + (item * where.unsqueeze(-1)).square().sum()
        pairs = losses.bpr(score, label, where=where, weight=weight)
        return {self.task.name: pairs, "l2": self.l2 / 2 * length / len(user)}

    def fit(self, train: Any, valid: Any = None, *, progress: bool = True, **options: Any) -> Self:  # type: ignore[override]
        """Learn from a Log or Columns by the paper's steps; with options of a Trainer by that, in batches."""
        if options:
            return super().fit(train, valid, progress=progress, **options)
        for _ in self.passes(train):
            pass
        return self

    def passes(self, train: Any) -> Iterator[float]:
        """Train, and come back with the mean loss after each of the `epochs`, so that a curve can be drawn."""
        train = self._encoded(train)
        self._remember(train)
        rows = user_items(train, self.positive)
        users, tables = rows.rows.astype("int32"), (self.users.weight.detach(), self.items.weight.detach())
        factors = tables[0].numpy(), tables[1].numpy()
        for epoch in range(self.epochs):
            by_user, seed = self.sampling == "user", (self.seed << 20) + epoch
            loss = bpr_epoch(rows, users, by_user, seed, factors, self.lr, self.l2, self.drawn)
            self._cached, self.fitted = None, True
            self.eval()
            yield loss
