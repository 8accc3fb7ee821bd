"""The file that `recstack train` reads: sections data, schema, split, model, trainer, and out; every key is checked."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from recstack import catalog
from recstack.errors import ConfigError, unknown

SECTIONS = ("data", "schema", "split", "model", "trainer", "out")
COUNTED = ("data", "schema", "split", "model", "out")  # of a model that counts instead of learning
OWN_TRAINER = ("model", "callbacks", "checkpoint", "progress")  # what the command sees to
PLAIN = (bool, int, float, str, type(None))


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 and people do, and refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        twice = next((k for k in keys if keys.count(k) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read(path: Path) -> dict[str, Any]:
    """The sections of a YAML or JSON file.

    Raises:
        ConfigError: it cannot be read, or has a section that does not exist.
    """
    try:
        data = yaml.load(path.read_text("utf8"), _Loader)
    except OSError as error:
        raise ConfigError(f"Cannot read {str(path)!r}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not valid YAML: {' '.join(str(error).split())}.") from error
    data = section(data, str(path))
    for key in data:
        if key not in SECTIONS:
            raise unknown(f"section of {path.name}:", key, SECTIONS)
    for name in ("data", "model"):
        if name not in data:
            raise ConfigError(f"{path.name} has no section {name!r}; `recstack train --print-config DIN` shows one.")
    return data


def section(value: Any, where: str) -> dict[str, Any]:
    """`value` if it is a mapping with text keys; nothing is an empty one."""
    value = {} if value is None else value
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise ConfigError(f"{where} is {value!r}; it has to be a mapping of keys to values.")
    return value


def arguments(
    function: Callable[..., Any], given: Mapping[str, Any], where: str, leave: Iterable[str] = ()
) -> dict[str, Any]:
    """The arguments `given` for `function`, checked by its signature: names, types, and that none is missing.

    Args:
        where: what to call them in messages: "trainer" gives "trainer.epochs".
        leave: parameters that are not the file's to give.

    Raises:
        ConfigError: naming the argument, with a guess where it does not exist.

    >>> def f(*, epochs: int = 10, lr: float | None = None): ...
    >>> arguments(f, {"lr": 1}, "trainer")
    {'lr': 1.0}
    >>> arguments(f, {"epoch": 1}, "trainer")
    Traceback (most recent call last):
    ...
    recstack.errors.ConfigError: Unknown key in trainer: 'epoch'. Did you mean 'epochs'? Known: epochs, lr.
    """
    known = {n: p for n, p in inspect.signature(function).parameters.items() if n not in {"self", *leave}}
    for key in given:
        if key not in known:
            raise unknown(f"key in {where}:", key, known)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in given:
            raise ConfigError(f"{where} has no {name!r}, which {getattr(function, '__name__', function)} needs.")
    hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    return {key: _typed(value, hints.get(key, Any), f"{where}.{key}") for key, value in given.items()}


def _typed(value: Any, kind: Any, where: str) -> Any:
    import msgspec

    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        due = re.search(r"[Ee]xpected `([^`]*)`", str(error))
        due_text = f"; expected {due[1].replace(' | ', ' or ')}" if due else f": {error}"
        raise ConfigError(f"{where} is {value!r}{due_text}.") from None
    except TypeError:  # a type that no file can spell, such as a class
        plain = tuple(k for k in typing.get_args(kind) if k in PLAIN)
        if plain and not isinstance(value, plain):
            raise ConfigError(
                f"{where} is {value!r}; expected {' or '.join(k.__name__ for k in plain if k is not type(None))}."
            ) from None
        return value


def model_class(entry: catalog.Entry) -> type:
    """The class behind a line of the catalogue."""
    return getattr(importlib.import_module(entry.module), entry.name)


def is_counted(cls: type) -> bool:
    """Whether it counts instead of learning: no Trainer."""
    from recstack.models.base import CountedRetriever

    return issubclass(cls, CountedRetriever)


def has_trainer(cls: type) -> bool:
    """Whether it learns step by step, by the Trainer; others count, or grow trees."""
    return getattr(cls, "gradients", not is_counted(cls))


# -- a file to start from ---------------------------------------------------------------------------------------------
EXTRA_DATA = {
    "multitask": "tasks: funnel",
    "multidomain": "domains: 3",
    "reranking": "lists: true",
    "insertions": "tasks: insertions\n  ads: 0.2",
}


def template(name: str) -> str:
    """A file that trains this model on the simulator as it is, with every default and what it means.

    Raises:
        ConfigError: there is no such model; it guesses.
    """
    entry = catalog.model(name)
    cls = model_class(entry)
    market = getattr(cls, "market", None)
    extra = EXTRA_DATA.get(market or entry.stage, market and f"tasks: {market}")
    lines = [
        f"# {entry.title}{f' ({entry.link})' if entry.link else ''}",
        "# Train it: recstack train THIS_FILE. Paths are seen from the folder where you run that.",
        "data:",
        "  dataset: simulator  # or movielens_1m, kuairand_pure, ... with its options; or your own, in place of this:",
        "  # events: events/*.parquet   (also users:, items:, implicit: true), and below schema: schema.yaml",
        "  # store: store/              (made by recstack prepare; without schema: and split:)",
        *([f"  {extra}"] if extra else []),
        "split:",
        "  by: by_time  # or last_per_user, leave_last_out, by_user, random",
        "  valid: 0.1",
        "  test: 0.1",
        "model:",
        f"  name: {entry.key}",
        *_defaults(cls, ("schema",)),
    ]
    if has_trainer(cls):
        from recstack.training import Trainer

        lines += ["trainer:", *_defaults(Trainer, OWN_TRAINER, getattr(cls, "trainer", {}))]
    return "\n".join([*lines, f"out: runs/{entry.name.lower()}", ""])


def _defaults(cls: type, leave: Iterable[str], instead: Mapping[str, Any] | None = None) -> list[str]:
    said = explained(cls.__doc__ or "")
    lines = []
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in leave:
            continue
        comment = f"  # {said[name]}" if name in said else ""
        try:
            value = json.dumps((instead or {}).get(name, parameter.default))
        except TypeError:  # a class or function: left at its default, since no file can spell it
            continue
        lines.append(f"  {name}: {value}{comment}")
    return lines


def explained(docstring: str) -> dict[str, str]:
    """What a docstring's Args say of each argument, shortened to a line.

    >>> explained("Title.\\n\\n    Args:\\n        a, b: two of them; equal.\\n            Really.\\n        c: one.")
    {'a': 'two of them; equal', 'b': 'two of them; equal', 'c': 'one'}
    """
    found = re.search(r"^Args:\n((?:[ \t]+.*\n|\n)*)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    out: dict[str, str] = {}
    for names, text in re.findall(r"^    ([\w, ]+): (.*(?:\n     +.*)*)", found[1] if found else "", re.MULTILINE):
        text = re.sub(r":math:`([^`]*)`", r"\1", text.replace("``", "")).replace("None", "null")
        sentence = re.split(r"(?<!\.\w\.)(?<=\.) ", " ".join(text.split()))[0]  # not after "e.g."
        out |= dict.fromkeys(names.split(", "), textwrap.shorten(sentence.rstrip("."), 100, placeholder=" ..."))
    return out
