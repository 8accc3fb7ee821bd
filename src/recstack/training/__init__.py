"""The Trainer: one loop for every stage. Asks for a protocol (losses, parameters, state) and knows no model by name."""

from recstack.training.callbacks import JSONL, Callback, TensorBoard
from recstack.training.optimizers import Adagrad, LazyAdam, RowwiseAdagrad, SparseSGD, clip
from recstack.training.trainer import FitResult, Trainer

__all__ = [
    "JSONL",
    "Adagrad",
    "Callback",
    "FitResult",
    "LazyAdam",
    "RowwiseAdagrad",
    "SparseSGD",
    "TensorBoard",
    "Trainer",
    "clip",
]
