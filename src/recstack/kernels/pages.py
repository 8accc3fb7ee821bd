"""A beam of pages that are filled place by place, without a call of torch for each operation."""

from __future__ import annotations

import numpy as np

from recstack.kernels.topk import compiled


def beam(
    chance: np.ndarray, alike: np.ndarray, live: np.ndarray, alpha: float, pages: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""The best pages by :math:`\sum_t (1 - \alpha) P_{t y_t} - \alpha \max_{j \in y_{<t}} s_{y_t j}`; equal ones as they come.

    Args:
        chance: P, float32 [R, P, L].
        alike: s, float32 [R, L, L].
        live: bool [R, L].

    Returns:
        int64 [R, pages, L], P at what was chosen first, 1 at what was chosen for the last place and 0 at what was not; and
        the pages' scores, float32 [R, pages], -inf where there are fewer.
    """
    rows, _, length = chance.shape
    turn, total = np.zeros((rows, pages, length), np.int64), np.full((rows, pages), -np.inf, np.float32)
    own, other = np.float32(1 - alpha), np.float32(alpha)
    for r in range(rows):
        compiled(_beam)(chance[r], alike[r], live[r], own, other, turn[r], total[r])
    return turn, total


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------
def _beam(chance, alike, live, own, other, turn, total):
    places, length = chance.shape
    pages = len(total)
    left, near = np.zeros((pages, length), np.bool_), np.zeros((pages, length), np.float32)
    left[:] = live
    total[0] = 0.0
    value, page, item = np.zeros(pages, np.float32), np.zeros(pages, np.int64), np.zeros(pages, np.int64)
    for place in range(places):
        value[:] = -np.inf
        page[:] = 0
        item[:] = 0
        for b in range(pages):
            if total[b] == -np.inf:
                continue
            full = not left[b].any()  # such a page stays
            for i in range(1 if full else length):
                if not full and not left[b, i]:
                    continue
                score = total[b] if full else own * chance[place, i] - other * near[b, i] + total[b]
                at = pages
                while at > 0 and score > value[at - 1]:
                    at -= 1
                for j in range(pages - 1, at, -1):
                    value[j], page[j], item[j] = value[j - 1], page[j - 1], item[j - 1]
                if at < pages:
                    value[at], page[at], item[at] = score, b, i
        left, turn[:], near = left[page], turn[page], near[page]
        total[:] = value
        for b in range(pages):
            i = item[b]
            if left[b, i]:
                left[b, i] = False
                turn[b, i] = places - place
            for j in range(length):
                near[b, j] = alike[i, j] if place == 0 else max(near[b, j], alike[i, j])
