"""Bandits, and rankers that know how sure they are, learn batch by batch from the events that the service wrote down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from recstack.candidates import Candidates
from recstack.cascade import Cascade
from recstack.cascade.lists import stage_batch
from recstack.errors import ConfigError, DataError
from recstack.rules import Explore
from recstack.rules.bandits import Bandit, Counting
from recstack.serving.events import Line


def learn(cascade: Cascade, event_log: str | Path, reward: str, *, begin: int = 0) -> int:
    """Let what explores in a cascade learn from the events after byte `begin`; the byte to go on from.

    That is the bandits of `Explore` rules, and a ranker that observes (`rs.ranking.NeuralLinear`). The log may be one that a service is
    writing: a last line that is not finished waits for the next call. An event counts if its labels hold `reward`, which 0
    is too: what was shown and not clicked must be told as well, or every arm looks perfect. Items that the catalogue lacks are
    left out. A bandit learns what was shown, wherever it stood; where its arms are items it reads no context here, one model
    of all items reads their vectors. The ranker observes all labels of these events that are its tasks', of the user as the cascade's
    profiles know them: histories before the event's time, all of them where it has none, context unknown.

    Raises:
        ConfigError: the cascade explores nothing, or a bandit reads contexts of users, which events do not hold.
        DataError: a line that is no event.
    """
    bandits = [rule.bandit for rule in cascade.rules if isinstance(rule, Explore)]
    ranker: Any = cascade.ranker if hasattr(cascade.ranker, "observe") else None
    if not bandits and ranker is None:
        raise ConfigError(
            "Nothing here learns from events: the cascade has no rule Explore and no ranker that observes."
        )
    for bandit in bandits:
        if bandit.arms is not None and not isinstance(bandit, Counting):
            raise ConfigError(
                f"{type(bandit).__name__} reads contexts of users, which events do not hold; call its update() with them."
            )
    events, begin = _read(event_log, begin)
    events = [event for event in events if reward in event.labels]
    if not events:
        return begin
    ids = torch.from_numpy(
        cascade.encoder.encode_values(cascade.encoder.schema.item, [e.item_id for e in events])
    ).long()
    value = torch.tensor([e.labels[reward] for e in events], dtype=torch.float64)
    for bandit in bandits:
        _teach(bandit, ids, value, cascade)
    if ranker is not None:
        _observe(cascade, ranker, [e for e, i in zip(events, ids.tolist(), strict=True) if i > 1], ids[ids > 1])
    return begin


def _read(event_log: str | Path, begin: int) -> tuple[list[Line], int]:
    """The events of whole lines after byte `begin`, and the byte behind them."""
    events = []
    with open(event_log, "rb") as file:
        file.seek(begin)
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                events.append(msgspec.json.decode(line, type=Line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(f"Byte {begin} of {str(event_log)!r} begins no event: {error}.") from None
            begin += len(line)
    return events, begin


def _teach(bandit: Bandit, ids: torch.Tensor, value: torch.Tensor, cascade: Cascade) -> None:
    known = ids > 1  # 1 is an item that the catalogue lacks
    if bandit.arms is None:
        bandit.update(ids, value, cascade.context(1).vectors_of(ids), where=known)
    else:
        known &= ids < bandit.arms
        bandit.update(ids.where(known, 0), value, where=known)


@torch.no_grad()
def _observe(cascade: Cascade, ranker: Any, events: Sequence[Line], ids: torch.Tensor) -> None:
    """A batch for each moment, a request for each event."""
    columns = {task.column for task in ranker.schema.tasks if not task.derived}
    moments = [event.time for event in events]
    for moment in dict.fromkeys(moments):
        rows = [i for i, other in enumerate(moments) if other == moment]
        requests = cascade.profiles.requests([events[i].user_id for i in rows], time=moment)
        own = ids[rows].unsqueeze(1)
        known = cascade.scaled(cascade.known_of(own, requests, "ranker"))
        found = Candidates(own, torch.zeros(own.shape))
        batch = stage_batch(ranker.schema, requests.batch, found, cascade.encoder.catalog, known)
        for name in columns:
            label = [[events[i].labels.get(name, float("nan"))] for i in rows]
            batch[f"{name}@label"] = torch.tensor(label)
        ranker.observe(batch)
