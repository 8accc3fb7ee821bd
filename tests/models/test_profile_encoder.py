"""Profile vectors: what the autoencoder computes, what its vectors keep, whom they serve; and vectors that are given."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

import recstack as rs
from recstack.nn.autoencoder import RowAutoencoder

COLUMNS = ("age", "gender", "city", "income")


def people(n: int, seed: int = 0) -> pl.DataFrame:
    """Users with attributes that hang together a little: income grows with age."""
    chance = np.random.default_rng(seed)
    age = chance.integers(0, 6, n)
    return pl.DataFrame(
        {
            "user": np.arange(n),
            "age": [f"{10 * a + 10}s" for a in age],
            "gender": chance.choice(["f", "m"], n),
            "city": chance.choice(["Bern", "Lyon", "Oslo", "Rome", "Turin"], n, p=[0.4, 0.2, 0.2, 0.1, 0.1]),
            "income": 20.0 + 5 * age + chance.normal(0, 3, n),
        }
    )


SCHEMA = rs.Schema(
    [
        rs.Categorical("user", "user"),
        rs.Categorical("age", "user"),
        rs.Categorical("gender", "user"),
        rs.Categorical("city", "user"),
        rs.Numeric("income", "user"),
        rs.Categorical("item", "item"),
    ],
    [rs.Task("click")],
)


def log(users: pl.DataFrame, seed: int = 0, rows: int = 3, of: int | None = None) -> rs.Log:
    """`rows` events of each of the first `of` users."""
    chance = np.random.default_rng(seed)
    who = np.repeat(users["user"].to_numpy()[:of], rows)
    events = {"user": who, "item": chance.integers(0, 5, len(who)), "click": chance.integers(0, 2, len(who))}
    return rs.Log(events, SCHEMA, users=users)


def fitted(of: rs.Log, **options) -> rs.ProfileEncoder:
    size = options.pop("size", 8)
    return rs.ProfileEncoder(COLUMNS, size=size).fit(of, **{"epochs": 2, "progress": False, **options})


def column(of: rs.Log, frame: str = "users", name: str = "profile") -> np.ndarray:
    return np.array(of.frame(frame)[name].to_list(), np.float32)


@pytest.fixture(scope="module")
def known() -> rs.Log:
    return log(people(1500))


@pytest.fixture(scope="module")
def profile(known) -> rs.ProfileEncoder:
    return fitted(known, epochs=40, lr=3e-3)


# -- the network ------------------------------------------------------------------------------------------------------
def test_the_first_layer_is_a_matrix_times_the_one_hots_and_the_numbers():
    torch.manual_seed(0)
    net = RowAutoencoder((4, 5), 2, 3, hidden=6).eval()
    ids, numbers = torch.tensor([[3, 2], [2, 4]]), torch.randn(2, 2)
    x = torch.cat([torch.nn.functional.one_hot(ids[:, 0], 4), torch.nn.functional.one_hot(ids[:, 1], 5)], 1).float()
    hidden = torch.cat([x, numbers], 1) @ torch.cat([net.first.weight, net.first_numbers.weight.T]) + net.bias
    z = hidden.relu() @ net.code[1].weight.T + net.code[1].bias
    torch.testing.assert_close(net(ids, numbers), z / math.sqrt(1 + 1e-5))  # fresh statistics: mean 0, variance 1


def test_a_uniform_guess_costs_one_per_column_and_the_mean_one_per_number():
    net = RowAutoencoder((7, 4), 1, 3).eval()
    for head in (*net.heads, net.number_head):
        torch.nn.init.zeros_(head.weight)
    batch = {"ids": torch.tensor([[2, 3], [5, 2]]), "numbers": torch.tensor([[1.0], [-1.0]])}
    losses = net.losses(batch)
    torch.testing.assert_close(losses["categorical"], torch.tensor(2.0))
    torch.testing.assert_close(losses["numeric"], torch.tensor(1.0))


def test_noise_is_another_rows_value_of_the_same_column():
    net = RowAutoencoder((4,), 0, 2, noise=0.15)
    x = torch.arange(4000)[:, None] + torch.tensor([0, 10_000])
    torch.manual_seed(0)
    noisy = net._swapped(x)
    assert ((noisy >= 10_000) == (x >= 10_000)).all()
    assert 0.13 < (noisy != x).float().mean() < 0.17
    assert torch.equal(net.eval()._swapped(x), x)


def test_columns_without_numbers_and_numbers_without_columns():
    only_ids = RowAutoencoder((3,), 0, 2)
    assert set(only_ids.losses({"ids": torch.tensor([[2], [1]]), "numbers": torch.zeros(2, 0)})) == {"categorical"}
    only_numbers = RowAutoencoder((), 2, 2)
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert set(only_numbers.losses({"ids": none, "numbers": torch.randn(2, 2)})) == {"numeric"}


# -- the vectors ------------------------------------------------------------------------------------------------------
def test_equal_attributes_give_equal_vectors(known, profile):
    twins = people(50).with_columns(pl.lit(30.0).alias("income"))
    twins = pl.concat([twins, twins.with_columns(pl.col("user") + 1000)])
    vectors = column(profile.transform(log(twins)))
    assert np.array_equal(vectors[:50], vectors[50:])
    assert len(np.unique(vectors[:, 0])) == twins.select("age", "gender", "city").n_unique()


def test_a_linear_probe_knows_every_column_better_than_the_majority(profile):
    """Fitted on half of a new crowd, asked about the other half."""
    from sklearn.linear_model import LinearRegression, LogisticRegression

    crowd = people(1200, seed=5)
    z = column(profile.transform(log(crowd)))
    for name in ("age", "gender", "city"):
        y = crowd[name].to_numpy()
        majority = max((y[600:] == v).mean() for v in np.unique(y))
        probe = LogisticRegression(max_iter=1000).fit(z[:600], y[:600])
        assert probe.score(z[600:], y[600:]) > majority + 0.5 * (1 - majority), name
    income = crowd["income"].to_numpy()
    assert LinearRegression().fit(z[:600], income[:600]).score(z[600:], income[600:]) > 0.5


def test_vectors_are_standardised_on_the_training_users(known, profile):
    z = column(profile.transform(known))
    assert np.abs(z.mean(0)).max() < 0.2
    assert np.abs(z.std(0) - 1).max() < 0.2


def test_only_users_of_the_training_rows_are_learned_from():
    users = people(60)
    other = pl.concat([users[:40], people(60, seed=9)[40:].with_columns(pl.lit("Nice").alias("city"))])
    a, b = fitted(log(users, of=40)), fitted(log(other, of=40))
    assert a.encoder == b.encoder
    assert all(torch.equal(x, y) for x, y in zip(a.network.parameters(), b.network.parameters(), strict=True))


def test_a_user_counts_once_however_many_rows_he_has():
    users = people(60)
    a, b = fitted(log(users)), fitted(log(users, rows=5, seed=3))
    assert np.array_equal(column(a.transform(log(users))), column(b.transform(log(users))))


def test_unseen_users_and_unknown_values_have_vectors(profile):
    row = {"age": "20s", "gender": "f", "city": "Bern", "income": 31.0}
    strange = {"age": None, "gender": "x", "city": "Paris", "income": 31.0}
    z = profile.vectors([row, strange])
    assert z.shape == (2, 8)
    assert z.dtype == np.float32
    assert np.isfinite(z).all()
    stranger = pl.DataFrame({"user": [77_777], **{k: [v] for k, v in row.items()}})
    np.testing.assert_allclose(column(profile.transform(log(stranger)))[0], z[0], rtol=1e-5, atol=1e-6)
    other = profile.vectors([strange | {"city": "Quito"}])  # all that training never met is alike
    np.testing.assert_allclose(other[0], z[1], rtol=1e-5, atol=1e-6)


def test_the_seed_decides_and_the_callers_generator_does_not():
    some = log(people(80))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a = fitted(some, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    b, c = fitted(some, seed=3), fitted(some, seed=4)
    of = lambda p: column(p.transform(some))  # noqa: E731
    assert np.array_equal(of(a), of(b))
    assert not np.array_equal(of(a), of(c))


def test_attributes_in_the_events_are_read_there():
    users = people(40)
    framed = log(users)
    flat = rs.Log(framed.events.join(users, on="user", maintain_order="left"), SCHEMA)
    half = rs.Log(
        framed.events.join(users.select("user", "age"), on="user", maintain_order="left"), SCHEMA, users=users
    )
    a, b, c = fitted(framed), fitted(flat), fitted(half)
    per_event = column(a.transform(framed))[framed.rows_of("users")]
    for one, where in ((b, flat), (c, half)):
        assert np.array_equal(column(one.transform(where), "events"), per_event)


def test_the_log_keeps_all_else():
    first = log(people(30))
    some = rs.Log(first.events, SCHEMA, users=first.users, name="here", request="user")
    new = fitted(some).transform(some)
    assert (new.name, new.request, new.implicit, new.schema.user) == ("here", "user", False, "user")
    assert new.users.drop("profile").equals(some.users)
    assert "profile" not in some.users.columns
    assert new.schema.without("profile") == some.schema


# -- saving -----------------------------------------------------------------------------------------------------------
def test_saving_loses_nothing(tmp_path, known):
    one = rs.ProfileEncoder(COLUMNS, size=5, name="who", hidden=20, noise=0.3).fit(known, epochs=1, progress=False)
    two = rs.load(one.save(tmp_path / "profile"))
    for what in ("features", "size", "name", "hidden", "noise"):
        assert getattr(two, what) == getattr(one, what)
    assert np.array_equal(column(one.transform(known), name="who"), column(two.transform(known), name="who"))
    assert two.network.noise == 0.3


@pytest.mark.slow
def test_serving_needs_no_training_code(tmp_path, profile):
    row = {"age": "20s", "gender": "f", "city": "Bern", "income": 31.0}
    path = profile.save(tmp_path / "profile")
    code = (
        f"import sys\nimport recstack as rs\nprint(rs.load({str(path)!r}).vectors([{row!r}]).tolist())\n"
        "print([m for m in ('recstack.training', 'polars', 'sklearn', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == f"{profile.vectors([row]).tolist()}\n[]\n"


def test_a_piece_of_another_make_is_one_sentence(profile):
    piece = profile.to_piece()
    with pytest.raises(rs.BundleError, match="another version"):
        rs.ProfileEncoder.from_piece(type(piece)(piece.class_path, piece.config | {"depth": 3}, piece.tensors))
    with pytest.raises(rs.BundleError, match="another version"):
        rs.ProfileEncoder.from_piece(type(piece)(piece.class_path, piece.config, {}))


# -- errors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (("user",), "the user's key"),
        (("item",), "of role 'item'"),
        (("langs",), "single-valued"),
        (("bio",), "single-valued"),
        (("agee",), "Did you mean 'age'"),
    ],
)
def test_features_that_have_no_place(features, message):
    schema = SCHEMA.with_features(rs.Categorical("langs", "user", multi=True), rs.Text("bio", "user"))
    users = people(10).with_columns(langs=pl.Series([["de"]] * 10), bio=pl.lit("hm"))
    some = rs.Log(log(users).events, schema, users=users)
    with pytest.raises(rs.SchemaError, match=message):
        rs.ProfileEncoder(features).fit(some, progress=False)


def test_what_cannot_be():
    with pytest.raises(rs.ConfigError, match="features="):
        rs.ProfileEncoder(())
    with pytest.raises(rs.ConfigError, match="noise"):
        rs.ProfileEncoder(("age",), noise=1.0)
    some = log(people(10))
    with pytest.raises(rs.ConfigError, match="call fit"):
        rs.ProfileEncoder(("age",)).transform(some)
    one = rs.ProfileEncoder("age", size=2).fit(some, epochs=1, progress=False)
    with pytest.raises(rs.SchemaError, match="another name="):
        one.transform(one.transform(some))
    with pytest.raises(rs.SchemaError, match="age"):
        one.transform(rs.Log(some.events, SCHEMA))
    with pytest.raises(rs.SchemaError, match="fill="):
        fitted(log(people(10).with_columns(pl.lit(None, pl.Float64).alias("income"))))


# -- vectors as features ----------------------------------------------------------------------------------------------
def test_a_given_vector_goes_through_encoder_model_and_bundle(tmp_path):
    """Of users and of items, as a pretrained model would leave them: in the frames, in live rows, in a saved DIN."""
    chance = np.random.default_rng(0)
    schema = rs.Schema(
        [
            rs.Categorical("user", "user"),
            rs.Vector("taste", "user", size=3),
            rs.Categorical("item", "item"),
            rs.Vector("image", "item", size=2),
            rs.History("clicked", of=("item",), where="click"),
        ],
        [rs.Task("click")],
        time="time",
    )
    taste, image = chance.normal(size=(4, 3)).astype(np.float32), chance.normal(size=(6, 2)).astype(np.float32)
    events = {
        "user": chance.integers(0, 4, 60),
        "item": chance.integers(0, 6, 60),
        "click": chance.integers(0, 2, 60),
        "time": np.arange(60),
    }
    frames = {
        "users": pl.DataFrame({"user": range(4), "taste": taste}),
        "items": pl.DataFrame({"item": range(6), "image": image}),
    }
    all_rows = rs.Log(events, schema, **frames).with_histories()
    encoder = rs.Encoder(schema).fit(all_rows)
    batch = encoder.encode(all_rows).batch(np.arange(60))
    assert np.array_equal(batch["taste"].numpy(), taste[events["user"]])
    assert np.array_equal(batch["image"][:, 0].numpy(), image[events["item"]])

    model = rs.ranking.DIN(encoder.schema, dim=4, hidden=(8,))
    before = model.score(all_rows)["click"]
    moved = rs.Log(
        events, schema, users=frames["users"].with_columns(taste=pl.Series(taste + 1)), items=frames["items"]
    )
    assert (np.abs(model.score(moved.with_histories())["click"] - before) > 0).all()  # the model reads it

    again = rs.load(model.save(tmp_path / "din"))
    assert np.array_equal(again.score(all_rows)["click"], before)
    live = {"user": 2, "taste": taste[2].tolist(), "clicked": []}
    items = [{"item": i, "image": image[i].tolist()} for i in range(6)]
    page = {n: v[None] for n, v in again.schema.encoder.items(items).items()}
    scores = again.predict({**again.schema.encoder.requests([live]), **page})["click"]
    assert scores.shape == (1, 6)


@pytest.mark.slow
def test_the_profile_alone_ranks_for_users_that_training_never_saw():
    """Taste hangs on gender and city alone. Without user ids, on users held out, the profile finds it; items alone do not."""
    chance = np.random.default_rng(1)
    users = people(900, seed=1)
    who, item = np.repeat(np.arange(900), 12), chance.integers(0, 8, 900 * 12)
    side = (users["gender"] == "f").to_numpy() ^ users["city"].is_in(["Bern", "Oslo"]).to_numpy()
    chances = 1 / (1 + np.exp(-np.where(side[who] == (item % 2 == 0), 1.5, -1.5)))
    events = {"user": who, "item": item, "click": (chance.random(len(who)) < chances).astype(int)}
    whole = rs.Log(events, SCHEMA, users=users)
    train, test = whole.select(who < 700), whole.select(who >= 700)
    profile = rs.ProfileEncoder(("gender", "city"), size=8).fit(train, epochs=60, progress=False)
    drop = ("age", "gender", "city", "income")

    def measured(part: rs.Log, unseen: rs.Log, *without: str) -> float:
        schema = part.schema.without(*without).replace(user=None)
        part, unseen = (rs.Log(x.events, schema, users=None, items=None) for x in (part, unseen))
        encoder = rs.Encoder(schema).fit(part)
        torch.manual_seed(0)
        model = rs.ranking.DeepFM(encoder.schema, dim=8, hidden=(32,), norm=None)
        trainer = rs.Trainer(model, optimizer="adam", lr=1e-2, epochs=4, batch_size=256, progress=False)
        trainer.fit(part)
        return trainer.evaluate(unseen)["click/auc"]

    def in_events(part: rs.Log) -> rs.Log:
        part = profile.transform(part)
        return rs.Log(part.events.join(part.users.select("user", "profile"), on="user"), part.schema)

    best = float(rs.metrics.get("auc")(torch.tensor(chances[who >= 700]), torch.tensor(events["click"][who >= 700])))
    with_profile = measured(in_events(train), in_events(test), "user", *drop)
    without = measured(train, test, "user", *drop)
    assert without < 0.55
    assert with_profile > best - 0.03


def test_examples_run():
    import doctest

    from recstack.models import profiles

    found = doctest.testmod(profiles)
    assert (found.failed, found.attempted) == (0, 5)
