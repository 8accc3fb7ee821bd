"""The YouTube Video Recommendation System (Davidson et al., RecSys 2010).

https://doi.org/10.1145/1864708.1864770
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recstack.errors import ConfigError
from recstack.kernels.cooccurrence import co_visits
from recstack.kernels.topk import Sparse
from recstack.models.counting import ItemToItem, sessions
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns


class CoVisitation(ItemToItem):
    r"""Two items are related if they are met in the same session: soon after each other, and in this order.

    .. math:: S_{ij} = \sum_{\mathrm{sessions}\, S} \frac{1}{\log(1 + |S|)} \sum_{a, b \in S:\; i_a = i,\, i_b = j}
        2^{-|t_a - t_b| / h}\, \big([a < b] + \beta\, [a > b]\big)

    A session is what one user met without a pause of more than `gap`; :math:`e^{-\gamma |\Delta t|}` is the half-life
    :math:`h = \ln 2 / \gamma`.

    Departs from the paper: its related videos are co-visited within 24 hours (``gap=86400``) and weighed by
    :math:`1 / (c_i c_j)` alone; weights of time and direction are later practice, and here the rows are normalised.

    Args:
        schema: filled in by `fit`.
        gap: two events of a user further apart begin a new session, in the unit of the schema's time column; None: all that
            a user met is one.
        half_life: after how long a pair counts half, in the same unit; None: time does not matter.
        backward: :math:`\beta`, what a pair counts for proposing the earlier item to who met the later.
        window: only pairs at most so many events apart.
        neighbours: kept for each item.
        normalise: "sum", "max" or None.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history are asked for their neighbours; None: all.
        decay: weight of an item of the history for each step that it lies back.

    Davidson et al., RecSys 2010, https://doi.org/10.1145/1864708.1864770

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> hour = 3600
    >>> model = rs.retrieval.CoVisitation(gap=24 * hour, half_life=hour, last=10, decay=0.9).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        gap: float | None = None,
        half_life: float | None = None,
        backward: float = 0.7,
        window: int = 30,
        neighbours: int = 100,
        normalise: str | None = "sum",
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
    ):
        super().__init__(schema, neighbours, normalise, task, history, last, decay)
        if window < 1 or backward < 0 or min(x for x in (gap, half_life, 1) if x is not None) <= 0:
            raise ConfigError(
                "window is at least 1, backward at least 0, gap and half_life are positive; "
                f"got {window}, {backward:g}, {gap} and {half_life}."
            )
        self.gap, self.half_life, self.backward, self.window = gap, half_life, backward, window

    def counted(self, train: Columns) -> Sparse:
        if train.times is None and (self.gap is not None or self.half_life is not None):
            raise ConfigError("CoVisitation(gap=..., half_life=...) needs a time: Schema(..., time='...').")
        visits, request = sessions(train, self.task, self.gap, "CoVisitation")
        time = np.zeros(len(request)) if train.times is None else train.times[request]
        return co_visits(
            visits,
            1 / np.log1p(visits.counts),
            time,
            window=self.window,
            half_life=self.half_life,
            backward=self.backward,
            k=self.neighbours,
        )
