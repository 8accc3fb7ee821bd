"""Any trunk, any task graph, any domain mechanism and any balancing method combine, and stay correctly masked."""

from functools import partial

import numpy as np
import pytest
import torch

import recstack as rs

pytestmark = pytest.mark.slow
mt, md, ranking = rs.multitask, rs.multidomain, rs.ranking

# All on the entire space, as AITM's calibrator wants them.
CHAIN = (rs.Task("click"), rs.Task("cart"), rs.Task("order"))
TINY = {"dim": 4, "hidden": (6,)}
plain = partial(ranking.DCNv2, dim=4, hidden=(6,), layers=1)
domain = partial(md.PEPNet, **TINY)
mixture = partial(mt.MMoE, dim=4, experts=2, hidden=(6,), towers=(4,), gate_dropout=0.1)
COMBINATIONS = {
    "ESMM over PLE": ("funnel", partial(mt.ESMM, **TINY, trunk=partial(mt.PLE, **TINY, towers=(4,), levels=2))),
    "MMoE over DCNv2": ("funnel", partial(mixture, trunk=plain)),
    "AITM over PEPNet": (CHAIN, partial(mt.AITM, **TINY, trunk=domain)),
    "AITM over MMoE over DCNv2": (CHAIN, partial(mt.AITM, **TINY, trunk=partial(mixture, trunk=plain))),
    "DBMTL over STAR": ("funnel", partial(mt.DBMTL, **TINY, relation=(4,), trunk=partial(md.STAR, **TINY))),
    "ESCM2 over M2M": ("funnel", partial(mt.ESCM2, **TINY, trunk=partial(md.M2M, **TINY, experts=2))),
    "PLE over HAMUR": (
        "funnel",
        partial(mt.PLE, **TINY, towers=(4,), trunk=partial(md.HAMUR, **TINY, hyper=(4,), rank=2)),
    ),
    "PEPNet over DIN": ("funnel", partial(md.PEPNet, **TINY, trunk=partial(ranking.DIN, **TINY))),
}
BALANCES = (None, "uncertainty", "mgda", "pcgrad")


@pytest.fixture(scope="module")
def worlds():
    market = rs.simulator.simulate(users=60, items=40, impressions=1500, domains=2, seed=0)
    found = {}
    for kind in ("funnel", CHAIN):
        log = market.log(tasks=kind)
        encoder = rs.Encoder(log.schema).fit(log)
        columns = encoder.encode(log)
        batches = [columns.batch(np.arange(i, i + 128)) for i in range(512, 1024, 128)]
        found[kind] = encoder.schema, batches, columns.batch(np.array([1000]))
    return found


@pytest.mark.parametrize("balance", BALANCES, ids=str)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_learns_under_every_balance(worlds, name, balance):
    kind, make = COMBINATIONS[name]
    schema, batches, _ = worlds[kind]
    torch.manual_seed(0)
    model = make(schema)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = rs.Trainer(model, epochs=3, lr=0.02, balance=balance, progress=False).fit(batches)
    first, last = result.epochs[0]["losses"], result.epochs[-1]["losses"]
    assert all(np.isfinite(value) for value in last.values())
    assert last["click"] < first["click"]  # of others weights and propensities move too
    if balance is not None:
        weights = result.epochs[-1]["weights"]
        assert weights.keys() >= {t.name for t in schema.tasks if not t.derived and t.weight}
        assert all(np.isfinite(w) and w >= 0 for w in weights.values())
    still = [n for n, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
    assert not still, still


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_predicts_each_row_by_itself_and_masks_what_was_not_clicked(worlds, name):
    kind, make = COMBINATIONS[name]
    schema, batches, one = worlds[kind]
    torch.manual_seed(0)
    model = rs.testing.wake(make(schema))
    batch = batches[-1]  # the requests 896 to 1023
    with torch.no_grad():
        together = model.predict(batch)
        alone = model.predict(one)
        for task, value in together.items():
            torch.testing.assert_close(alone[task], value[104:105], rtol=1e-4, atol=1e-5)
        if kind == "funnel":
            torch.testing.assert_close(together["ordered"], together["click"] * together["order"], rtol=1e-4, atol=1e-6)
    if kind == "funnel" and "ESCM2" not in name:  # which weighs what was not clicked too
        order, click = batch["order@label"], batch["click@label"]
        wrong = {**batch, "order@label": torch.where(click == 1, order, 1 - order)}
        with torch.no_grad():
            assert float(model.losses(batch)["order"]) == pytest.approx(float(model.losses(wrong)["order"]))


def test_the_losses_of_a_trunk_are_learned_too(worlds):
    """DIEN's judges have no other loss; with alpha=0 there are none."""
    schema, batches, _ = worlds[CHAIN]
    dien = partial(ranking.DIEN, **TINY, auxiliary=(4,))
    model = mt.AITM(schema, **TINY, trunk=partial(mixture, trunk=dien))
    found = model.losses(batches[0])
    assert {n for n in found if n.startswith("trunk/")} == {"trunk/trunk/auxiliary"}
    found["trunk/trunk/auxiliary"].backward()
    judges = [p for n, p in model.named_parameters() if "judges" in n]
    assert judges
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in judges)
    silent = mt.MMoE(schema, **TINY, experts=2, trunk=partial(dien, alpha=0.0))
    assert set(silent.losses(batches[0])) == {t.name for t in schema.tasks}
    tables = mt.AME(schema, dims=(4, 4), hidden=(6,), towers=(4,), trunk=(None, dien))
    assert "table2/trunk/auxiliary" in tables.losses(batches[0])
