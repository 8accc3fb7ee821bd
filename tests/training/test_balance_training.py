"""Balanced losses in a run: gradients where they were asked for, one backward, and nothing else of the Trainer changed."""

from __future__ import annotations

import json
import os
import signal

import processes
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from worlds import Table, equal, weights, world

from recstack.errors import ConfigError
from recstack.training import Callback, Trainer, balance
from recstack.training.balance.gradients import Place
from recstack.training.balance.mgda import mgda
from recstack.training.distributed import World


class Two(nn.Module):
    """A shared table and body, a head per loss; the second loss knows some rows only, and an auxiliary one the table."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = Table(40, 4, padding_idx=0)
        self.body = nn.Linear(8, 6)
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in ("click", "like")})

    def losses(self, batch):
        h = self.body(self.table(batch["ids"]).flatten(1)).relu()
        click, like = (m(h).squeeze(-1) for m in self.heads.values())
        y, z = batch["click@label"], (batch["ids"][:, 0] % 3 == 0).float()
        where = batch["ids"][:, 1] % 2 == 0
        likes = F.binary_cross_entropy_with_logits(like, z, reduction="none")
        return {"click": F.binary_cross_entropy_with_logits(click, y), "like": 5 * (likes * where).sum() / where.sum()}


OPTIONS = {"optimizer": {"embedding": "sparse_sgd", "default": "sgd"}, "lr": 0.1, "progress": False}


def by_hand(place, steps):
    """MGDA by dense gradients, two backwards and the weighted sum."""
    model = Two()
    for batch in steps:
        if place == "body":
            model.body.register_forward_hook(lambda m, i, out: setattr(model, "z", out))
        losses = list(model.losses(batch).values())
        at = {
            "shared": [model.body.weight, model.body.bias],
            "tables": [model.table.weight, model.body.weight, model.body.bias],
            "body": [getattr(model, "z", None)],
        }[place]
        grads = torch.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(x, at, retain_graph=True)]) for x in losses]
        )
        a, b = mgda((grads @ grads.T).double().numpy(), torch.stack(losses).detach().numpy())
        model.zero_grad()
        (float(a) * losses[0] + float(b) * losses[1]).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    return model, (float(a), float(b))


@pytest.mark.parametrize("place", ["shared", "tables", "body"])
def test_mgda_is_the_loop_written_by_hand(place):
    model = Two()
    result = Trainer(model, balance=("mgda", {"at": place}), epochs=1, **OPTIONS).fit(world(4))
    expected, _ = by_hand(place, world(4))
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
    assert sum(result.epochs[0]["weights"].values()) == pytest.approx(1)
    assert 0 < result.epochs[0]["weights"]["like"] < 0.5  # the longer gradient


@pytest.mark.parametrize("dense", [False, True])
def test_gradients_of_tables_stay_sparse_and_have_the_products_of_dense_ones(dense):
    model = Two()
    model.table.sparse = not dense
    place, losses = Place("tables", model, World(False)), model.losses(world(1)[0])
    if dense:
        with pytest.raises(ConfigError, match=r"a dense gradient of 'table.weight' for each loss. Give tables a row"):
            place.gram(losses)
        return
    found = place.gram(losses)
    model.table.sparse = False
    at = [model.table.weight, model.body.weight, model.body.bias]
    grads = [torch.autograd.grad(x, at, retain_graph=True) for x in model.losses(world(1)[0]).values()]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])
    torch.testing.assert_close(found, (flat @ flat.T).double())


def test_neither_tables_nor_heads_are_shared_dense_parameters():
    """torch-rechub's GradNorm takes the first embedding table for the last shared layer."""
    place = Place("shared", model := Two(), World(False))
    place.gram(model.losses(world(1)[0]))
    assert list(place.params) == ["body.weight", "body.bias"]


@pytest.mark.parametrize("choice", [{"click": 1.0}, None])
def test_weights_of_one_change_nothing(choice):
    one, other = Two(), Two()
    options = {"epochs": 2, "progress": False, "clip": 0.1}
    a = Trainer(one, **options).fit(world(4))
    b = Trainer(other, balance=choice, **options).fit(world(4))
    assert equal(weights(one), weights(other))
    assert a.epochs[-1]["losses"] == b.epochs[-1]["losses"]
    assert ("weights" in b.epochs[0]) is (choice is not None)


def test_learned_weights_are_in_no_optimiser_of_the_model():
    trainer = Trainer(
        Two(), balance="uncertainty", optimizer=("adamw", {"weight_decay": 0.1}), epochs=2, progress=False
    )
    names = [n for o in trainer._settings([], None, None)["parameters"] for n in [o]]
    assert names == list(dict(Two().named_parameters()))
    trainer.fit(world(2))
    assert trainer.balance.__dict__.keys() == balance.Uncertainty().__dict__.keys()  # a second fit begins anew


METHODS = [*(n for n in balance.BALANCES if n not in ("static", "scheduled")), ("scheduled", {"rates": {"like": 0.9}})]


@pytest.mark.parametrize("choice", METHODS, ids=str)
def test_every_way_trains_in_bf16_clipped_and_averaged_and_resumes_to_the_bit(choice, tmp_path):
    options = {"precision": "bf16", "clip": 1.0, "average": "ema", "monitor": "loss", "progress": False, "epochs": 2}
    valid = world(1, seed=5)
    whole, pieces = Two(), Two()
    result = Trainer(whole, balance=choice, **options).fit(world(5), valid)
    assert set(result.epochs[0]["weights"]) == {"click", "like"}
    first = Trainer(Two(), balance=choice, checkpoint=tmp_path, **options)
    processes.at_step(first.model, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert first.fit(world(5), valid).steps == 8
    again = Trainer(pieces, balance=choice, checkpoint=tmp_path, **options).fit(world(5), valid, resume=True)
    assert equal(weights(whole), weights(pieces))
    assert [e["weights"] for e in again.epochs] == [e["weights"] for e in result.epochs]


def test_another_way_of_balancing_is_another_run(tmp_path):
    Trainer(Two(), balance="dwa", checkpoint=tmp_path, epochs=1, progress=False).fit(world(2))
    with pytest.raises(Exception, match=r"balance = DWA\(temperature=2.0\), and this run has MGDA\(at='shared'"):
        Trainer(Two(), balance="mgda", checkpoint=tmp_path, epochs=2, progress=False).fit(world(2), resume=True)


# -- models with tasks ------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:Parameter .* did not move")
@pytest.mark.parametrize("choice", ["mgda", "gradnorm", ("uncertainty", {"lr": 0.1}), "dwa", "nash"], ids=str)
def test_a_task_without_valid_rows_drops_out(choice):
    """Nobody clicked, so `buy` has no row: the run is that of clicks alone."""
    trainer, data, _ = processes.made("rowwise", balance=choice, monitor=None)
    batches = list(trained_on(trainer, data))
    for batch in batches:
        batch["click@label"].clamp_(max=0)
    result = trainer.fit(batches)
    assert list(result.epochs[0]["weights"]) == ["click"]
    if choice in ("mgda", "gradnorm", "nash", "dwa"):
        alone, _, _ = processes.made("rowwise", monitor=None)
        alone.fit(batches)
        assert equal(weights(trainer.model), weights(alone.model))


def trained_on(trainer, data):
    from recstack.data import Loader

    return Loader(trainer.model.schema.encoder.encode(data), 32)


def test_a_window_of_batches_has_the_weights_of_one_large_batch():
    made = []
    for size, accumulate in ((48, 1), (16, 3)):
        options = {"balance": ("uncertainty", {"lr": 0.1}), "monitor": None, "norm": None, "optimizer": "adam"}
        trainer, data, _ = processes.made("rowwise", accumulate=accumulate, batch_size=size, **options)
        rows = trainer.model.schema.encoder.encode(data).select(list(range(288)))
        made.append((trainer.fit(rows), weights(trainer.model)))
    (one, large), (other, small) = made
    for epoch, theirs in zip(one.epochs, other.epochs, strict=True):
        assert epoch["weights"] == pytest.approx(theirs["weights"], rel=1e-5)
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path):
    for code, err in processes.ended(processes.start(2, "balanced", tmp_path)):
        assert code == 0, err
    for case in processes.BALANCED:
        expected, numbers = processes.run(case)
        for rank in (0, 1):
            own, theirs = (
                load_file(tmp_path / f"{case}.{rank}"),
                json.loads((tmp_path / f"{case}.{rank}.json").read_text()),
            )
            for name, value in expected.items():
                torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, c=case: f"{c}: {m}")
            for a, b in zip(theirs["epochs"], numbers["epochs"], strict=True):
                assert a["weights"] == pytest.approx(b["weights"], rel=1e-4)


def test_weights_are_logged_with_the_losses(tmp_path, capsys):
    options = {"optimizer": "sgd", "epochs": 1, "log_dir": tmp_path}
    Trainer(Two(), balance={"like": 0.25}, **options).fit(world(2))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert next(x for x in lines if x["event"] == "epoch")["weights"] == {"click": 1.0, "like": 0.25}
    assert "weights click 1, like 0.25" in capsys.readouterr().err


def test_what_is_read_in_between_is_the_mean_since_the_last_time(monkeypatch):
    seen = []

    class Reader(Callback):
        def on_read(self, at):
            seen.append(at["weights"]["like"])

    monkeypatch.setattr("recstack.training.trainer.READ_SECONDS", 0.0)  # after every step
    options = {"epochs": 2, "progress": False, "callbacks": [Reader()]}
    result = Trainer(Two(), balance=("scheduled", {"rates": {"like": 0.5}, "unit": "step"}), **options).fit(world(3))
    assert seen == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert result.epochs[1]["weights"] == {"click": 1, "like": pytest.approx(sum(seen[3:]) / 3)}


class Apart(Two):
    """Nothing but the table is shared."""

    def losses(self, batch):
        x = self.table(batch["ids"])[:, 0]
        return {n: m(torch.cat([x, x[:, :2]], 1)).square().mean() for n, m in self.heads.items()}


class One(Two):
    def losses(self, batch):
        return {"click": super().losses(batch)["click"]}


@pytest.mark.filterwarnings("ignore:Parameter .* did not move")
@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (Two, {"balance": "mgda", "accumulate": 2}, "MGDA compares .* of one batch, which accumulate= does not leave"),
        (Two, {"balance": "mgda", "alternate": (("click",), ("like",))}, "which alternate= does not leave whole"),
        (Two, {"balance": "mgda", "compile": True}, "which compile= does not leave whole"),
        (Two, {"balance": ("mgda", {"at": "boddy"})}, "Unknown module in at= of balance= .* Did you mean 'body'"),
        (Two, {"balance": ("mgda", {"at": "heads.like"})}, "Loss 'click' does not pass through 'heads.like'"),
        (Two, {"balance": {"likes": 2}}, "Unknown loss in weights of balance= 'likes'. Did you mean 'like'"),
        (Two, {"balance": ("pcgrad", {"at": "tables"}), "optimizer": "adam"}, "dense gradient of 'table.weight'"),
        (Apart, {"balance": "mgda"}, "No dense parameter is shared by two losses.*at='tables'"),
        (One, {"balance": "mgda"}, "MGDA weighs losses against each other, and the model has one: 'click'"),
    ],
)
def test_what_cannot_be_balanced_is_one_sentence(model, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Trainer(model(), progress=False, **options).fit(world(1))
    if model is Apart:
        Trainer(model(), balance=("mgda", {"at": "tables"}), epochs=1, progress=False).fit(world(1))
