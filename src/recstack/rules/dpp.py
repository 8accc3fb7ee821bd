r"""Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation Diversity (Chen et al., NeurIPS 2018).

https://arxiv.org/abs/1709.05135
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.kernels import dpp
from recstack.rules.base import PageContext, Rule, arrange, scaled


@dataclass(frozen=True)
class DPP(Rule):
    r"""The page whose items are relevant and span a large volume, chosen greedily.

    .. math:: \max_S \; \theta \sum_{i \in S} r_i + (1 - \theta) \log \det \mathbf S_S, \qquad
              \mathbf S_{ij} = (1 + \cos(f_i, f_j)) / 2

    θ is `relevance` (1 changes nothing that is sorted), r the scores scaled to [0, 1] per request, f the item vectors;
    an item without a vector resembles nothing. Each place costs O(K (D + places so far)), by keeping a Cholesky factor
    of the page; `window` compares with the last places only, and the factor is then rotated free of what leaves it.
    Where the vectors' dimensions are used up, the rest follows by relevance.

    >>> page = Candidates(torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, 0.9, 0.0]]))
    >>> context = PageContext(2, torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))
    >>> DPP(0.95)(page, context).ids, DPP(0.5)(page, context).ids
    (tensor([[1, 2, 3]]), tensor([[1, 3, 2]]))
    """

    relevance: float = 0.7
    window: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.relevance <= 1 or (self.window is not None and self.window < 1):
            raise ConfigError(
                f"DPP needs a relevance between 0 and 1 and a window of at least 1; got {self.relevance}, {self.window}."
            )

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        vectors = F.normalize(
            context.vectors_of(candidates.ids).double(), dim=-1
        )  # so that equal ones have a cosine of 1
        gain = (self.relevance * scaled(candidates)).double()
        picks = torch.from_numpy(
            dpp.greedy(
                vectors.numpy(),
                gain.numpy(),
                1 - self.relevance,
                candidates.mask.numpy(),
                context.k,
                self.window or context.k,
            )
        )
        width = candidates.width
        rank = torch.arange(width).expand(len(candidates), -1) + width
        places = torch.arange(picks.shape[1]).expand_as(picks)
        whole = torch.cat([rank, rank[:, :1]], 1)  # one place more, where what was not found goes
        whole.scatter_(1, picks.where(picks >= 0, width), places)
        return arrange(candidates, whole[:, :width])
