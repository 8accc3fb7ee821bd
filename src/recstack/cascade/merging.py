"""How much the word of each source counts when several are merged: learned from the lists of held-out requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recstack.candidates import Candidates
from recstack.cascade.retrieval import proposals, some_of
from recstack.data import Columns
from recstack.data.truth import next_events
from recstack.errors import ConfigError, DataError

if TYPE_CHECKING:
    from recstack.data import Log
    from recstack.models.base import Recommends

FACTORS = (0.0, 0.5, 0.7, 0.85, 1.2, 1.5, 2.0, 4.0)  # what a weight is multiplied by, in search of a better one
ROUNDS = 4


def merge_weights(
    retrievers: Sequence[Recommends],
    valid: Log | Columns,
    past: Log | Columns | None = None,
    *,
    k: int = 50,
    width: int | None = None,
    rule: str = "rrf",
    exclude_seen: bool = True,
    where: Tensor | None = None,
    max_requests: int | None = 2000,
    seed: int = 0,
) -> dict[str, float]:
    r"""The weights of sources under which their merged lists find most: ``Candidates.merge(parts, weights=...)``.

    .. math:: \max_{w \ge 0} \sum_u \mathrm{recall@}k\Big(\mathrm{top}_k \sum_c w_c\, x_{c}(u, \cdot)\Big)

    with x what source c gives to an item by `rule`. Weights are tried one after another, from all equal and from each source
    alone; so on `valid` the merged lists find at least what those do.

    Args:
        retrievers: fitted on the same data, with different names.
        valid: held-out events, not those that the result is judged by.
        past: whose items count as seen; None: what each retriever remembers of its training.
        k: where merged lists are cut; width: how many items each source proposes, k by default.
        rule: "rrf" or "sum", as in `Candidates.merge`.
        exclude_seen, where: as in `evaluate_retrieval`.
        max_requests: learn from so many users, drawn by `seed`; None: from all.

    Returns:
        {name: weight}, of mean 1.

    Raises:
        ConfigError: fewer than two retrievers, or another rule.
        DataError: `valid` has no positive event.

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> swing, popular = rs.retrieval.Swing().fit(train), rs.retrieval.Popularity().fit(train)
    >>> weights = rs.merge_weights([swing, popular], valid, k=20)
    >>> list(weights), round(sum(weights.values()), 6)
    (['swing', 'popularity'], 2.0)
    """
    sources: list[Any] = list(retrievers)
    if len({source.name for source in sources}) < max(len(sources), 2):
        raise ConfigError("merge_weights takes two retrievers or more, of different names.")
    if rule not in ("rrf", "sum"):
        raise ConfigError(f"Weights are learned for rule='rrf' or 'sum', whose scores add up; got {rule!r}.")
    encoder = sources[0].schema.encoder
    columns = valid if isinstance(valid, Columns) else encoder.encode(valid)
    before = past if past is None or isinstance(past, Columns) else encoder.encode(past)
    rows, truth = next_events(columns)
    if not len(rows):
        raise DataError("The validation events hold no positive one, so there is nothing to learn from.")
    rows, truth = some_of(rows, truth, max_requests, seed)
    shares, gains = [], []
    for start, parts in proposals(sources, columns, rows, before, width or k, exclude_seen, where):
        given = [_by_share(part.top(), rule) for part in parts]
        union = Candidates.merge(given)
        shares.append(torch.stack([union.source[source.name].nan_to_num(0.0) for source in sources], 2))
        count = torch.from_numpy(truth.count[start : start + len(union)]).unsqueeze(1)
        gains.append(truth.hits(union.ids, start) / count)
    found = _search(shares, gains, k, len(sources))
    return {source.name: float(w) for source, w in zip(sources, found, strict=True)}


def _by_share(part: Candidates, rule: str) -> Candidates:
    """The part, its source saying what each item gives to the merged score."""
    return Candidates(part.ids, part.scores, part.mask, {name: part.shares(rule) for name in part.source})


def _search(shares: list[Tensor], gains: list[Tensor], k: int, n: int) -> np.ndarray:
    """The weights [n] of the highest recall@k: shares [R, L, n] and what each hit adds [R, L], in blocks."""

    def recall(weight: np.ndarray) -> float:
        by = torch.from_numpy(weight).float()
        best = [(share @ by).topk(min(k, share.shape[1]), dim=1).indices for share in shares]
        return sum(float(gain.gather(1, place).sum()) for gain, place in zip(gains, best, strict=True))

    starts = [np.ones(n), *(np.eye(n) * n)]
    values = [recall(start) for start in starts]
    best, value = starts[int(np.argmax(values))], max(values)
    for _ in range(ROUNDS):
        before = value
        for source in range(n):
            for factor in FACTORS:
                tried = best.copy()
                tried[source] = tried[source] * factor if tried[source] else factor * best.mean()
                if tried.sum() and (found := recall(tried)) > value:
                    best, value = tried, found
        if value == before:
            break
    return best * n / best.sum()
