"""Item2Vec: Neural Item Embedding for Collaborative Filtering (Barkan and Koenigstein, MLSP 2016).

https://arxiv.org/abs/1603.04259
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recstack.errors import ConfigError
from recstack.kernels.skip_gram import thinned
from recstack.models.counting import sessions
from recstack.models.item_vectors import ItemVectors
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns


class Item2Vec(ItemVectors):
    r"""Skip-gram with negative sampling over sets of items: near each other are items that the same users chose.

    .. math:: \max \sum_{u} \sum_{i \ne j \in I_u} \Big[ \log \sigma(v_i^\top z_j)
        + \sum_{n} \log \sigma(-v_i^\top z_n) \Big], \qquad
        s(u, j) = \sum_{i \in I_u} d^{\,\mathrm{age}(i)} \cos(v_i, v_j)

    A set has no order: it is shuffled in each epoch, and pairs are taken within a window. Frequent items are left out with
    chance :math:`1 - \sqrt{\rho / f_i}`, negatives are drawn by frequency to the power of 0.75. Whoever has a history is
    answered, met in training or not; an item that nobody has met is never proposed.

    Args:
        schema: filled in by `fit`.
        dim: width of the vectors.
        window: how far apart two items of a pair may stand.
        shuffle: False keeps the order of time, for sequences that have one.
        gap: two events of a user further apart begin a new set, in the unit of the schema's time column; None: all that a
            user met is one.
        negatives: drawn for each pair.
        subsample: :math:`\rho`; 1 keeps everything.
        epochs: passes.
        lr: learning rate at the beginning; it falls linearly.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history; None: all.
        decay: d, weight of an item of the history for each step that it lies back.
        seed: of everything that is drawn.

    Barkan and Koenigstein, MLSP 2016, https://arxiv.org/abs/1603.04259

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.Item2Vec(dim=16, window=5, epochs=2).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        dim: int = 64,
        window: int = 20,
        shuffle: bool = True,
        gap: float | None = None,
        negatives: int = 15,
        subsample: float = 1e-3,
        epochs: int = 20,
        lr: float = 0.025,
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(schema, dim, window, negatives, lr, seed, task, history, last, decay)
        if epochs < 1 or not 0 < subsample <= 1:
            raise ConfigError(f"epochs is at least 1 and subsample lies in (0, 1]; got {epochs} and {subsample:g}.")
        self.shuffle, self.gap, self.subsample, self.epochs = shuffle, gap, subsample, epochs

    def count(self, train: Columns) -> None:
        self._profile()  # an unknown history is told now
        sets, _ = sessions(train, self.task, self.gap, "Item2Vec")
        counts = np.bincount(sets.columns, minlength=sets.width)
        kept = np.sqrt(self.subsample * counts.sum() / np.maximum(counts, 1))

        def passed(epoch: int):
            return thinned(sets, kept, (self.seed << 20) + epoch, self.shuffle)

        table, _ = self.learn([passed] * self.epochs, counts)
        self.keep(table, counts > 0)
