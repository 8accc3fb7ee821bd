"""Day 2 begins where day 1 ended: old rows with their state, new rows fresh."""

import numpy as np
import pytest
import torch
from worlds import equal, weights

from recstack.data import Encoder, Log
from recstack.errors import TrainingError
from recstack.features.inputs import Inputs
from recstack.features.tasks import Heads, losses
from recstack.models.ranking.deepfm import DeepFM
from recstack.schema import Categorical, Numeric, Schema, Task
from recstack.training import Trainer
from recstack.training.checkpoints import Checkpoints


class Deep(torch.nn.Module):
    def __init__(self, users, items, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        features = [
            Categorical("user", "user", size=users),
            Categorical("item", "item", size=items),
            Numeric("x", "item"),
        ]
        self.schema = Schema(features, [Task("click")])
        self.inputs = Inputs(self.schema, 4)
        self.heads = Heads(self.schema, self.inputs.width())

    def forward(self, batch):
        return self.heads(self.inputs(batch).flat())

    def losses(self, batch):
        return losses(self(batch), batch, self.schema)


def day(users, items, n=6, size=32, seed=0):
    chance = np.random.default_rng(seed)

    def batch():
        user, item = chance.integers(1, users, size), chance.integers(1, items, (size, 1))
        return {
            "user": torch.from_numpy(user).int(),
            "item": torch.from_numpy(item).int(),
            "x": torch.from_numpy(chance.random((size, 1))).float(),
            "click@label": torch.from_numpy((user[:, None] + item) % 2).float(),
        }

    return [batch() for _ in range(n)]


OPTIMIZER = {"embedding": "lazy_adam", "default": "adam"}


def trained(folder, users=10, items=20, seed=0, optimizer=OPTIMIZER, start_from=None, **options):
    model = Deep(users, items, seed)
    settings = {"optimizer": optimizer, "lr": 0.05, "epochs": 2, "checkpoint": folder, "progress": False}
    t = Trainer(model, **settings | options)
    t.fit(day(users, items, seed=seed), start_from=start_from)
    return model


def states(folder):
    """{table: {state: rows}} by reading the checkpoint's files and cutting the arena in the order of its tables."""
    saved = Checkpoints(folder).latest()
    ((path, sizes),) = saved.meta["tables"].items()
    out = {t: {"weight": saved.piece("model").tensors[f"{path}.{t}"]} for t in sizes}
    for key, tensor in saved.piece("optimizers-0").tensors.items():
        if key.endswith(f":{path}.weight") and tensor.dim():
            start = 1
            for table, size in sizes.items():
                out[table][key.partition(":")[0]] = tensor[start : start + size - 1]
                start += size - 1
    return out


@pytest.mark.filterwarnings("ignore:Parameter .* did not move")
@pytest.mark.parametrize("embedding", ["lazy_adam", ("adagrad", {"initial": 0.3}), "rowwise_adagrad", "adam"])
def test_old_rows_keep_their_state_to_the_bit_and_new_rows_are_fresh(embedding, tmp_path):
    optimizer = {"embedding": embedding, "default": "adam"}
    trained(tmp_path / "1", optimizer=optimizer)
    before = states(tmp_path / "1")
    fresh = weights(Deep(13, 25, seed=5))
    # A learning rate of 0, and a batch of one row, show what was there when the second day began.
    model = Deep(13, 25, seed=5)
    one = {k: v[:1] for k, v in day(13, 25)[0].items()}
    t = Trainer(model, optimizer=optimizer, lr=0.0, epochs=1, checkpoint=tmp_path / "2", progress=False)
    t.fit([one], start_from=tmp_path / "1")
    after = states(tmp_path / "2")
    initial = {"sum": 0.3 if embedding[0] == "adagrad" else 0.0}
    for name, old in before.items():
        touched = int(one[name].reshape(-1)[0]) - 1
        for key, rows in old.items():
            now, n = after[name][key], len(rows)
            assert len(now) == {"user": 12, "item": 24}[name]
            still = torch.ones(len(now), dtype=torch.bool)
            if key != "weight":
                still[touched] = False
                if embedding == "adam":  # dense: every row moves at every step
                    continue
            assert torch.equal(now[:n][still[:n]], rows[still[:n]]), (name, key)
            want = (
                fresh[f"inputs.tables.4.{name}"][n:]
                if key == "weight"
                else torch.full_like(now[n:], initial.get(key, 0))
            )
            assert torch.equal(now[n:][still[n:]], want[still[n:]]), (name, key)


def test_on_the_same_tables_a_second_day_is_a_longer_first_day(tmp_path):
    """Without schedule, dropout and shuffling, two runs of two epochs are one of four: moments and all."""
    trained(tmp_path / "1")
    second = trained(tmp_path / "2", start_from=tmp_path / "1")
    whole = trained(tmp_path / "whole", epochs=4)
    assert equal(weights(second), weights(whole))


def test_a_day_that_was_cut_short_is_resumed_and_not_begun_again(tmp_path):
    trained(tmp_path / "1")
    whole = trained(tmp_path / "whole", start_from=tmp_path / "1", epochs=4)
    trained(tmp_path / "2", start_from=tmp_path / "1", epochs=2)
    model = Deep(10, 20)
    settings = {"optimizer": OPTIMIZER, "lr": 0.05, "epochs": 4, "checkpoint": tmp_path / "2", "progress": False}
    Trainer(model, **settings).fit(day(10, 20), start_from=tmp_path / "1", resume=True)
    assert equal(weights(model), weights(whole))


def refused(folder, sentence, users=10, items=20, **options):
    with pytest.raises(TrainingError, match=sentence):
        trained(folder / "2", users, items, start_from=folder / "1", **options)


def test_what_does_not_fit_is_one_sentence(tmp_path):
    trained(tmp_path / "1")
    refused(
        tmp_path,
        r"does not fit: Table 'inputs.tables.4.user' has shape \(9, 4\) .* \(4, 4\) in the model; a table can only grow",
        users=5,
    )
    other = {"embedding": "adagrad", "default": "adam"}
    refused(tmp_path, "trained 'inputs.tables.4.weight' with LazyAdam, and this run has Adagrad", optimizer=other)
    with pytest.raises(TrainingError, match="holds neither a checkpoint nor a saved model"):
        trained(None, start_from=tmp_path / "nothing")


def test_a_model_of_other_features_is_refused(tmp_path):
    trained(tmp_path / "1")
    model = Deep(10, 20)
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=r"have no 'extra.\w+'; they are of another model"):
        Trainer(model, progress=False).fit(day(10, 20), start_from=tmp_path / "1")
    model = Deep(10, 20)
    del model.inputs.tables
    with pytest.raises(TrainingError, match=r"has 'inputs.tables.4.\w+', which this model does not have"):
        Trainer(model, progress=False).fit(day(10, 20), start_from=tmp_path / "1")


SCHEMA = Schema([Categorical("user", "user"), Categorical("item", "item")], [Task("click")])


def log(users, items, seed=0, n=300):
    chance = np.random.default_rng(seed)
    user, item = chance.choice(users, n), chance.choice(items, n)
    return Log({"user": user, "item": item, "click": (user + item) % 2.0}, SCHEMA)


@pytest.mark.parametrize("by", ["hand", "grown"])
@pytest.mark.parametrize("source", ["checkpoint", "bundle"])
def test_from_raw_rows_of_one_day_to_those_of_the_next(source, by, tmp_path):
    """Ids of old values and their vectors stay, whatever values are new; an encoder fitted anew is refused."""
    first = log(np.arange(100, 120), np.arange(500, 530))
    second = log(np.arange(90, 125), np.arange(480, 540), seed=1)
    options = {"epochs": 2, "batch_size": 64, "lr": 0.05, "progress": False}
    encoder = Encoder(SCHEMA).fit(first)
    model = DeepFM(encoder.schema, dim=4, hidden=(8,))
    Trainer(model, checkpoint=tmp_path / "checkpoint", **options).fit(first)
    model.save(tmp_path / "bundle")

    later = encoder.grown(second)
    grown = DeepFM(later.schema, dim=4, hidden=(8,)) if by == "hand" else model.grown(later)
    none = {"epochs": 1, "lr": 0.0, "batch_size": 999, "progress": False}
    with pytest.warns(UserWarning, match="did not move"):
        Trainer(grown, **none).fit(second, start_from=tmp_path / source)
    for value in (100, 119):
        old, new = (e.encode_values("user", [value])[0] for e in (encoder, later))
        rows = [dict(m.named_modules())["inputs.tables.4"].tables(w)["user"] for m, w in both(model, grown)]
        assert torch.equal(rows[0][old - 1], rows[1][new - 1])

    anew = DeepFM(Encoder(SCHEMA).fit(second).schema, dim=4, hidden=(8,))
    with pytest.raises(TrainingError, match=r"The ids of .user. mean other values than in .* encoder.grown"):
        Trainer(anew, **none).fit(second, start_from=tmp_path / source)


def both(*models):
    return [(m, dict(m.named_parameters())["inputs.tables.4.weight"]) for m in models]


def test_tables_in_another_order_are_refused(tmp_path):
    trained(tmp_path / "1")
    model = Deep(10, 20)
    features = [Categorical("item", "item", size=20), Categorical("user", "user", size=10), Numeric("x", "item")]
    model.inputs = Inputs(Schema(features, [Task("click")]), 4)
    settings = {"optimizer": OPTIMIZER, "progress": False}
    with pytest.raises(TrainingError, match="has the tables user, item in this order"):
        Trainer(model, **settings).fit(day(10, 20), start_from=tmp_path / "1")
