"""Warm Up Cold-start Advertisements: Improving CTR Predictions via Learning to Learn ID Embeddings (Pan et al., SIGIR 2019).

https://arxiv.org/abs/1904.11547
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from recstack import bundle
from recstack.errors import ConfigError
from recstack.features import Inputs
from recstack.features.columns import column
from recstack.models.base import Retriever
from recstack.nn.mlp import MLP
from recstack.nn.modes import evaluating, fixed
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns

Batch = Mapping[str, Tensor]
NEAR = 4  # events of an item that come in one batch


class MetaEmbedding(Retriever):
    r"""A retriever whose new items begin with an id embedding that is generated from what they are.

    .. math:: \varphi_i = h_w(x_i), \qquad \varphi_i' = \varphi_i - \eta \nabla_{\varphi_i} l_a(\varphi), \qquad
        L(w) = \alpha\, l_a(\varphi) + (1 - \alpha)\, l_b(\varphi')

    The generator h learns on items that training knows: with :math:`\varphi` in the place of their own embeddings, :math:`l_a`
    is the base's loss on one half of a batch (how well items do cold), :math:`l_b` on the other half after one step on the
    first (how well they do once they have met a few users). First `fit` trains the base, then, the base being fixed, the
    generator, and then writes :math:`\varphi` where items are that nobody has met; `generate` does so again for items that
    came later. What is asked at serving is the base alone.

    x is the base's embeddings of the item's features beside the key. Each batch of the generator holds about four events of
    an item.

    Departs from the paper: halves of a batch with many items, each item's step being that of the mean over its own events;
    no tanh at the end.

    Args:
        schema: a fitted schema with item features beside the key.
        base: a retriever's class that reads the item key through its `inputs`, such as DSSM, a `functools.partial` of it, or
            the path of a class, "module:Class".
        hidden: widths of the generator; () is a matrix.
        alpha: weight of the cold loss.
        warm_lr: η.
        epochs: of the generator.

    Pan et al., SIGIR 2019, https://arxiv.org/abs/1904.11547

    >>> from functools import partial
    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> base = partial(rs.retrieval.DSSM, dim=8, hidden=(16,))
    >>> model = rs.retrieval.MetaEmbedding(rs.Encoder(train.schema).fit(train).schema, base=base, epochs=1)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    met: Tensor  # bool [items], which have an embedding of their own

    def __init__(
        self,
        schema: Schema,
        *,
        base: str | Callable[..., Any] = "recstack.models.retrieval.dssm:DSSM",
        hidden: Sequence[int] = (),
        alpha: float = 0.1,
        warm_lr: float = 0.01,
        epochs: int = 3,
    ):
        super().__init__(schema)
        if not 0 <= alpha <= 1 or warm_lr <= 0 or epochs < 1:
            raise ConfigError(
                f"alpha lies in [0, 1], warm_lr is positive and epochs at least 1; got {alpha:g}, {warm_lr:g} and {epochs}."
            )
        self.base = (bundle.resolve(base) if isinstance(base, str) else base)(schema)
        inputs = getattr(self.base, "inputs", None)
        if not isinstance(self.base, Retriever) or not isinstance(inputs, Inputs) or schema.item not in inputs.widths:
            raise ConfigError(
                f"MetaEmbedding needs a base that reads the item key through its inputs, such as DSSM; "
                f"{type(self.base).__name__} does not."
            )
        self.alpha, self.warm_lr, self.epochs = alpha, warm_lr, epochs
        self.item: str = schema.item  # type: ignore[assignment]
        self.beside = [f.name for f in schema.by_role("item") if f.name != self.item]
        feature = schema.feature(self.item)
        self.table, dim = feature.table_name, inputs.widths[self.item]  # type: ignore[attr-defined]
        mlp = MLP(sum(inputs.widths[name] for name in self.beside), hidden if self.beside else (), "tanh")
        self.generator = nn.Sequential(mlp, nn.Linear(mlp.width, dim, bias=False)) if self.beside else None
        self.common = nn.Parameter(torch.zeros(dim))
        self.register_buffer("met", torch.ones(feature.size, dtype=torch.bool))  # type: ignore[attr-defined]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.base(batch)

    def user_vectors(self, batch: Batch) -> Tensor:
        return self.base.user_vectors(batch)

    def item_vectors(self, batch: Batch) -> Tensor:
        return self.base.item_vectors(batch)

    def generated(self, batch: Batch) -> Tensor:
        """The initial embedding of each item, ``[..., dim]``, from item tensors alone."""
        ids = column(batch, self.item)
        if self.generator is None:
            return self.common.expand(*ids.shape, -1)
        slots = self.base.inputs(batch, "item")
        x = torch.cat([slots[name] for name in self.beside], -1)
        return self.generator(x).view(*ids.shape, self.common.shape[0]) + self.common

    # -- training -----------------------------------------------------------------------------------------------------
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The base's own, unless it is fixed, and that of the generator, which does not move the base."""
        out = self.base.losses(batch) if any(p.requires_grad for p in self.base.parameters()) else {}
        with fixed(self.base):
            out["meta"] = self._meta(batch)
        return out

    @torch.enable_grad()
    def _meta(self, batch: Batch) -> Tensor:
        ids = column(batch, self.item)
        first = (torch.arange(ids.shape[0], device=ids.device) % 2 == 0).unsqueeze(-1)
        start = self.generated({name: batch[name] for name in self._item_keys(batch)})
        cold = self._loss(batch, start, first)
        (slope,) = torch.autograd.grad(cold, [start], create_graph=True, allow_unused=True)
        if slope is None:
            raise ConfigError(f"The loss of {type(self.base).__name__} does not read the item key through its inputs.")
        live = (first & batch["@mask"] if "@mask" in batch else first.expand(ids.shape)).float().flatten()
        item, own = ids.flatten().unique(return_inverse=True)
        total = slope.new_zeros(len(item), slope.shape[-1]).index_add(0, own, slope.flatten(0, -2))
        events = live.new_zeros(len(item)).index_add(0, own, live)
        step = total * (live.sum() / events.clamp(min=1)).unsqueeze(-1)  # of the mean over each item's own events
        warm = self._loss(batch, start - self.warm_lr * step[own].view_as(start), ~first)
        return self.alpha * cold + (1 - self.alpha) * warm

    def _loss(self, batch: Batch, embedding: Tensor, rows: Tensor) -> Tensor:
        """The base's loss of some rows, with these embeddings of the candidates' ids."""
        labels = {f"{t.column}@label" for t in self.schema.tasks if not t.derived}
        part = {n: torch.where(rows, v, torch.nan) if n in labels else v for n, v in batch.items()}
        with instead(self.base.inputs, self.item, embedding):
            return torch.stack(list(self.base.losses(part).values())).sum()

    def _item_keys(self, batch: Batch) -> list[str]:
        own = {self.item, *self.beside}
        return [name for name in batch if name.removesuffix("@offsets") in own]

    def prepare(self, train: Columns) -> None:
        """Which items `train` has met; `fit` does so."""
        count = np.bincount(train.item_ids[train.positives()], minlength=len(self.met))
        self.met = torch.from_numpy(count > 0).to(self.met.device)
        self.base.prepare(train)

    def pretrain(self, base: Retriever) -> Self:
        """Take a trained base, of the same class and options; `fit` then trains the generator alone."""
        self.base.load_state_dict(base.state_dict())
        self.base.fitted = True
        return self

    def fit(self, train: Any, valid: Any = None, **options: Any) -> Self:
        """Train the base with `options`, then the generator by Adam, and write the embeddings of new items."""
        from recstack.data import Loader
        from recstack.training import Trainer

        train = self._encoded(train)
        if not self.base.fitted:
            self.base.fit(train, valid, **options)
        self._remember(train)
        self.prepare(train)
        batch_size, seed = options.get("batch_size", 1024), options.get("seed", 0)
        by_item = np.argsort(train.item_ids[train.lists[:-1]], kind="stable")
        near: dict[str, Any] = {"shuffle": "blocks", "block": NEAR, "window": max(batch_size // NEAR, 1), "seed": seed}
        near["negatives"] = options.get("negatives", 4) if train.implicit else 0
        kept = {k: v for k, v in options.items() if k in ("device", "progress", "precision")}
        trainer = Trainer(self, optimizer="adam", lr=1e-3, epochs=self.epochs, seed=seed, **kept)
        with fixed(self.base):
            self.trained = trainer.fit(Loader(train.select(by_item), batch_size, **near))
        self.generate()
        return self

    def grown(self, source: Any) -> Self:
        """As `Model.grown`; items that are new in `source` wait for `generate`."""
        new = super().grown(source)
        new.met[: len(self.met)] = self.met
        new.met[len(self.met) :] = False
        return new

    @torch.no_grad()
    def generate(self, block: int = 65536) -> int:
        """Write the generated embedding of every item of the catalogue that training has not met; how many they are."""
        ids = self.catalog.ids[~self.met.cpu().numpy()[self.catalog.ids]]
        with evaluating(self):
            for part in torch.from_numpy(ids).split(block):
                vectors = self.generated(self._here(self.catalog.batch(part)))
                self.base.inputs.tables.load(self.table, part.to(vectors.device), vectors)
        self._cached = None
        return len(ids)


@contextmanager
def instead(inputs: Inputs, name: str, vectors: Tensor) -> Iterator[None]:
    """Candidates of `inputs` have these vectors of one feature."""

    def put(module: nn.Module, given: Any, slots: Any) -> Any:
        if name in slots.candidate:
            slots.candidate.found[name] = vectors
        return slots

    handle = inputs.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
