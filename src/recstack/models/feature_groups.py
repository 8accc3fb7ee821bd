"""What models share that read some groups of features only: which they are, and which are worth their price."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import ConfigError, unknown
from recstack.features import Inputs
from recstack.models.base import Model
from recstack.schema import CANDIDATE_ROLES, Feature, Schema, is_embedded


class ReadsGroups(Model):
    """A model over feature groups (``group=`` of a feature, else its name), of which it reads those in `keep`.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        keep: the feature groups to read; None for all.
        history: how a history becomes one vector, by name: "mean", or "sum", which also tells how long it is.

    Raises:
        ConfigError: an unknown group, or none of the items'.
    """

    place: Tensor

    def __init__(self, schema: Schema, dim: int, keep: Sequence[str] | None, history: str):
        super().__init__(schema)
        self.known = tuple(dict.fromkeys(_group(f) for f in schema.fields))
        for name in keep or ():
            if name not in self.known:
                raise unknown("feature group", name, self.known)
        self.groups = tuple(g for g in self.known if keep is None or g in keep)
        self.of_candidates = {_group(f) for f in schema.fields if f.role in CANDIDATE_ROLES}
        if self.of_candidates.isdisjoint(self.groups) and (self.of_candidates or not self.groups):
            raise ConfigError(
                f"{type(self).__name__} needs a feature group of the items to tell them apart; name one in keep=."
            )
        kept = [f.name for f in schema.fields if _group(f) in self.groups]
        self.inputs = Inputs(self.reduced(self.groups), dim, history=history)
        self.widths = {n: w for n, w in self.inputs.widths.items() if n in kept}  # request side first
        self.plain = {n for n in kept if n in self.inputs.widths and _plain(schema.feature(n))}
        place = [self.groups.index(_group(schema.feature(n))) for n, w in self.widths.items() for _ in range(w)]
        self.register_buffer("place", torch.tensor(place), persistent=False)  # [W]: the group of each column

    def reduced(self, groups: Iterable[str]) -> Schema:
        """The schema without the other groups, for any model; what derived features and histories of these read stays."""
        kept = [f.name for f in self.schema.fields if _group(f) in set(groups)]
        read = {*kept, *(name for f in self.schema.derived if f.name in kept for name in f.reads)}
        read |= {name for h in self.schema.histories if h.name in read for name in h.of}
        return self.schema.without(*(f.name for f in self.schema.fields if f.name not in read))

    def _columns(self, batch: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        slots = self.inputs(batch)
        request, candidate = (
            [linear_log(v) if n in self.plain else v for n, v in side.items() if n in self.widths]
            for side in (slots.request, slots.candidate)
        )
        x = torch.cat(candidate, -1)
        return (torch.cat(request, -1), x) if request else x

    def _best(self, value: Mapping[str, float], groups: int) -> tuple[str, ...]:
        """The `groups` most valuable, at least one of them the items'."""
        names = sorted(value, key=lambda name: -value[name])
        best = names[:groups]
        if self.of_candidates and self.of_candidates.isdisjoint(best):
            best = [*best[:-1], next(n for n in names if n in self.of_candidates)]
        return tuple(best)

    def _affordable(self, value: Mapping[str, float], cost: Mapping[str, float], budget: float) -> tuple[str, ...]:
        """The most valuable groups that `budget` pays for, at least one of them the items'."""
        check_costs(cost, self.groups)
        found = knapsack(value, cost, budget)
        if not self.of_candidates or not self.of_candidates.isdisjoint(found):
            return found
        options = []
        for own in self.of_candidates.intersection(value):
            if cost[own] <= budget:
                rest = {n: v for n, v in value.items() if n != own}
                options.append((own, *knapsack(rest, cost, budget - cost[own])))
        if not options:
            raise ConfigError(f"A budget of {budget:g} pays for no feature group of the items; raise budget=.")
        return max(options, key=lambda names: sum(value[n] for n in names))


def check_costs(cost: Mapping[str, float], groups: Sequence[str]) -> None:
    """Raises ConfigError unless every group has a price, a finite number from 0; prices of others are passed over."""
    for name in groups:
        price = cost.get(name)
        if price is None or not 0 <= price < math.inf:
            raise ConfigError(f"cost= needs a number from 0 for every feature group; got {price!r} for {name!r}.")


def knapsack(value: Mapping[str, float], cost: Mapping[str, float], budget: float) -> tuple[str, ...]:
    """The names whose values sum to most among those whose costs sum to `budget` at most; a value of 0 or below is never taken.

    Exact: of every two choices, the one that costs more and is worth less is forgotten.

    >>> knapsack({"a": 6.0, "b": 5.0, "c": 5.0, "d": -1.0}, {"a": 3.0, "b": 2.0, "c": 2.0, "d": 0.0}, 4.0)
    ('b', 'c')
    """
    most = budget + 1e-9 * max(1.0, abs(budget))  # sums of decimals are not exact
    choices: list[tuple[float, float, tuple[str, ...]]] = [(0.0, 0.0, ())]
    for name in (n for n in value if value[n] > 0):
        more = [(c + cost[name], v + value[name], (*names, name)) for c, v, names in choices if c + cost[name] <= most]
        every, choices = sorted([*choices, *more], key=lambda choice: (choice[0], -choice[1])), []
        for choice in every:
            if not choices or choice[1] > choices[-1][1]:
                choices.append(choice)
    return choices[-1][2]


def linear_log(x: Tensor) -> Tensor:
    """x where ``|x| < 1``, else ``sign(x) · (log|x| + 1)``: continuous, with a continuous slope."""
    size = x.abs()
    return torch.where(size < 1, x, x.sign() * (size.clamp(min=1).log() + 1))


def _group(feature: Feature) -> str:
    return getattr(feature, "group", None) or feature.name


def _plain(feature: Feature) -> bool:
    given = feature.kind in ("numeric", "vector") and not is_embedded(feature)
    return given and getattr(feature, "embedding", None) is None
