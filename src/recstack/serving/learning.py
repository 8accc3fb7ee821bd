"""Bandits that learn, batch by batch, from the events that the service wrote down."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from recstack.cascade import Cascade
from recstack.errors import ConfigError, DataError
from recstack.rules import Explore
from recstack.rules.bandits import Counting
from recstack.serving.events import Line


def learn(cascade: Cascade, event_log: str | Path, reward: str, *, begin: int = 0) -> int:
    """Let the bandits of a cascade's `Explore` rules learn from the events after byte `begin`; the byte to go on from.

    The log may be one that a service is writing: a last line that is not finished waits for the next call. An event
    counts if its labels hold `reward`, which 0 is too: what was shown and not clicked must be told as well, or every arm
    looks perfect. Items that the catalogue lacks are left out. Learns what was shown, wherever it stood; a bandit whose
    arms are items reads no context here, one model of all items reads their vectors.

    Raises:
        ConfigError: the cascade explores nothing, or a bandit reads contexts of users, which events do not hold.
        DataError: a line that is no event.
    """
    bandits = [rule.bandit for rule in cascade.rules if isinstance(rule, Explore)]
    if not bandits:
        raise ConfigError("Nothing here learns from events: the cascade has no rule Explore.")
    for bandit in bandits:
        if bandit.arms is not None and not isinstance(bandit, Counting):
            raise ConfigError(
                f"{type(bandit).__name__} reads contexts of users, which events do not hold; call its update() with them."
            )
    items, rewards = [], []
    with open(event_log, "rb") as file:
        file.seek(begin)
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                event = msgspec.json.decode(line, type=Line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(f"Byte {begin} of {str(event_log)!r} begins no event: {error}.") from None
            begin += len(line)
            if reward in event.labels:
                items.append(event.item_id)
                rewards.append(event.labels[reward])
    if not items:
        return begin
    key = cascade.encoder.schema.item
    ids = torch.from_numpy(cascade.encoder.encode_values(key, items)).long()
    value = torch.tensor(rewards, dtype=torch.float64)
    for bandit in bandits:
        known = ids > 1  # 1 is an item that the catalogue lacks
        if bandit.arms is None:
            bandit.update(ids, value, cascade.context(1).vectors_of(ids), where=known)
        else:
            known &= ids < bandit.arms
            bandit.update(ids.where(known, 0), value, where=known)
    return begin
