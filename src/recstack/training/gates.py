"""What a model's gates do, epoch by epoch: a few words for people, and an alarm where one has collapsed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

MOST, SURE = 0.95, 0.1  # mean weight of one expert, and entropy in nats, of a gate that no longer chooses
IDLE = 0.01  # mean weight of an expert that no task listens to
NAME = re.compile(r"(?P<task>.+)/(?P<gate>gate\d*)/(?P<expert>\d+)")


def weights(measures: Mapping[str, float]) -> dict[tuple[str, str], dict[int, float]]:
    """{(task, gate): {expert: mean weight}} of measures named "click/gate/3"; others are none of gates."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for name, value in measures.items():
        if match := NAME.fullmatch(name):
            found.setdefault((match["task"], match["gate"]), {})[int(match["expert"])] = value
    return found


def told(measures: Mapping[str, float]) -> str:
    """For the line of an epoch: each gate's entropy in nats, "click 1.32, like 0.08"."""
    ends = [
        (n.removesuffix("/entropy").removesuffix("/gate"), v) for n, v in measures.items() if n.endswith("/entropy")
    ]
    return ", ".join(f"{name} {value:.2f}" for name, value in ends)


def alarms(measures: Mapping[str, float]) -> dict[str, str]:
    """{what: one sentence} of gates that give one expert nearly all, and of experts that no task gives anything."""
    found, most = {}, {}
    for (task, gate), shares in weights(measures).items():
        best = max(shares, key=lambda e: shares[e])
        if len(shares) > 1 and shares[best] > MOST and measures.get(f"{task}/{gate}/entropy", 0.0) < SURE:
            found[f"{task}/{gate}/{best}"] = (
                f"The {gate} of task {task!r} has collapsed: expert {best} has {shares[best]:.1%} of its weight in every row, "
                "for two epochs now. Dropout of gates keeps the others in use, as do a lower rate or a norm."
            )
        for expert, share in shares.items():
            most.setdefault(gate, {})[expert] = max(share, most.get(gate, {}).get(expert, 0.0))
    for gate, shares in most.items():
        idle = [e for e, share in sorted(shares.items()) if share < IDLE]
        if idle:
            names = f"expert {idle[0]}" if len(idle) == 1 else f"experts {', '.join(map(str, idle))}"
            found[f"{gate}/idle"] = (
                f"No task gives {names} of {gate} as much as {IDLE:.0%} of its weight, for two epochs now. Fewer experts would "
                "do, or dropout of gates brings them into use."
            )
    return found


def warn(epochs: Sequence[Mapping[str, Any]], said: set[str]) -> None:
    """One warning for each alarm that the last two records agree on; `said` remembers those that were given."""
    if len(epochs) < 2:
        return
    before, now = (alarms(record.get("measures", {})) for record in epochs[-2:])
    for what in now.keys() & before.keys() - said:
        said.add(what)
        warnings.warn(now[what], stacklevel=2)
