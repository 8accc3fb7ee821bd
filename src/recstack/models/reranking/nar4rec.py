"""Non-autoregressive Generative Models for Reranking Recommendation (Ren et al., KDD 2024).

https://arxiv.org/abs/2402.06871
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs, tasks
from recstack.features.tasks import Logits
from recstack.losses.rows import weighted_mean
from recstack.models.generated import Generated
from recstack.nn.lists.evaluator import ListEvaluator
from recstack.nn.lists.matching import PlaceMatching, contrastive_pages
from recstack.nn.lists.orders import best_first, place_weights, placed
from recstack.nn.mlp import linear
from recstack.nn.sequence import Pooling
from recstack.schema import Schema


class NAR4Rec(Generated):
    r"""All places of the page ask at once for the item that suits them; of a few pages, an evaluator takes the best.

    .. math:: P_{ti} = \mathrm{softmax}_i\big(\langle h_i, q_t \rangle / \sqrt d\big), \qquad
        L = -\sum_{u > 0} u \sum_t \log P_{t y_t} - \sum_{u < 0} |u| \sum_t \log(1 - P_{t y_t})

    .. math:: \mathrm{score}(y) = \sum_t (1 - \alpha) P_{t y_t} - \alpha \max_{j \in y_{<t}} \cos(h_{y_t}, h_j)

    Candidates ``[R, L]`` see each other without positions (h); learned vectors of the places see each other and read the
    candidates (q). Lists that were shown are made likely, in their order, as far as their utility u is above what is usual,
    and unlikely below. Candidates without a label were not shown: they stand in the softmax only. Contrastive decoding keeps
    the `pages` best pages, place by place, and the evaluator chooses. The first task's logits are the evaluator's of the
    chosen page, handed out in its order: sorting by them gives the page.

    Departs from the paper: u is the mean label of a list, places weighing :math:`1 / \log_2(t + 1)`, less that of the batch;
    decoding is a beam, since an evaluator needs pages to choose from; generator and evaluator learn at once, the generator
    from the evaluator's vectors without moving them.

    Args:
        schema: a fitted schema; its first task must be binary, with one output.
        dim: embedding width of ids.
        width: of items and places.
        layers, heads: of the encoders of candidates and places, and of the evaluator's.
        hidden: widths of the evaluator's MLP.
        places: how many the generator fills; the rest follow by their logits for the first place.
        alpha: how much a page avoids what resembles what it has.
        pages: proposed to the evaluator.
        max_list: places that the evaluator tells apart; later ones share the last.
        history: how each history becomes one vector: "mean", "sum", "max", "last", "attention" or a `Pooling` class.
        dropout: in encoders and evaluator.

    Raises:
        ConfigError: where the first task is of another kind, `places` or `pages` is below 1, or α is not from 0 to 1.

    Ren et al., KDD 2024, https://arxiv.org/abs/2402.06871

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.NAR4Rec(rs.Encoder(train.schema).fit(train).schema, width=16, hidden=(16,), places=5)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        width: int = 64,
        layers: int = 1,
        heads: int = 2,
        hidden: Sequence[int] = (128, 64),
        places: int = 10,
        alpha: float = 0.1,
        pages: int = 10,
        max_list: int = 100,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.1,
    ):
        super().__init__(schema)
        if places < 1 or pages < 1 or not 0 <= alpha <= 1:
            raise ConfigError(
                f"places and pages must be at least 1, and alpha from 0 to 1; got {places}, {pages} and {alpha}."
            )
        self.alpha, self.pages = alpha, pages
        self.inputs = Inputs(schema, dim, history=history)
        self.project = linear(self.inputs.width(), width)
        self.evaluator = ListEvaluator(
            "transformer", width, hidden, layers=layers, heads=heads, max_list=max_list, dropout=dropout
        )
        self.heads = Heads(schema, self.evaluator.width)
        self.generate = PlaceMatching(width, layers, heads, places, dropout)

    def forward(self, batch: Mapping[str, Tensor]) -> Logits:
        x, mask = self.vectors(batch)
        with torch.autocast(x.device.type, enabled=False):
            return self.best(x, mask, self.propose(x, mask))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The evaluator's tasks on the lists as they were shown, and the generator's."""
        x, mask = self.vectors(batch)
        with torch.autocast(x.device.type, enabled=False):
            out = tasks.losses(self.evaluate(x, mask), batch, self.schema)
            label, where, weight = tasks.target(batch, self.schema, self.task)
            order = best_first(torch.zeros_like(label), where)  # what was shown, from the top
            shown, label = placed(where, order), placed(label, order)
            _, log_chance = self.generate(x.detach(), mask)
            n = min(log_chance.shape[1], order.shape[1])
            found = log_chance[:, :n].gather(2, order[:, :n].unsqueeze(-1)).squeeze(-1)
            counts = shown.float() if weight is None else torch.where(shown, placed(weight, order), 0)
            return {**out, "generator": likelihood(found, utility(label, shown), counts[:, :n])}

    def evaluate(self, x: Tensor, mask: Tensor, *more: Any) -> Logits:
        return self.heads(self.evaluator(x, mask))

    def propose(self, x: Tensor, mask: Tensor) -> Tensor:
        """The pages that the evaluator chooses from: orders ``[R, pages, L]``."""
        h, log_chance = self.generate(x, mask)
        return contrastive_pages(h, log_chance, mask, self.alpha, self.pages)


def utility(label: Tensor, shown: Tensor) -> Tensor:
    """How far the mean label of each list ``[R]`` is above that of the batch, by place ``[R, L]``; high places weigh more."""
    weight = place_weights(label) * shown
    each = (label * weight).sum(-1) / weight.sum(-1).clamp(min=1e-6)
    return each - weighted_mean(each, shown.any(-1).float())


def likelihood(log_chance: Tensor, utility: Tensor, weight: Tensor) -> Tensor:
    r"""Likelihood of lists whose utility is above 0, unlikelihood of the others, each weighing :math:`|u|`.

    .. math:: -\sum_{u > 0} u \sum_t \log P_t - \sum_{u < 0} |u| \sum_t \log(1 - P_t)

    The mean over places by weight: ``log_chance [R, P], utility [R], weight [R, P]``.

    (Welleck et al., ICLR 2020, https://arxiv.org/abs/1908.04319.)
    """
    log_chance = torch.where(weight > 0, log_chance, 0)
    other = torch.log1p(-log_chance.exp().clamp(max=1 - 1e-6))
    u = utility.unsqueeze(-1)
    return -weighted_mean(torch.where(u > 0, log_chance, other), u.abs() * weight)
