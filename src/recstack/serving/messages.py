"""What requests may hold, decoded strictly; whatever does not fit becomes one sentence that names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from recstack.errors import RequestError

MAX_K = 100
MAX_CANDIDATES = 2000
MAX_EVENTS = 1000
MAX_BODY = 1 << 20  # bytes

Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Meta(max_length=1024)]
Id = Whole | Name
Scalar = bool | Whole | float | Name | None
Value = bool | Whole | float | Name | list[Scalar] | None
Places = Annotated[int, Meta(ge=1, le=MAX_K)]
Message = TypeVar("Message")


class Recommend(Struct, forbid_unknown_fields=True):
    """A page for a user; `context` are raw values of context and domain features, `time` is the moment of the request."""

    user_id: Id
    k: Places = 10
    context: dict[str, Value] | None = None
    time: Whole | None = None


class Query(Struct, forbid_unknown_fields=True):
    """The same as a query string."""

    user_id: Name
    k: Places = 10
    time: Whole | None = None


class Rank(Struct, forbid_unknown_fields=True):
    """Scores of exactly these items: raw ids, or rows of raw item columns (for items that the catalogue lacks)."""

    user_id: Id
    items: Annotated[list[Whole | Name | dict[str, Value]], Meta(min_length=1, max_length=MAX_CANDIDATES)]
    context: dict[str, Value] | None = None
    time: Whole | None = None


class Event(Struct, forbid_unknown_fields=True):
    """A user met an item. An `event_id` that came before changes nothing."""

    user_id: Id
    item_id: Id
    time: Whole | None = None
    labels: dict[str, float] = {}
    event_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


Events = Event | Annotated[list[Event], Meta(min_length=1, max_length=MAX_EVENTS)]


class Users(Struct, forbid_unknown_fields=True):
    """Users whose id begins with `q`; without it, a random sample."""

    q: Name = ""
    limit: Places = 10


def from_json(body: bytes, kind: Any, root: str = "") -> Any:
    """The message in a body; raises RequestError. `root` is what a list's entries are called: ``events[2].item_id``."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _refused(error, root) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error) if isinstance(error, msgspec.DecodeError) else "its nesting or its text cannot be read"
        raise RequestError(f"The body is not JSON: {reason}.", status=400) from None


def from_query(query: Mapping[str, str], kind: type[Message]) -> Message:
    """The message in a query string, whose values are all text; raises RequestError."""
    try:
        return msgspec.convert(dict(query), kind, strict=False, str_keys=True)
    except msgspec.ValidationError as error:
        raise _refused(error, "") from None


def _refused(error: msgspec.ValidationError, root: str) -> RequestError:
    found = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$(.*?)`)?", str(error), re.DOTALL)
    assert found is not None  # the pattern takes any text
    text, path = found[1], (found[2] or "").replace("[...]", "")
    named = re.search(r"(missing required|contains unknown) field `(.*)`", text)
    if named:
        path = f"{path}.{named[2]}"
    field = (root + path if path.startswith("[") else path.removeprefix(".")) or root or None
    if named and named[1] == "missing required":
        return RequestError(f"Field '{field}' is missing.", field)
    if named:
        return RequestError(f"There is no field '{field}' here.", field)
    text = text.replace("`", "").removesuffix(".")
    text = text[:1].lower() + text[1:]
    return RequestError(f"Field '{field}': {text}." if field else f"The body: {text}.", field)
