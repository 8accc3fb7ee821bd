"""One score from the predictions of several tasks, by an expression that people can read and change."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError, DataError, unknown

LONGEST, DEEPEST = 2000, 60  # characters, and levels of brackets: more is no fusion of tasks
Value = Any  # a tensor, an array, or a number
Part = Callable[[Mapping[str, Value]], Value]


class Fusion:
    """One score from the predictions of several tasks: ``rs.Fusion("click ** 1.0 * like ** 0.3 * log1p(watch_time)")``.

    The expression is read, never evaluated as Python: names of tasks, numbers, ``+ - * / **``, a leading minus, brackets, and
    ``log1p(x)``, ``log(x)``, ``exp(x)``, ``sqrt(x)``, ``min(x, y, ...)``, ``max(x, y, ...)``, ``clip(x, low, high)``.

    Args:
        expression: over what `Model.predict` gives: probabilities of binary tasks, values of regressions.
        tasks: the names that it may use; None lets the first call find out.

    Called with ``{task: tensor}``, or ``{task: array}``, of one shape, it gives one of that shape, in float32 or the inputs' own
    precision; gradients flow, and a model with it can be exported. What has no answer (the logarithm of a negative number) is NaN,
    which is ranked last.

    Raises:
        ConfigError: what is not allowed, is no expression, has no value (``1 / 0``), or names no task or an unknown one.

    >>> fusion = Fusion("click * like ** 0.5")
    >>> fusion({"click": torch.tensor([0.5, 0.2]), "like": torch.tensor([0.04, 0.25])})
    tensor([0.1000, 0.1000])
    >>> Fusion("click * lik", tasks=["click", "like"])
    Traceback (most recent call last):
    ...
    recstack.errors.ConfigError: Unknown task in the fusion 'lik'. Did you mean 'like'? Known: click, like.
    """

    def __init__(self, expression: str, tasks: Iterable[str] | None = None):
        known = None if tasks is None else tuple(tasks)
        if not isinstance(expression, str):
            raise ConfigError(f"A fusion is a text such as 'click * like ** 0.3'; got {expression!r}.")
        self.expression = expression.strip()
        if len(self.expression) > LONGEST:
            raise ConfigError(f"A fusion of {len(self.expression)} characters is too long; {LONGEST} are allowed.")
        try:
            self._tree = ast.parse(self.expression, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
            what = e.msg if isinstance(e, SyntaxError) else "it cannot be read"
            raise ConfigError(f"Fusion {self.expression!r} is no expression ({what}). {_allowed(known)}") from None
        reader = _Reader(self.expression, known)
        self._value = reader.read(self._tree)
        self.names = tuple(dict.fromkeys(reader.names))
        if not self.names:
            raise ConfigError(f"Fusion {self.expression!r} names no task. {_allowed(known)}")
        if known is not None:
            self.check(known)
        try:
            self({name: np.ones(1) for name in self.names})
        except (ArithmeticError, ValueError, TypeError) as e:
            raise ConfigError(f"Fusion {self.expression!r} has numbers without a value: {e}.") from None

    def __call__(self, predictions: Mapping[str, Value]) -> Value:
        """One score ``[...]`` of the tasks' predictions ``[...]``; raises ConfigError for a task that is not there."""
        self.check(predictions)
        values = {name: _floating(predictions[name]) for name in self.names}
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        if len(set(shapes.values())) > 1:
            raise DataError(f"A fusion needs predictions of one shape; got {shapes}.")
        with np.errstate(all="ignore"):
            return self._value(values)

    def check(self, tasks: Iterable[str]) -> None:
        """Raises ConfigError for a name that is not among `tasks`."""
        tasks = tuple(tasks)
        for name in self.names:
            if name not in tasks:
                raise unknown("task in the fusion", name, tasks)

    @property
    def exponents(self) -> tuple[float, ...]:
        """The numbers to the right of ``**``, in the order of the text: what `tune_fusion` searches."""
        return tuple(_number(power.right) for power in _powers(self._tree))  # type: ignore[misc]

    def with_exponents(self, exponents: Sequence[float]) -> Fusion:
        """The same expression with other exponents.

        >>> Fusion("click ** 1.0 * like ** 0.3").with_exponents([1, 0.5])
        Fusion('click ** 1.0 * like ** 0.5')
        """
        tree = ast.parse(self.expression, mode="eval").body
        powers = _powers(tree)
        if len(powers) != len(exponents):
            raise ConfigError(f"Fusion {self.expression!r} has {len(powers)} exponents; got {len(exponents)}.")
        for power, exponent in zip(powers, exponents, strict=True):
            power.right = ast.Constant(float(exponent))
        return Fusion(ast.unparse(tree))

    def __repr__(self) -> str:
        return f"Fusion({self.expression!r})"

    def __str__(self) -> str:
        return self.expression

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fusion) and other.expression == self.expression

    def __hash__(self) -> int:
        return hash(self.expression)


# -- reading ----------------------------------------------------------------------------------------------------------
class _Reader:
    """From a syntax tree to a function of the tasks' values, by what is allowed and nothing else."""

    def __init__(self, text: str, known: Sequence[str] | None):
        self.text, self.known, self.names = text, known, []

    def read(self, node: ast.AST, depth: int = 0) -> Part:
        if depth > DEEPEST:
            raise ConfigError(f"A fusion has at most {DEEPEST} operations inside each other.")
        if isinstance(node, ast.Constant):
            number = _number(node)
            if number is None:
                raise self._refused(node)
            return lambda values: number
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
            f"Fusion {self.text!r}: {text if len(text) < 60 else text[:57] + '...'} is not allowed. {_allowed(self.known)}"
        )


def _allowed(known: Sequence[str] | None) -> str:
    names = f" ({', '.join(known)})" if known else ""
    return f"Write names of tasks{names}, numbers, + - * / ** and {', '.join(_FUNCTIONS)}."


def _number(node: ast.AST) -> float | None:
    """The number that a node spells, or None."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool) or not isinstance(node.value, int | float):
        return None
    try:
        value = float(node.value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _powers(tree: ast.AST) -> list[ast.BinOp]:
    """Powers with a number for exponent, from left to right."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _number(node.right) is not None
    ]
    return sorted(found, key=lambda node: (node.right.lineno, node.right.col_offset))


# -- counting: tensors, arrays and plain numbers alike ----------------------------------------------------------------
def _floating(value: Value) -> Value:
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


# -- searching --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TunedFusion:
    """What `tune_fusion` found.

    fusion: with the best exponents. value: its metric, on the rows that it was chosen by; before: that of the given exponents.
    trials: {"exponents": (...), "value": float} in the order they were tried, the given ones first.
    """

    fusion: Fusion
    value: float
    before: float
    trials: tuple[dict[str, Any], ...]


def tune_fusion(
    fusion: Fusion | str,
    predictions: Mapping[str, Value],
    label: Value,
    metric: str = "gauc",
    *,
    where: Value | None = None,
    weight: Value | None = None,
    group: Value | None = None,
    between: tuple[float, float] = (0.0, 2.0),
    trials: int = 200,
    by: str = "random",
    seed: int = 0,
) -> TunedFusion:
    """The exponents of a fusion that order logged lists best; give validation lists, and judge the result on others.

    What is searched are the numbers to the right of ``**``; all others stay. In a pure product only the ratios of exponents
    order anything, so leave one task without ``**``. No exponents are believed that are not better than the given ones.

    Args:
        predictions: {task: ``[R, L]``, or ``[N]``}, as `Model.predict` or `Model.score` gives them.
        label: of the same shape. Several labels become one by a fusion of theirs: ``Fusion("(click + 4 * like) / 5")(labels)``;
            GAUC takes labels between 0 and 1, nDCG any gains.
        metric: by name: "gauc", "ndcg@10", ...; lists' ties count as the average over their orders.
        where: live rows. weight: of rows. group: the user of each row, for GAUC; without it each list is a group.
        between: where exponents are looked for.
        by: "random": half of the trials evenly, half near the best so far; or "optuna", extra ``recstack[tune]``.

    Raises:
        ConfigError: no exponents, no way up in the metric, fewer than two trials, or no Optuna.

    >>> like = torch.rand(50, 8)
    >>> tune_fusion("click * like ** 0.2", {"click": 1 - like, "like": like}, like, "ndcg").fusion.exponents[0] > 1
    True
    """
    from recstack import metrics

    given = Fusion(str(fusion))
    measure = metrics.get(metric)
    if measure.kind == "list":
        measure = metrics.get(metric, ties="average")
    low, high = between
    if not given.exponents:
        raise ConfigError(f"Fusion {str(given)!r} has no exponents to tune; write 'click * like ** 1.0'.")
    if measure.higher_is_better is None:
        raise ConfigError(f"Metric {metric!r} has no better or worse; take gauc, auc or ndcg@10.")
    if by not in ("random", "optuna"):
        raise unknown("search in by=", by, ("random", "optuna"))
    if trials < 2 or not low < high:
        raise ConfigError(f"trials= is 2 or more and between= (low, high); got {trials} and {between}.")
    values = {name: torch.as_tensor(predictions[name]) for name in given.names if name in predictions}
    label = torch.as_tensor(label)
    if measure.kind == "list" and label.dim() < 2:
        raise ConfigError(
            f"Metric {metric!r} is of lists, and these rows have none; give tensors [requests, candidates]."
        )
    rows = {
        name: None if value is None else torch.as_tensor(value)
        for name, value in (("where", where), ("weight", weight), ("group", group))
    }
    sign = 1 if measure.higher_is_better else -1
    tried: list[dict[str, Any]] = []

    @torch.no_grad()
    def goodness(exponents: Sequence[float]) -> float:
        exponents = tuple(round(float(x), 4) for x in exponents)
        value = float(measure(given.with_exponents(exponents)(values), label, **rows))
        tried.append({"exponents": exponents, "value": value})
        return sign * value if value == value else -math.inf

    best = lambda: max(tried, key=lambda t: sign * t["value"] if t["value"] == t["value"] else -math.inf)  # noqa: E731
    goodness(given.exponents)
    if by == "optuna":
        _ask_optuna(goodness, len(given.exponents), between, trials - 1, seed)
    else:
        random = np.random.default_rng(seed)
        for trial in range(1, trials):
            if trial <= trials // 2:
                goodness(random.uniform(low, high, len(given.exponents)).tolist())
            else:
                goodness(random.normal(best()["exponents"], (high - low) / 20).clip(low, high).tolist())
    found = best()
    return TunedFusion(given.with_exponents(found["exponents"]), found["value"], tried[0]["value"], tuple(tried))


def _ask_optuna(
    goodness: Callable[[Sequence[float]], float], n: int, between: tuple[float, float], trials: int, seed: int
) -> None:
    try:
        import optuna
    except ImportError as e:
        raise ConfigError('by="optuna" needs Optuna: pip install "recstack[tune]".') from e
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(lambda t: goodness([t.suggest_float(str(i), *between) for i in range(n)]), n_trials=trials)
    finally:
        optuna.logging.set_verbosity(level)
