"""The face of the package: light to import, complete when asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

import recstack as rs
from recstack import catalog

HEAVY = "torch numpy polars pandas pyarrow narwhals sklearn scipy numba matplotlib msgspec yaml rich typer safetensors"


def test_importing_the_face_imports_nothing_else():
    code = f"import sys, recstack; print(*[m for m in {HEAVY.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", rs.__all__)
def test_every_name_of_the_face_is_there(name):
    assert getattr(rs, name) is not None
    assert name in dir(rs)


def test_every_stage_is_a_name_of_the_face():
    assert set(catalog.STAGES) <= set(rs.__all__)


@pytest.mark.parametrize("entry", catalog.models(), ids=lambda e: e.name)
def test_a_model_is_reached_by_stage_and_name(entry):
    stage = getattr(rs, entry.stage)
    assert getattr(stage, entry.name).__module__ == entry.module
    assert entry.name in dir(stage)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        rs.Recomender  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'DeepFn'\. Known: .*DeepFM"):
        rs.ranking.DeepFn  # noqa: B018


def test_a_name_is_looked_up_once():
    first = rs.Schema
    assert vars(rs)["Schema"] is first
