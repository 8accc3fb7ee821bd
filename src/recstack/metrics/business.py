"""What a log says of the business: ratios of sums over impressions, of all or by group."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recstack.errors import DataError
from recstack.metrics.auc import numbered


def business(
    click: Tensor,
    *,
    cost: Tensor | None = None,
    revenue: Tensor | None = None,
    gmv: Tensor | None = None,
    position: Tensor | None = None,
    group: Tensor | None = None,
    where: Tensor | None = None,
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Proxies from a log of impressions, one per row; float64 scalars, or ``[G]`` by ascending id of `group`.

    =========================  ==========================================================================
    ``ctr``                    clicks / impressions
    ``ppc``                    cost / clicks, the price of a click
    ``cpm``                    1000 · cost / impressions, what advertisers pay for a thousand
    ``rpm``                    1000 · revenue / impressions, what the site earns by a thousand
    ``gmv``                    Σ of what was ordered, in money
    ``roi``                    gmv / cost, as ad platforms say it: 1 is what was paid, not a gain of 1
    ``clicked_position``       mean position, from 1, of clicks
    ``impression_share``       the group's impressions / all
    =========================  ==========================================================================

    What needs a column that is not given is left out; a ratio over 0 is NaN. With ``impressions`` and ``clicks`` beside. Intervals:
    `bootstrap_ratio`, by user.

    Args:
        click: 0 or 1 ``[...]``; the others have its shape.
        cost: charged to the advertiser, of each row (of a click or of an impression).
        revenue: earned by the site. Where ads are all it sells, that is `cost`.
        gmv: value of the orders that a row led to.
        group: integer ids, such as a campaign, a domain or a day.

    Raises:
        DataError: a column of another shape, or one that is not finite in live rows.

    >>> found = business(
    ...     torch.tensor([1, 0, 0, 1]), cost=torch.tensor([0.5, 0, 0, 0.3]), position=torch.tensor([1, 2, 3, 4])
    ... )
    >>> {name: round(value.item(), 4) for name, value in found.items()}
    {'impressions': 4.0, 'clicks': 2.0, 'ctr': 0.5, 'ppc': 0.4, 'cpm': 200.0, 'clicked_position': 2.5}
    """
    columns = {"click": click, "cost": cost, "revenue": revenue, "gmv": gmv, "position": position, "weight": weight}
    for name, column in columns.items():
        if column is not None and column.shape != click.shape:
            raise DataError(f"{name} is {list(column.shape)} and click {list(click.shape)}; give one shape.")
    live = torch.ones(click.shape, dtype=torch.bool) if where is None else where.expand(click.shape)
    rows = {name: column[live].double() for name, column in columns.items() if column is not None}
    for name, column in rows.items():
        if not column.isfinite().all():
            raise DataError(f"{name} holds {int((~column.isfinite()).sum())} live rows that are not finite numbers.")
    w = rows.pop("weight", torch.ones(int(live.sum()), dtype=torch.float64))
    known, index = (None, np.zeros(len(w), np.int64)) if group is None else numbered(group.expand(click.shape)[live])
    place, n = torch.from_numpy(index), 1 if known is None else len(known)

    def total(value: Tensor) -> Tensor:
        return torch.bincount(place, value, n)

    shown, clicks = total(w), total(w * rows["click"])
    out = {"impressions": shown, "clicks": clicks, "ctr": clicks / shown}
    if "cost" in rows:
        spent = total(w * rows["cost"])
        out |= {"ppc": spent / clicks, "cpm": 1000 * spent / shown}
    if "revenue" in rows:
        out["rpm"] = 1000 * total(w * rows["revenue"]) / shown
    if "gmv" in rows:
        out["gmv"] = total(w * rows["gmv"])
        if "cost" in rows:
            ratio = out["gmv"] / total(w * rows["cost"])
            out["roi"] = torch.where(ratio.isinf(), torch.nan, ratio)
    if "position" in rows:
        out["clicked_position"] = total(w * rows["click"] * rows["position"]) / clicks
    out = {name: torch.where(value.isinf(), torch.nan, value) for name, value in out.items()}
    if known is None:
        return {name: value[0] for name, value in out.items()}
    return {"group": known, **out, "impression_share": shown / shown.sum()}
