"""Several processes are one run: the same loss curve and weights as one process on the same global batches."""

import json
import shutil

import numpy as np
import processes
import pytest
import torch
from safetensors.torch import load_file

from recstack.data import Encoder, Log
from recstack.errors import ConfigError
from recstack.features.tables import Arena, Tables
from recstack.models.ranking.deepfm import DeepFM
from recstack.schema import Categorical, Schema, Task
from recstack.training import Trainer
from recstack.training.distributed import World, _refuse_whole_tables, blank, cut_batch

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- in two processes -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two processes made of every case."""
    folder = tmp_path_factory.mktemp("laws")
    processes.begun(folder)
    (code, err), (other, _) = processes.ended(processes.start(2, "killed", folder))
    (folder / "killed").write_text(f"{code} {other} {err}")
    shutil.copytree(folder / "checkpoints", folder / "one" / "checkpoints")
    for code, err in processes.ended(processes.start(2, "laws", folder)):
        assert code == 0, err
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", processes.CASES)
def test_two_processes_give_the_loss_curve_and_weights_of_one(case, trained):
    weights, numbers = processes.run(case)
    every = [json.loads((trained / f"{case}.{rank}.json").read_text()) for rank in (0, 1)]
    for rank, theirs in enumerate(every):
        own = load_file(trained / f"{case}.{rank}")
        assert own.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(own[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert theirs["steps"] == numbers["steps"]
        for a, b in zip(theirs["epochs"], numbers["epochs"], strict=True):
            assert a["losses"] == pytest.approx(b["losses"], rel=1e-6)
            assert a["valid"] == pytest.approx(b["valid"], rel=1e-5)
    equal = [load_file(trained / f"{case}.{rank}") for rank in (0, 1)]
    assert all(torch.equal(equal[0][k], equal[1][k]) for k in equal[0])  # not nearly: they may never part
    assert [theirs["spoke"] for theirs in every] == [1, 0]


@pytest.mark.slow
def test_a_process_holds_its_rows_of_sharded_tables_only(trained):
    tables = {n: len(p) for n, p in processes.made("rowwise")[0].model.named_parameters() if ".tables." in n}
    assert len(tables) == 2
    for case in processes.CASES:
        held = [json.loads((trained / f"{case}.{rank}.json").read_text())["held"] for rank in (0, 1)]
        for name, rows in tables.items():
            expected = [(rows + 1) // 2, rows // 2] if case.startswith("sharded") else [rows, rows]
            assert [h[name] for h in held] == expected


@pytest.mark.slow
def test_two_processes_go_on_from_the_checkpoint_of_one(trained):
    whole, _ = processes.run("sharded")
    anew, _ = processes.run("sharded dense", start_from=trained / "before")
    for rank in (0, 1):
        for what, expected in (("begun", whole), ("after", anew)):
            own = load_file(trained / f"{what}.{rank}")
            for name, value in expected.items():
                torch.testing.assert_close(own[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_bit_for_bit(trained):
    assert {p.name for p in trained.glob("stopped.*")} == {"stopped.0", "stopped.1"}


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_run_goes_on_with_two_or_one(trained):
    code, other, err = (trained / "killed").read_text().split(maxsplit=2)
    assert (code, other) == ("1", "-9")
    message = err.strip().splitlines()[-1]
    assert "Process 1 of 2 vanished" in message
    assert "step-000000012' with fit(resume=True)" in message  # the 15th batch was not finished
    alone, _ = processes.run("sharded", resume=True, checkpoint=trained / "one" / "checkpoints", checkpoint_every=3)
    whole, _ = processes.run("sharded")
    for weights in (alone, load_file(trained / "resumed.0"), load_file(trained / "resumed.1")):
        for name, value in whole.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_what_failed_in_one_process_is_told_by_the_others(tmp_path):
    (code, err), (other, cause) = processes.ended(processes.start(2, "failing", tmp_path))
    assert code == other == 1
    assert "Process 1 of 2 failed: ZeroDivisionError" in err.strip().splitlines()[-1]
    assert "There is no checkpoint to go on from" in err
    assert cause.strip().splitlines()[-1].endswith("ZeroDivisionError: division by zero")


# -- in one -----------------------------------------------------------------------------------------------------------
def world(rank, size):
    w = World(False)
    w.rank, w.size = rank, size
    return w


def test_slices_laid_behind_each_other_are_the_batch():
    chance = np.random.default_rng(0)
    for n, size in ((7, 2), (7, 3), (5, 5), (64, 4)):
        lengths = chance.integers(0, 4, (n, 2))
        history = chance.integers(0, 3, n)
        batch = {
            "user": torch.arange(n, dtype=torch.int32),
            "item": torch.arange(2 * n).view(n, 2),
            "tags": torch.arange(int(lengths.sum())),
            "tags@offsets": torch.tensor([0, *np.cumsum(lengths)]),
            "item@watched": torch.arange(int(history.sum())),
            "@time@watched": torch.arange(int(history.sum())) * 10,
            "watched@offsets": torch.tensor([0, *np.cumsum(history)]),
            "click@label": torch.rand(n, 2),
        }
        parts = [cut_batch(batch, rank, size) for rank in range(size)]
        rows = [len(p["user"]) for p in parts]
        assert max(rows) - min(rows) <= 1
        for name, whole in batch.items():
            if name.endswith("@offsets"):
                lengths = [p[name].diff() for p in parts]
                assert torch.equal(torch.cat(lengths), whole.diff())
                assert all(int(p[name][0]) == 0 for p in parts)
            else:
                assert torch.equal(torch.cat([p[name] for p in parts]), whole)


def test_a_process_without_rows_takes_part_and_adds_nothing():
    trainer, train, _ = processes.made("rowwise")
    columns = trainer.model.schema.encoder.encode(train)
    trainer.model.train()
    from recstack.training import batches as feeding

    one = columns.batch(slice(0, 1))
    parts = [cut_batch(one, rank, 2) for rank in (0, 1)]
    assert [feeding.requests(p) for p in parts] == [0, 1]
    assert feeding.shares(parts, trainer.model, dict)[0] == {"": 0.0, "click": 0.0, "buy": 0.0}
    assert all(loss.isfinite() for loss in trainer.model.losses(blank(one)).values())
    for module in trainer.model.modules():
        if isinstance(module, Arena):
            module.sparse, module.asked = True, []
    trainer.model.losses(blank(one))
    asked = [rows for m in trainer.model.modules() if isinstance(m, Arena) for rows in m.asked]
    assert asked
    assert not any(rows.counts.numel() for rows in asked)  # no row of a table is touched


@pytest.mark.parametrize("size", [2, 3])
def test_a_process_joins_its_rows_of_tables_as_it_would_cut_them_from_the_whole(size):
    from recstack.training.distributed import Shard

    whole = Arena({"a": 5, "b": 2, "c": 9}, 3, 1.0)
    tables = {k: v.detach().clone() for k, v in whole.tables(whole.weight).items()}
    for rank in range(size):
        arena = Arena({"a": 5, "b": 2, "c": 9}, 3, 1.0)
        arena.load_state_dict(tables)
        shard = Shard(world(rank, size), "weight", arena, [])
        assert torch.equal(shard.joined(tables), whole.weight.detach()[rank::size])
        assert torch.equal(arena.weight, shard.joined(tables))


def test_one_process_is_as_if_nothing_were_there():
    w = World()
    assert (w.rank, w.size, w.main, w.several) == (0, 1, True, False)
    batches = [{"user": torch.arange(3)}]
    assert w.sliced(batches) is batches
    assert w.any(True)
    assert not w.any(False)


def test_torchrun_is_found_by_its_variables(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert (World().rank, World().size) == (1, 3)
    assert World(False).size == 1
    seeds = {World().seed(7), World(False).seed(7), world(2, 3).seed(7)}
    assert len(seeds) == 3
    assert World(False).seed(7) == 7
    monkeypatch.delenv("MASTER_PORT")
    assert World().size == 1


def test_a_table_that_admits_ids_by_what_it_meets_is_for_one_process():
    schema = Schema([Categorical("user", "user", rows=4, admit=2)], [Task("click")])
    log = Log({"user": ["a", "b", "a"], "click": [0.0, 1.0, 1.0]}, schema)
    model = DeepFM(Encoder(schema).fit(log).schema, dim=2, hidden=(4,))
    with pytest.raises(ConfigError, match=r"Table 'user' admits and evicts ids .* train it in one process"):
        world(0, 2)._refuse_dynamic(model)


def test_what_reads_a_whole_table_says_that_it_is_spread():
    tables = Tables({"user": 5}, {"user": 2})
    changed = _refuse_whole_tables(tables, [tables.arena("user")])
    assert changed == [tables]
    for read in (tables.weight, tables.by_id):
        with pytest.raises(ConfigError, match="reads the whole table 'user' in one piece"):
            read("user")


def test_what_cannot_be_is_said_before_training(monkeypatch):
    model = processes.made("rowwise")[0].model
    with pytest.raises(ConfigError, match=r"distributed=True needs a process group or torchrun.*torchrun --standalone"):
        Trainer(model, distributed=True)
    with pytest.raises(ConfigError, match="timeout= is in seconds and above 0; got 0"):
        Trainer(model, timeout=0)
    with pytest.raises(ConfigError, match=r"sharded='mlp' takes 'mlp.*', which is no embedding table"):
        Trainer(model, sharded="mlp")
    with pytest.raises(ConfigError, match="reset_embeddings=True needs whole tables"):
        Trainer(model, sharded="embedding", reset_embeddings=True)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="batch_size=2 is that of all 3 processes"):
        Trainer(model, batch_size=2)
