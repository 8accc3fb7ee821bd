"""What a module is for the length of a with-statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards the module's own mode, however the statement ends.

    >>> dropout = nn.Dropout()
    >>> with evaluating(dropout):
    ...     dropout.training
    False
    >>> dropout.training
    True
    """
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)


@contextmanager
def fixed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients to the parameters."""
    live = [p for p in module.parameters() if p.requires_grad]
    module.requires_grad_(False)
    try:
        with evaluating(module):
            yield
    finally:
        for p in live:
            p.requires_grad_(True)
