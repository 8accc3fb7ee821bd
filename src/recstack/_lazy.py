"""Names that are imported when they are first asked for, read from the stubs that type checkers read."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__, __dir__, __all__`` of a package, from the ``from .x import y as z`` lines of its .pyi file."""
    tree = ast.parse(Path(file).with_suffix(".pyi").read_text("utf8"))
    where = {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def __getattr__(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module_name, attribute = where[name]
        module = importlib.import_module("." + module_name, package) if module_name else sys.modules[package]
        if module_name and hasattr(module, attribute):
            value = getattr(module, attribute)
        else:
            value = importlib.import_module("." + attribute, module.__name__)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__, lambda: sorted(where), sorted(where)


def attach_models(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The same for a folder of models, from the public classes in its files: a model exists because its file does."""
    where = {name: path.stem for path in sorted(Path(file).parent.glob("[a-z]*.py")) for name in model_classes(path)}

    def __getattr__(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}. Known: {', '.join(sorted(where))}.")
        value = getattr(importlib.import_module("." + where[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__, lambda: sorted(where), sorted(where)


def model_classes(path: Path) -> list[str]:
    """Public classes of a file, without importing it; helpers begin with an underscore."""
    return re.findall(r"^class ([A-Za-z]\w*)\(", path.read_text("utf8"), re.MULTILINE)
