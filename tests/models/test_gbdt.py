"""GBDT: what trees read, equal to slow loops; the coding of large tables; and the ways in and out."""

import sys

import numpy as np
import polars as pl
import pytest
import torch

import recstack as rs
from recstack import testing
from recstack.features.matrix import Matrix
from recstack.kernels.earlier import earlier
from recstack.testing.batches import to_jagged

SMALL = {"trees": 25, "lr": 0.2, "leaves": 8}


# -- what trees read --------------------------------------------------------------------------------------------------
def test_hits_of_a_history_by_a_slow_loop():
    schema = testing.schema()
    some = testing.batch(schema, 6, 3, seed=4, steps=7)
    matrix = Matrix(schema)
    table = matrix(some)
    assert torch.equal(matrix(to_jagged(some, schema)).numbers.nan_to_num(-1), table.numbers.nan_to_num(-1))
    column = lambda name: table.numbers[..., matrix.numbers.index(name)]  # noqa: E731
    for r in range(6):
        steps = [t for t in range(7) if some["item_id@watched"][r, t] > 0]
        assert (column("watched@length")[r] == len(steps)).all()
        for l in range(3):
            for name in ("item_id", "genre"):
                wanted = {v for v in some[name][r, l].reshape(-1).tolist() if v > 1}
                met = [t for t in steps if wanted & set(some[f"{name}@watched"][r, t].reshape(-1).tolist())]
                assert column(f"{name}@watched@hits")[r, l] == len(met)
                since = column(f"{name}@watched@since")[r, l]
                assert since.isnan() if not met else since == len(steps) - 1 - met[-1]
            live = [v for v in some["genre"][r, l].tolist() if v > 0]
            assert column("genre@size")[r, l] == len(live)
            first = [column(f"genre@{i}")[r, l].nan_to_num(0).item() for i in range(3)]
            assert first == [*live, 0, 0, 0][:3]
    assert torch.equal(column("age"), some["age"].unsqueeze(1).expand(6, 3))


def test_hits_and_crosses_are_columns_too():
    schema = testing.schema().with_features(
        rs.Hits("again", target="item_id", history="watched", last=(3,)),
        rs.Crossed("taste", of=("user_id", "genre"), buckets=500),
    )
    some = testing.batch(schema, 5, 3)
    matrix = Matrix(schema)
    numbers, ids = matrix(some)
    column = lambda name: numbers[..., matrix.numbers.index(name)]  # noqa: E731
    assert torch.equal(column("again@count"), column("item_id@watched@hits"))
    assert column("again@count").any()
    known = ((some["genre"] > 1) & (some["user_id"] > 1)[:, None, None]).sum(-1)
    assert torch.equal(column("taste@size"), known)
    assert torch.equal(
        ids[..., list(matrix.ids).index("taste@0")] > 0, (some["genre"][..., 0] > 1) & (some["user_id"] > 1)[:, None]
    )


def test_earlier_rows_by_a_slow_loop():
    chance = np.random.default_rng(0)
    ids, moment = chance.integers(0, 5, 60), chance.integers(0, 20, 60)
    values = chance.random((60, 2))
    found = earlier(ids, values, moment)
    for i in range(60):
        np.testing.assert_allclose(found[i], values[(ids == ids[i]) & (moment < moment[i])].sum(0), atol=1e-12)


def large(objective="pointwise", **options):
    schema = rs.Schema(
        [rs.Categorical("user", "user", size=400), rs.Categorical("item", "item", size=300)], [rs.Task("click")]
    )
    return rs.ranking.GBDT(schema, objective=objective, **{**SMALL, **options})


def test_a_row_is_coded_by_earlier_rows_alone_and_afterwards_by_all():
    chance = np.random.default_rng(1)
    ids = np.stack([chance.integers(0, 400, 200), chance.integers(0, 300, 200)], 1)
    moment = np.arange(200) // 4
    label = chance.integers(0, 2, 200).astype(float)
    model, kept = large(smoothing=3.0), torch.zeros(2, 700)
    weight = np.ones(200)
    before = model._coded(ids, label, weight, moment, kept)
    other = label.copy()
    other[100:] = 1 - other[100:]
    after = model._coded(ids, other, weight, moment, torch.zeros(2, 700))
    assert np.array_equal(before[:, :104], after[:, :104])  # rows 100 to 103 are of one moment
    assert not np.array_equal(before[:, 104:], after[:, 104:])
    mine = ids[:, 1] == ids[7, 1]
    assert kept[0, 400 + ids[7, 1]] == mine.sum()
    assert kept[1, 400 + ids[7, 1]].item() == pytest.approx(
        (label[mine].sum() + 3 * label.mean()) / (mine.sum() + 3), abs=1e-6
    )


# -- learning ---------------------------------------------------------------------------------------------------------
def batches(chance: np.random.Generator, n: int = 6, lists: int = 4, taste: float = 3.0):
    """Users 2 to 399 like all or nothing, items 2 to 299 are good or bad, both by their parity."""
    out = []
    for i in range(n):
        user, item = chance.integers(2, 400, 500), chance.integers(2, 300, (500, lists))
        z = taste * (item % 2 - 0.5) + taste * (user % 2 - 0.5)[:, None]
        click = chance.random(z.shape) < 1 / (1 + np.exp(-z))
        out.append(
            {
                "user": torch.from_numpy(user),
                "item": torch.from_numpy(item),
                "click@label": torch.from_numpy(click).float(),
                "@time": torch.arange(500) + 500 * i,
            }
        )
    return out


def test_ids_of_large_tables_teach_and_the_unseen_have_the_mean():
    rows = batches(np.random.default_rng(2), 12)
    model = large().fit(rows[:10], rows[10:11])
    test = rows[11]
    odds = model(test)["click"]
    truth = (test["item"] % 2 - 0.5) + (test["user"] % 2 - 0.5)[:, None]
    assert rs.metrics.auc(odds, (truth > 0).float(), where=truth != 0) > 0.97
    unseen = {"user": torch.tensor([1, 1]), "item": torch.tensor([[1], [1]])}
    chance = model.predict(unseen)["click"]
    assert chance[0] == chance[1]
    assert 0.2 < chance[0].item() < 0.8
    shares = model.importance()
    assert set(shares) == set(model.columns)
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) in ("user@mean", "item@mean")


def test_a_ranker_orders_within_requests():
    rows = batches(np.random.default_rng(3), 8)
    for objective in ("lambdarank", "rank_xendcg"):
        model = large(objective).fit(rows[:6], rows[6:7])
        test = rows[7]
        good = (test["item"] % 2).float()
        group = torch.arange(500)[:, None].expand(500, 4)
        assert rs.metrics.gauc(model(test)["click"], good, group=group) > 0.9
        assert model.importance()["user@mean"] < 0.2  # the same for all candidates of a request


def test_validation_ends_the_growth():
    chance = np.random.default_rng(4)
    rows = batches(chance, 3, taste=0.3)
    model = large(trees=200, patience=5).fit(rows[:2], rows[2:])
    assert model.trained["click"]["trees"] < 100
    assert model.boosters["click"].num_trees() == model.trained["click"]["trees"]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(rows[2])["click"], rows[2]["click@label"])
    assert model.trained["click"]["valid"]["binary_logloss"] == pytest.approx(loss.item(), rel=1e-4)


def test_rows_without_weight_and_without_label_do_not_count():
    rows = batches(np.random.default_rng(5), 4)
    plain = large().fit(rows[:3])
    doubled = []
    for weighed in (0.0, None):
        more = []
        for b in rows[:3]:
            other = {k: torch.cat([v, v]) for k, v in b.items()}
            other["click@label"][500:] = (1 - b["click@label"]) if weighed == 0.0 else torch.nan
            if weighed == 0.0:
                other["@weight"] = torch.ones(1000, 4)
                other["@weight"][500:] = 0
            more.append(other)
        doubled.append(large().fit(more))
    assert torch.equal(doubled[1](rows[3])["click"], plain(rows[3])["click"])
    right = plain(rows[3])["click"]
    assert torch.corrcoef(torch.stack([doubled[0](rows[3])["click"].flatten(), right.flatten()]))[0, 1] > 0.8


# -- the ways in and out ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def market():
    log = rs.simulator.small(items=300)
    train, valid, test = rs.split.by_time(log)
    return rs.Encoder(train.schema).fit(train), train, valid, test


def test_raw_rows_through_the_bundle_to_the_bit(market, tmp_path):
    encoder, train, valid, test = market
    model = rs.ranking.GBDT(encoder.schema, **SMALL).fit(train, valid)
    again = rs.load(model.save(tmp_path / "trees"))
    assert np.array_equal(again.score(test)["click"], model.score(test)["click"])
    assert again.importance() == model.importance()
    assert again._tensors()["trees0"].dtype == np.uint8
    assert rs.Trainer(again, progress=False).evaluate(test)["click/auc"] > 0.55
    twin = rs.ranking.GBDT(encoder.schema, **SMALL).fit(encoder.encode(train), valid)
    assert np.array_equal(twin.score(test)["click"], model.score(test)["click"])  # the same trees from the same rows
    rows = test.events.head(5).select(pl.exclude("^.*@.*$"))
    rows = rows.with_columns(pl.lit(987_654).cast(rows["user_id"].dtype).alias("user_id"))
    assert np.isfinite(
        model.score(rs.Log(rows, train.schema, users=test.users, items=test.items).with_histories())["click"]
    ).all()


@pytest.mark.slow
def test_a_stage_of_a_cascade(market, tmp_path):
    encoder, train, _, _ = market
    ranker = rs.ranking.GBDT(encoder.schema, objective="lambdarank", **SMALL)
    cascade = rs.Cascade([rs.retrieval.Popularity()], ranker=ranker, calibrator=rs.calibration.Platt(), candidates=40)
    cascade.fit(train, late=2, negatives=8)
    assert ranker.fitted
    user = train.events["user_id"][0]
    page = cascade.recommend(user, 5)
    assert len(page) == 5
    assert rs.load(cascade.save(tmp_path / "page")).recommend(user, 5) == page


# -- one sentence each ------------------------------------------------------------------------------------------------
def test_what_cannot_be(monkeypatch, tmp_path):
    rows = batches(np.random.default_rng(6), 1, lists=1)
    schema = large().schema
    with pytest.raises(rs.ConfigError, match="Did you mean 'lambdarank'"):
        large("lambdrank")
    with pytest.raises(rs.ConfigError, match="learned nothing yet"):
        large()(rows[0])
    with pytest.raises(rs.ConfigError, match="learned nothing yet"):
        large().save(tmp_path / "none")
    with pytest.raises(rs.ConfigError, match="leave out epochs="):
        large().fit(rows, epochs=2)
    with pytest.raises(rs.DataError, match="several candidates"):
        large("lambdarank").fit(rows)
    with pytest.raises(rs.DataError, match="No row of the validation data has a label for task 'click'"):
        large().fit(rows, [rows[0] | {"click@label": torch.full((500, 1), torch.nan)}])
    with pytest.raises(rs.ConfigError, match="no gradients"):
        rs.Trainer(large(), progress=False).fit(rows)
    with pytest.raises(rs.SchemaError, match="losses of its own"):
        rs.ranking.GBDT(schema.replace(tasks=[rs.Task("click", loss="focal")]))
    grades = rs.ranking.GBDT(schema.replace(tasks=[rs.Task("stars", kind="regression")]), objective="lambdarank")
    with pytest.raises(rs.DataError, match="whole numbers from 0 to 30"):
        grades.fit([{**rows[0], "stars@label": torch.rand(500, 1)}])
    with pytest.raises(rs.DataError, match="'user' holds id 400"):
        large().fit(rows)({**rows[0], "user": torch.full((500,), 400)})
    with pytest.raises(rs.ConfigError, match="grown schema"):
        large().grown(schema)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(rs.ConfigError, match=r"pip install recstack\[gbdt\]"):
        large().fit(rows)
