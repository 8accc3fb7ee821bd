"""PIER: Permutation-Level Interest-Based End-to-End Re-ranking Framework in E-commerce (Shi et al., KDD 2023).

https://arxiv.org/abs/2302.03487
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs, tasks
from recstack.features.inputs import Slots
from recstack.features.tasks import Logits
from recstack.losses.rows import weighted_mean
from recstack.models.generated import Generated
from recstack.nn.lists.omnidirectional import Omnidirectional
from recstack.nn.lists.orders import best_first, placed
from recstack.nn.lists.permutations import SimHash, arrangements, hamming, pages_of
from recstack.nn.mlp import MLP
from recstack.nn.names import ByName
from recstack.nn.sequence.attention import masked_softmax
from recstack.schema import Schema


class PIER(Generated):
    r"""All arrangements of the top are hashed, those nearest to the user's past pages are evaluated, the best is answered.

    .. math:: d_p = \sum_g \frac{1}{g} \mathrm{Hamming}\big(\mathrm{sig}(x_{p_1}, \dots, x_{p_m}), \mathrm{sig}(h_g)\big),
        \qquad \mathrm{sig}(x) = \mathrm{sign}\Big(R \sum_t e_t \odot x_t\Big)

    .. math:: z_t = \mathrm{MLP}\big([\,\mathrm{OAU}(x_p);\ \textstyle\sum_g \mathrm{softmax}_g(\mathrm{OAU}(x_p) \cdot
        \mathrm{OAU}(h_g))\,\mathrm{OAU}(h_g);\ \mathrm{OAU}(x_p)_t;\ \mathrm{MLP}(x_{p_t})]\big), \qquad
        L = L_{\mathrm{tasks}} - \kappa\,\big(\bar p_{\mathrm{near}} - \bar p_{\mathrm{far}}\big)

    Lists ``[R, L]``: the first `items` of the ranker before are arranged on `places`, the rest follows as it came. A past page
    g (1 the newest) is `places` successive steps of a history. The omnidirectional unit is `nn.lists.Omnidirectional`. The
    contrast κ holds the probabilities of the `keep` nearest arrangements above those of the farthest. Without a past all are
    equally near, and those next to the order that came are kept. The first task's logits are the evaluator's of the chosen
    list, handed out in its order: sorting by them gives the list.

    Departs from the paper: pages are cut from histories, which know no pages; places are vectors that are added, and means
    take the place of layers over flattened lists, so that lists may have any length; a list's value weighs places by
    :math:`1 / \log_2(t + 1)`. The contrast moves no embeddings of the candidates, as in the authors' code.

    Args:
        schema: a fitted schema; its first task must be binary, with one output.
        dim: width of ids and of every attribute.
        hidden: widths of the MLP that reads an item by itself.
        final: widths of the MLP before the heads.
        items: candidates that are arranged.
        places: that they are arranged on.
        keep: arrangements that are evaluated.
        bits: of a signature.
        contrast: κ.
        max_list: places that the evaluator tells apart; later ones share the last.

    Raises:
        ConfigError: where the first task is of another kind, or there are too many arrangements.

    Shi et al., KDD 2023, https://arxiv.org/abs/2302.03487

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.PIER(rs.Encoder(train.schema).fit(train).schema, places=3, keep=10)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs: ClassVar[tuple[str, ...]] = ("item", "history")
    table: Tensor
    reach: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 8,
        hidden: Sequence[int] = (60, 32, 10),
        final: Sequence[int] = (50, 20),
        items: int = 5,
        places: int = 5,
        keep: int = 20,
        bits: int = 32,
        contrast: float = 0.01,
        max_list: int = 100,
    ):
        super().__init__(schema)
        if keep < 1 or bits < 1:
            raise ConfigError(f"keep and bits must be at least 1; got {keep} and {bits}.")
        table, reach = arrangements(items, places)
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("reach", reach, persistent=False)
        self.dim, self.places, self.keep, self.contrast = dim, places, min(keep, len(table)), contrast
        self.inputs = Inputs(schema, dim, history=None, stacked=True)
        self.hashes = ByName()
        for h in schema.histories:
            self.hashes[h.name] = SimHash(sum(self.inputs.widths[name] for name in h.of), places, bits)
        self.attention = Omnidirectional(dim, max_list)
        self.alone = MLP(self.inputs.width(), hidden, "silu")
        self.final = MLP(3 * dim + self.alone.width, final)
        self.heads = Heads(schema, self.final.width)

    def forward(self, batch: Mapping[str, Tensor]) -> Logits:
        with torch.autocast(next(iter(batch.values())).device.type, enabled=False):
            slots, x, mask, past = self._read(batch)
            return self.best(x, mask, self.propose(slots, mask)[0], *past)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The evaluator's tasks on the lists as they were shown, and the contrast of near and far arrangements."""
        with torch.autocast(next(iter(batch.values())).device.type, enabled=False):
            slots, x, mask, past = self._read(batch)
            out = tasks.losses(self.evaluate(x, mask, *past), batch, self.schema)
            if self.contrast:
                both = torch.cat(self.propose(slots, mask), 1)
                many, there = self.arranged(x.detach(), mask, both)
                chance, count = self.chance(self.evaluate(many, there, *past)) * there, there.float()
                near, far = (
                    weighted_mean(part, weight)
                    for part, weight in zip(chance.chunk(2, 1), count.chunk(2, 1), strict=True)
                )
                out["contrast"] = self.contrast * (far - near)
            return out

    def evaluate(self, x: Tensor, mask: Tensor, *more: Any) -> Logits:
        """`more`: the vectors of past pages ``[R, G, dim]``, and which there are ``[R, G]``; lists ``[R, L]`` or ``[R, K, L]``."""
        cut = self.inputs.fields * self.dim
        fields, alone = x[..., :cut].unflatten(-1, (-1, self.dim)), x[..., cut:]
        whole, items = self.attention(fields, mask)
        pages, known = more
        query = whole if whole.dim() == 3 else whole.unsqueeze(1)  # [R, K, dim]
        interest = masked_softmax(query @ pages.transpose(1, 2), known.unsqueeze(1)) @ pages
        both = torch.cat([whole, interest.view(whole.shape)], -1).unsqueeze(-2).expand(*items.shape[:-1], -1)
        return self.heads(self.final(torch.cat([both, items, alone], -1)))

    def propose(self, slots: Slots, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The arrangements nearest to the past and the farthest ones, nearest and farthest first: orders ``[R, K, L]``."""
        items = self.table.shape[1]
        start = best_first(torch.zeros_like(mask, dtype=torch.float32), mask)  # as it came, without what is dead
        top = F.pad(placed(mask, start), (0, items))[:, :items]
        distance = torch.zeros(mask.shape[0], self.table.shape[0], device=mask.device)
        for h in self.schema.histories:
            hashes: SimHash = self.hashes[h.name]  # type: ignore[assignment]
            item = placed(torch.cat([slots[name] for name in h.of], -1), start)
            codes = hashes.arranged(F.pad(item, (0, 0, 0, items))[:, :items], top, self.table)
            steps, there = pages_of(*slots.sequence(h.name), self.places, h.max_len)
            age = torch.arange(1, there.shape[1] + 1, device=mask.device)
            distance = distance + hamming(codes, hashes(steps, there), there.any(-1) / age)
        possible = self.reach <= mask.sum(-1, keepdim=True)
        rest = torch.arange(items, items + mask.shape[1], device=mask.device)
        table = torch.cat([self.table, rest.expand(self.table.shape[0], -1)], 1)[:, : mask.shape[1]]
        found = []
        for sign in (1.0, -1.0):
            kept = (sign * distance).masked_fill(~possible, torch.inf).argsort(dim=-1, stable=True)[:, : self.keep]
            kept = torch.where(possible.gather(1, kept), kept, 0)  # short lists have fewer: the list as it came again
            found.append(start.unsqueeze(1).expand(-1, self.keep, -1).gather(2, table[kept]))
        return found[0], found[1]

    def _read(self, batch: Mapping[str, Tensor]) -> tuple[Slots, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Slots, each candidate's attributes beside its vector ``[R, L, F · dim + w]``, the live, and past pages."""
        slots: Slots = self.inputs(batch)
        fields = slots.stack()
        x = torch.cat([fields.flatten(-2), self.alone(slots.sides())], -1)
        mask = batch.get("@mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        pages, known = [], []
        for h in self.schema.histories:
            steps, there = pages_of(*slots.sequence(h.name), self.places, h.max_len)
            parts = steps.split([self.inputs.widths[name] for name in h.of], -1)
            lifts = self.inputs.lifts
            assert lifts is not None
            lifted = [lifts[name](part) if name in lifts else part for name, part in zip(h.of, parts, strict=True)]
            pages.append(self.attention(torch.stack(lifted, -2), there)[0])
            known.append(there.any(-1))
        return slots, x, mask, (torch.cat(pages, 1), torch.cat(known, 1))
