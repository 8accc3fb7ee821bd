"""From a text to a function of the tasks' values, by a whitelist: nothing is evaluated as Python."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError

LONGEST, DEEPEST = 2000, 60  # characters, and levels of brackets: more is no fusion of tasks
Value = Any  # a tensor, an array, or a number
Part = Callable[[Mapping[str, Value]], Value]


class Reader:
    """From a syntax tree to a function of the tasks' values, by what is allowed and nothing else."""

    def __init__(self, text: str, known: Sequence[str] | None):
        self.text, self.known, self.names = text, known, []

    def read(self, node: ast.AST, depth: int = 0) -> Part:
        if depth > DEEPEST:
            raise ConfigError(f"A fusion has at most {DEEPEST} operations inside each other.")
        if isinstance(node, ast.Constant):
            value = number(node)
            if value is None:
                raise self._refused(node)
            return lambda values: value
        if isinstance(node, ast.Name):
            name = node.id
            self.names.append(name)
            return lambda values: values[name]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            one = self.read(node.operand, depth + 1)
            return lambda values: -one(values)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            operate = _OPERATORS[type(node.op)]
            a, b = self.read(node.left, depth + 1), self.read(node.right, depth + 1)
            return lambda values: operate(a(values), b(values))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            function, least, most = _FUNCTIONS[node.func.id]
            if node.keywords or not least <= len(node.args) <= most:
                due = f"{least}" if least == most else f"{least} or more"
                raise ConfigError(f"Fusion {self.text!r}: {node.func.id} takes {due} values between its brackets.")
            parts = [self.read(one, depth + 1) for one in node.args]
            return lambda values: function(*(part(values) for part in parts))
        raise self._refused(node)

    def _refused(self, node: ast.AST) -> ConfigError:
        text = ast.unparse(node)
        return ConfigError(
            f"Fusion {self.text!r}: {text if len(text) < 60 else text[:57] + '...'} is not allowed. {allowed(self.known)}"
        )


def allowed(known: Sequence[str] | None) -> str:
    names = f" ({', '.join(known)})" if known else ""
    return f"Write names of tasks{names}, numbers, + - * / ** and {', '.join(_FUNCTIONS)}."


def number(node: ast.AST) -> float | None:
    """The number that a node spells, or None."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number(node.operand)
        return None if value is None else -value
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool) or not isinstance(node.value, int | float):
        return None
    try:
        value = float(node.value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def powers(tree: ast.AST) -> list[ast.BinOp]:
    """Powers with a number for exponent, from left to right."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and number(node.right) is not None
    ]
    return sorted(found, key=lambda node: (node.right.lineno, node.right.col_offset))


# Counting: tensors, arrays and plain numbers alike.
def floating(value: Value) -> Value:
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.float()
    value = np.asarray(value)
    return value if np.issubdtype(value.dtype, np.floating) else value.astype(np.float32)


def _power(a: Value, b: Value) -> Value:
    value = a**b
    if isinstance(value, complex):
        raise ValueError(f"{a} ** {b} is no real number")
    return value


def _of_one(name: str) -> Callable[[Value], Value]:
    def function(x: Value) -> Value:
        room = torch if isinstance(x, Tensor) else math if isinstance(x, float) else np
        return getattr(room, name)(x)

    return function


def _extreme(name: str) -> Callable[..., Value]:
    side = "max" if name == "minimum" else "min"  # the bound that clamp is given

    def two(a: Value, b: Value) -> Value:
        if isinstance(a, float):
            a, b = b, a
        if isinstance(a, Tensor):
            return getattr(torch, name)(a, b) if isinstance(b, Tensor) else a.clamp(**{side: b})
        return (min if name == "minimum" else max)(a, b) if isinstance(a, float) else getattr(np, name)(a, b)

    def function(*values: Value) -> Value:
        out = values[0]
        for value in values[1:]:
            out = two(out, value)
        return out

    return function


_least, _greatest = _extreme("minimum"), _extreme("maximum")
_OPERATORS: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: _power,
}
#: Each function, and how many values it takes, at least and at most.
_FUNCTIONS: dict[str, tuple[Callable[..., Value], int, float]] = {
    **{name: (_of_one(name), 1, 1) for name in ("log1p", "log", "exp", "sqrt")},
    "min": (_least, 2, math.inf),
    "max": (_greatest, 2, math.inf),
    "clip": (lambda x, low, high: _least(_greatest(x, low), high), 3, 3),
}
