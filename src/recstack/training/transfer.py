"""Beginning with what another model learned: tables by their names, layers by theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from recstack.errors import ConfigError
from recstack.features.tables import Arena
from recstack.nn.experts import TaskTowers
from recstack.nn.gates import ContentGates, Gates
from recstack.training import incremental

OF_TASKS = (TaskTowers, Gates, ContentGates)  # one slice for each task, in the tasks' order


@dataclass(frozen=True)
class Transfer:
    """What `transfer` did, said when printed.

    taken: {name in the target: name in the source}. left: {name in the target: why it stays as it was}. unused: names in the
    source that went nowhere.
    """

    taken: dict[str, str]
    left: dict[str, str]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"Taken: {', '.join(self.taken) or 'nothing'}."]
        reasons: dict[str, list[str]] = {}
        for name, why in self.left.items():
            reasons.setdefault(why, []).append(name)
        lines += [f"Not taken, {why}: {', '.join(names)}." for why, names in reasons.items()]
        if self.unused:
            lines.append(f"Not used of the source: {', '.join(self.unused)}.")
        return "\n".join(lines)


@torch.no_grad()
def transfer(source: nn.Module, target: nn.Module) -> Transfer:
    """Start `target` with the weights that it shares with a trained `source`; both are models, and the source stays as it is.

    A table goes to every table of its name and width, such as those that STEM has for each task; where the target's
    vocabulary has grown, its new ids stay fresh. Any other tensor goes to the one of its name and shape, also where one of the models
    stands inside the other (``bottom.first.weight`` as ``trunk.model.bottom.first.weight``), provided that both read the same
    features in the same order; towers and gates, which hold a slice for each task, only where the tasks are the same.

    Returns:
        a `Transfer`: print it, for what was not taken is as random as before.

    Raises:
        ConfigError: ids of a shared table that mean other values; nothing in common.

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks=[rs.Task("click"), rs.Task("cart")]))
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> single = rs.multitask.SharedBottom(schema.replace(tasks=[rs.Task("click")]), dim=4, hidden=(8,))
    >>> both = rs.multitask.SharedBottom(schema, dim=4, hidden=(8,))
    >>> done = rs.transfer(single.fit(train, epochs=1, progress=False), both)
    >>> "bottom.first.weight" in done.taken, "heads.layers.cart.weight" in done.taken
    (True, False)
    """
    mine: Any = target
    theirs: Any = source
    old, own = source.state_dict(), target.state_dict()
    from_tables, to_tables = _tables(source), _tables(target)
    _same_ids(theirs.schema, mine.schema, {n for n, _ in from_tables.values()} & {n for n, _ in to_tables.values()})
    taken: dict[str, str] = {}
    left: dict[str, str] = {}
    for name, key in to_tables.items():
        found = [n for n, k in from_tables.items() if k == key]
        same = [n for n in found if _one_inside(n, name)]
        if len(found) > 1 and len(same) == 1:
            found = same
        if len(found) != 1:
            left[name] = (
                "the source has several tables of this name and width" if found else "the source has no such table"
            )
        elif len(old[found[0]]) > len(own[name]):
            left[name] = "tables only grow"
        else:
            own[name][: len(old[found[0]])].copy_(old[found[0]])
            taken[name] = found[0]
    same_features = [f.name for f in theirs.schema.fields] == [f.name for f in mine.schema.fields]
    same_tasks = [t.name for t in theirs.schema.tasks] == [t.name for t in mine.schema.tasks]
    sliced = tuple(f"{path}." for path, m in target.named_modules() if isinstance(m, OF_TASKS))
    rest = {n: v for n, v in old.items() if n not in from_tables}
    for name, value in own.items():
        if name in to_tables:
            continue
        named = [name] if name in rest else [n for n in rest if _one_inside(n, name)]
        fit = [n for n in named if rest[n].shape == value.shape]
        if not same_features:
            left[name] = "the models read other features"
        elif not named:
            left[name] = "the source has nothing of this name"
        elif not fit:
            left[name] = "of another shape in the source"
        elif len(fit) > 1:
            left[name] = "the source has several of this name"
        elif name.startswith(sliced) and not same_tasks:
            left[name] = "the tasks are others"
        else:
            value.copy_(rest[fit[0]])
            taken[name] = fit[0]
    if not taken:
        raise ConfigError(
            f"{type(source).__name__} and {type(target).__name__} have no table or layer of one name and size in common."
        )
    target.load_state_dict(own)  # most are views already; hooks see all
    return Transfer(taken, left, tuple(n for n in old if n not in set(taken.values())))


def _tables(model: nn.Module) -> dict[str, tuple[str, int]]:
    """{name in the state: (table, width)}."""
    return {
        f"{path}.{table}".lstrip("."): (table, m.embedding_dim)
        for path, m in model.named_modules()
        if isinstance(m, Arena)
        for table in m.sizes
    }


def _one_inside(a: str, b: str) -> bool:
    return a == b or a.endswith(f".{b}") or b.endswith(f".{a}")


def _same_ids(old: Any, new: Any, tables: set[str]) -> None:
    if old.encoder is new.encoder:
        return
    before, after = incremental.vocabularies(old), incremental.vocabularies(new)
    for feature in old.features:
        name = feature.name
        if name not in before.keys() & after.keys() or getattr(feature, "table_name", None) not in tables:
            continue
        if not incremental.same_ids(new, name, before[name]):
            raise ConfigError(
                f"The ids of {name!r} mean other values in the two models. Build the target from the source's Encoder, or "
                "from encoder.grown(log), which keeps them."
            )
