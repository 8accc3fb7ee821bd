"""How much the word of each source counts when several are merged: learned from the lists of held-out requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recstack.candidates import Candidates
from recstack.cascade.retrieval import proposals, some_of
from recstack.data import Columns
from recstack.data.truth import Truth, next_events
from recstack.errors import ConfigError, DataError

if TYPE_CHECKING:
    from recstack.data import Log
    from recstack.models.base import Recommends

STEPS = 60
RIDGE = 1e-3  # on how far the logarithms of the weights lie from each other: a source without a word to say is not sent to 0


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
    r"""How much each source counts, so that what users chose next stands high: ``Candidates.merge(parts, weights=...)``.

    .. math:: \max_{w > 0} \sum_u \frac{1}{|H_u|} \sum_{i \in H_u} \log
        \frac{e^{\langle w, x_{ui} \rangle}}{\sum_{j \in C_u} e^{\langle w, x_{uj} \rangle}}

    with :math:`x_{ui}` what each source gives to item i by `rule`, :math:`C_u` all that the sources propose and :math:`H_u` what
    of it the user chose. Weights under which the merged lists of `valid` would not find more than under equal ones are not
    believed: then all are 1.

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
    encoder = sources[0].schema.encoder
    columns = valid if isinstance(valid, Columns) else encoder.encode(valid)
    before = past if past is None or isinstance(past, Columns) else encoder.encode(past)
    rows, truth = next_events(columns)
    if not len(rows):
        raise DataError("The validation events hold no positive one, so there is nothing to learn from.")
    rows, truth = some_of(rows, truth, max_requests, seed)
    blocks = proposals(sources, columns, rows, before, width or k, exclude_seen, where)
    return _learned([source.name for source in sources], blocks, truth, k, rule)


def weights_of_lists(
    parts: Sequence[Candidates], chosen: tuple[Any, Any], *, k: int = 50, rule: str = "rrf"
) -> dict[str, float]:
    """As `merge_weights`, of lists that are there: such as the kinds of tags that ads were found by.

    Args:
        parts: what each source proposes for the same R requests, named by its `source`.
        chosen: (offsets [R + 1], item ids), what each request chose.

    >>> good = Candidates(torch.tensor([[3, 4]] * 9), torch.tensor([[2.0, 1.0]] * 9))
    >>> poor = Candidates(torch.tensor([[5, 6]] * 9), torch.tensor([[2.0, 1.0]] * 9))
    >>> parts = [good.rescore(good.scores, "good"), poor.rescore(poor.scores, "poor")]
    >>> weights = weights_of_lists(parts, (torch.arange(10), torch.tensor([4] * 9)), k=2)
    >>> weights["good"] > 10 * weights["poor"]
    True
    """
    offsets, items = np.asarray(chosen[0], np.int64), np.asarray(chosen[1], np.int64)
    n = len(parts[0])
    if len(offsets) != n + 1:
        raise DataError(f"chosen has {len(offsets)} offsets for {n} requests; give one more.")
    truth = Truth(np.repeat(np.arange(n), np.diff(offsets)), items, n, np.zeros(n, np.int64))
    return _learned([name for part in parts for name in part.source], [(0, parts)], truth, k, rule)


def _learned(
    names: list[str], blocks: Iterable[tuple[int, Sequence[Candidates]]], truth: Truth, k: int, rule: str
) -> dict[str, float]:
    if rule not in ("rrf", "sum"):
        raise ConfigError(f"Weights are learned for rule='rrf' or 'sum', whose scores add up; got {rule!r}.")
    shares, gains = [], []
    for start, parts in blocks:
        union = Candidates.merge([_by_share(part.top(), rule) for part in parts])
        shares.append(torch.stack([union.source[name].nan_to_num(0.0) for name in names], 2))
        count = torch.from_numpy(truth.count[start : start + len(union)]).clamp(min=1).unsqueeze(1)
        gains.append(truth.hits(union.ids, start) / count)
    weight = _fitted(shares, gains, len(names))
    if _recall(shares, gains, weight, k) <= _recall(shares, gains, torch.ones(len(names)), k):
        weight = torch.ones(len(names))
    return dict(zip(names, weight.tolist(), strict=True))


def _by_share(part: Candidates, rule: str) -> Candidates:
    """The part, its source saying what each item gives to the merged score."""
    return Candidates(part.ids, part.scores, part.mask, {name: part.shares(rule) for name in part.source})


def _fitted(shares: list[Tensor], gains: list[Tensor], n: int) -> Tensor:
    """The weights [n], of mean 1: shares [R, L, n] and what each hit adds to its user's recall [R, L], in blocks."""
    unit = max(float(share.max()) for share in shares if share.numel())
    blocks = []
    for share, gain in zip(shares, gains, strict=True):
        hit = (gain > 0).any(1)  # others have nothing to say
        x, of_hits = share[hit].double() / unit, gain[hit].double()
        blocks.append((x, (x > 0).any(2), of_hits / of_hits.sum(1, keepdim=True)))
    users = max(sum(len(x) for x, _, _ in blocks), 1)
    log_weight = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_weight], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = RIDGE * (log_weight - log_weight.mean()).square().sum()
        for x, live, target in blocks:
            score = (x @ log_weight.exp()).masked_fill(~live, -1e9)
            value = value - (score.log_softmax(1) * target).sum() / users
        value.backward()
        return value

    optimizer.step(loss)
    weight = log_weight.detach().exp()
    return (weight * n / weight.sum()).float()


def _recall(shares: list[Tensor], gains: list[Tensor], weight: Tensor, k: int) -> float:
    best = [(share @ weight).topk(min(k, share.shape[1]), dim=1).indices for share in shares]
    return sum(float(gain.gather(1, at).sum()) for gain, at in zip(gains, best, strict=True))
