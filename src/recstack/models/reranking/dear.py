"""DEAR: Deep Reinforcement Learning for Online Advertising Impression in Recommender Systems (Zhao et al., AAAI 2021).

https://arxiv.org/abs/1909.03602
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import Inputs, tasks
from recstack.losses.rows import weighted_mean
from recstack.models.agent import Agent
from recstack.nn.mlp import MLP, linear
from recstack.nn.names import ByName
from recstack.nn.sequence.recurrent import GRUState
from recstack.nn.slow import Slow
from recstack.schema import History, Schema


class DEAR(Agent):
    r"""Whether an ad comes into a list that is about to be shown, which of the candidates, and above which item.

    .. math:: s = [u;\ c;\ \mathrm{GRU}(h_1), \mathrm{GRU}(h_2), \dots;\ \tanh(W [x_1; \dots; x_L])], \qquad
              Q(s, a)^0 = V(s), \quad Q(s, a)^\ell = V(s) + A(s, a)^\ell

    .. math:: L = \big(r + \gamma \max_{a', \ell'} Q^-(s', a')^{\ell'} - Q(s, a)^\ell\big)^2

    The candidates ``[R, A]`` of a request are ads; the list of L items is the History that `page` names, from the top; other
    histories (what the user clicked, which ads were shown) are each read by a GRU. Two tasks are labels of the ad that was
    decided on, missing on the others: a regression, what the page earned (the paper's: the ad's revenue, plus α if the user
    went on and minus α if not), and a multiclass one of L + 2 classes, the location: 0 where no ad was shown, ℓ above the ℓ-th
    item, L + 1 at the end. The logits of the location are Q ``[R, A, L + 2]``, the regression's is its maximum ``[R, A]``.
    `choose` decides, `placed` puts the ad into the list.

    Departs from the paper: showing no ad is worth V(s) whichever ad it is that is not shown (there it is one more output for
    each ad); the log is replayed evenly, without priorities; tables are shared with the slow copy, which follows at each step.

    Args:
        schema: a fitted schema with a regression task and a multiclass one.
        page: the History that holds the list; () reads none.
        dim: embedding width of ids.
        width: of what is made of the list.
        hidden: widths of V and of A.
        discount: γ.
        rate: by which the slow copy follows, at each step.

    Raises:
        ConfigError: other tasks, a page that is no History, a discount or rate that is none.

    Zhao et al., AAAI 2021, https://arxiv.org/abs/1909.03602

    >>> import recstack as rs
    >>> features = [rs.Categorical("user_id", role="user"), rs.Categorical("item_id", role="item")]
    >>> decided = [rs.Task("earned", kind="regression"), rs.Task("location", kind="multiclass", classes=4)]
    >>> schema = rs.Schema(
    ...     [*features, rs.History("page", of="item_id", max_len=2)], decided, user="user_id", item="item_id"
    ... )
    >>> rows = {"user_id": [1, 1, 2], "item_id": [7, 8, 7], "page": [[1, 2], [2, 3], [3, 1]]}
    >>> log = rs.Log({**rows, "earned": [0.4, 0.0, -0.2], "location": [1, 0, 3]}, schema)
    >>> model = rs.reranking.DEAR(rs.Encoder(schema).fit(log).schema, hidden=(8,)).fit(log, epochs=1, progress=False)
    >>> ad, location = model.choose(model.schema.encoder.encode(log).batch(slice(0, 3)))
    >>> ad.shape, location.shape
    (torch.Size([3]), torch.Size([3]))
    """

    needs: ClassVar[tuple[str, ...]] = ("item", "history")
    market = "insertions"

    def __init__(
        self,
        schema: Schema,
        *,
        page: Sequence[str] = ("page",),
        dim: int = 16,
        width: int = 64,
        hidden: Sequence[int] = (128, 64),
        discount: float = 0.95,
        rate: float = 0.01,
    ):
        super().__init__(schema, discount, rate)
        kinds = {t.kind: t for t in schema.tasks if not t.derived}
        if len(schema.tasks) != 2 or set(kinds) != {"regression", "multiclass"}:
            raise ConfigError(
                "DEAR has two tasks: what a page earned, rs.Task(..., kind='regression'), and the location of the ad, "
                "rs.Task(..., kind='multiclass', classes=L + 2)."
            )
        self.earned, self.location = kinds["regression"], kinds["multiclass"]
        for name in page:
            if name not in schema.names or not isinstance(schema.feature(name), History):
                raise unknown("History in page=", name, [h.name for h in schema.histories])
        self.page = tuple(page)
        self.inputs = Inputs(schema, dim, history=None)
        steps = {h: sum(self.inputs.widths[name] for name in h.of) for h in schema.histories}
        self.past = ByName({h.name: GRUState(w) for h, w in steps.items() if h.name not in self.page})
        self.of_list = ByName({h.name: _Places(h.max_len, w, width) for h, w in steps.items() if h.name in self.page})
        known = self.inputs.width("user", "context", "domain")
        state = known + width * len(self.page) + sum(w for h, w in steps.items() if h.name not in self.page)
        self.network = _Dueling(state, self.inputs.width() - known, hidden, self.location.classes or 2)
        self.slow = Slow(self.network, rate)

    def _read(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The state ``[R, S]`` and the ads ``[R, A, W]``."""
        slots = self.inputs(batch)
        sides = slots.sides()
        request, ads = sides if isinstance(sides, tuple) else (sides[:, 0, :0], sides)
        parts = [request]
        for h in self.schema.histories:
            x, mask = slots.sequence(h.name)
            parts.append(self.of_list[h.name](x, mask) if h.name in self.page else self.past[h.name](None, x, mask))
        return torch.cat([p.float() for p in parts], -1), ads

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        q = self.network(*self._read(batch))
        found = {self.earned.name: q.amax(-1), self.location.name: q}
        return {t.name: found[t.name] for t in self.schema.tasks}

    @torch.no_grad()
    def choose(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The ad's place among the candidates and its location, both int64 ``[R]``; location 0, whatever the ad, is none."""
        q = self(batch)[self.location.name]
        q = q[..., 1:] - q[..., :1]
        if "@mask" in batch:
            q = q.masked_fill(~batch["@mask"].unsqueeze(-1), -torch.inf)
        best, at = q.flatten(1).max(-1)
        return at // q.shape[-1], torch.where(best > 0, at % q.shape[-1] + 1, 0)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The squared error of the value of what was done."""
        if self.training:
            self.slow.follow(self.network)
        reward, known, weight = tasks.target(batch, self.schema, self.earned)
        location, decided, _ = tasks.target(batch, self.schema, self.location)
        q = self.network(*self._read(batch)).gather(-1, location.long().unsqueeze(-1)).squeeze(-1)
        live = known & decided
        missed = (q - reward - self.after(batch).unsqueeze(-1)).square()
        w = live.float() if weight is None else torch.where(live, weight, 0)
        return {self.earned.name: weighted_mean(torch.where(live, missed, 0), w) * self.earned.weight}

    def value(self, batch: Mapping[str, Tensor]) -> Tensor:
        q = self.slow(*self._read(batch)).amax(-1)
        return q.amax(-1) if "@mask" not in batch else q.masked_fill(~batch["@mask"], -1e30).amax(-1)


def placed(page: Tensor, ad: Tensor, location: Tensor) -> Tensor:
    """Pages ``[R, L]`` of item ids with ads ``[R]`` above their `location`-th item: ``[R, L + 1]``, -1 at the end without one.

    >>> placed(torch.tensor([[5, 6], [5, 6], [5, 6]]), torch.tensor([9, 9, 9]), torch.tensor([0, 1, 3])).tolist()
    [[5, 6, -1], [9, 5, 6], [5, 6, 9]]
    """
    at = torch.arange(page.shape[1] + 1, device=page.device).expand(len(page), -1)
    gap = torch.where(location > 0, location - 1, page.shape[1]).unsqueeze(-1)
    longer = torch.cat([page, page[:, -1:]], 1).gather(1, torch.where(at > gap, at - 1, at))
    return torch.where(at == gap, torch.where(location > 0, ad, -1).unsqueeze(-1), longer)


class _Places(nn.Module):
    r""":math:`\tanh(W [x_1; \dots; x_L] + b)` of a list ``[R, T, w]`` whose absent items are zeros: ``[R, width]``."""

    def __init__(self, places: int, of_item: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(places, of_item, width) / (places * of_item) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device).clamp(max=len(self.weight) - 1)
        return (torch.einsum("rtw,twd->rd", x * mask.unsqueeze(-1), self.weight[place]) + self.bias).tanh()


class _Dueling(nn.Module):
    """``state [R, S], ads [R, A, W] → Q [R, A, classes]`` in float32, the first class being worth V alone."""

    def __init__(self, state: int, ad: int, hidden: Sequence[int], classes: int):
        super().__init__()
        self.of_state, self.of_both = MLP(state, hidden), MLP(state + ad, hidden)
        self.value, self.advantage = linear(self.of_state.width, 1), linear(self.of_both.width, classes - 1)

    def forward(self, state: Tensor, ads: Tensor) -> Tensor:
        v, a = self.of_state(state), self.of_both((state, ads))
        with torch.autocast(v.device.type, enabled=False):
            v, a = self.value(v.float()).unsqueeze(1), self.advantage(a.float())
        return torch.cat([v.expand(*a.shape[:-1], 1), v + a], -1)
