"""Exact resume: a run in pieces ends with the very bits of a run in one."""

import builtins
import errno
import json
import math
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from worlds import Net, equal, trainer, weights, world

from recstack import bundle
from recstack.bundle import store as store_module
from recstack.errors import ConfigError, TrainingError
from recstack.training import Trainer
from recstack.training.checkpoints import Checkpoints, piece
from recstack.training.optimizers import OPTIMIZERS


class Crash(Exception):
    pass


class Fragile(Net):
    """Crashes in the k-th call of losses while training."""

    def __init__(self, k=0):
        super().__init__()
        self.left = k

    def losses(self, batch):
        if self.training:
            self.left -= 1
            if self.left == 0:
                raise Crash
        return super().losses(batch)


def run(folder=None, *, optimizer="lazy_adam", crash=0, resume=True, batches=None, **options):
    model = Fragile(crash)
    settings = {} if folder is None else {"checkpoint": folder, "checkpoint_every": 3}
    t = trainer(model, optimizer, **settings | options)
    return model, t.fit(batches or world(), world(2, seed=4), resume=resume and folder is not None)


def crashed(folder, k, **options):
    with pytest.raises(Crash):
        run(folder, crash=k, **options)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_run_in_pieces_ends_with_the_bits_of_a_run_in_one(optimizer, tmp_path):
    whole, one = run(optimizer=optimizer)
    for k in (2, 5, 7, 6, 6):  # before the first checkpoint, then in the middle of epochs of 8 steps, and at their ends
        crashed(tmp_path, k, optimizer=optimizer)
    pieces, many = run(tmp_path, optimizer=optimizer)
    assert equal(weights(whole), weights(pieces))
    assert [e["loss"] for e in one.epochs] == [e["loss"] for e in many.epochs]
    assert [e["valid"] for e in one.epochs] == [e["valid"] for e in many.epochs]
    assert one.best == many.best


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 3},
        {"precision": "bf16"},
        {"schedule": "warmup_cosine"},
        {"monitor": None, "schedule": None},
        {"patience": 2, "min_delta": 0.01},
        {"regularization": {"embedding": 0.01}},
        {"average": ("ema", {"decay": 0.9})},
        {"average": ("swa", {"start": 3})},
        {"reset_embeddings": True},
        {"schedule": {"embedding": "plateau", "default": ("warmup", {"steps": 20})}},
    ],
)
def test_whatever_the_settings(options, tmp_path):
    whole, _ = run(**options)
    for k in (5, 20):
        crashed(tmp_path, k, **options)
    pieces, result = run(tmp_path, **options)
    assert equal(weights(whole), weights(pieces))
    again, same = run(tmp_path, **options)  # a run that is finished does nothing
    assert equal(weights(again), weights(whole))
    assert same.epochs == result.epochs


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "lazy_adam", "adam"])
def test_kill_9_at_random_moments(optimizer, tmp_path):
    script = Path(__file__).with_name("worlds.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), optimizer, "5"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2  # it was killed
    assert equal(load_file(tmp_path / "whole"), load_file(tmp_path / "pieces"))


def test_more_epochs_go_on_from_the_last_weights_not_the_best(tmp_path):
    options = {"monitor": None, "schedule": None}
    whole, _ = run(epochs=6, **options)
    run(tmp_path, epochs=3, **options)
    more, result = run(tmp_path, epochs=6, **options)
    assert equal(weights(whole), weights(more))
    assert [e["epoch"] for e in result.epochs] == [1, 2, 3, 4, 5, 6]


def test_a_loader_that_knows_its_position_is_asked_for_it(tmp_path):
    class Shuffled:
        """A new order each epoch."""

        def __init__(self):
            self.epoch = self.step = self.start = 0

        def __len__(self):
            return 8

        def __iter__(self):
            order = torch.randperm(8, generator=torch.Generator().manual_seed(self.epoch)).tolist()
            start, self.start = self.start, 0
            for self.step, i in enumerate(order[start:], start + 1):
                yield world()[i]
            self.epoch, self.step = self.epoch + 1, 0

        def state_dict(self):
            return {"epoch": self.epoch, "step": self.step}

        def load_state_dict(self, state):
            self.epoch, self.start = state["epoch"], state["step"]

    whole, _ = run(batches=Shuffled())
    crashed(tmp_path, 13, batches=Shuffled())
    pieces, _ = run(tmp_path, batches=Shuffled())
    assert equal(weights(whole), weights(pieces))


def test_ctrl_c_saves_and_resume_goes_on(tmp_path):
    import signal

    class Interrupted(Fragile):
        def losses(self, batch):
            if self.left == -12 and self.training:
                os.kill(os.getpid(), signal.SIGINT)
            return super().losses(batch)

    whole, _ = run()
    model = Interrupted()
    result = trainer(model, "lazy_adam", checkpoint=tmp_path).fit(world(), world(2, seed=4))
    assert result.interrupted
    assert result.steps == 13
    pieces, rest = run(tmp_path, checkpoint_every=None)
    assert not rest.interrupted
    assert equal(weights(whole), weights(pieces))


def test_a_different_number_of_steps_between_checkpoints_changes_nothing(tmp_path):
    whole, _ = run()
    crashed(tmp_path, 13, checkpoint_every=timedelta(0))
    pieces, _ = run(tmp_path, checkpoint_every=5)
    assert equal(weights(whole), weights(pieces))


def test_a_metric_that_was_nan_is_nan_again(tmp_path):
    class Undefined(Fragile):
        def validate(self, data):
            return {"auc": float("nan")}

    for epochs in (1, 2):
        t = trainer(Undefined(), "lazy_adam", checkpoint=tmp_path, epochs=epochs, monitor="auc")
        result = t.fit(world(), [0], resume=True)
    assert [math.isnan(e["valid"]["auc"]) for e in result.epochs] == [True, True]
    assert result.best is None


# -- the folder -------------------------------------------------------------------------------------------------------
def test_the_two_newest_stay(tmp_path):
    run(tmp_path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-000000045", "step-000000048"]


def test_a_checkpoint_is_json_and_safetensors_only(tmp_path):
    run(tmp_path)
    endings = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert endings == {".json", ".safetensors"}


def test_half_written_ones_are_passed_over_and_swept(tmp_path):
    crashed(tmp_path, 8)
    (tmp_path / "step-000000999").mkdir()
    (tmp_path / "step-000000999" / "model.safetensors").write_bytes(b"half")
    whole, _ = run()
    pieces, _ = run(tmp_path)
    assert equal(weights(whole), weights(pieces))
    assert not (tmp_path / "step-000000999").exists()


def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path):
    crashed(tmp_path, 8)
    newest = Checkpoints(tmp_path).paths()[-1]
    for file in newest.rglob("model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    whole, _ = run()
    with pytest.warns(UserWarning, match="is passed over"):
        pieces, _ = run(tmp_path)
    assert equal(weights(whole), weights(pieces))


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    store = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        store.save(step, {"model": piece({"w": torch.ones(1)})}, {})
    store.wait()
    assert {p.name for p in tmp_path.iterdir()} == {"step-notes", "notes.txt", "step-000000002"}


def test_a_truncated_one_is_passed_over_for_the_older(tmp_path):
    crashed(tmp_path, 8)
    older, newest = Checkpoints(tmp_path).paths()
    for file in newest.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="it was truncated or altered"):
        assert Checkpoints(tmp_path).latest().path == older


def test_where_none_can_be_read_nothing_is_begun_anew(tmp_path):
    crashed(tmp_path, 8)
    for file in tmp_path.rglob("model.safetensors"):
        file.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(TrainingError, match=r"No checkpoint in .* can be"),
    ):
        run(tmp_path)


def test_another_format_is_named(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(3, {"model": piece({"w": torch.ones(1)})}, {})
    store.wait()
    manifest = tmp_path / "step-000000003" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 7'))  # the bundle's own
    with (
        pytest.warns(match="passed over"),
        pytest.raises(TrainingError, match=r"has format 7, and RecStack .* reads format 1"),
    ):
        store.latest()
    bundle.write(tmp_path / "step-000000004", {"model": piece({"w": torch.ones(1)})}, {"format": 99})
    with pytest.raises(
        TrainingError, match=r"step-000000004' has format 99 .* and this RecStack reads format 2. Go on with"
    ):
        store.latest()


# -- written beside the training --------------------------------------------------------------------------------------
def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path):
    """The writer is held back while the weights go on changing."""
    held, store = threading.Event(), Checkpoints(tmp_path)
    write = store._write
    store._write = lambda *args: held.wait(60) and write(*args)
    model, meta = Net(), {"epochs": [1]}
    was = weights(model)
    store.save(1, {"model": piece(model.state_dict())}, meta)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    meta["epochs"].append(2)
    assert store.complete() == []
    held.set()
    store.wait()
    saved = store.latest()
    assert equal(was, saved.piece("model").tensors)
    assert saved.meta["epochs"] == [1]


def writers():
    return {t for t in threading.enumerate() if t.name.startswith("recstack-checkpoint")}


def test_a_run_ends_when_its_last_checkpoint_is_on_the_disk(tmp_path, monkeypatch):
    order, before = [], writers()
    write = Checkpoints._write

    def slow(self, *args):
        write(self, *args)
        order.append(("written", args[0]))

    monkeypatch.setattr(Checkpoints, "_write", slow)
    run(tmp_path)
    assert order[-1] == ("written", 48)
    assert not writers() - before  # a writer of an earlier test may end meanwhile


class Full:
    """A disk that is full from the k-th call on that would need room."""

    def __init__(self, monkeypatch, k):
        self.k, self.calls = k, 0
        for name in ("fsync", "replace"):
            monkeypatch.setattr(store_module.os, name, self.failing(getattr(os, name)))
        monkeypatch.setattr(store_module, "open", self.opened, raising=False)
        monkeypatch.setattr(Path, "mkdir", self.failing(Path.mkdir))

    def fail(self):
        self.calls += 1
        if self.calls >= self.k:
            raise OSError(errno.ENOSPC, "No space left on device")

    def failing(self, function):
        def called(*args, **options):
            self.fail()
            return function(*args, **options)

        return called

    def opened(self, file, mode="r", *args, **options):
        stream = builtins.open(file, mode, *args, **options)  # noqa: SIM115 (closed by Stream)
        if "w" in mode:
            stream = Stream(stream, self)
        return stream


class Stream:
    def __init__(self, stream, disk):
        self.stream, self.disk = stream, disk

    def __enter__(self):
        return self

    def __exit__(self, *rest):
        self.stream.close()

    def write(self, data):
        self.disk.fail()
        return self.stream.write(data)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def test_a_full_disk_at_any_moment_leaves_the_checkpoint_before_whole(tmp_path, monkeypatch):
    """The first checkpoint is written; the second fails at its k-th call, for each k until it does not."""
    pieces = {"model": piece({"w": torch.ones(3)}), "random": piece({"cpu": torch.zeros(5)})}
    for k in range(1, 100):
        folder = tmp_path / str(k)
        store = Checkpoints(folder)
        store.save(3, pieces, {"n": 3})
        store.wait()
        with monkeypatch.context() as patch:
            disk = Full(patch, k)
            store.save(6, pieces, {"n": 6})
            if store._writing.exception() is None:
                break
            with pytest.raises(
                TrainingError, match=r"step 6 could not .*No space left.*Kept and whole: step-000000003"
            ):
                store.wait()
        assert store.latest().meta["n"] in (3, 6)  # 6: the disk was full after the moment of saving
        assert (folder / "step-000000003" / "manifest.json").exists()
        store.save(9, pieces, {"n": 9})  # room was made
        store.wait()
        assert store.latest().meta["n"] == 9
        assert len(store.paths()) == 2
    assert k > 8
    assert disk.calls == k - 1


def test_a_run_stops_at_the_next_checkpoint_after_one_failed_and_can_be_resumed(tmp_path, monkeypatch):
    write, tries = bundle.write, []

    def full(path, *args):
        tries.append(path)
        if len(tries) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "write", full)
        with pytest.raises(TrainingError, match=r"step 8 .*Kept and whole: step-000000003, step-000000006"):
            run(tmp_path)
    assert len(tries) == 3
    whole, _ = run()
    pieces, _ = run(tmp_path)
    assert equal(weights(whole), weights(pieces))


def test_what_ended_the_run_matters_more_than_the_checkpoint(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle, "write", full)
    with pytest.warns(UserWarning, match="could not be written"):
        crashed(tmp_path, 5)


# -- what does not fit ------------------------------------------------------------------------------------------------
def test_without_resume_checkpoints_are_never_overwritten(tmp_path):
    run(tmp_path)
    with pytest.raises(TrainingError, match=r"holds a checkpoint of step 48. Pass resume=True"):
        run(tmp_path, resume=False)


def test_resume_with_nothing_there_starts_anew(tmp_path):
    whole, _ = run()
    pieces, _ = run(tmp_path / "new", resume=True)
    assert equal(weights(whole), weights(pieces))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "adagrad"}, r"optimizers\['embedding'\]\['class'\] = LazyAdam, and this run has Adagrad"),
        ({"seed": 1}, "seed = 0, and this run has 1"),
        ({"clip": None}, "clip = 1.0, and this run has None"),
        ({"lr": 0.5}, r"options'\]\['lr'\] = 0.001, and this run has 0.5"),
        ({"batches": world(9)}, "batches = 8, and this run has 9"),
        ({"schedule": ("plateau", {"factor": 0.5})}, r"schedule = plateau\(factor=0.1"),
    ],
)
def test_other_settings_are_named(options, sentence, tmp_path):
    crashed(tmp_path, 8)
    with pytest.raises(TrainingError, match=sentence):
        run(tmp_path, **options)


def test_another_model_is_named(tmp_path):
    crashed(tmp_path, 8)
    model = Net(rows=50)
    with pytest.raises(
        TrainingError, match=r"parameters\['table.weight'\] = torch.float32 \[40, 4\], and this run has"
    ):
        trainer(model, "lazy_adam", checkpoint=tmp_path).fit(world(), world(2, seed=4), resume=True)


def test_resume_without_a_folder_is_an_error():
    with pytest.raises(ConfigError, match="resume=True needs checkpoint="):
        Trainer(Net()).fit(world(), resume=True)


def test_the_manifest_can_be_read_by_a_person(tmp_path):
    run(tmp_path)
    meta = json.loads((tmp_path / "step-000000048" / "manifest.json").read_text())["meta"]
    assert meta["epoch"] == 6
    assert meta["settings"]["optimizers"]["embedding"]["parameters"] == ["table.weight"]
