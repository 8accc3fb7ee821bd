"""The examples in the docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

from recstack import losses

MODULES = ["recstack.losses", *(f"recstack.losses.{m.name}" for m in pkgutil.iter_modules(losses.__path__))]


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0
