"""docs/api.md names everything that is public."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
NAMED = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", PAGE.read_text("utf8")))))
ROOMS = (
    "recstack",
    "recstack.losses",
    "recstack.metrics",
    "recstack.metrics.off_policy",
    "recstack.rules",
    "recstack.rules.bandits",
    "recstack.calibration",
    "recstack.training.balance",
    "recstack.data.sampling",
    "recstack.index",
)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_on_the_page(room):
    module = importlib.import_module(room)
    public = getattr(module, "__all__", None) or [n for n, v in vars(module).items() if n[0] != "_" and own(v, room)]
    functions = {n for n in public if room == "recstack" or callable(getattr(module, n))}  # classes too, tables not
    assert functions, room
    assert sorted(functions - NAMED) == []


def own(value, room):
    return getattr(value, "__module__", None) == room
