"""Negatives that are hard: items that the model itself takes for good, and items like the one that was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recstack.errors import ConfigError, SchemaError
from recstack.schema import Categorical
from recstack.training.callbacks import Callback

KEPT = 64  # of each user's window, at random: what one epoch draws from
BLOCK = 1024


class HardNegatives(Callback):
    """Puts hard negatives among those that a Loader draws uniformly: ``fit(train, negatives=20, hard=HardNegatives())``.

    For every retriever that is trained on drawn negatives. The training data's users are ranked the whole catalogue, without
    what they have, by the model as it is; what stands in a window of ranks is drawn from for the next epochs. The best ranks
    are left out, for users would choose many of these if they saw them. What a user has is never their negative.

    A model that was trained before begins with hard negatives; another one after its first `every` epochs. To end with easy
    ones, which the paper prefers to the other order, fit once with `hard` and once more without.

    A run that is resumed ranks anew, with the weights of its checkpoint. One process only.

    Args:
        window: first and last rank, from 1.
        share: of the drawn negatives, those from the window; 0.01 is 100 easy ones for each hard one, as in the paper.
        every: epochs from one ranking to the next.
        category: an item feature, whose values say which items are alike; needed by `alike`.
        alike: of the drawn negatives, those of the positive's category.
        seed: of what is kept of a window.

    Raises:
        ConfigError: shares that are none, a window that begins beyond the catalogue, a fit without negatives.
        SchemaError: a category that is no single-valued Categorical of items.

    Huang et al., "Embedding-based Retrieval in Facebook Search", KDD 2020, section 6.1, https://arxiv.org/abs/2006.11632

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.EBR(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
    >>> hard = HardNegatives(window=(11, 50), share=0.1, category="category", alike=0.2)
    >>> model = model.fit(train, epochs=2, negatives=10, hard=hard, progress=False)
    >>> hard.ranked  # after each epoch
    2
    """

    def __init__(
        self,
        *,
        window: tuple[int, int] = (101, 500),
        share: float = 0.01,
        every: int = 1,
        category: str | None = None,
        alike: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= share <= 1 or not 0 <= alike <= 1 or share + alike > 1:
            raise ConfigError(
                f"share= and alike= are parts of the drawn negatives, together 1 at most; got {share} and {alike}."
            )
        if not 1 <= window[0] <= window[1] or every < 1:
            raise ConfigError(
                f"window= is (first, last) rank, from 1, and every= at least 1; got {tuple(window)} and {every}."
            )
        if alike and category is None:
            raise ConfigError("alike= draws items of the positive's category; name the item feature, category=.")
        self.window, self.share, self.every = tuple(window), share, every
        self.category, self.alike, self.seed = category, alike, seed
        self.ranked = 0  # how often the catalogue was ranked
        self.ids: np.ndarray | None = None  # int32 [users, KEPT]

    # -- what `fit` calls ---------------------------------------------------------------------------------------------
    def loader(self, model: Any, columns: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The batches of `columns` with these negatives among the drawn ones, and the options of the Trainer."""
        from recstack.data import Loader

        negatives = options.get("negatives", 4)
        if not negatives:
            raise ConfigError(
                f"{type(model).__name__} is trained without drawn negatives, so that hard= has none to replace; "
                "give negatives=, if the model reads them."
            )
        if self.window[0] > len(columns.catalog):
            raise ConfigError(
                f"window={self.window} begins beyond the {len(columns.catalog)} items of the catalogue; take earlier ranks."
            )
        columns = columns.select(np.arange(columns.n_requests))
        columns.schema = columns.schema.without(
            *[f.name for f in columns.schema.by_role("pair")]
        )  # no tower reads these
        self.model, self.columns, self.ids, self.ranked = model, columns, None, 0
        if self.category is not None:
            self._sort_by_category(columns)
        chosen = {"shuffle": True, "seed": options.get("seed", 0), "negatives": negatives, "hard": self}
        self._loader = Loader(columns, options.get("batch_size", 1024), **chosen)
        return self._loader, {**options, "callbacks": [*options.get("callbacks", ()), self]}

    def on_start(self, trainer: Any, batches: int | None) -> None:
        if trainer.world.several:
            raise ConfigError("hard= ranks the catalogue in one process; train in one, or without it.")
        if getattr(self.model, "fitted", False) or self._loader.state_dict()["epoch"] >= self.every:
            self.rank()

    def on_epoch(self, record: dict[str, Any]) -> None:
        if record["epoch"] % self.every == 0:
            self.rank()

    def rank(self) -> None:
        """Rank the catalogue for every user of the training data, by the model as it is."""
        from recstack.data import Requests

        if not self.share:
            return
        users, newest = self.columns.user_ids, np.flatnonzero(self.columns.newer() == 0)
        chance = np.random.default_rng((self.seed, self.ranked))
        ids = np.zeros((int(users.max(initial=0)) + 1, KEPT), np.int32)
        was = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(newest), BLOCK):
                rows = newest[start : start + BLOCK]
                best = self.model.recommend(Requests.of(self.columns, rows), self.window[1]).ids.numpy()
                place = chance.integers(self.window[0] - 1, best.shape[1], (len(rows), KEPT))
                ids[users[rows]] = np.take_along_axis(best, place, 1)
        finally:
            self.model.train(was)
        self.ids, self.ranked = ids, self.ranked + 1

    # -- what the Loader calls ----------------------------------------------------------------------------------------
    def mix(
        self, users: np.ndarray, positive: np.ndarray, drawn: np.ndarray, chance: np.random.Generator
    ) -> np.ndarray:
        """`drawn` ``[R, n]`` with others in place of some; `users` and `positive` ``[R]``."""
        which = chance.random(drawn.shape)
        if self.ids is not None:
            hard = self.ids[users[:, None], chance.integers(0, KEPT, drawn.shape)]
            drawn = np.where((which < self.share) & (hard > 1), hard, drawn)
        if self.category is not None:
            of, start, items = self._of, self._start, self._items
            begin, n = start[of[positive]][:, None], np.diff(start)[of[positive]][:, None]
            near = items[np.minimum(begin + (chance.random(drawn.shape) * n).astype(np.int64), len(items) - 1)]
            drawn = np.where((which >= 1 - self.alike) & (of[positive] > 1)[:, None] & (n > 0), near, drawn)
        return drawn

    def _sort_by_category(self, columns: Any) -> None:
        """Items by category, of which 0 and 1 are none."""
        f = columns.schema.feature(self.category)
        if not isinstance(f, Categorical) or f.multi or f.role != "item":
            raise SchemaError(f"category={self.category!r} has to be a single-valued Categorical feature of items.")
        ids = columns.catalog.ids
        self._of = np.zeros(columns.catalog.size, np.int64)
        self._of[ids] = columns.catalog.batch(ids, only=[f.name])[f.name].numpy()
        self._items = ids[np.argsort(self._of[ids], kind="stable")].astype(np.int32)
        self._start = np.searchsorted(self._of[self._items], np.arange(self._of.max(initial=0) + 2))
