"""The expression: a text, checked once and called many times."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from recstack.errors import ConfigError, DataError, unknown
from recstack.fusion.reading import LONGEST, Reader, Value, allowed, floating, number, powers


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

    >>> import torch
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
            raise ConfigError(f"Fusion {self.expression!r} is no expression ({what}). {allowed(known)}") from None
        reader = Reader(self.expression, known)
        self._value = reader.read(self._tree)
        self.names = tuple(dict.fromkeys(reader.names))
        if not self.names:
            raise ConfigError(f"Fusion {self.expression!r} names no task. {allowed(known)}")
        if known is not None:
            self.check(known)
        try:
            self({name: np.ones(1) for name in self.names})
        except (ArithmeticError, ValueError, TypeError) as e:
            raise ConfigError(f"Fusion {self.expression!r} has numbers without a value: {e}.") from None

    def __call__(self, predictions: Mapping[str, Value]) -> Value:
        """One score ``[...]`` of the tasks' predictions ``[...]``; raises ConfigError for a task that is not there."""
        self.check(predictions)
        values = {name: floating(predictions[name]) for name in self.names}
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
        return tuple(number(power.right) for power in powers(self._tree))  # type: ignore[misc]

    def with_exponents(self, exponents: Sequence[float]) -> Fusion:
        """The same expression with other exponents.

        >>> Fusion("click ** 1.0 * like ** 0.3").with_exponents([1, 0.5])
        Fusion('click ** 1.0 * like ** 0.5')
        """
        tree = ast.parse(self.expression, mode="eval").body
        found = powers(tree)
        if len(found) != len(exponents):
            raise ConfigError(f"Fusion {self.expression!r} has {len(found)} exponents; got {len(exponents)}.")
        for power, exponent in zip(found, exponents, strict=True):
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
