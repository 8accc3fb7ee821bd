"""How sure a metric is: by group, with bootstrap intervals, and whether one run beats another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError, DataError, unknown
from recstack.metrics.auc import auc_by_group, numbered
from recstack.metrics.lists import list_weight
from recstack.metrics.named import Metric, get
from recstack.metrics.rows import live_rows

CELLS = 1 << 23  # of the weights of resamples that are held at once


class Groups(NamedTuple):
    """A metric of each group, by ascending id: float64 ``[G]``, NaN where a group has no answer."""

    group: Tensor
    value: Tensor
    weight: Tensor  # Σ of the live rows' weights


class Interval(NamedTuple):
    """A value and where it would lie, at the level asked for, if other users had come."""

    value: float
    low: float
    high: float


def by_group(
    metric: str | Metric,
    score: Tensor,
    label: Tensor,
    group: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    **options: Any,
) -> Groups:
    """A metric of each group's rows: by user for tests between runs, by country or domain to see whom a model serves badly.

    `group` has the label's shape or one axis less; of a list metric it is one id per list ``[...]``, and the value is the mean over
    the group's lists. Sums and AUC take one pass; other metrics are asked once for each group. `options` go to the metric.

    >>> score, label = torch.tensor([0.9, 0.1, 0.3, 0.4]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    >>> by_group("auc", score, label, torch.tensor([7, 7, 9, 9])).value
    tensor([1., 0.], dtype=torch.float64)
    """
    found = get(metric, **options)
    if found.kind == "grouped":
        raise ConfigError(f"{found.name} is a mean over groups itself; ask for 'auc' by group.")
    if found.kind == "list":
        if group.shape != label.shape[:-1]:
            raise DataError(
                f"group is {list(group.shape)}; a list metric needs one id per list, {list(label.shape[:-1])}."
            )
        each = found.measure(score, label, where=where, reduction="none", **found.options).flatten()
        live = torch.ones_like(label, dtype=torch.bool) if where is None else where.expand(label.shape)
        share = list_weight(weight, live).flatten()
        ids, kept = group.flatten(), each.isfinite()
        known, index = numbered(ids)
        total = np.bincount(index, torch.where(kept, share * each, 0).numpy(), len(known))
        mass = np.bincount(index, torch.where(kept, share, 0).numpy(), len(known))
        with np.errstate(invalid="ignore"):
            return Groups(known, torch.from_numpy(total / mass), torch.from_numpy(mass))
    group = group.unsqueeze(-1) if group.shape == label.shape[:-1] else group
    if group.shape != label.shape:
        group = group.expand(label.shape)
    if found.name == "auc":
        each = auc_by_group(score, label, where=where, weight=weight, group=group)
        return Groups(each.group, each.auc, each.impressions)
    s, y, w, g = _cells(score, label, group, where, weight)
    known, index = numbered(g)
    place = torch.from_numpy(index)
    mass = torch.bincount(place, w, len(known))
    if found.sums is not None:
        terms = found.sums.terms(s.double(), y)
        sums = [mass, *(torch.bincount(place, w * term, len(known)) for term in terms)]
        value = torch.stack([found.sums.finish(*row) for row in torch.stack(sums, 1)])
        return Groups(known, value, mass)
    order = place.argsort(stable=True)
    parts = torch.bincount(place, minlength=len(known)).tolist()
    value = [
        found.measure(a, b, weight=c, **found.options)
        for a, b, c in zip(s[order].split(parts), y[order].split(parts), w[order].split(parts), strict=True)
    ]
    return Groups(known, torch.stack(value), mass)


def bootstrap(
    metric: str | Metric,
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    group: Tensor | None = None,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> Interval:
    """The metric of all rows, and the percentile interval over resamples of users (`group`), or of rows or lists.

    Users are drawn with replacement, with all their rows: rows of one user are alike, so drawing rows makes intervals too narrow.
    A metric of sums, of lists, or GAUC costs one pass and a product of matrices; any other is asked for each sample, with the
    draws as weights.

    >>> chance = torch.Generator().manual_seed(0)
    >>> label = (torch.rand(1000, generator=chance) < 0.5).float()
    >>> found = bootstrap("logloss", torch.zeros(1000), label, samples=100)
    >>> round(found.high - found.low, 9)  # log 2 of every row, whoever comes
    0.0
    """
    if not 0 < level < 1 or samples < 2:
        raise ConfigError(f"bootstrap needs a level between 0 and 1 and samples from 2; got {level} and {samples}.")
    found = get(metric, **options)
    value = float(found.function(score, label, where=where, weight=weight, group=group))
    chance = np.random.default_rng(seed)
    units, cells = _units(found, score, label, where, weight, group)
    if units is not None:
        drawn = [_draws(chance, len(units), n) @ units for n in _blocks(samples, len(units))]
        sums = torch.from_numpy(np.concatenate(drawn))
        if found.kind in ("list", "grouped"):
            values = sums[:, 0] / sums[:, 1]
        else:
            assert found.sums is not None
            values = torch.stack([found.sums.finish(*row) for row in sums])
        return _interval(value, values.numpy(), level)
    s, y, w, unit = cells
    n, values = int(unit.max()) + 1, []
    for _ in range(samples):
        drawn = torch.from_numpy(_draws(chance, n, 1)[0])
        values.append(float(found.measure(s, y, weight=w * drawn[unit], **found.options)))
    return _interval(value, np.array(values), level)


def bootstrap_mean(
    value: Tensor, weight: Tensor | None = None, *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The weighted mean of values ``[n]`` that are one per user, and its interval; NaN values do not count.

    >>> found = bootstrap_mean(torch.tensor([1.0, 2.0, 3.0, float("nan")]), samples=200)
    >>> found.value, 1 <= found.low <= found.high <= 3
    (2.0, True)
    """
    live = value.isfinite()
    if not live.any():
        raise DataError("There is no value to take a mean of: all are NaN.")
    v = value[live].double().numpy()
    w = np.ones(len(v)) if weight is None else weight[live].double().numpy()
    chance = np.random.default_rng(seed)
    units = np.stack([w * v, w], 1)
    sums = np.concatenate([_draws(chance, len(units), n) @ units for n in _blocks(samples, len(units))])
    return _interval(float(v @ w / w.sum()), sums[:, 0] / sums[:, 1], level)


def bootstrap_ratio(
    top: Tensor,
    bottom: Tensor,
    group: Tensor | None = None,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Σ top / Σ bottom over rows ``[n]``, and its interval over resamples of users (`group`), or of rows: of CTR, PPC, RPM ...

    >>> click = torch.tensor([1.0, 0.0, 0.0, 1.0])
    >>> bootstrap_ratio(click, torch.ones(4), samples=50).value
    0.5
    """
    sums = torch.stack([top.double().flatten(), bottom.double().expand(top.shape).flatten()], 1)
    units = _summed(sums, None if group is None else group.flatten())
    chance = np.random.default_rng(seed)
    drawn = np.concatenate([_draws(chance, len(units), n) @ units for n in _blocks(samples, len(units))])
    with np.errstate(divide="ignore", invalid="ignore"):
        total = units.sum(0)
        return _interval(float(total[0] / total[1]), drawn[:, 0] / drawn[:, 1], level)


class Comparison(NamedTuple):
    """What B has over A: the mean difference over users, its interval, the chance of one as large if they were alike."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int  # users that both answer for


def compare(
    a: Tensor, b: Tensor, *, test: str = "t", samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Test two runs on the same users: values ``[n]`` of A and of B, in one order, such as `by_group(...).value`.

    Users without an answer (NaN) in either do not count. `test`: "t", of paired differences; "permutation", which changes the
    signs of the differences `samples` times (Fisher's randomisation; exact up to 12 users); "wilcoxon", of their ranks. The
    interval is Student's for "t", else the bootstrap's. Two-sided. Of several comparisons correct with `holm`.

    Smucker, Allan and Carterette, CIKM 2007, https://doi.org/10.1145/1321440.1321528

    >>> a = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    >>> compare(a, a + 0.1, test="permutation").p_value  # the 2 of 32 choices of signs that are as far off
    0.0625
    """
    if test not in ("t", "permutation", "wilcoxon"):
        raise unknown("test", test, ("t", "permutation", "wilcoxon"))
    if a.shape != b.shape or a.dim() != 1:
        raise DataError(f"a is {list(a.shape)} and b is {list(b.shape)}; give one value per user, in the same order.")
    d = (b.double() - a.double()).numpy()
    d = d[np.isfinite(d)]
    if len(d) < 2:
        raise DataError(f"Both runs answer for {len(d)} users; a test needs two.")
    mean = float(d.mean())
    if test == "t":
        from scipy import stats

        spread = d.std(ddof=1) / np.sqrt(len(d))
        reach = spread * stats.t.ppf((1 + level) / 2, len(d) - 1)
        p = 2 * stats.t.sf(abs(mean) / spread, len(d) - 1) if spread > 0 else float(mean == 0)
        return Comparison(mean, mean - reach, mean + reach, float(p), len(d))
    interval = bootstrap_mean(torch.from_numpy(d), level=level, seed=seed)
    if test == "wilcoxon":
        from scipy import stats

        p = float(stats.wilcoxon(d)[1]) if d.any() else 1.0  # type: ignore[arg-type]
    else:
        p = _permutation(d, samples, seed)
    return Comparison(mean, interval.low, interval.high, p, len(d))


def holm(p_values: Sequence[float] | Mapping[str, float]) -> Any:
    """P-values of several comparisons, corrected so that one false alarm among all is as rare as one alone (Holm, 1979).

    >>> [round(p, 4) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    if isinstance(p_values, Mapping):
        return dict(zip(p_values, holm(list(p_values.values())), strict=True))
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    out = np.empty(len(p))
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return out.tolist()


def _permutation(d: np.ndarray, samples: int, seed: int) -> float:
    far = abs(d.sum()) * (1 - 1e-12)
    if len(d) <= 12:
        signs = 1 - 2.0 * (np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1)
        return float((abs(signs @ d) >= far).mean())
    chance, beyond = np.random.default_rng(seed), 0
    for n in _blocks(samples, len(d)):
        beyond += int((abs((2.0 * chance.integers(0, 2, (n, len(d))) - 1) @ d) >= far).sum())
    return (beyond + 1) / (samples + 1)


def _blocks(samples: int, units: int) -> list[int]:
    step = max(1, CELLS // max(units, 1))
    return [min(step, samples - start) for start in range(0, samples, step)]


def _draws(chance: np.random.Generator, units: int, n: int) -> np.ndarray:
    """How often each unit is drawn, float64 ``[n, units]``."""
    drawn = chance.integers(0, units, (n, units)) + units * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * units).reshape(n, units).astype(np.float64)


def _interval(value: float, values: np.ndarray, level: float) -> Interval:
    values = values[np.isfinite(values)]  # a sample may hold no positive
    if not len(values):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _units(
    found: Metric, score: Tensor, label: Tensor, where: Tensor | None, weight: Tensor | None, group: Tensor | None
) -> tuple[np.ndarray | None, Any]:
    """(sums of each unit ``[units, terms]``, None), or (None, the cells and the unit of each)."""
    live = torch.ones_like(label, dtype=torch.bool) if where is None else where.expand(label.shape)
    if found.kind == "list":
        each = found.measure(score, label, where=where, reduction="none", **found.options).flatten()
        share = list_weight(weight, live).flatten()
        kept = each.isfinite()
        sums = torch.stack([torch.where(kept, share * each, 0), torch.where(kept, share, 0)], 1)
        return _summed(sums, None if group is None else group.flatten()), None
    if found.kind == "grouped":
        each = auc_by_group(score, label, where=where, weight=weight, group=group)
        kind = found.options.get("weights", "impressions")
        share = {"impressions": each.impressions, "clicks": each.clicks, "uniform": torch.ones_like(each.auc)}[kind]
        kept = each.auc.isfinite()
        return torch.stack([torch.where(kept, share * each.auc, 0), torch.where(kept, share, 0)], 1).numpy(), None
    if group is not None:
        group = group.unsqueeze(-1) if group.shape == label.shape[:-1] else group
    s, y, w, g = _cells(score, label, label.isnan() if group is None else group.expand(label.shape), where, weight)
    if found.sums is not None:
        sums = torch.stack([w, *(w * term for term in found.sums.terms(s.double(), y))], 1)
        return _summed(sums, None if group is None else g), None
    place = torch.arange(len(y)) if group is None else torch.from_numpy(numbered(g)[1])
    return None, (s, y, w, place)


def _summed(sums: Tensor, group: Tensor | None) -> np.ndarray:
    if group is None:
        return sums.numpy()
    known, index = numbered(group)
    return np.stack([np.bincount(index, column, len(known)) for column in sums.numpy().T], 1)


def _cells(
    score: Tensor, label: Tensor, group: Tensor, where: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids = group.flatten() if where is None else group[where.expand(label.shape)]
    s, y, w = live_rows(score, label, where, weight)
    return s, y, w, ids
