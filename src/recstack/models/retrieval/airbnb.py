"""Real-time Personalization using Embeddings for Search Ranking at Airbnb (Grbovic and Cheng, KDD 2018).

https://doi.org/10.1145/3219819.3219885
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recstack.errors import ConfigError
from recstack.kernels.cooccurrence import transpose
from recstack.kernels.topk import Sparse
from recstack.models.counting import item_values, sessions
from recstack.models.item_vectors import ItemVectors
from recstack.schema import Schema, is_embedded, is_multi

if TYPE_CHECKING:
    from recstack.data import Columns


class AirbnbEmbeddings(ItemVectors):
    r"""Skip-gram over click sessions in which the booked listing stands beside every click, and negatives come from the market.

    .. math:: \max \sum_{l} \sum_{c \in C_l} \log \sigma(v_l^\top z_c) + \sum_{n} \log \sigma(-v_l^\top z_n)
        + \log \sigma(v_l^\top z_b) + \sum_{m \in \mathrm{market}(l)} \log \sigma(-v_l^\top z_m)

    b is the item booked in the session, wherever in it the click l stands; n are drawn by frequency to the power of 0.75, m
    uniformly from the items of l's market. A user is answered from the items of their history, by the sum of cosines.

    Departs from the paper: negatives are drawn for each pair; no vectors of new listings from those nearby, and none of the
    types of users and listings.

    Args:
        schema: filled in by `fit`.
        booking: the binary task of what ends a session in success; None: there is none.
        market: a category of items from which negatives are drawn as well; None: there is none.
        gap: two events of a user further apart begin a new session, in the unit of the schema's time column, the paper's is
            half an hour; None: all that a user met is one.
        copies: how often a session with a booking is repeated in an epoch.
        dim: width of the vectors.
        window: clicks on either side.
        negatives: drawn for each pair.
        market_negatives: drawn for each pair from the market.
        epochs: passes.
        lr: learning rate at the beginning; it falls linearly.
        task: the binary task whose label 1 makes a row a click; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history; None: all.
        decay: weight of an item of the history for each step that it lies back.
        seed: of everything that is drawn.

    Grbovic and Cheng, KDD 2018, https://doi.org/10.1145/3219819.3219885

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.AirbnbEmbeddings(booking="click", market="category", gap=1800, epochs=2).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        booking: str | None = None,
        market: str | None = None,
        gap: float | None = None,
        copies: int = 5,
        dim: int = 32,
        window: int = 5,
        negatives: int = 5,
        market_negatives: int = 5,
        epochs: int = 10,
        lr: float = 0.025,
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(schema, dim, window, negatives, lr, seed, task, history, last, decay)
        if min(epochs, copies, market_negatives) < 1:
            raise ConfigError(
                f"epochs, copies and market_negatives are at least 1; got {epochs}, {copies} and {market_negatives}."
            )
        self.booking, self.market, self.gap, self.copies = booking, market, gap, copies
        self.market_negatives, self.epochs = market_negatives, epochs

    def count(self, train: Columns) -> None:
        self._profile()  # an unknown history is told now
        visits, entries = sessions(train, self.task, self.gap, "AirbnbEmbeddings")
        counts = np.bincount(visits.columns, minlength=visits.width)
        goals = self._booked(train, visits, entries)
        row = np.repeat(np.arange(visits.height), np.where(goals >= 0, self.copies, 1))
        row = np.random.default_rng(self.seed).permutation(row)
        repeated = visits.take(row)
        local = None if self.market is None else self._markets()
        options = {"goals": goals[row], "local": local, "local_negatives": self.market_negatives}
        table, _ = self.learn([lambda epoch: repeated] * self.epochs, counts, **options)
        self.keep(table, counts > 0)

    def _booked(self, train: Columns, visits: Sparse, entries: np.ndarray) -> np.ndarray:
        """The last item booked in each session, int32 [sessions]; -1 where there is none."""
        goals = np.full(visits.height, -1, np.int32)
        if self.booking is not None:
            chosen = train.positives(self.schema.task(self.booking).name) & (train.item_ids >= 2)
            request = np.repeat(np.arange(train.n_requests), np.diff(train.lists))
            booked = np.zeros(train.n_requests, np.int32)
            booked[request[chosen]] = train.item_ids[chosen]
            of_entry = booked[entries]
            goals[visits.rows[of_entry > 0]] = of_entry[of_entry > 0]  # the last one stands
        return goals

    def _markets(self) -> tuple[np.ndarray, Sparse]:
        """The market of each item, -1 where it has none, and the items of each."""
        f = self.schema.feature(self.market)  # type: ignore[arg-type]
        if f.role != "item" or not is_embedded(f) or is_multi(f):
            raise ConfigError(f"market={self.market!r} is not a category that each item has one of.")
        found = item_values(self.catalog, f)
        of_item = np.full(found.height, -1, np.int32)
        of_item[found.rows] = found.columns
        return of_item, transpose(found._replace(values=None))
