"""Every arrangement of a few items, and short binary signatures by which arrangements are compared."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError

MOST = 50_000  # arrangements that are looked through


def arrangements(items: int, places: int) -> tuple[Tensor, Tensor]:
    """All ways to fill the first `places` of a list of `items`, the rest as they came: ``[P, items]``, the first the list itself.

    Beside them the length ``[P]`` of the part that is not as it came: a list of n items can be arranged in the ways whose
    length is at most n.

    Raises:
        ConfigError: more places than items, or more than 50 000 arrangements.

    >>> arrangements(3, 1)
    (tensor([[0, 1, 2],
            [1, 0, 2],
            [2, 0, 1]]), tensor([0, 2, 3]))
    """
    if not 1 <= places <= items:
        raise ConfigError(f"places must be from 1 to the {items} items that are arranged; got {places}.")
    count = 1
    for i in range(places):
        count *= items - i
    if count > MOST:
        raise ConfigError(
            f"{items} items on {places} places have {count} arrangements; arrange fewer ({MOST} at most)."
        )
    rows = [
        [*head, *(i for i in range(items) if i not in head)] for head in itertools.permutations(range(items), places)
    ]
    table = torch.tensor(rows, device="cpu")
    moved = (table != torch.arange(items, device="cpu")) * torch.arange(1, items + 1, device="cpu")
    return table, moved.amax(1)


class SimHash(nn.Module):
    r"""Signs of random projections of a list whose items are weighed by their places: ``[..., places, W] → [..., bits]``.

    .. math:: \mathrm{sign}\Big(R \sum_t e_t \odot x_t\Big), \qquad R \sim \mathcal N(0, 1),\ e \sim \mathcal U(0, 1)
        \text{, fixed}

    Lists that hold alike items at alike places share most bits. R and e are saved with the model; codes are -1 and 1,
    without gradient. (Charikar, STOC 2002; Shi et al., KDD 2023, https://arxiv.org/abs/2302.03487.)

    Args:
        width: W.
        places: of a list.
        bits: of a signature.
    """

    weights: Tensor
    directions: Tensor

    def __init__(self, width: int, places: int, bits: int):
        super().__init__()
        self.register_buffer("weights", torch.rand(places, width))
        self.register_buffer("directions", torch.randn(width, bits))

    @torch.no_grad()
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Signatures of lists, ``mask [..., places]``."""
        return _signs((x.float() * mask.unsqueeze(-1) * self.weights).sum(-2) @ self.directions)

    @torch.no_grad()
    def arranged(self, x: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        """Signatures of all arrangements of each list: ``x [R, n, W], mask [R, n], table [P, n] → [R, P, bits]``.

        Each item is projected at each place once, not once for each arrangement.
        """
        x = x.float() * mask.unsqueeze(-1)
        total = 0
        for t, weight in enumerate(self.weights):
            total = total + ((x * weight) @ self.directions)[:, table[:, t]]
        return _signs(total)  # type: ignore[arg-type]


def _signs(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0)


def hamming(codes: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    r"""Weighted sum of the bits in which codes differ: ``[R, P, b], [R, G, b], [R, G] → [R, P]``.

    >>> one = torch.tensor([[[1.0, 1.0, -1.0]]])
    >>> hamming(one, -one, torch.tensor([[0.5]]))
    tensor([[1.5000]])
    """
    return ((codes.shape[-1] - codes @ others.transpose(1, 2)) / 2 * weight.unsqueeze(1)).sum(-1)


def pages_of(steps: Tensor, mask: Tensor, places: int, most: int) -> tuple[Tensor, Tensor]:
    """A history as pages of successive steps, the newest first, each from its oldest step: ``[R, G, places, W]`` and mask.

    Of ``steps [R, T, W]`` and ``mask [R, T]``, oldest first and left aligned, the newest `most` at most. A page that is not
    full has its steps at its end.
    """
    page = torch.arange(-(-most // places), device=mask.device).unsqueeze(1)
    ago = page * places + places - torch.arange(places, device=mask.device)  # [G, places], 1 for the newest step
    index = mask.sum(-1)[:, None, None] - ago
    there = index >= 0
    flat = index.clamp(min=0).flatten(1).unsqueeze(-1).expand(-1, -1, steps.shape[-1])
    steps = F.pad(steps, (0, 0, 0, 1))  # a jagged batch of empty histories has no step at all
    return steps.gather(1, flat).unflatten(1, index.shape[1:]), there
