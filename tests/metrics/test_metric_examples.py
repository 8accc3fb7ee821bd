"""The examples in the docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

from recstack import metrics

MODULES = ["recstack.metrics", *(f"recstack.metrics.{m.name}" for m in pkgutil.iter_modules(metrics.__path__))]


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0
