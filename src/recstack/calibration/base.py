"""What every calibrator shares: which rows count, applying, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from recstack import bundle
from recstack.bundle import Piece
from recstack.errors import ConfigError, DataError


class Calibrator:
    """A map from logits to calibrated logits, fitted on rows that the model was not trained on.

    A subclass fits numbers (`_fit`) and applies them (`_apply`); both work in float64. `monotone`: the order of the rows
    stays as it was.
    """

    monotone = True
    field: str | None = None  # the item column whose ids it is asked with, if any

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def fit(self, logit: Any, label: Any, weight: Any = None) -> Self:
        """Fit on logits, labels in [0, 1] and optional weights of one shape. Rows with a NaN label or no weight do not count.

        Raises DataError if shapes differ, a logit is not finite, a label is out of range, or no row is left.
        """
        z, y, w = rows("logit", logit, label, weight)
        self.state = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in self._fit(z, y, w).items()}
        return self

    def __call__(self, logit: Tensor) -> Tensor:
        """The calibrated logits, of the same shape and dtype."""
        if not self.state:
            raise ConfigError(f"{type(self).__name__} is not fitted; call fit(logit, label) with held-out rows first.")
        state = {name: value.to(logit.device) for name, value in self.state.items()}
        return self._apply(logit.double(), **state).to(logit.dtype)

    def probability(self, logit: Tensor) -> Tensor:
        """The calibrated probabilities."""
        return self(logit).sigmoid()

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {}

    def save(self, path: str | Path) -> Path:
        """A bundle of this calibrator alone, which `rs.load(path)` reads."""
        return bundle.write(path, {"calibrator": self.to_piece()}, {"kind": "calibrator"})

    def to_piece(self) -> Piece:
        """This calibrator as a piece of a bundle."""
        return Piece(bundle.class_path(type(self)), bundle.encode_config(self.config()), self.state)

    @classmethod
    def from_piece(cls, piece: Piece) -> Self:
        """The calibrator that `to_piece` saved."""
        calibrator = cls(**bundle.decode_config(piece.config))
        calibrator.state = {name: torch.as_tensor(value) for name, value in piece.tensors.items()}
        return calibrator

    def _fit(self, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, Any]:
        raise NotImplementedError

    def _apply(self, z: Tensor, **state: Tensor) -> Tensor:
        raise NotImplementedError


def rows(name: str, score: Any, label: Any, weight: Any = None, where: Any = None) -> tuple[np.ndarray, ...]:
    """The rows that count, as flat float64 arrays (score, label, weight). Raises DataError."""
    s, y = _array(score), _array(label)
    w = np.ones(y.shape) if weight is None else _array(weight)
    m = np.ones(y.shape) if where is None else _array(where)
    if not s.shape == y.shape == w.shape == m.shape:
        shapes = f"label {list(y.shape)}, weight {list(w.shape)}, where {list(m.shape)}"
        raise DataError(f"{name} is {list(s.shape)}, {shapes}; give one shape.")
    live = ~np.isnan(y) & (w != 0) & (m != 0)
    s, y, w = s[live], y[live], w[live]
    if not len(y):
        raise DataError("There is no labelled row to calibrate on.")
    if not np.isfinite(s).all():
        raise DataError(f"{name} holds {int((~np.isfinite(s)).sum())} numbers that are not finite.")
    if y.min() < 0 or y.max() > 1 or not np.isfinite(w).all() or w.min() < 0:
        raise DataError("Labels must lie between 0 and 1 and weights must be positive.")
    return s, y, w


def _array(value: Any) -> np.ndarray:
    return torch.as_tensor(value).detach().cpu().double().numpy()


def mass_bins(value: np.ndarray, weight: np.ndarray, bins: int | None) -> np.ndarray:
    """For each row one of at most `bins` groups of about equal weight, ordered by value; equal values share a group.

    `bins=None`: a group for each value.
    """
    _, group = np.unique(value, return_inverse=True)
    if bins is None:
        return group
    mass = np.bincount(group, weight)
    middle = np.cumsum(mass) - mass / 2
    bin_ = np.minimum((middle * bins / mass.sum()).astype(np.int64), bins - 1)
    return np.unique(bin_, return_inverse=True)[1][group]
