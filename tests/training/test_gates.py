"""What gates do is logged once an epoch, and a collapse is told once."""

import json
import warnings

import pytest
import torch

import recstack as rs
from recstack.training import gates


def record(**measures):
    return {"measures": {name.replace("__", "/"): value for name, value in measures.items()}}


WELL = record(
    a__gate__0=0.6, a__gate__1=0.4, a__gate__entropy=0.6, b__gate__0=0.1, b__gate__1=0.9, b__gate__entropy=0.2
)
COLLAPSED = record(
    a__gate__0=0.6, a__gate__1=0.4, a__gate__entropy=0.6, b__gate__0=0.02, b__gate__1=0.98, b__gate__entropy=0.03
)


def told(epochs):
    said = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(len(epochs)):
            gates.warn(epochs[: i + 1], said)
    return [str(w.message) for w in caught]


def test_a_gate_that_gives_one_expert_all_for_two_epochs_is_told_once():
    assert told([WELL, COLLAPSED, WELL, COLLAPSED]) == []
    (sentence,) = told([WELL, COLLAPSED, COLLAPSED, COLLAPSED])
    assert "gate of task 'b' has collapsed: expert 1 has 98.0%" in sentence


def test_a_large_share_with_entropy_is_no_collapse_and_one_expert_is_no_gate():
    unsure = record(a__gate__0=0.96, a__gate__1=0.04, a__gate__entropy=0.15)
    alone = record(a__gate__0=1.0, a__gate__entropy=0.0)
    assert told([unsure, unsure]) == told([alone, alone]) == []


def test_an_expert_that_no_task_uses_is_told():
    idle = record(
        a__gate1__0=0.5,
        a__gate1__1=0.495,
        a__gate1__2=0.005,
        a__gate1__entropy=0.7,
        b__gate1__0=0.49,
        b__gate1__1=0.502,
        b__gate1__2=0.008,
        b__gate1__entropy=0.7,
        b__gate2__2=1.0,
        b__gate2__entropy=0.0,  # another gate's experts are others
    )
    (sentence,) = told([idle, idle, idle])
    assert "No task gives expert 2 of gate1" in sentence
    used = {"measures": idle["measures"] | {"b/gate1/2": 0.02}}
    assert told([used, used]) == []


@pytest.fixture(scope="module")
def market():
    log = rs.simulator.small(users=40, items=30, tasks=[rs.Task("click"), rs.Task("cart")])
    train, valid, _ = rs.split.by_time(log)
    encoder = rs.Encoder(train.schema).fit(train)
    return encoder.schema, encoder.encode(train), encoder.encode(valid)


@pytest.mark.slow
def test_the_trainer_logs_what_gates_do(market, tmp_path, capsys):
    schema, train, valid = market
    model = rs.multitask.MMoE(schema, dim=4, experts=3, hidden=(6,), towers=(4,))
    result = rs.Trainer(model, epochs=2, batch_size=256, log_dir=tmp_path).fit(train, valid)
    measures = result.epochs[-1]["measures"]
    assert sum(measures[f"cart/gate/{e}"] for e in range(3)) == pytest.approx(1, abs=1e-5)
    assert 0 < measures["click/gate/entropy"] <= torch.tensor(3.0).log() + 1e-5
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["measures"] for line in lines if line["event"] == "epoch"][-1] == measures
    assert f"entropy of gates click {measures['click/gate/entropy']:.2f}, cart" in capsys.readouterr().err
    plain = rs.Trainer(rs.multitask.SharedBottom(schema, dim=4), epochs=1, progress=False).fit(train)
    assert "measures" not in plain.epochs[0]


def test_measuring_changes_nothing_that_is_learned(market):
    schema, train, _ = market

    def trained(measured):
        torch.manual_seed(0)
        model = rs.multitask.MMoE(schema, dim=4, experts=2, hidden=(6,), dropout=0.3, gate_dropout=0.2)
        if not measured:
            model.measures = lambda batch: {}
        rs.Trainer(model, epochs=2, batch_size=256, progress=False).fit(train)
        return model.state_dict()

    with_, without = trained(True), trained(False)
    assert all(torch.equal(with_[name], without[name]) for name in without)


def test_a_collapse_while_training_is_warned_of(market):
    schema, train, _ = market
    model = rs.multitask.MMoE(schema, dim=4, experts=2, hidden=(6,))
    model.measures = lambda batch: {"click/gate/0": torch.tensor(1.0), "click/gate/1": 0.0, "click/gate/entropy": 0.0}
    with pytest.warns(UserWarning, match="collapsed|No task gives") as caught:
        rs.Trainer(model, epochs=2, batch_size=256, progress=False).fit(train)
    said = [str(w.message) for w in caught]
    assert sum("gate of task 'click' has collapsed: expert 0" in s for s in said) == 1
    assert sum("No task gives expert 1" in s for s in said) == 1
