"""Which rows teach, how much each counts, and what is drawn against them. All seeded, all over plain rows.

What comes back is a choice of rows (``columns.select(keep)``, or `reweighted` where requests hold lists), a weight for each
(`reweighted`), the chances by which a Loader draws (``Loader(..., negatives=20, proposal=chances)``), or columns with rows
added. The five schemes of Fei et al., "Sample Optimization For Display Advertising", CIKM 2020
(https://doi.org/10.1145/3340531.3412162), are `weighted_negatives`, `subsampled_negatives`, `spy` and `two_step`,
`fuzzy_positives`, and a Task of loss "nce" with the proposal of the first. All of them for training only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from recstack.data.columns import Columns
from recstack.data.store import Block
from recstack.errors import ConfigError, DataError, unknown
from recstack.kernels.topk import Sparse, offsets_of, recommend_from_rows

Learn = Callable[[Columns], np.ndarray]


def weighted_negatives(columns: Columns, *, least: int = 5, power: float = 0.75) -> np.ndarray:
    r"""Chances to draw each item: by frequency, but uniform among the items whose frequency says nothing yet.

    .. math:: q_j = \frac{1}{N} \;\; (n_j < c), \qquad q_j = \Big(1 - \frac{|\mathrm{low}|}{N}\Big)
        \frac{n_j^{\alpha}}{\sum_{k \notin \mathrm{low}} n_k^{\alpha}} \;\; (n_j \ge c)

    with n the rows of an item and `low` the items below c: as a group they are drawn by their share of the catalogue of N.

    Args:
        columns: counts are of its rows.
        least: c; power: :math:`\alpha`.

    Returns:
        float64 ``[N ids]`` by item id, summing to 1; what is no item has 0.
    """
    catalog = columns.catalog
    if catalog is None or not len(catalog):
        raise ConfigError("weighted_negatives draws items of the catalog, and the schema has no item key or no items.")
    count = np.bincount(columns.item_ids, minlength=catalog.size)[catalog.ids].astype(np.float64)
    low = count < least
    chance = np.where(low, 1 / len(count), 0.0)
    if not low.all():
        chance[~low] = (1 - low.mean()) * count[~low] ** power / (count[~low] ** power).sum()
    out = np.zeros(catalog.size)
    out[catalog.ids] = chance
    return out


def subsampled_negatives(columns: Columns, *, t: float = 1e-3, task: str | None = None, seed: int = 0) -> np.ndarray:
    r"""Rows to keep: all positives, and of the real negatives (shown, not clicked) fewer the oftener their item is one.

    .. math:: p_j = \min\big(1, \sqrt{t / f_j} + t / f_j\big)

    with :math:`f_j` the item's share of all real negatives, so that items that are shown a lot are not beaten down for it.

    Returns:
        bool ``[n_rows]``.
    """
    if t <= 0:
        raise ConfigError(f"t is positive; got {t:g}.")
    negative = _negatives(columns, task)
    count = np.bincount(columns.item_ids[negative], minlength=int(columns.item_ids.max(initial=0)) + 1)
    share = np.maximum(count[columns.item_ids], 1) / max(int(negative.sum()), 1)
    chance = np.sqrt(t / share) + t / share
    return columns.positives(task) | (negative & (np.random.default_rng(seed).random(columns.n_rows) < chance))


def spy(
    columns: Columns, learn: Learn, *, share: float = 0.15, lost: float = 0.05, task: str | None = None, seed: int = 0
) -> np.ndarray:
    """Rows to keep: positives, and of the unclicked those that look less like a positive than hidden positives do.

    Some positives, the spies, are hidden among the unclicked before a model learns to tell both apart. The score below which
    hardly a spy lies is the threshold: an unclicked row below it is a reliable negative, one above it may be a positive that
    nobody noticed.

    Args:
        learn: trains on the columns it is given and returns scores of all their rows, float ``[n_rows]``, such as
            ``lambda c: Model(c.schema).fit(c).score(c)["click"]``.
        share: of the positives that are hidden; lost: of the spies that may lie below the threshold.

    Returns:
        bool ``[n_rows]``, the spies among them.

    Raises:
        DataError: too few positives for a threshold, or scores that are not one finite number a row.

    Liu et al., "Partially Supervised Classification of Text Documents", ICML 2002.
    """
    if not 0 < share < 1 or not 0 < lost < 1:
        raise ConfigError(f"share and lost lie in (0, 1); got {share:g} and {lost:g}.")
    negative, positive = _negatives(columns, task), columns.positives(task)
    n = round(share * int(positive.sum()))
    if n * lost < 1:
        raise DataError(
            f"{int(positive.sum())} positive rows make {n} spies, and a threshold at {lost:g} of them needs "
            f"{math.ceil(1 / lost)}; raise share= or lost=."
        )
    spies = np.random.default_rng(seed).choice(np.flatnonzero(positive), n, replace=False)
    score = _scores(learn, _relabelled(columns, task, spies))
    threshold = np.quantile(score[spies], lost, method="lower")
    return positive | (negative & (score < threshold))


def two_step(
    columns: Columns,
    learn: Learn,
    *,
    first: float = 0.1,
    lost: float = 0.05,
    rounds: int = 4,
    task: str | None = None,
) -> np.ndarray:
    """Rows to keep: positives, and reliable negatives gathered round by round.

    First a model learns positives against all unclicked rows; the `first` share that looks least like positives is reliable.
    Then, again and again, one learns positives against the reliable ones alone (all else has weight 0), and what scores below
    nearly all positives joins them, until nothing does.

    Args:
        learn: as in `spy`; it has to heed weights, as the Trainer does.
        first: share of the unclicked that the first round takes.
        lost: share of the positives that may lie below the threshold of the later ones.
        rounds: at most so many after the first.

    Returns:
        bool ``[n_rows]``.
    """
    if not 0 < first < 1 or not 0 < lost < 1 or rounds < 0:
        raise ConfigError(f"first and lost lie in (0, 1), rounds is at least 0; got {first:g}, {lost:g} and {rounds}.")
    negative, positive = _negatives(columns, task), columns.positives(task)
    score = _scores(learn, columns)
    reliable = negative & (score <= np.quantile(score[negative], first, method="lower"))
    for _ in range(rounds):
        score = _scores(learn, reweighted(columns, positive | reliable))
        more = negative & ~reliable & (score < np.quantile(score[positive], lost, method="lower"))
        if not more.any():
            break
        reliable |= more
    return positive | reliable


def fuzzy_positives(
    columns: Columns,
    similar: Sparse,
    *,
    weight: float = 0.3,
    per_user: int = 10,
    soft_labels: bool = False,
    task: str | None = None,
) -> Columns:
    r"""With rows added: items that a user was never shown and that resemble what the user clicked, as faint positives.

    .. math:: y_{uj} = \omega\, \frac{s_{uj}}{\max_k s_{uk}}, \qquad s_{uj} = \sum_{i \in I_u^+} S_{ij}

    Added to the user's newest positive request, for the `per_user` items of most s. Items shown to the user at any time in
    the columns are left out, the unclicked above all.

    Args:
        similar: S ``[N, N]``, such as ``swing.similar``.
        weight: :math:`\omega`.
        soft_labels: y is the label of the new rows, with weight 1, as for "bce"; otherwise their label is 1 and y the weight,
            as for a softmax, to which every label above 0 is a positive.

    Returns:
        columns whose item features are all the catalog's, so that new rows look like old ones; labels of other tasks are
        missing in the new rows.

    Raises:
        ConfigError: numbers out of range, pair features, or soft labels where there is no label.
        DataError: requests that hold lists.
    """
    if not 0 < weight <= 1 or per_user < 1:
        raise ConfigError(f"weight lies in (0, 1] and per_user is at least 1; got {weight:g} and {per_user}.")
    if columns.has_lists:
        raise DataError("fuzzy_positives adds rows of one candidate, and these columns hold lists of candidates.")
    if pairs := columns.schema.by_role("pair"):
        raise ConfigError(
            f"fuzzy_positives cannot make pair feature {pairs[0].name!r}, known only of pairs that happened; "
            f"train without it: schema.without({pairs[0].name!r})."
        )
    label = _label(columns, task)
    if soft_labels and label is None:
        raise ConfigError("These rows are positives without a label column; soft_labels= needs one.")
    catalog = columns.catalog
    assert catalog is not None  # a schema with an item key has one
    positive = columns.positives(task) & (columns.item_ids >= 2) & (columns.user_ids >= 2)
    order = np.flatnonzero(positive)
    order = order[np.lexsort((order if columns.times is None else columns.times[order], columns.user_ids[order]))]
    users, counts = np.unique(columns.user_ids[order], return_counts=True)
    offsets = offsets_of(counts)
    history = Sparse(offsets, columns.item_ids[order], catalog.size)
    seen = Sparse(*columns.seen(users), catalog.size)
    allowed = np.zeros(catalog.size, bool)
    allowed[catalog.ids] = True
    ids, score, found = recommend_from_rows(history, similar, per_user, seen=seen, allowed=allowed)
    live = np.arange(per_user) < found[:, None]
    source = np.repeat(order[offsets[1:] - 1], found)
    y = (weight * score / np.maximum(score[:, :1], 1e-30))[live].astype(np.float32)

    n = columns.n_rows
    base = columns.select(np.concatenate([np.arange(n), source]))
    item = np.concatenate([columns.item_ids, ids[live]]).astype(np.int32)
    key = Block(len(item), item[:, None], np.zeros((len(item), 0), np.float32), (columns.schema.item,))  # type: ignore[arg-type]
    labels = copy.copy(base._labels)
    labels.floats = labels.floats.copy()
    labels.floats[n:] = np.nan
    if label is not None:
        labels.column(label)[n:] = y if soft_labels else 1
    weights = np.ones(n, np.float32) if columns.weights is None else columns.weights
    weights = np.concatenate([weights, np.ones_like(y) if soft_labels else y]).astype(np.float32)
    return _changed(
        base, _item=key, _items=catalog.block, _item_rows=item.astype(np.int64), _labels=labels, weights=weights
    )


def skip_above(clicked: Any, request: Any, position: Any = None) -> np.ndarray:
    """Rows to keep: each list down to its last click; what lies below it may never have been looked at.

    What was skipped above the last click is a negative for sure. Lists without a click teach nothing.

    Args:
        clicked: bool ``[n]``; request: ``[n]``, which rows were shown together.
        position: ``[n]``, the smaller the higher; None: the order of the rows.

    Returns:
        bool ``[n]``: ``log.select(keep)``.

    Joachims, "Optimizing Search Engines using Clickthrough Data", KDD 2002, https://doi.org/10.1145/775047.775067

    >>> skip_above([False, True, False, False], [1, 1, 1, 2]).tolist()
    [True, True, False, False]
    """
    clicked, request = np.asarray(clicked, bool), np.asarray(request)
    place = np.arange(len(clicked)) if position is None else np.asarray(position, np.float64)
    if not len(clicked) == len(request) == len(place):
        raise DataError(f"There are {len(clicked)} clicks, {len(request)} requests and {len(place)} positions.")
    lists, which = np.unique(request, return_inverse=True)
    last = np.full(len(lists), -np.inf)
    np.maximum.at(last, which[clicked], place[clicked])
    return place <= last[which]


def event_weights(
    columns: Columns, values: Mapping[str, float], *, clip: float | None = None, per_user: bool = False
) -> np.ndarray:
    """Weights by what happened: favourites and purchases count more than clicks.

    Args:
        values: what a row is worth where the label of that column is 1, ``{"click": 1, "cart": 3, "order": 5}``; of several
            the highest. A row of which none is 1 has weight 1.
        clip: no weight is higher.
        per_user: scale the weights of each user's rows with such a label so that all users' add up to the same: who clicks a
            lot counts no more than others.

    Returns:
        float32 ``[n_rows]``, for `reweighted` or `replicated`. Where honest probabilities are wanted, take the logarithm of
        the positives' mean weight off the logit, or calibrate.
    """
    for name, value in values.items():
        if name not in columns.labels:
            raise unknown("label", name, columns.labels)
        if not 0 < value < np.inf:
            raise ConfigError(f"The value of label {name!r} is a positive number; got {value}.")
    weight = np.zeros(columns.n_rows)
    for name, value in values.items():
        weight = np.maximum(weight, np.where(columns.labels[name] == 1, value, 0.0))
    if clip is not None:
        weight = np.minimum(weight, clip)
    some = weight > 0
    if per_user and some.any():
        user = np.repeat(columns.user_ids, np.diff(columns.lists))[some]
        total = np.bincount(user, weight[some])
        weight[some] *= total[total > 0].mean() / total[user]
    return np.where(some, weight, 1).astype(np.float32)


def replicated(weights: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Each row as often as its weight says, for ``columns.select(...)``: up-sampling in place of weights.

    A fraction is rounded up by its own chance, so that a row comes `weights` times on average.

    >>> replicated(np.array([2.0, 0.0, 1.0])).tolist()
    [0, 0, 2]
    """
    weights = np.asarray(weights, np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError("Weights of rows are finite numbers of at least 0.")
    whole = np.floor(weights)
    times = whole + (np.random.default_rng(seed).random(len(weights)) < weights - whole)
    return np.repeat(np.arange(len(weights)), times.astype(np.int64))


def reweighted(columns: Columns, weights: np.ndarray) -> Columns:
    """These columns with row weights multiplied by `weights` ``[n_rows]``; True and False keep a row and leave it out."""
    weights = np.asarray(weights)
    if weights.shape != (columns.n_rows,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError(f"Weights are one finite number of at least 0 for each of the {columns.n_rows} rows.")
    weights = weights.astype(np.float32)
    return _changed(columns, weights=weights if columns.weights is None else columns.weights * weights)


def _label(columns: Columns, task: str | None) -> str | None:
    """The column of the binary task that says what is positive; None where every row is."""
    binary = [t for t in columns.schema.tasks if t.kind == "binary" and not t.derived]
    chosen = columns.schema.task(task) if task is not None else next(iter(binary), None)
    return chosen.column if chosen is not None and chosen.column in columns.labels else None


def _negatives(columns: Columns, task: str | None) -> np.ndarray:
    """bool ``[n_rows]``: shown and not clicked."""
    label = _label(columns, task)
    found = np.zeros(columns.n_rows, bool) if label is None else columns.labels[label] == 0
    if not found.any():
        raise DataError("These columns hold no row of label 0, so there are no real negatives to choose from.")
    return found


def _scores(learn: Learn, columns: Columns) -> np.ndarray:
    score = np.asarray(learn(columns))
    if score.shape != (columns.n_rows,) or not np.isfinite(score).all():
        raise DataError(
            f"learn returns one finite score for each of the {columns.n_rows} rows; got {list(score.shape)}."
        )
    return score


def _relabelled(columns: Columns, task: str | None, rows: np.ndarray) -> Columns:
    """With label 0 at these rows."""
    labels = copy.copy(columns._labels)
    labels.floats = labels.floats.copy()
    labels.column(_label(columns, task))[rows] = 0  # type: ignore[arg-type]
    return _changed(columns, _labels=labels)


def _changed(columns: Columns, **parts: Any) -> Columns:
    """The same columns but for some parts; what was worked out of the old ones is forgotten."""
    new = copy.copy(columns)
    for name in ("seen_by_user", "digest"):
        vars(new).pop(name, None)
    vars(new).update(parts)
    return new
