"""Constructor arguments as JSON and back."""

from __future__ import annotations

import functools
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recstack.errors import BundleError

_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_SCHEMA = {"$schema": 1}


def class_path(cls: type) -> str:
    """The name under which :func:`resolve` finds a class again.

    >>> class_path(BundleError)
    'recstack.errors:BundleError'
    """
    if "<" in cls.__qualname__:
        raise BundleError(
            f"{cls.__qualname__} is defined inside a function, so no file can name it; move it to the top of a module."
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def resolve(path: str, trust: Sequence[str] = ()) -> type:
    """Import the class that ``"module:Class"`` names.

    Only `recstack` and the packages named in `trust` are imported, and the class must be defined in one of them: a name
    that another package's module merely imported is refused. Raises BundleError.
    """
    if not isinstance(path, str) or not _CLASS_PATH.fullmatch(path):
        raise BundleError(f"{path!r} is not a class path; expected 'module:Class'.")
    module, _, name = path.partition(":")
    _check_trust(module, path, trust)
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise BundleError(f"{path!r} cannot be imported: {error}.") from error
    for depth, part in enumerate(name.split(".")):
        if depth and not isinstance(found, type):
            raise BundleError(f"{path!r} does not name a class.")
        if not hasattr(found, part):
            raise BundleError(f"{path!r} does not exist; was it renamed, or saved by another version?")
        found = getattr(found, part)
    if not isinstance(found, type):
        raise BundleError(f"{path!r} does not name a class.")
    _check_trust(found.__module__, path, trust)
    return found


def _check_trust(module: str, path: str, trust: Sequence[str]) -> None:
    if isinstance(trust, str):
        trust = (trust,)
    if not any(module == root or module.startswith(root + ".") for root in ("recstack", *trust)):
        root = module.partition(".")[0]
        raise BundleError(
            f"{path!r} is code outside recstack; if you trust the package {root!r}, pass trust=({root!r},)."
        )


def encode_config(arguments: Mapping[str, Any], schema: object = None) -> dict[str, Any]:
    """Constructor arguments as JSON: what :func:`decode_config` turns into equal arguments again.

    Allowed are None, bool, int, finite float, text, tuples, lists and text-keyed dicts of these, numpy scalars, classes and
    ``functools.partial`` of classes (keyword arguments only). The object given as `schema` becomes ``{"$schema": 1}``: it
    is stored once, beside. Raises BundleError naming the argument that cannot be remembered.

    >>> encode_config({"hidden": (64, 32), "error": BundleError})
    {'hidden': [64, 32], 'error': {'$': 'recstack.errors:BundleError'}}
    """
    return {str(name): _encode(value, str(name), schema) for name, value in arguments.items()}


def _encode(value: Any, where: str, schema: object) -> Any:
    if schema is not None and value is schema:
        return dict(_SCHEMA)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BundleError(f"Argument {where!r} is {value}; only finite numbers can be saved.")
        return value
    if isinstance(value, tuple | list):
        return [_encode(item, f"{where}[{i}]", schema) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if value == _SCHEMA:
            return dict(_SCHEMA)
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise BundleError(
                    f"Argument {where!r} has the key {key!r}; keys must be text that does not start with '$'."
                )
        return {key: _encode(item, f"{where}.{key}", schema) for key, item in value.items()}
    if isinstance(value, type):
        return {"$": class_path(value)}
    if isinstance(value, functools.partial) and isinstance(value.func, type) and not value.args:
        options = {key: _encode(item, f"{where}.{key}", schema) for key, item in value.keywords.items()}
        return {"$": class_path(value.func), **options}
    raise BundleError(
        f"Argument {where!r} is a {type(value).__name__}, which cannot be saved; give plain values, a class, "
        "or functools.partial of a class with keyword arguments."
    )


def decode_config(value: Any, trust: Sequence[str] = (), schema: object = None) -> Any:
    """The arguments that :func:`encode_config` wrote: lists as tuples, ``"$"`` as classes, ``{"$schema": 1}`` as `schema`.

    >>> decode_config({"hidden": [64, 32], "error": {"$": "recstack.errors:BundleError"}})["hidden"]
    (64, 32)
    """
    if isinstance(value, list | tuple):
        return tuple(decode_config(item, trust, schema) for item in value)
    if not isinstance(value, Mapping):
        return value
    if value == _SCHEMA:
        if schema is None:
            raise BundleError("The configuration refers to a schema, and none was saved beside it.")
        return schema
    decoded = {key: decode_config(item, trust, schema) for key, item in value.items() if key != "$"}
    if "$" not in value:
        return decoded
    cls = resolve(value["$"], trust)
    return functools.partial(cls, **decoded) if decoded else cls
