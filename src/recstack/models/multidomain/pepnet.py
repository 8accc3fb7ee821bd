"""PEPNet: Parameter and Embedding Personalized Network for Infusing with Personalized Prior Information (Chang et al., KDD 2023).

https://arxiv.org/abs/2302.01115
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads, Slots
from recstack.models.base import Model
from recstack.models.domains import MultiDomain
from recstack.nn.experts import Experts
from recstack.schema import Schema

GAMMA = 2.0  # a gate begins near 1 and changes nothing


class PEPNet(MultiDomain):
    r"""Gates by domain scale the embeddings, gates by user, item and author scale the hidden units of each task.

    .. math:: \mathrm{Gate}(x) = 2\, \sigma\big(W' \mathrm{ReLU}(W x + b) + b'\big), \qquad
        O = \mathrm{Gate}\big([E_d; \mathrm{sg}(E)]\big) \odot E, \qquad
        h_k^{l} = \mathrm{Gate}_k^{l}\big([E_u; E_i; E_a; \mathrm{sg}(O)]\big) \odot \mathrm{ReLU}(W_k^l h_k^{l - 1} + b_k^l)

    The first is EPNet, on features of role "domain"; the second PPNet, ``[R, L, T, H]`` for all tasks together. Inside of
    gates a gradient stops (sg) at what they scale. Without one of the two sets of features the other is left alone. A domain
    that training has not met has the embedding of what is out of vocabulary, nearly zero: its gates follow from the other
    features. A gate has a hidden layer as wide as
    what it scales, for each task its own. Departs from the paper: nothing.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        hidden: widths of each task's tower, at least one.
        domain: features that gate embeddings; None: all of role "domain"; (): none, PPNet alone.
        personal: features that gate hidden units; None: the user's and the item's keys, whichever are declared; add the
            author's; (): none, EPNet alone.
        dropout: in the towers.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what is gated in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: no tower, or nothing that gates.

    Chang et al., KDD 2023, https://arxiv.org/abs/2302.01115

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(domains=2))
    >>> model = rs.multidomain.PEPNet(rs.Encoder(train.schema).fit(train).schema, hidden=(16, 8))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (128, 64, 32),
        domain: Sequence[str] | None = None,
        personal: Sequence[str] | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        keys = [name for name in (schema.user, schema.item) if name is not None]
        by_domain = [f.name for f in schema.by_role("domain")] if domain is None else list(domain)
        by_person = keys if personal is None else list(personal)
        if not hidden or not (by_domain or by_person):
            raise ConfigError(
                "PEPNet needs widths of towers, and features that gate: of role domain, or named in personal=."
            )
        for name in (*by_domain, *by_person):
            schema.feature(name)
        super().__init__(schema, dim, history, trunk, [*by_domain, *by_person])
        self.by_domain, self.by_person = by_domain, by_person
        width, tasks = self.trunk.width, len(self.names)
        self.epnet = _Gates(self.width_of(*by_domain) + width, width) if by_domain else None
        prior = self.width_of(*by_person) + width if by_person else 0
        self.layers = nn.ModuleList(
            Experts(a, (b,), tasks, dropout, each=i > 0) for i, (a, b) in enumerate(pairwise((width, *hidden)))
        )
        self.ppnet = nn.ModuleList(_Gates(prior, b, tasks) for b in hidden if by_person)
        self.heads = Heads(schema, hidden[-1])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, slots, plus = self.read(batch)
        if self.epnet is not None:
            x = x * self.epnet(_beside(x, slots, self.by_domain)).squeeze(-2)
        prior = _beside(x, slots, self.by_person) if self.by_person else None
        h = x
        for i, layer in enumerate(self.layers):
            h = layer(h)  # [R, L, T, H]
            if prior is not None:
                h = h * self.ppnet[i](prior)
        return self.heads(self.by_task(h), plus)


class _Gates(nn.Module):
    """Gate NU of several tasks: ``[..., W] → [..., tasks, H]``, each number between 0 and 2."""

    def __init__(self, width: int, outputs: int, tasks: int = 1):
        super().__init__()
        self.hidden = Experts(width, (outputs,), tasks)
        self.weight = nn.Parameter(torch.empty(tasks, outputs, outputs))
        self.bias = nn.Parameter(torch.zeros(tasks, outputs))
        for one in self.weight:
            nn.init.xavier_normal_(one)

    def forward(self, x: Tensor) -> Tensor:
        score = torch.einsum("...ti,tio->...to", self.hidden(x), self.weight) + self.bias
        return GAMMA * score.sigmoid()


def _beside(x: Tensor, slots: Slots | None, names: Sequence[str]) -> Tensor:
    """The vectors of these features, then x without its gradient: ``[R, L, ...]``."""
    assert slots is not None
    vectors = [slots[name] for name in names]
    vectors = [v if v.dim() == x.dim() else v.unsqueeze(-2) for v in vectors]
    return torch.cat([*(v.expand(*x.shape[:-1], -1) for v in vectors), x.detach()], -1)
