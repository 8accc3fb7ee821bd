"""Every model keeps every law of `recstack.testing`."""

import importlib
from pathlib import Path

import pytest
import torch

import recstack.models
from contract_cases import CASES
from recstack._lazy import model_classes
from recstack.models.ranking.deepfm import DeepFM
from recstack.testing import LAWS, Case, contract, laws

# Quick each, a minute together: the inner loop does without, as they seldom fail where the others pass.
LATER = {
    "empty_lists",
    "evaluation_changes_nothing",
    "jagged",
    "keys_only",
    "missing_column",
    "names",
    "no_numbers",
    "reads_every_column",
    "several_widths",
}
assert set(LAWS) >= LATER


def late(law, case) -> bool:
    return bool(law.slow or case.label or law.name in LATER)


RUNS = [
    pytest.param(law, case, id=f"{case}-{law.name}", marks=[pytest.mark.slow] if late(law, case) else [])
    for case in CASES
    for law in laws(case)
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small are faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("law", "case"), RUNS)
def test_contract(law, case):
    law(case)


@pytest.mark.slow
@pytest.mark.parametrize("law", ["compiled", "exported"])
def test_every_kind_of_feature_is_traced(law, monkeypatch):
    """The laws trace a short schema; `Inputs` is the same for all models, so once is enough for the rest."""
    monkeypatch.setattr(contract, "_short", lambda case: case.declared)
    LAWS[law](Case(DeepFM, {"hidden": (8,)}))


def catalogued() -> set[str]:
    """The models that exist because their files do."""
    root = Path(next(iter(recstack.models.__path__)))
    found = set()
    for path in root.glob("*/[a-z]*.py"):
        for name in model_classes(path):
            assert hasattr(importlib.import_module(f"recstack.models.{path.parent.name}"), name)
            found.add(name)
    return found


def test_every_model_has_a_row():
    rows = [case.model.__name__ for case in CASES]
    missing = catalogued() - set(rows)
    assert not missing, f"add a row to tests/contract_cases.py for {sorted(missing)}"
