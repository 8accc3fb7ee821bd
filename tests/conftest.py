"""Shared fixtures: where the public data sets are, and skipping by name without them."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def data_root() -> Path:
    return Path(os.environ.get("RECSTACK_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def data_dir(request) -> Path:
    """The folder of public data sets; the test skips by name where it is missing."""
    root = data_root()
    if not root.is_dir():
        pytest.skip(f"{request.node.name}: no data at {root}; set RECSTACK_DATA")
    return root
