"""From a raw log to a trained model: encoder, Loader, tables, tasks and Trainer together."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from worlds import equal, weights

from recstack.data import Encoder, Log
from recstack.errors import ConfigError, DataError, TrainingError
from recstack.models.ranking.deepfm import DeepFM
from recstack.schema import Categorical, Numeric, Schema, Task
from recstack.training import Trainer

SCHEMA = Schema(
    [
        Categorical("user", "user"),
        Categorical("item", "item"),
        Categorical("tags", "item", multi=True),
        Numeric("price", "item", transform="standard"),
    ],
    [Task("click")],
)


def log(n=600, seed=0, schema=SCHEMA, **options):
    """Users of even number click items of even number."""
    chance = np.random.default_rng(seed)
    user, item = chance.integers(0, 20, n), chance.integers(0, 30, n)
    events = {
        "user": user,
        "item": item,
        "tags": [[f"t{i % 3}", f"t{i % 5}"] for i in item],
        "price": (item % 7).astype(float),
        "click": ((user % 2) == (item % 2)).astype(float),
    }
    return Log(events, schema, **options)


def model(train, seed=0):
    torch.manual_seed(seed)
    return DeepFM(Encoder(train.schema).fit(train).schema, dim=4, hidden=(16,), dropout=0.1)


def options(**more):
    return {"epochs": 4, "batch_size": 64, "lr": {"embedding": 0.2, "default": 0.01}, "progress": False} | more


def test_a_raw_log_is_learned_from_and_measured():
    train = log()
    m = model(train)
    t = Trainer(m, monitor="auc", **options(epochs=12))
    result = t.fit(train, log(300, 1))
    assert result.best["value"] > 0.8
    assert t.evaluate(log(300, 1))["click/auc"] == result.best["value"]  # the weights are the best ones
    assert t.predict(log(300, 1))["click"].shape == (300, 1)
    assert not m.training


def test_columns_and_log_give_the_same_weights():
    train = log()
    runs = []
    for data in (train, "columns"):
        m = model(train)
        Trainer(m, **options()).fit(m.schema.encoder.encode(train) if data == "columns" else data)
        runs.append(weights(m))
    assert equal(*runs)


def test_columns_that_lie_on_a_device_give_the_same_weights_and_metrics():
    schema = SCHEMA.without("tags")
    train, valid = (Log(part.events.drop("tags"), schema) for part in (log(), log(300, 1)))
    runs = []
    for place in (lambda columns: columns, lambda columns: columns.to("cpu")):
        m = model(train)
        encode = m.schema.encoder.encode
        t = Trainer(m, monitor="auc", **options())
        result = t.fit(place(encode(train)), place(encode(valid)))
        runs.append((weights(m), [e["valid"] for e in result.epochs]))
    assert equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_implicit_logs_get_negatives():
    schema = SCHEMA.replace(tasks=[Task("like")])
    train = log().select(log().events["click"] == 1)
    train = Log(train.events.drop("click"), schema, implicit=True)
    m = model(train)
    seen = []
    losses = m.losses
    m.losses = lambda batch: seen.append(batch["like@label"].shape[1]) or losses(batch)
    Trainer(m, negatives=3, **options(epochs=1)).fit(train)
    assert set(seen) == {4}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "lazy_adam", "adam"])
def test_a_crashed_run_resumes_in_the_middle_of_a_shuffled_epoch(optimizer, tmp_path):
    train, valid = log(), log(100, 1)

    def run(folder, crash=0):
        m = model(train)
        losses, left = m.losses, [crash]

        def fragile(batch):
            left[0] -= m.training
            if left[0] == 0 and m.training:
                raise RuntimeError("crash")
            return losses(batch)

        m.losses = fragile
        more = {} if folder is None else {"checkpoint": folder, "checkpoint_every": 3}
        t = Trainer(
            m,
            optimizer={"embedding": optimizer, "default": "adam"},
            monitor="auc",
            schedule="plateau",
            **options(**more),
        )
        t.fit(train, valid, resume=folder is not None)
        return weights(m)

    whole = run(None)
    for k in (5, 8, 13):
        with pytest.raises(RuntimeError, match="crash"):
            run(tmp_path, k)
    assert equal(run(tmp_path), whole)


def test_a_label_of_one_class_is_one_sentence_before_training():
    only = log().select(log().events["click"] == 1)
    with pytest.raises(DataError, match=r'Label "click" is 1 on all \d+ rows'):
        Trainer(model(log()), **options()).fit(only)


def test_a_model_without_an_encoder_cannot_read_raw_rows():
    m = model(log())
    m.schema = m.schema.replace(encoder=None)
    with pytest.raises(ConfigError, match="has no encoder, so raw rows cannot be read"):
        Trainer(m, **options()).fit(log())


def test_a_spoiled_feature_is_named():
    train = log()
    m = model(train)
    columns = m.schema.encoder.encode(train)
    batch = columns.batch(np.arange(64))
    batch["price"] = batch["price"].clone()
    batch["price"][7] = float("nan")
    with pytest.raises(TrainingError, match="'price' of the batch holds nan in row 7"):
        Trainer(m, **options()).fit([batch])


def test_bf16_and_accumulation_learn_too():
    train = log()
    t = Trainer(
        model(train), precision="bf16", accumulate=2, batch_size=32, epochs=12, lr=options()["lr"], progress=False
    )
    t.fit(train)
    assert t.evaluate(log(300, 1))["click/auc"] > 0.8


def test_a_papers_options_are_those_of_fit_unless_told_otherwise():
    class Papers(DeepFM):
        trainer: ClassVar = {"batch_size": 50, "epochs": 2, "progress": False}

    train = log()
    schema = Encoder(train.schema).fit(train).schema
    assert Papers(schema).fit(train).trained.steps == 2 * 600 / 50
    assert Papers(schema).fit(train, batch_size=100).trained.steps == 2 * 600 / 100


def test_fit_goes_on_from_a_checkpoint(tmp_path):
    train = log()
    whole, begun, resumed = model(train), model(train), model(train, seed=1)
    whole.fit(train, **options(epochs=3))
    begun.fit(train, checkpoint=tmp_path / "run", **options(epochs=1))
    resumed.fit(train, resume=True, checkpoint=tmp_path / "run", **options(epochs=3))
    assert [e["epoch"] for e in resumed.trained.epochs] == [1, 2, 3]
    assert equal(weights(resumed), weights(whole))
    with pytest.raises(ConfigError, match="resume=True needs checkpoint="):
        whole.fit(train, resume=True, **options())


@pytest.mark.slow
@pytest.mark.parametrize("evict", ["lfu", "lru"])
@pytest.mark.parametrize("average", [None, "ema"])
def test_a_run_in_pieces_gives_out_the_rows_of_its_tables_as_a_run_in_one(evict, average, tmp_path):
    """A table of fewer rows than ids: rows change hands all the time, and owners and counts are in the checkpoint."""
    schema = Schema([Categorical("user", "user", rows=8, evict=evict), Categorical("item", "item")], [Task("click")])
    train = Log(log().events.drop("tags", "price"), schema)

    def run(folder=None, crash=0, resume=True):
        m, left = model(train), [crash]
        losses = m.losses

        def failing(batch):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return losses(batch)

        m.losses = failing
        settings = {"optimizer": {"embedding": "lazy_adam", "default": "adam"}, "average": average, "lr": 0.05}
        folder = {} if folder is None else {"checkpoint": folder, "checkpoint_every": 20}
        Trainer(m, batch_size=8, epochs=2, progress=False, **settings, **folder).fit(train, resume=bool(folder))
        return weights(m)

    whole = run()
    for crash in (30, 70):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, crash)
    assert equal(run(tmp_path), whole)
