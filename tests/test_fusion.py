"""Fusion: one score of several tasks, read safely, tuned offline, in the cascade and at serving."""

import math

import numpy as np
import pytest
import torch

import recstack as rs
from recstack.errors import ConfigError, DataError
from recstack.serving.service import Service

NAMES = ("click", "like", "watch")


def predictions(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.random((4, 5), dtype=np.float32) for name in NAMES}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("click ** 1.0 * like ** 0.3 * log1p(watch)", lambda c, l, w: c * l**0.3 * np.log1p(w)),
        ("-click + 2 * (like - watch / 3)", lambda c, l, w: -c + 2 * (l - w / 3)),
        ("2 ** click", lambda c, l, w: 2**c),
        (
            "min(click, 0.5, like) + max(0.2, watch)",
            lambda c, l, w: np.minimum(np.minimum(c, 0.5), l) + np.maximum(0.2, w),
        ),
        (
            "clip(exp(click), 1.1, 2) * sqrt(like) * log(watch)",
            lambda c, l, w: np.clip(np.exp(c), 1.1, 2) * l**0.5 * np.log(w),
        ),
        ("click * log1p(exp(2) - 1) * min(3, 2)", lambda c, l, w: c * 2 * 2),
    ],
)
def test_a_fusion_is_what_it_says_of_arrays_and_tensors(text, wanted):
    given = predictions()
    fusion = rs.Fusion(text, tasks=NAMES)
    right = wanted(*(given[n].astype(np.float64) for n in NAMES))
    of_arrays, of_tensors = fusion(given), fusion({n: torch.from_numpy(v) for n, v in given.items()})
    assert of_arrays.dtype == np.float32
    assert of_tensors.dtype == torch.float32
    np.testing.assert_allclose(of_arrays, right, rtol=1e-5)
    np.testing.assert_allclose(of_tensors.numpy(), right, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("click.__class__", "click.__class__ is not allowed"),
        ("__import__('os').system('true')", "is not allowed"),
        ("click[0]", r"click\[0\] is not allowed"),
        ("(lambda: click)()", "is not allowed"),
        ("click if like else watch", "is not allowed"),
        ("[click for click in like]", "is not allowed"),
        ("f'{click}'", "is not allowed"),
        ("click > 0.5", "click > 0.5 is not allowed"),
        ("click ^ 2", r"click \^ 2 is not allowed"),
        ("click // 2", "click // 2 is not allowed"),
        ("True * click", "True is not allowed"),
        ("click * 'a'", "'a' is not allowed"),
        ("click * 2j", "2j is not allowed"),
        ("click * 1e999", "is not allowed"),
        ("clip(click, low=0, high=1)", "clip takes 3 values"),
        ("clip(*click, 0, 1)", r"\*click is not allowed"),
        ("abs(click)", r"abs\(click\) is not allowed"),
        ("(x := click)", "is not allowed"),
        ("log(click, 2)", "log takes 1 values"),
        ("click * 1 / 0 * (1 / 0)", "without a value"),
        ("click * (-8) ** 0.5", "without a value"),
        ("click * 10 ** 1000", "without a value"),
        ("2 + 3", "names no task"),
        ("click *", "is no expression"),
        ("click; like", "is no expression"),
        ("", "is no expression"),
        ("-" * 200 + "click", "at most 60"),
        ("click" + " * click" * 500, "too long"),
        ("clik * like", "Unknown task in the fusion 'clik'. Did you mean 'click'"),
    ],
)
def test_what_is_not_allowed_is_said_in_one_sentence_with_the_tasks(text, said):
    with pytest.raises(ConfigError, match=said) as error:
        rs.Fusion(text, tasks=NAMES)
    if "not allowed" in said:
        assert "click, like, watch" in str(error.value)


def test_predictions_that_do_not_fit_are_said():
    fusion = rs.Fusion("click * like")
    with pytest.raises(ConfigError, match="Unknown task in the fusion 'like'"):
        fusion({"click": torch.ones(2)})
    with pytest.raises(DataError, match="one shape"):
        fusion({"click": torch.ones(2), "like": torch.ones(2, 3)})


def test_a_model_with_a_fusion_is_exported():
    schema = rs.testing.schema(tasks=(rs.Task("click"), rs.Task("like"), rs.Task("watch", "regression")))

    class Served(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = rs.multitask.SharedBottom(schema, dim=4, hidden=(6,), towers=(4,)).eval()
            self.fusion = rs.Fusion("click * like ** 0.3 * log1p(clip(watch, 0, 10))")

        def forward(self, batch):
            return self.fusion(self.model.predict(batch))

    served, batch = Served(), rs.testing.batch(schema, 3, 4)
    exported = torch.export.export(served, (dict(batch),)).module()
    torch.testing.assert_close(exported(dict(batch)), served(batch))


# -- tuning -----------------------------------------------------------------------------------------------------------
def lists(seed):
    random = torch.Generator().manual_seed(seed)
    click, like = torch.rand(300, 12, generator=random), torch.rand(300, 12, generator=random)
    utility = click * like**0.6
    return {"click": click, "like": like}, (utility > utility.quantile(0.8)).float(), utility


@pytest.mark.parametrize(("metric", "by"), [("gauc", "random"), ("ndcg@5", "random"), ("gauc", "optuna")])
def test_the_planted_exponent_is_found(metric, by):
    if by == "optuna":
        pytest.importorskip("optuna")
    given, clicked, utility = lists(0)
    label = clicked if metric == "gauc" else utility
    found = rs.tune_fusion("click * like ** 1.9", given, label, metric, trials=40, by=by)
    assert found.fusion.exponents[0] == pytest.approx(0.6, abs=0.1)
    assert found.value > found.before == found.trials[0]["value"]
    others, clicked, utility = lists(1)  # what was chosen holds where it was not
    judged = rs.metrics.get(metric)
    label = clicked if metric == "gauc" else utility
    assert judged(found.fusion(others), label) > judged(rs.Fusion("click * like ** 1.9")(others), label) + 0.003


def test_a_metric_that_is_better_when_small_and_flat_rows_with_users():
    given, clicked, _ = lists(0)
    flat = {n: v.flatten().numpy() for n, v in given.items()}
    users = np.arange(300).repeat(12)
    found = rs.tune_fusion("click * like ** 1.9", flat, clicked.flatten().numpy(), group=users, trials=20)
    same = rs.tune_fusion("click * like ** 1.9", given, clicked, trials=20)
    assert found.value == pytest.approx(same.value, abs=1e-9)
    target = given["click"] * given["like"] ** 0.6
    found = rs.tune_fusion("click * like ** 1.9", given, target, "rmse", trials=40)
    assert found.fusion.exponents[0] == pytest.approx(0.6, abs=0.1)
    assert found.value < found.before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fusion": "click * like"}, "has no exponents"),
        ({"metric": "calibration_ratio"}, "no better or worse"),
        ({"by": "grid"}, "Unknown search in by="),
        ({"trials": 1}, "trials= is 2 or more"),
    ],
)
def test_a_search_that_cannot_be(options, said):
    given, clicked, _ = lists(0)
    fusion = options.pop("fusion", "click * like ** 1.0")
    with pytest.raises(ConfigError, match=said):
        rs.tune_fusion(fusion, given, clicked, **options)
    with pytest.raises(ConfigError, match="is of lists"):
        rs.tune_fusion("click ** 1.0", {"click": torch.ones(4)}, torch.ones(4), "ndcg")


def test_several_labels_become_one_by_a_fusion_of_theirs():
    labels = {"click": torch.tensor([0.0, 1.0, 1.0]), "like": torch.tensor([0, 0, 1])}
    assert rs.Fusion("(click + 4 * like) / 5")(labels).tolist() == pytest.approx([0.0, 0.2, 1.0])


# -- in the cascade and at serving ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cascade():
    log = rs.simulator.small(users=60, items=50, tasks=[rs.Task("click"), rs.Task("cart")])
    train, _, _ = rs.split.by_time(log)
    schema = rs.Encoder(train.schema).fit(train).schema.without("position")
    ranker = rs.multitask.SharedBottom(schema, dim=4, hidden=(8,), towers=())
    options = {"ranker": {"progress": False}}
    made = rs.Cascade(
        [rs.retrieval.Popularity()],
        ranker=ranker,
        calibrator=rs.calibration.Platt(),
        fusion="click * cart ** 0.5",
        candidates=20,
        keep_ranked=10,
    )
    return made.fit(train, late=5, negatives=4, options=options)


@pytest.mark.slow
def test_a_cascade_orders_by_its_fusion_keeps_it_and_lets_it_be_changed(cascade, tmp_path):
    user = cascade.profiles.users[0]
    page = cascade.recommend(user, 10)
    scores = [row["sources"]["fusion"] for row in page]
    assert scores == sorted(scores, reverse=True) == [row["score"] for row in page]
    logit = torch.tensor([row["sources"]["ranker"] for row in page])
    chance = [row["probability"] for row in page]
    assert cascade.calibrator.probability(logit).tolist() == pytest.approx(
        chance
    )  # calibrated is the task, not the fusion
    stage = next(s for s in cascade.explain(user, 10)["stages"] if s["name"] == "ranker")
    assert [i["score"] for i in stage["items"]] == scores

    loaded = rs.load(cascade.save(tmp_path / "page"))
    assert str(loaded.fusion) == "click * cart ** 0.5"
    assert [r["item"] for r in loaded.recommend(user, 10)] == [r["item"] for r in page]
    loaded.fusion = "cart ** 1.0"
    other = loaded.recommend(user, 10)
    assert [r["item"] for r in other] != [r["item"] for r in page]
    loaded.fusion = None
    alone = loaded.recommend(user, 10)
    assert [r["score"] for r in alone] == sorted((r["sources"]["ranker"] for r in alone), reverse=True)
    assert "fusion" not in alone[0]["sources"]


@pytest.mark.slow
def test_a_server_can_order_by_another_fusion(cascade, tmp_path):
    path, user = cascade.save(tmp_path / "page"), cascade.profiles.users[0]
    service = Service(path, fusion="cart * 2")
    page = service.recommend(user, 5)["items"]
    assert service.funnel()["fusion"] == "cart * 2"
    ranked = service.rank(user, [row["item"] for row in page])["items"]
    assert [r["score"] for r in ranked] == pytest.approx([r["score"] for r in page], rel=1e-5)
    assert all(0 < r["score"] < 2 and math.isfinite(r["sources"]["ranker"]) for r in ranked)
    with pytest.raises(ConfigError, match="Known: cart, click"):
        Service(path, fusion="buy")


def test_a_fusion_needs_a_ranker_with_its_tasks():
    with pytest.raises(ConfigError, match="ranker= too"):
        rs.Cascade([rs.retrieval.Popularity()], fusion="click")
