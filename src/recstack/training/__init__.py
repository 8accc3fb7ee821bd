"""The Trainer: one loop for every stage. Asks for a protocol (losses, parameters, state) and knows no model by name."""

from recstack.training.callbacks import JSONL, Callback, TensorBoard
from recstack.training.hard_negatives import HardNegatives
from recstack.training.optimizers import (
    FTRL,
    Adagrad,
    LazyAdam,
    PartialRowwiseAdam,
    RowwiseAdagrad,
    SparseSGD,
    clip,
)
from recstack.training.trainer import FitResult, Trainer

__all__ = [
    "FTRL",
    "JSONL",
    "Adagrad",
    "Callback",
    "FitResult",
    "HardNegatives",
    "LazyAdam",
    "PartialRowwiseAdam",
    "RowwiseAdagrad",
    "SparseSGD",
    "TensorBoard",
    "Trainer",
    "clip",
]
