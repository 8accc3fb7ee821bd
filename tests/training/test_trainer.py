"""The loop: what is minimised, measured, stopped, restored and said."""

import json
import logging
import math
import os
import signal
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from worlds import Net, equal, trainer, weights, world

from recstack.errors import ConfigError, TrainingError
from recstack.schema import Categorical, Schema, Task
from recstack.training import Adagrad, Callback, Trainer
from recstack.training import batches as feeding
from recstack.training.checkpoints import Checkpoints


class Line(nn.Module):
    """y = w x, square loss."""

    def __init__(self, w: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w]))

    def losses(self, batch):
        return {"square": (self.w * batch["x"] - batch["y"]).square().mean()}


def points(n=4, size=8, slope=3.0, seed=0):
    x = torch.randn(n, size, 1, generator=torch.Generator().manual_seed(seed))
    return [{"x": a, "y": slope * a} for a in x]


# -- learning ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("embedding", ["rowwise_adagrad", "lazy_adam", "adagrad", "sparse_sgd", "adam"])
def test_a_small_world_is_learned(embedding):
    model = Net(dropout=0.0)
    optimizer = {"embedding": (embedding, {"lr": 0.5 if "adam" not in embedding else 0.05}), "default": "adam"}
    result = Trainer(model, optimizer=optimizer, lr={"default": 0.02}, epochs=50, progress=False).fit(world(16))
    assert result.epochs[0]["loss"] > 0.6
    assert result.epochs[-1]["loss"] < 0.4


def test_dense_adam_is_the_loop_written_by_hand():
    batches = world()
    model = Net(dropout=0.0)
    Trainer(model, optimizer="adam", lr=0.01, epochs=2, clip=0.5, progress=False).fit(batches)
    hand = Net(dropout=0.0)
    adam = torch.optim.Adam(hand.parameters(), lr=0.01)
    for batch in batches * 2:
        adam.zero_grad()
        hand.losses(batch)["click"].backward()
        nn.utils.clip_grad_norm_(hand.parameters(), 0.5)
        adam.step()
    for a, b in zip(model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_penalty_is_half_lambda_times_the_squared_norm_of_the_whole_table():
    batches, λ = world(), 0.3
    model = Net(dropout=0.0)
    Trainer(model, optimizer="adam", lr=0.01, epochs=2, clip=0.5, regularization={"embedding": λ}, progress=False).fit(
        batches
    )
    hand = Net(dropout=0.0)
    adam = torch.optim.Adam(hand.parameters(), lr=0.01)
    for batch in batches * 2:
        adam.zero_grad()
        (hand.losses(batch)["click"] + λ / 2 * hand.table.weight.square().sum()).backward()
        nn.utils.clip_grad_norm_(hand.parameters(), 0.5)
        adam.step()
    torch.testing.assert_close(model.table.weight, hand.table.weight, rtol=1e-4, atol=1e-6)


def test_same_seed_same_weights_and_the_callers_generator_is_untouched():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    models = [Net() for _ in range(3)]
    torch.set_rng_state(before)
    for model, seed in zip(models, (1, 1, 2), strict=True):
        trainer(model, "lazy_adam", seed=seed).fit(world(), world(2, seed=4))
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(weights(models[0]), weights(models[1]))
    assert not equal(weights(models[0]), weights(models[2]))


def test_bf16_stays_close_to_fp32():
    losses = []
    for precision in ("fp32", "bf16"):
        result = trainer(Net(dropout=0.0), "rowwise_adagrad", precision=precision).fit(world(), world(2, seed=4))
        losses.append(result.epochs[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


# -- accumulation -----------------------------------------------------------------------------------------------------
SCHEMA = Schema([Categorical("x", "item", size=9)], [Task("click"), Task("order", given="click")])


class TwoTasks(nn.Module):
    """Two heads on one number; order counts only where click is 1."""

    schema = SCHEMA

    def __init__(self):
        super().__init__()
        self.heads = nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, batch):
        return {"click": self.heads[0] * batch["x"], "order": self.heads[1] * batch["x"]}

    def predict(self, batch):
        return {task: logit.sigmoid() for task, logit in self(batch).items()}

    def losses(self, batch):
        from recstack.features import tasks

        return tasks.losses(self(batch), batch, self.schema)


def clicks(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    click = torch.rand(n, 1, generator=g).round()
    return {
        "x": torch.randn(n, 1, generator=g),
        "click@label": click,
        "order@label": torch.rand(n, 1, generator=g).round().where(click > 0, torch.nan),
    }


def parts(batch, sizes):
    split = {k: v.split(sizes) for k, v in batch.items()}
    return [{k: v[i] for k, v in split.items()} for i in range(len(sizes))]


def test_accumulated_micro_batches_are_one_batch_whose_clicks_come_unevenly():
    whole = clicks(60)
    results = []
    for batches, accumulate in (([whole], 1), (parts(whole, [10, 30, 20]), 3), (parts(whole, [10, 30, 20]), 8)):
        model = TwoTasks()
        result = Trainer(model, optimizer="sgd", lr=1.0, epochs=3, accumulate=accumulate, progress=False).fit(batches)
        assert result.steps == 3
        results.append((model.heads.detach(), result.epochs[-1]["loss"]))
    for heads, loss in results[1:]:
        torch.testing.assert_close(heads, results[0][0])
        assert loss == pytest.approx(results[0][1], rel=1e-5)


def test_shares_of_a_window_do_not_wait_for_the_device(monkeypatch):
    counted = waits(monkeypatch)
    for name in ("item", "__bool__", "__float__"):
        counted[name] = 0
    batching = parts(clicks(60), [10, 30, 20])
    shares = feeding.shares(batching, TwoTasks(), lambda counts: counts)
    assert sum(counted.values()) == 0
    assert sum(s["click"] for s in shares).item() == pytest.approx(1)
    assert [s[""] for s in shares] == [10 / 60, 30 / 60, 20 / 60]


def test_a_batch_may_be_anything_that_the_model_reads():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def losses(self, batch):
            return {"square": (self.w * batch - 3 * batch).square().mean()}

    model = Plain()
    Trainer(model, optimizer="adam", lr=0.1, epochs=200, progress=False).fit([torch.ones(4)])
    assert model.w.item() == pytest.approx(3, abs=0.05)


# -- what a device would be waited for --------------------------------------------------------------------------------
def waits(monkeypatch):
    """Calls that copy a number from a device, by name, from now on."""
    counted = {}
    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "nonzero", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        counted[name] = 0

        def call(self, *args, name=name, original=original, **options):
            counted[name] += 1
            return original(self, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, call)
    return counted


@pytest.mark.parametrize("options", [{}, {"average": "ema"}, {"accumulate": 2}, {"clip": 1.0}])
def test_no_step_waits_for_the_device(monkeypatch, options):
    """Whether the loss is finite is asked at every step on a CPU only. Twice the batches, no more waiting."""
    from recstack.training import trainer as module

    monkeypatch.setattr(module._Run, "_check", lambda *args: None)
    monkeypatch.setattr(module, "READ_SECONDS", 1e9)
    counted = waits(monkeypatch)
    totals = []
    for n in (4, 8):
        before = sum(counted.values())
        batches = parts(clicks(10 * n), [10] * n)
        Trainer(TwoTasks(), optimizer="adam", epochs=1, progress=False, **options).fit(batches)
        totals.append(sum(counted.values()) - before)
    assert totals[0] == totals[1]


def test_no_batch_of_an_evaluation_waits_for_the_device(monkeypatch):
    t = Trainer(TwoTasks(), optimizer="adam", monitor="loss", progress=False)
    counted, totals = waits(monkeypatch), []
    for n in (4, 8):
        before = counted["item"] + counted["__bool__"] + counted["__float__"]
        t.evaluate(parts(clicks(10 * n), [10] * n))
        totals.append(counted["item"] + counted["__bool__"] + counted["__float__"] - before)
    assert totals[0] == totals[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("embedding", ["adam", "rowwise_adagrad"])
def test_on_cuda_training_is_that_of_the_cpu(embedding):
    losses = []
    for device in ("cpu", "cuda"):
        options = {"optimizer": {"embedding": embedding, "default": "adam"}, "lr": 0.05, "epochs": 3, "progress": False}
        t = Trainer(Net(dropout=0.0), device=device, average="ema", monitor="loss", **options)
        result = t.fit(world(), world(2, seed=4))
        losses.append([e["valid"]["loss"] for e in result.epochs])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_nothing_is_waited_for_within_an_epoch():
    class Strict(Net):
        def losses(self, batch):
            torch.cuda.set_sync_debug_mode("error" if self.training else "default")
            return super().losses(batch)

    try:
        Trainer(Strict(), device="cuda", optimizer="adam", epochs=1, progress=False).fit(world(40))
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- compiled ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_compiled_training_is_the_same_training():
    losses = []
    for compile in (False, True):
        options = {"optimizer": {"embedding": "rowwise_adagrad", "default": "adam"}, "lr": 0.05, "progress": False}
        model = Net(dropout=0.0)
        result = Trainer(model, epochs=3, compile=compile, **options).fit([*world(3), *world(1, size=5)])
        losses.append([e["loss"] for e in result.epochs])
        assert not model.table.sparse
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# -- one epoch and the next -------------------------------------------------------------------------------------------
def test_tables_begin_anew_in_each_epoch_and_the_rest_goes_on():
    """As two runs with one model, the tables and their optimiser's state made anew in between."""
    batches = world()

    class Same(Net):
        def __init__(self):
            super().__init__()
            first = self.table.weight.detach().clone()

            def reset():
                with torch.no_grad():
                    self.table.weight.copy_(first)

            self.table.reset_parameters = reset

    model, hand = Same(), Same()
    options = {"optimizer": {"embedding": "adagrad", "default": "sgd"}, "lr": 0.1, "progress": False}
    Trainer(model, epochs=2, reset_embeddings=True, **options).fit(batches)
    table, rest = Adagrad([hand.table.weight], lr=0.1), torch.optim.SGD(hand.mlp.parameters(), lr=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for epoch in range(2):
            if epoch:
                hand.table.reset_parameters()
                table = Adagrad([hand.table.weight], lr=0.1)
            for batch in batches:
                hand.losses(batch)["click"].backward()
                for o in (table, rest):
                    o.step()
                    o.zero_grad()
    for a, b in zip(model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Renewing(Net):
    """Gives row 5 to another id in the third step."""

    def __init__(self, third=3):
        super().__init__(dropout=0.0)
        self.third, self.calls = third, 0
        self.table.renewed = lambda: torch.tensor([5]) if self.calls == self.third else None

    def losses(self, batch):
        self.calls += 1
        if self.calls == self.third:
            with torch.no_grad():
                self.table.weight[5] = 0.5
            self.then = weights(self)
        return super().losses(batch)


@pytest.mark.filterwarnings("ignore:Parameter .* did not move")
@pytest.mark.parametrize("embedding", ["adagrad", "rowwise_adagrad", "lazy_adam", "adam"])
def test_rows_with_a_new_owner_have_no_history_in_the_optimiser(embedding, tmp_path):
    """Their state after the step is that of a first step from the same weights."""
    ids = torch.tensor([[5, 6], [6, 7], [8, 5], [6, 9]], dtype=torch.int32)
    batch = {"ids": ids, "click@label": torch.tensor([1.0, 0.0, 0.0, 1.0])}

    def state(model, n):
        options = {"optimizer": {"embedding": embedding, "default": "sgd"}, "lr": 0.1, "epochs": 1, "progress": False}
        Trainer(model, checkpoint=tmp_path / str(n), **options).fit([batch] * n)
        tensors = Checkpoints(tmp_path / str(n)).latest().piece("optimizers-0").tensors
        return {k: v for k, v in tensors.items() if k.endswith(":table.weight") and v.dim()}

    model, first = Renewing(), Renewing(third=0)
    got = state(model, 3)
    first.load_state_dict(model.then)
    for key, want in state(first, 1).items():
        torch.testing.assert_close(got[key][5], want[5], msg=key)
        assert not torch.allclose(got[key][6].float(), want[6].float()), key


# -- validation -------------------------------------------------------------------------------------------------------
def test_metrics_are_those_of_the_tasks_and_the_monitored_one_is_added():
    batches = parts(clicks(60), [10, 30, 20])
    t = Trainer(TwoTasks(), optimizer="adam", epochs=1, monitor="click/normalized_entropy", progress=False)
    result = t.fit(batches, batches)
    assert list(result.epochs[0]["valid"]) == [
        "click/auc", "click/logloss", "order/auc", "order/logloss", "click/normalized_entropy",
    ]  # fmt: skip
    whole = clicks(60)
    p = t.predict([whole])["click"]
    assert t.evaluate([whole])["click/logloss"] == pytest.approx(F.binary_cross_entropy(p, whole["click@label"]).item())
    assert result.best["monitor"] == "click/normalized_entropy"


def test_a_models_own_validation_is_preferred():
    class Retriever(Line):
        def validate(self, data):
            return {"recall@5": data["answer"]}

    assert Trainer(Retriever(), optimizer="adam").evaluate({"answer": 0.5}) == {"recall@5": 0.5}


def test_predictions_keep_their_order_and_short_lists_end_in_nan():
    class Scores(Line):
        def predict(self, batch):
            return {"click": batch["x"]}

    p = Trainer(Scores(), optimizer="adam").predict([{"x": torch.ones(2, 3)}, {"x": torch.zeros(1, 1)}])["click"]
    assert p.nan_to_num(-1).tolist() == [[1, 1, 1], [1, 1, 1], [0, -1, -1]]


class Scripted(Line):
    """Validation says what the script says; each step moves w by a fixed amount."""

    def __init__(self, script):
        super().__init__()
        self.script = iter(script)

    def losses(self, batch):
        return {"sum": self.w.sum() + 0 * batch["x"].sum()}

    def validate(self, data):
        return {"auc": next(self.script)}


def scripted(script, **options):
    model = Scripted(script)
    settings = {"optimizer": "sgd", "lr": 1.0, "epochs": 9, "monitor": "auc", "progress": False} | options
    t = Trainer(model, **settings)
    return model, t.fit(points(1), valid=[0])


def test_the_best_epochs_weights_are_restored():
    model, result = scripted([0.5, 0.7, 0.6, 0.65], epochs=4)
    assert result.best == {"epoch": 2, "monitor": "auc", "value": 0.7}
    assert model.w.item() == -2
    assert len(result.epochs) == 4


def test_patience_counts_epochs_in_a_row_without_a_better_value():
    _, result = scripted([0.5, 0.4, 0.6, 0.6, 0.59], patience=2)
    assert len(result.epochs) == 5
    assert result.best["epoch"] == 3


def test_better_means_by_more_than_min_delta():
    _, result = scripted([0.5, 0.5 + 1e-7, 0.5 + 2e-7], patience=2, min_delta=1e-6)
    assert len(result.epochs) == 3
    assert result.best["epoch"] == 1


def test_for_a_loss_lower_is_better():
    class Falling(Scripted):
        def validate(self, data):
            return {"click/logloss": next(self.script)}

    model = Falling([0.7, 0.5, 0.6])
    result = Trainer(model, optimizer="sgd", epochs=3, monitor="logloss", progress=False).fit(points(1), [0])
    assert result.best == {"epoch": 2, "monitor": "logloss", "value": 0.5}


def test_a_metric_that_is_nan_is_never_the_best():
    _, result = scripted([math.nan, 0.5, math.nan], epochs=3)
    assert result.best["epoch"] == 2


def test_plateau_divides_by_ten_after_each_epoch_that_is_no_better_down_to_the_floor():
    _, result = scripted([0.5, 0.4, 0.6, 0.5, 0.5, 0.5, 0.5], epochs=7, schedule=("plateau", {"floor": 1e-3}))
    rates = [r["lr"]["default"] for r in result.epochs]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 1e-3, 1e-3])


def test_warmup_cosine_rises_then_falls_to_zero():
    model = Line()
    t = Trainer(model, optimizer="sgd", lr=2.0, epochs=5, schedule=("warmup_cosine", {"warmup": 4}), progress=False)
    result = t.fit(points(4))
    rates = [r["lr"]["default"] for r in result.epochs]
    want = [2 * 4 / 5, *(1 + math.cos(math.pi * (s - 4) / 16) for s in (7, 11, 15, 19))]
    assert rates == pytest.approx(want)


# -- what goes wrong --------------------------------------------------------------------------------------------------
def fails(model, batches, **options):
    with pytest.raises(TrainingError) as e:
        Trainer(model, optimizer="sgd", progress=False, **options).fit(batches)
    return str(e.value)


def test_a_loss_that_is_not_finite_names_the_feature():
    batches = points(4)
    batches[2]["x"][5] = math.nan
    said = fails(Line(), batches)
    assert said == ("Loss 'square' is nan in epoch 1, step 3: 'x' of the batch holds nan in row 5; clean the column.")


def test_it_names_the_module():
    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(1, 3), Log(), nn.Linear(3, 1))

        def losses(self, batch):
            return {"square": (self.body(batch["x"]) - batch["y"]).square().mean()}

    assert "module 'body.1' (Log) is the first whose output is not finite" in fails(Net(), points())


def test_it_names_the_parameter_that_an_earlier_step_spoiled():
    class Root(Line):
        def losses(self, batch):
            return {"root": (self.w - self.w.detach()).sqrt().sum()}  # finite, its gradient is not

    assert "Loss 'root' is nan in epoch 1, step 2: parameter 'w' is not finite since an earlier step" in fails(
        Root(), points()
    )


def test_it_names_the_loss():
    class Two(Line):
        def losses(self, batch):
            return super().losses(batch) | {"extra": (self.w * 0 + 100).exp().sum()}

    said = fails(Two(), points())
    assert said.startswith("Loss 'extra' is inf")
    assert "the loss itself overflows" in said


def test_weights_are_as_they_were_before_the_bad_batch():
    batches = points(3)
    batches[2]["x"][0] = math.inf
    model, good = Line(), Line()
    fails(model, batches, epochs=1)
    Trainer(good, optimizer="sgd", epochs=1, progress=False).fit(batches[:2])
    assert torch.equal(model.w, good.w)


def test_a_missing_label_is_no_fault():
    class Masked(Line):
        def losses(self, batch):
            return {"square": (self.w * batch["x"] - batch["y@label"].nan_to_num()).square().mean() / 0 * 0}

    batch = {"x": torch.ones(2, 1), "y@label": torch.tensor([[math.nan], [1.0]])}
    assert "y@label" not in fails(Masked(), [batch])


def test_a_parameter_that_never_moves_is_named():
    model = Net()
    model.forgotten = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="'forgotten.weight' and 1 more did not move in the first epoch"):
        trainer(model, "rowwise_adagrad").fit(world(), world(2))


def test_frozen_parameters_and_moving_ones_are_not(recwarn):
    model = Net()
    model.forgotten = nn.Linear(2, 2).requires_grad_(False)
    trainer(model, "rowwise_adagrad").fit(world(), world(2))
    assert not [w for w in recwarn if "did not move" in str(w.message)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "fp8"}, "precision= is 'fp32' or 'bf16'; got 'fp8'"),
        ({"epochs": 0}, "epochs= must be at least 1; got 0"),
        ({"patience": 2}, "patience= and schedule=\"plateau\" need monitor="),
        ({"monitor": "acu"}, "Unknown metric 'acu'. Did you mean 'auc'"),
        ({"monitor": "calibration_ratio"}, "its best value in the middle"),
        ({"schedule": "cosine"}, "Unknown schedule 'cosine'"),
        ({"schedule": {"embedding": "warmup"}}, "Unknown key in schedule= 'embedding'.*Known: default"),
        ({"average": "emma"}, "Unknown average 'emma'. Did you mean 'ema'"),
        ({"average": ("ema", {"decay": 1.5})}, "decay lies between 0 and 1; got 1.5"),
        ({"average": ("ema", {"start": 1})}, "average='ema' does not take these options"),
        ({"average": "swa", "reset_embeddings": True}, "begins anew in each"),
        ({"compile": "fast"}, "Unknown mode in compile= 'fast'"),
        ({"alternate": (("a",), ("b", "a"))}, "names the loss 'a' in two turns"),
        ({"alternate": {"a": {"w": "sgd"}}, "lr": {"w": 0.1}}, "give rates in the choices"),
        ({"alternate": ()}, "alternate= is empty"),
        ({"schedule": ("warmup", {"step": 3})}, "schedule='warmup' does not take these options"),
        ({"regularization": {"embeddings": 1.0}}, "Unknown key in regularization= 'embeddings'. Did you mean 'embedding'"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_sentence_before_the_first_step(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Trainer(Line(), optimizer="adam", **options)


def test_a_module_without_losses_is_refused_by_name():
    with pytest.raises(ConfigError, match="Linear cannot be trained"):
        Trainer(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("train", "valid", "options", "error", "sentence"),
    [
        ([], None, {}, TrainingError, "no batches"),
        (iter(points()), None, {}, ConfigError, "An iterator can be read only once"),
        (3, None, {}, ConfigError, "Expected a Log, Columns, a Loader or batches; got int"),
        (points(), None, {"monitor": "loss"}, ConfigError, "pass valid="),
        (points(), points(), {"monitor": "auc"}, ConfigError, "Unknown monitor 'auc'.*Known: loss"),
    ],
)
def test_wrong_data_is_one_sentence(train, valid, options, error, sentence):
    with pytest.raises(error, match=sentence):
        Trainer(Line(), optimizer="adam", progress=False, **options).fit(train, valid)


# -- what is said -----------------------------------------------------------------------------------------------------
def test_json_lines_and_tensorboard_hold_each_epoch(tmp_path):
    result = trainer(Net(), "adagrad", log_dir=tmp_path).fit(world(), world(2))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [e["loss"] for e in epochs] == [e["loss"] for e in result.epochs]
    assert epochs[0].keys() >= {"epoch", "step", "loss", "losses", "valid", "lr", "seconds", "rate"}
    assert lines[-1]["event"] == "end"
    pytest.importorskip("tensorboard")
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.warns(UserWarning, match=r"metrics.jsonl' lacks what happens from here on") as said:
        result = Trainer(Line(), optimizer="adam", epochs=3, log_dir=tmp_path, progress=False).fit(points())
    assert len(result.epochs) == 3
    assert len([w for w in said if "lacks" in str(w.message)]) == 1


def test_off_a_terminal_there_are_the_memory_and_one_line_per_epoch(capsys, caplog):
    Trainer(Line(), optimizer="adam", epochs=2).fit(points())
    lines = [line.split(" · ")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "memory: 1 other weights"
    assert lines[2:] == ["epoch 1/2", "epoch 2/2"]
    with caplog.at_level(logging.INFO, "recstack.training"):
        Trainer(Line(), optimizer="adam", epochs=2, progress=False).fit(points())
    assert capsys.readouterr().err == ""
    assert sum("epoch" in r.message for r in caplog.records) == 2


def test_on_a_terminal_the_bar_moves(monkeypatch, capsys):
    import sys

    from recstack.training import trainer as module

    monkeypatch.setattr(module, "READ_SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Trainer(Line(), optimizer="adam", epochs=2).fit(points())
    assert "epoch 2/2" in capsys.readouterr().err


def test_callbacks_hear_every_epoch_and_the_end():
    heard = []

    class Ear(Callback):
        def on_start(self, trainer, batches):
            heard.append(batches)

        def on_epoch(self, record):
            heard.append(record["epoch"])

        def on_end(self, result):
            heard.append(result.interrupted)

    Trainer(Line(), optimizer="adam", epochs=2, progress=False, callbacks=[Ear()]).fit(points(4))
    assert heard == [4, 1, 2, False]


def test_ctrl_c_ends_after_the_step_and_gives_the_handler_back():
    class Impatient(Line):
        steps = 0

        def losses(self, batch):
            self.steps += 1
            if self.steps == 6:
                os.kill(os.getpid(), signal.SIGINT)
            return super().losses(batch)

    before = signal.getsignal(signal.SIGINT)
    model = Impatient()
    result = Trainer(model, optimizer="adam", epochs=5, progress=False).fit(points(4))
    assert result.interrupted
    assert result.steps == model.steps == 6
    assert signal.getsignal(signal.SIGINT) is before


def test_it_trains_in_a_thread():
    out = []
    thread = threading.Thread(
        target=lambda: out.append(Trainer(Line(), optimizer="adam", progress=False).fit(points()))
    )
    thread.start()
    thread.join()
    assert out[0].steps == 40
