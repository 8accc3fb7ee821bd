"""What RecStack raises: one sentence that says what, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecStackError(Exception):
    """The base of all errors that a user can mend."""


class SchemaError(RecStackError, ValueError):
    """The declared columns contradict each other, or the data contradicts them."""


class DataError(RecStackError, ValueError):
    """A table, file or batch holds something that cannot be used."""


class ConfigError(RecStackError, ValueError):
    """An argument or a configuration file asks for something that does not exist."""


class BundleError(RecStackError):
    """A saved folder is missing a piece, was altered, or comes from another version."""


class TrainingError(RecStackError, RuntimeError):
    """Training cannot go on: a loss is not finite, or a checkpoint does not fit the run."""


class RequestError(RecStackError, ValueError):
    """A request to the service is malformed; ``field`` names the part."""

    def __init__(self, message: str, field: str | None = None, status: int = 422):
        super().__init__(message)
        self.field, self.status = field, status


def unknown(kind: str, name: object, choices: Iterable[str], error: type[RecStackError] = ConfigError) -> RecStackError:
    """An error for a name that is not among `choices`, with the nearest one as a guess.

    >>> print(unknown("history aggregation", "atention", ["attention", "mean"]))
    Unknown history aggregation 'atention'. Did you mean 'attention'? Known: attention, mean.
    """
    known = sorted(map(str, choices))
    near = difflib.get_close_matches(str(name), known, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return error(f"Unknown {kind} {str(name)!r}.{guess} Known: {', '.join(known) or 'none'}.")
