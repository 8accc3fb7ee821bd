"""Events on disk: one JSON line each, appended and synced before the client is told that it was taken."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from recstack.errors import ConfigError, DataError
from recstack.serving.messages import Event


class Line(Event, forbid_unknown_fields=False):
    """An event as it stands in the log; `received` is in seconds since 1970."""

    received: float = 0.0


class EventLog:
    """An append-only JSONL file of events, held by one process.

    Args:
        path: made if it is not there. A last line that a crash cut short was never confirmed to anybody; it is removed.

    Raises:
        ConfigError: another process has it open.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115 (closed by `close`)
        if os.name != "nt":
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._file.close()
                raise ConfigError(f"The event log {str(path)!r} is in use by another service; give another.") from None
        self._end = self._whole_lines()
        self._file.truncate(self._end)

    def _whole_lines(self) -> int:
        """Bytes up to the end of the last line that was finished."""
        self._file.seek(0)
        end = position = 0
        for line in self._file:
            position += len(line)
            if line.endswith(b"\n"):
                end = position
        return end

    def __iter__(self) -> Iterator[Event]:
        """The events so far, oldest first. Raises DataError naming a line that is none."""
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            try:
                yield msgspec.json.decode(line, type=Line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(f"Line {number} of the event log {str(self.path)!r} is no event: {error}.") from None

    def append(self, events: Sequence[Event]) -> None:
        """Write all of these, or, where the disk fails (OSError), none."""
        now = time.time()
        lines = [
            msgspec.json.encode(Line(**{**msgspec.structs.asdict(event), "received": now})) + b"\n" for event in events
        ]
        try:
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += sum(map(len, lines))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
