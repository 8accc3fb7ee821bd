"""Pages beyond their accuracy: what is shown of the catalogue, how unlike the items of a page are, and how unlike the pages.

Everywhere: ``ids [R, k]``, a page a row, best first; ids from 1, what is 0 or below is an empty place. Tables of items are by id,
``[N]``. Answers are float64 scalars; NaN where nothing can be said.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError, DataError


def coverage(ids: Tensor, items: int) -> Tensor:
    """Share of a catalogue of so many items that stands on any page.

    >>> coverage(torch.tensor([[1, 2], [2, 3]]), items=6)
    tensor(0.5000, dtype=torch.float64)
    """
    return torch.tensor(len(ids[ids > 0].unique()) / items, dtype=torch.float64)


def gini(ids: Tensor, items: int) -> Tensor:
    r"""How unevenly places are given to items: 0 is all alike, near 1 all to one. Items that are never shown count.

    .. math:: \frac{\sum_{i=1}^{n} (2 i - n - 1)\, x_{(i)}}{n \sum_i x_i}, \qquad x_{(1)} \le x_{(2)} \le \dots

    >>> gini(torch.tensor([[1], [1]]), items=4)
    tensor(0.7500, dtype=torch.float64)
    """
    shown = _shown(ids, items).sort().values
    rank = torch.arange(1, items + 1, dtype=torch.float64)
    return ((2 * rank - items - 1) * shown).sum() / (items * shown.sum())


def exposure_entropy(ids: Tensor, items: int) -> Tensor:
    """Shannon entropy, in bits, of an item drawn from all places: 2 to it is how many items share the pages, as it were.

    >>> exposure_entropy(torch.tensor([[1, 2], [3, 4]]), items=9)
    tensor(2., dtype=torch.float64)
    """
    share = _shown(ids, items)
    share = share / share.sum()
    return -torch.xlogy(share, share).sum() / torch.tensor(2.0, dtype=torch.float64).log()


def concentration(ids: Tensor, items: int) -> Tensor:
    """Herfindahl's index, the sum of squared shares of the places: 1 is one item only, 1 / items all alike.

    >>> concentration(torch.tensor([[1, 2], [1, 3]]), items=9)
    tensor(0.3750, dtype=torch.float64)
    """
    share = _shown(ids, items)
    return (share / share.sum()).square().sum()


def user_coverage(ids: Tensor, least: int = 1) -> Tensor:
    """Share of requests whose page holds at least so many items.

    >>> user_coverage(torch.tensor([[1, 2], [3, 0]]), least=2)
    tensor(0.5000, dtype=torch.float64)
    """
    return ((ids > 0).sum(1) >= least).double().mean()


def temporal_diversity(before: Tensor, after: Tensor) -> Tensor:
    """Share of a page's items that the same user's page before did not show; empty pages are left out.

    Lathia et al., SIGIR 2010, https://doi.org/10.1145/1835449.1835486

    >>> temporal_diversity(torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))
    tensor(0.5000, dtype=torch.float64)
    """
    if len(before) != len(after):
        raise DataError(f"There are {len(before)} pages before and {len(after)} after; give the same users' pages.")
    live = after > 0
    new = ~(after.unsqueeze(-1) == before.unsqueeze(1)).any(-1) & live
    return (new.sum(1).double() / live.sum(1))[live.any(1)].mean()


def novelty(ids: Tensor, count: Tensor) -> Tensor:
    """Mean of -log2 of the shown items' shares of the training events, `count` ``[N]`` by id; unseen items count half an event.

    >>> novelty(torch.tensor([[1, 2]]), torch.tensor([0.0, 1.0, 3.0]))  # (2 + 0.415) / 2
    tensor(1.2075, dtype=torch.float64)
    """
    share = count.double().clamp(min=0.5) / count.double().sum()
    return -share[ids[ids > 0]].log2().mean()


def popularity(ids: Tensor, count: Tensor) -> Tensor:
    """Mean number of training events of the shown items (ARP); over the mean of what users chose it is the popularity lift.

    >>> popularity(torch.tensor([[1, 2]]), torch.tensor([0.0, 1.0, 3.0]))
    tensor(2., dtype=torch.float64)
    """
    return count.double()[ids[ids > 0]].mean()


def long_tail(ids: Tensor, count: Tensor, head: float = 0.8) -> Tensor:
    """Share of places that go to items outside the fewest that hold the share `head` of the training events.

    >>> long_tail(torch.tensor([[1, 2]]), torch.tensor([0.0, 1.0, 9.0]))
    tensor(0.5000, dtype=torch.float64)
    """
    if not 0 < head < 1:
        raise ConfigError(f"head is a share between 0 and 1; got {head!r}.")
    order = count.double().argsort(descending=True, stable=True)
    before = count.double()[order].cumsum(0) - count.double()[order]
    tail = torch.zeros(len(count), dtype=torch.float64)
    tail[order] = (before >= head * count.double().sum()).double()
    return tail[ids[ids > 0]].mean()


def intra_list_distance(ids: Tensor, vectors: Tensor) -> Tensor:
    """Mean over pages of the mean cosine distance of a page's pairs of items; pages of one item have none.

    `vectors` is ``[N, D]`` by id, or a category ``[N]`` (integers): then two items are 1 apart or 0.

    >>> intra_list_distance(torch.tensor([[1, 2, 3]]), torch.tensor([0, 5, 5, 7]))  # two of three pairs
    tensor(0.6667, dtype=torch.float64)
    """
    live = (ids > 0).double()
    n = live.sum(1)
    if vectors.dim() == 1:
        value = vectors[ids.clamp(min=0)]
        alike = ((value.unsqueeze(1) == value.unsqueeze(2)).double() * live.unsqueeze(1) * live.unsqueeze(2)).sum(
            (1, 2)
        )
    else:
        unit = F.normalize(vectors[ids.clamp(min=0)].double(), dim=-1) * live.unsqueeze(-1)
        alike = unit.sum(1).square().sum(-1)  # of all ordered pairs, an item with itself too
        n_zero = (unit.square().sum(-1) == 0).double() * live  # a vector of zeros is like nothing, not even itself
        alike = alike + n_zero.sum(1)
    pairs = n * (n - 1)
    return (1 - (alike - n) / pairs)[n > 1].mean()


def personalisation(ids: Tensor, items: int) -> Tensor:
    r"""1 - the mean cosine of two users' pages, as sets of items: 0 is the same page for all; in O(R k).

    .. math:: 1 - \frac{\| \sum_u v_u \|^2 - R}{R (R - 1)}, \qquad v_u = \text{unit indicator of page } u

    >>> personalisation(torch.tensor([[1, 2], [1, 2], [3, 4]]), items=4)  # one of three pairs of users is alike
    tensor(0.6667, dtype=torch.float64)
    """
    live = ids > 0
    users = live.any(1)
    ids, live = ids[users], live[users]
    unit = live.double() / live.sum(1, keepdim=True).sqrt()
    total = torch.bincount(ids[live], unit[live], items + 1)
    n = len(ids)
    return 1 - (total.square().sum() - n) / (n * (n - 1)) if n > 1 else torch.tensor(torch.nan, dtype=torch.float64)


def serendipity(ids: Tensor, relevant: Tensor, expected: Tensor) -> Tensor:
    """Share of shown items that are relevant, bool ``[R, k]``, and that a primitive recommender, ``expected [R, m]``, does not show.

    >>> serendipity(torch.tensor([[1, 2]]), torch.tensor([[True, True]]), expected=torch.tensor([[2, 3]]))
    tensor(0.5000, dtype=torch.float64)
    """
    if relevant.shape != ids.shape or len(expected) != len(ids):
        raise DataError(
            f"ids {list(ids.shape)}, relevant {list(relevant.shape)} and expected {list(expected.shape)} differ."
        )
    surprising = ~(ids.unsqueeze(-1) == expected.unsqueeze(1)).any(-1)
    live = ids > 0
    return (surprising & relevant.bool() & live).sum().double() / live.sum()


def rank_biased_overlap(a: Tensor, b: Tensor, patience: float = 0.9) -> Tensor:
    r"""Mean overlap of two rankings ``[R, k]`` of the same requests, the top counting most; 1 for equal pages.

    .. math:: \frac{1 - p}{1 - p^k} \sum_{d=1}^{k} p^{\,d - 1}\, \frac{|A_{:d} \cap B_{:d}|}{d}

    p = `patience`. The sum ends at k and is scaled so that equal pages have 1. Webber, Moffat and Zobel, TOIS 2010,
    https://doi.org/10.1145/1852102.1852106

    >>> rank_biased_overlap(torch.tensor([[1, 2]]), torch.tensor([[2, 1]]), patience=0.5)  # (0 + ½) / (1 + ½)
    tensor(0.3333, dtype=torch.float64)
    """
    if a.shape != b.shape:
        raise DataError(f"The rankings are {list(a.shape)} and {list(b.shape)}; give pages of one shape.")
    if not 0 < patience < 1:
        raise ConfigError(f"patience is a chance between 0 and 1; got {patience!r}.")
    same = (a.unsqueeze(2) == b.unsqueeze(1)) & (a > 0).unsqueeze(2)  # [R, k, k]
    depth = torch.arange(1, a.shape[1] + 1, dtype=torch.float64)
    both = same.double().cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2)
    discount = patience ** (depth - 1)
    return (both / depth * discount).sum(1).mean() / discount.sum()


def _shown(ids: Tensor, items: int) -> Tensor:
    live = ids[ids > 0]
    if live.numel() and live.max() > items:
        raise DataError(f"Id {live.max().item()} is beyond a catalogue of {items} items, whose ids are 1 to {items}.")
    return torch.bincount(live, minlength=items + 1)[1:].double()
