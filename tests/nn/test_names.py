"""Names are data."""

import pytest
import torch
from torch import nn

from recstack.nn.names import ByName

NAMES = ("type", "items", "a.b", "a", "forward", "training", "_modules", "x y", "T_destination", "ä", "1", "@")


def test_any_name_holds_a_module():
    made = {name: nn.Linear(1, i + 1) for i, name in enumerate(NAMES)}
    box = ByName(made)
    assert list(box) == list(NAMES)
    assert dict(box.items()) == made
    assert all(box[name] is module for name, module in made.items())
    assert "b" not in box
    with pytest.raises(KeyError):
        box["b"]


def test_names_do_not_meet_each_other_in_the_state():
    box = ByName({name: nn.Linear(1, 1, bias=False) for name in (*NAMES, "b", "a@b")})
    state = box.state_dict()
    assert len(state) == len(box)
    twin = ByName({name: nn.Linear(1, 1, bias=False) for name in (*NAMES, "b", "a@b")})
    twin.load_state_dict(state)
    assert all(torch.equal(twin[n].weight, box[n].weight) for n in box)


def test_a_module_is_replaced_under_its_name():
    box = ByName({"type": nn.Linear(1, 1)})
    box["type"] = nn.Linear(1, 2)
    assert len(box) == 1
    assert box["type"].out_features == 2
    assert len(list(box.parameters())) == 2
