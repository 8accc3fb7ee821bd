"""From a user's tags to the ads under them: postings sorted by value, walked until enough ads came that this user may get."""

from __future__ import annotations

import numpy as np

from recstack.kernels.topk import Sparse, _sink, compiled, in_blocks, keep_best

EVERY = np.iinfo(np.int64).max  # no truncation


def _may(ad, o_at, o_tags, kind_of, held):
    """Whether the user holds one tag of each kind that the ad is aimed at; its tags stand kind by kind."""
    p = o_at[ad]
    while p < o_at[ad + 1]:
        kind, fits = kind_of[o_tags[p]], False
        while p < o_at[ad + 1] and kind_of[o_tags[p]] == kind:
            fits = fits or held[o_tags[p]]
            p += 1
        if not fits:
            return False
    return True


def _walk(
    begin,
    end,
    u_at,
    u_tags,
    u_values,
    h_at,
    h_tags,
    m_at,
    m_ads,
    m_values,
    n_at,
    n_ads,
    n_values,
    limit,
    o_at,
    o_tags,
    kind_of,
    seen_at,
    seen,
    closed,
    ids,
    scores,
    found,
    reached,
):
    total = np.zeros(len(closed))
    state = closed.copy()  # 0 not met, 1 met, 2 closed to all, 3 not for this user
    met, touched = np.empty(len(closed), np.int32), np.empty(len(closed), np.int32)
    held = np.zeros(len(kind_of), np.bool_)
    for r in range(begin, end):
        n = t = 0
        for p in range(h_at[r], h_at[r + 1]):
            held[h_tags[p]] = True
        for p in range(seen_at[r], seen_at[r + 1]):
            if state[seen[p]] == 0:
                state[seen[p]] = 3
                touched[t] = seen[p]
                t += 1
        for p in range(u_at[r], u_at[r + 1]):
            tag, weight, taken = u_tags[p], u_values[p], 0
            i, j = m_at[tag], n_at[tag]
            while taken < limit and (i < m_at[tag + 1] or j < n_at[tag + 1]):
                if j == n_at[tag + 1] or (i < m_at[tag + 1] and m_values[i] >= n_values[j]):
                    ad, value = m_ads[i], m_values[i]
                    i += 1
                else:
                    ad, value = n_ads[j], n_values[j]
                    j += 1
                if state[ad] == 0:
                    touched[t] = ad
                    t += 1
                    state[ad] = 3
                    if _may(ad, o_at, o_tags, kind_of, held):
                        state[ad] = 1
                        met[n] = ad
                        n += 1
                if state[ad] == 1:
                    total[ad] += weight * value
                    taken += 1
        reached[r] = n
        found[r] = keep_best(met, n, total, ids[r], scores[r])
        for c in range(t):
            total[touched[c]] = 0.0
            state[touched[c]] = 0
        for p in range(h_at[r], h_at[r + 1]):
            held[h_tags[p]] = False


def _allowed(begin, end, h_at, h_tags, o_at, o_tags, kind_of, out):
    held = np.zeros(len(kind_of), np.bool_)
    for r in range(begin, end):
        for p in range(h_at[r], h_at[r + 1]):
            held[h_tags[p]] = True
        for ad in range(out.shape[1]):
            out[r, ad] = _may(ad, o_at, o_tags, kind_of, held)
        for p in range(h_at[r], h_at[r + 1]):
            held[h_tags[p]] = False


def walk(
    lead: Sparse,
    held: Sparse,
    postings: tuple[Sparse, Sparse],
    aim: Sparse,
    kind_of: np.ndarray,
    closed: np.ndarray,
    k: int,
    *,
    limit: int = EVERY,
    seen: Sparse | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    r"""The k ads of each request with the largest :math:`\sum_t w_{ut} q_{ta}`, exactly.

    Of each tag the first `limit` ads count that this request may get: those that are closed, seen or aimed at others take
    no place among them.

    Args:
        lead: [R, T] with values, the tags to start from.
        held: [R, T], all that the user holds, which ads may be aimed at.
        postings: [T, A] twice, read as one: values falling within each tag.
        aim: [A, T], the tags of each ad's audience, kind by kind: one of each kind has to be held. No tag: for everybody.
        kind_of: int [T].
        closed: uint8 [A], 2 where an ad is closed to all, else 0.
        seen: [R, A], what a request must not get.

    Returns:
        places int32 [R, k] (0 beyond those found), scores float32 [R, k], found int64 [R], and how many ads were reached
        in all, int64 [R]. Equal scores stand in the order of places.
    """
    main, tail = postings
    assert lead.values is not None
    assert main.values is not None
    assert tail.values is not None
    R = lead.height
    if seen is None:
        seen = Sparse(np.zeros(R + 1, np.int64), np.zeros(0, np.int32), len(closed))
    ids, scores = np.zeros((R, k), np.int32), np.zeros((R, k), np.float32)
    found, reached = np.zeros(R, np.int64), np.zeros(R, np.int64)
    kernel = compiled(_walk, _may, _sink, keep_best)
    given = (lead.offsets, lead.columns, lead.values, held.offsets, held.columns)
    given += (main.offsets, main.columns, main.values, tail.offsets, tail.columns, tail.values, limit)
    given += (aim.offsets, aim.columns, kind_of, seen.offsets, seen.columns, closed)
    in_blocks(lambda begin, end: kernel(begin, end, *given, ids, scores, found, reached), R)
    return ids, scores, found, reached


def allowed(held: Sparse, aim: Sparse, kind_of: np.ndarray) -> np.ndarray:
    """bool [R, A]: which ads' audiences each request is in, as `walk` decides it."""
    out = np.zeros((held.height, aim.height), bool)
    kernel = compiled(_allowed, _may)
    in_blocks(
        lambda begin, end: kernel(begin, end, held.offsets, held.columns, aim.offsets, aim.columns, kind_of, out),
        held.height,
    )
    return out
