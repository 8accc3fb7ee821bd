"""Items and the paths that lead to them: how likely each path is for those who wanted an item, and which ones it gets."""

from __future__ import annotations

import numpy as np

from recstack.kernels.topk import Sparse, compiled, offsets_of

UNSEEN = 1e-3  # of an item's smallest count: what a path has that nobody was led to
PENDING = 1 << 22  # counts that wait to be summed


class PathCounts:
    r"""Streaming sums of path probabilities over the requests that wanted an item, of its likeliest paths only.

    .. math:: s_{v,c} \leftarrow \eta\, s_{v,c} + \sum_{i : y_i = v} P(c \mid x_i)

    Args:
        items: how many there are, and
        paths: how many.
        kept: paths of an item.
        decay: η, of what was counted before the last `take`.

    >>> counts = PathCounts(items=3, paths=10, kept=1, decay=0.5)
    >>> counts.add(np.array([2, 2]), np.array([[4, 7], [4, 9]]), np.array([[0.5, 0.1], [0.25, 0.1]], np.float32))
    >>> found, wanted = counts.take()
    >>> found.columns, found.values, wanted
    (array([4]), array([0.75], dtype=float32), array([0., 0., 2.]))
    """

    def __init__(self, items: int, paths: int, kept: int, decay: float):
        self.paths, self.kept, self.decay = paths, kept, decay
        self.wanted = np.zeros(items)
        self.keys, self.sums = np.zeros(0, np.int64), np.zeros(0)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._size = 0

    def add(self, items: np.ndarray, codes: np.ndarray, chance: np.ndarray) -> None:
        """Items [n], and the likeliest paths of the requests that wanted them [n, B]."""
        self._waiting.append(((items[:, None] * self.paths + codes).ravel(), chance.ravel()))
        self.wanted += np.bincount(items, minlength=len(self.wanted))
        self._size += codes.size
        if self._size > PENDING:
            self._sum()

    def _sum(self) -> None:
        keys, sums = (np.concatenate(x) for x in zip((self.keys, self.sums), *self._waiting, strict=True))
        self.keys, place = np.unique(keys, return_inverse=True)
        self.sums = np.bincount(place, sums, minlength=len(self.keys))
        self._waiting, self._size = [], 0

    def take(self) -> tuple[Sparse, np.ndarray]:
        """The likeliest paths of each item, [items, paths] with int64 columns, and how often it was wanted, float64 [items]."""
        self._sum()
        item, path = np.divmod(self.keys, self.paths)
        order = np.lexsort((-self.sums, item))
        start = offsets_of(np.bincount(item, minlength=len(self.wanted)))
        kept = np.sort(order[np.arange(len(order)) - start[item[order]] < self.kept])
        offsets = offsets_of(np.bincount(item[kept], minlength=len(self.wanted)))
        found = Sparse(offsets, path[kept], self.paths, self.sums[kept].astype(np.float32))
        wanted = self.wanted.copy()
        self.keys, self.sums, self.wanted = self.keys[kept], self.sums[kept] * self.decay, self.wanted * self.decay
        return found, wanted


def assign(counts: Sparse, wanted: np.ndarray, given: np.ndarray, penalty: float, passes: int = 3) -> np.ndarray:
    r"""Penalised coordinate ascent: item by item, the paths that say most of those who wanted it, none too crowded.

    .. math:: \max_\pi \sum_v N_v \log \sum_j s_{v, \pi_j(v)} - \alpha \sum_c f(|c|), \qquad f(n) = n^4 / 4

    With all others held, an item's paths are chosen one after the other, by what each adds. Those it has are always among
    the choices.

    Args:
        counts: [items, paths], s.
        wanted: float64 [items], N.
        given: int64 [items, J], the paths that items have.
        penalty: α.
        passes: over all items.

    Returns:
        int64 [items, J], distinct in each row.
    """
    height, each = given.shape
    floor = np.full(height, 1.0)
    np.minimum.at(floor, counts.rows, counts.values)  # type: ignore[arg-type]
    item = np.concatenate([counts.rows, np.repeat(np.arange(height), each)])
    path = np.concatenate([counts.columns, given.ravel()])
    score = np.concatenate([counts.values, np.repeat(floor * UNSEEN, each)])  # type: ignore[list-item]
    key, first = np.unique(item * counts.width + path, return_index=True)  # the first: what was counted, where it was
    item, path = np.divmod(key, counts.width)
    known, compact = np.unique(path, return_inverse=True)
    chosen = np.searchsorted(known, given)
    sizes = np.bincount(chosen.ravel(), minlength=len(known))
    offsets = offsets_of(np.bincount(item, minlength=height))
    kernel = compiled(_assign, _crowd)
    kernel(
        offsets,
        compact,
        score[first].astype(np.float64).clip(min=1e-30),
        wanted.astype(np.float64),
        chosen,
        sizes,
        penalty,
        passes,
    )
    return known[chosen]


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------
def _crowd(n, penalty):
    """What one item more costs on a path that has n."""
    return penalty * ((n + 1.0) ** 4 - float(n) ** 4) / 4.0


def _assign(offsets, paths, scores, wanted, chosen, sizes, penalty, passes):
    height, each = chosen.shape
    for _ in range(passes):
        moved = False
        for v in range(height):
            for j in range(each):
                sizes[chosen[v, j]] -= 1
            total = 0.0
            for j in range(each):
                best, at = -np.inf, -1
                for e in range(offsets[v], offsets[v + 1]):
                    free = True
                    for i in range(j):
                        if chosen[v, i] == paths[e]:
                            free = False
                    if free:
                        gain = np.log(total + scores[e]) - (np.log(total) if j else 0.0)
                        gain = wanted[v] * gain - _crowd(sizes[paths[e]], penalty)
                        if gain > best:
                            best, at = gain, e
                moved |= chosen[v, j] != paths[at]
                chosen[v, j] = paths[at]
                sizes[paths[at]] += 1
                total += scores[at]
        if not moved:
            break
