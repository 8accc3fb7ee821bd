"""Neighbours, walks and content: from a log to scores, against loops over sets and lists."""

import numpy as np
import polars as pl
import pytest
import torch

import recstack as rs
from recstack.errors import ConfigError, SchemaError

TAGS = [["a"], ["a", "b"], ["b", "b", "c"], ["c"], [], ["a", "c"], ["d"], ["d", "a"]]


def events(seed=0, users=25, items=8, n=160):
    rng = np.random.default_rng(seed)
    item = rng.integers(items, size=n)
    return pl.DataFrame(
        {
            "user": rng.integers(users, size=n).astype(str),
            "item": item.astype(str),
            "country": [["at", "be", "ch"][u % 3] for u in rng.integers(9, size=n)],
            "tags": [TAGS[i % 8] for i in item],
            "picture": [[float(i % 3), float(i % 2) - 0.5] for i in item],
            "at": np.sort(rng.integers(1000, size=n)),
        }
    )


def log(frame=None, *more, history=True):
    features = [rs.Categorical("user", "user"), rs.Categorical("item", "item"), *more]
    if history:
        features.append(rs.History("past", of=("item",), max_len=9))
    return rs.Log(events() if frame is None else frame, rs.Schema(features, time="at"), implicit=True)


def lines(model, frame):
    """{encoded user: encoded items in the order of the log}."""
    out = {}
    user, item = (model.schema.encoder.encode_values(n, frame[n].to_numpy()).tolist() for n in ("user", "item"))
    for u, i in zip(user, item, strict=True):
        out.setdefault(u, []).append(i)
    return out


def table(model):
    found = np.zeros((model.catalog.size,) * 2)
    found[model.similar.rows, model.similar.columns] = model.similar.values
    return found


def all_scores(model, users):
    every = torch.arange(model.catalog.size).expand(len(users), -1)
    return model.pair_scores(model.requests(users), every).numpy()


# -- items by items ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({"similarity": "weighted_cosine", "user_weight": "log2", "exponent": 0.3}, "weighted"),
        ({"similarity": "cosine", "user_weight": "log2", "exponent": 0.3, "shrinkage": 0.7}, "shrunk"),
    ],
)
def test_cosines_with_weights_asymmetry_and_shrinkage(options, formula):
    frame = events()
    model = rs.retrieval.ItemCF(**options, normalise=None, min_items=1).fit(log(frame))
    chosen = {u: set(items) for u, items in lines(model, frame).items()}
    weight = {u: 1 / np.log2(3 + len(items)) for u, items in chosen.items()}
    n, due = model.catalog.size, np.zeros((model.catalog.size,) * 2)
    who = {i: {u for u in chosen if i in chosen[u]} for i in range(n)}
    for i in range(n):
        for j in set(range(n)) - {i}:
            c = sum(weight[u] for u in who[i] & who[j])
            if c and formula == "weighted":
                due[i, j] = c / (sum(weight[u] for u in who[i]) ** 0.7 * sum(weight[u] for u in who[j]) ** 0.3)
            elif c:
                due[i, j] = c / (len(who[i]) ** 0.7 * len(who[j]) ** 0.3) * c / (c + 0.7)
    np.testing.assert_allclose(table(model), due, rtol=1e-5)


@pytest.mark.parametrize(
    ("etrec", "item_cf"),
    [
        ({}, {"similarity": "weighted_cosine", "exponent": 0.5, "user_weight": "log2"}),
        ({"similarity_type": "jaccard"}, {"similarity": "jaccard", "user_weight": "one"}),
        ({"similarity_type": "asymcosine"}, {"exponent": 0.5, "user_weight": "one"}),
        ({"similarity_type": "asymcosine", "alpha": 0.9}, {"exponent": 0.1, "user_weight": "one"}),
    ],
)
def test_etrec_is_item_cf_with_its_options(etrec, item_cf):
    usual = {"neighbours": 2000, "normalise": None, "min_items": 2, "max_items": 500}
    a, b = rs.retrieval.ETREC(**etrec).fit(log()), rs.retrieval.ItemCF(**item_cf, **usual).fit(log())
    np.testing.assert_allclose(table(a), table(b), rtol=1e-6)
    assert table(a).any()


def test_etrec_leaves_out_users_who_did_too_little_or_too_much_and_weighs_near_items_more():
    frame = events()
    model = rs.retrieval.ETREC(min_user_behavior=5, max_user_behavior=6).fit(log(frame))
    inside = {u for u, items in lines(model, frame).items() if 5 <= len(set(items)) <= 6}
    few = frame.filter(
        pl.Series(np.isin(model.schema.encoder.encode_values("user", frame["user"].to_numpy()), list(inside)))
    )
    columns = model.schema.encoder.encode(log(few))
    np.testing.assert_allclose(table(model), table(rs.retrieval.ETREC(min_user_behavior=1).fit(columns)), rtol=1e-6)
    near = rs.retrieval.ETREC(similarity_type="asymcosine", weight=2.0).fit(log(frame))
    plain = rs.retrieval.ETREC(similarity_type="asymcosine").fit(log(frame))
    np.testing.assert_allclose(table(near), table(plain) ** 2, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"'asymcosin'\. Did you mean 'asymcosine'"):
        rs.retrieval.ETREC(similarity_type="asymcosin")


@pytest.mark.parametrize(("gap", "half_life", "window"), [(None, None, 2), (40.0, 25.0, 30)])
def test_covisitation_is_a_sum_over_pairs_of_events_of_a_session(gap, half_life, window):
    frame = events()
    options = {"gap": gap, "half_life": half_life, "window": window, "backward": 0.7, "normalise": None}
    model = rs.retrieval.CoVisitation(**options).fit(log(frame))
    user, item = (model.schema.encoder.encode_values(n, frame[n].to_numpy()) for n in ("user", "item"))
    due = np.zeros((model.catalog.size,) * 2)
    for u in np.unique(user):
        mine = np.flatnonzero(user == u)  # in the order of time
        at = frame["at"].to_numpy()[mine]
        cuts = np.flatnonzero(np.diff(at) > (np.inf if gap is None else gap)) + 1
        for session in np.split(mine, cuts):
            for a, e in enumerate(session):
                for b, f in enumerate(session):
                    if 0 < abs(a - b) <= window and item[e] != item[f]:
                        since = abs(frame["at"][int(e)] - frame["at"][int(f)])
                        decay = 1 if half_life is None else 2 ** (-since / half_life)
                        due[item[e], item[f]] += decay * (1 if a < b else 0.7) / np.log(1 + len(session))
    np.testing.assert_allclose(table(model), due, rtol=1e-5)
    assert not np.allclose(due, due.T)


def test_covisitation_needs_times_for_what_reads_them():
    untimed = rs.Log(
        events(), rs.Schema([rs.Categorical("user", "user"), rs.Categorical("item", "item")]), implicit=True
    )
    with pytest.raises(ConfigError, match="needs a time"):
        rs.retrieval.CoVisitation(gap=10).fit(untimed)
    with pytest.raises(ConfigError, match="gap and half_life are positive"):
        rs.retrieval.CoVisitation(half_life=0)


# -- users ------------------------------------------------------------------------------------------------------------
def slow_user_cf(model, frame, history, me, k, decay=1.0):
    chosen = {u: set(items) for u, items in lines(model, frame).items()}
    chosen = {u: items for u, items in chosen.items() if len(items) > 1}
    who = {i: sum(i in items for items in chosen.values()) for i in range(model.catalog.size)}
    near = {}
    for v in set(chosen) - {me}:
        common = sum(decay**age / np.log(1 + who[i]) for age, i in enumerate(history[::-1]) if i in chosen[v])
        if common:
            near[v] = common / np.sqrt(len(history) * len(chosen[v]))
    best = sorted(near, key=lambda v: (-np.float32(near[v]), v))[:k]
    return np.array([sum(near[v] for v in best if j in chosen[v]) for j in range(model.catalog.size)])


def test_user_cf_adds_what_the_most_similar_users_chose():
    frame = events(items=30, n=300)
    bare = frame.drop("tags", "picture")
    model = rs.retrieval.UserCF(neighbours=4).fit(log(bare, history=False))
    mine = lines(model, frame)
    users = frame["user"].unique().sort().to_list()
    ids = model.schema.encoder.encode_values("user", np.array(users)).tolist()
    scores = all_scores(model, users)
    for score, u in zip(scores, ids, strict=True):
        np.testing.assert_allclose(score, slow_user_cf(model, frame, sorted(set(mine[u])), u, 4), rtol=1e-5)
    found = model.recommend(users, 5)
    assert torch.equal(model.pair_scores(model.requests(users), found.ids)[found.mask], found.scores[found.mask])


def test_user_cf_answers_a_stranger_from_what_they_just_did():
    frame = events(items=30, n=300).drop("tags", "picture")
    model = rs.retrieval.UserCF(neighbours=4, decay=0.5).fit(log(frame))
    items = ["3", "7", "11"]
    for at, item in enumerate(items):
        model.profiles.append("stranger", item, 2000 + at)
    history = model.schema.encoder.encode_values("item", np.array(items)).tolist()
    due = slow_user_cf(model, frame, history, None, 4, decay=0.5)
    np.testing.assert_allclose(all_scores(model, ["stranger"])[0], due, rtol=1e-5)
    assert due.any()
    with pytest.raises(ConfigError, match="Unknown item_weight 'logg'"):
        rs.retrieval.UserCF(item_weight="logg")


# -- walks ------------------------------------------------------------------------------------------------------------
def test_pixie_gives_steps_by_degree_and_age():
    model = rs.retrieval.Pixie(steps=1000, decay=0.5, last=3).fit(log())
    user = events()["user"][0]
    requests = model.requests([user])
    queries = model._queries(requests)
    degree = model.graph[0].counts
    history = requests.batch["item@past"].numpy().ravel()
    history = history[history > 0][-3:]
    share = [degree[i] * (degree.max() - np.log(degree[i])) for i in history]
    due = [1000 * s / sum(share) * 0.5 ** (2 - a) for a, s in enumerate(share)]
    assert queries.columns.tolist() == history.tolist()
    np.testing.assert_allclose(queries.values, due, rtol=1e-6)
    with pytest.raises(ConfigError, match="restart lies in"):
        rs.retrieval.Pixie(restart=1.5)


# -- content ----------------------------------------------------------------------------------------------------------
TAGGED = rs.Categorical("tags", "item", multi=True)
SEEN = rs.Vector("picture", "item", size=2)


@pytest.mark.parametrize("weighting", ["tfidf", "bm25"])
def test_content_is_a_cosine_of_weighted_tags_and_vectors(weighting):
    frame = events()
    model = rs.retrieval.ContentBased(weighting=weighting, decay=0.5).fit(log(frame, TAGGED, SEEN))
    raw = np.array([str(i) for i in range(8)])
    ids = model.schema.encoder.encode_values("item", raw)
    terms = "abcd"
    df = np.array([sum(t in tags for tags in TAGS) for t in terms])
    vectors = np.zeros((model.catalog.size, 6))
    mean = sum(len(tags) for tags in TAGS) / 8
    for i, tags in enumerate(TAGS):
        tf = np.array([tags.count(t) for t in terms], float)
        if weighting == "tfidf":
            weight = tf * (np.log(9 / (1 + df)) + 1)
        else:
            weight = np.log(1 + (8 - df + 0.5) / (df + 0.5)) * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(tags) / mean))
        picture = np.array([i % 3, i % 2 - 0.5])
        both = np.concatenate([weight / max(np.linalg.norm(weight), 1e-9), picture / np.linalg.norm(picture)])
        vectors[ids[i]] = both / np.linalg.norm(both)
    users = frame["user"].unique().sort().to_list()
    history = model.requests(users).batch["item@past"].numpy()
    scores = all_scores(model, users)
    for r, row in enumerate(history):
        line = row[row > 0]
        profile = sum(0.5 ** (len(line) - 1 - a) * vectors[i] for a, i in enumerate(line))
        np.testing.assert_allclose(scores[r], vectors @ profile / np.linalg.norm(profile), rtol=1e-4, atol=1e-5)
    found = model.recommend(users, 8, exclude_seen=False)
    assert found.mask.all()
    np.testing.assert_allclose(found.scores, -np.sort(-scores[:, ids], 1), rtol=1e-4, atol=1e-5)
    assert not model.recommend(["nobody"], 3).mask.any()


def test_content_finds_items_that_nobody_met():
    frame = events()
    encoder = rs.Encoder(log(frame, TAGGED).schema).fit(log(frame, TAGGED))
    warm = frame.filter(pl.col("item") != "1")  # "1" has the tags a and b
    model = rs.retrieval.ContentBased().fit(encoder.encode(log(warm, TAGGED)))
    model.profiles.append("stranger", "0", 2000)
    model.profiles.append("stranger", "2", 2001)
    cold = encoder.encode_values("item", np.array(["1"]))
    assert model.recommend(["stranger"], 1).ids[0].tolist() == cold.tolist()


def test_content_needs_something_to_compare():
    with pytest.raises(SchemaError, match="needs an item feature beside the key"):
        rs.retrieval.ContentBased().fit(log())
    with pytest.raises(SchemaError, match=r"Unknown item feature 'tag'\. Did you mean 'tags'"):
        rs.retrieval.ContentBased(features=("tag",)).fit(log(None, TAGGED))


def test_triggers_expand_to_the_popular_items_of_their_tags():
    frame = events()
    model = rs.retrieval.TriggerExpansion(via="tags", neighbours=2, decay=0.5).fit(log(frame, TAGGED))
    item = frame["item"].to_numpy().astype(int)
    ids = model.schema.encoder.encode_values("item", np.array([str(i) for i in range(8)]))
    count = np.bincount(item, minlength=8)
    share = {}
    for tag in "abcd":
        best = sorted((i for i in range(8) if tag in TAGS[i]), key=lambda i: (-count[i], ids[i]))[:2]
        share |= {(tag, i): count[i] / sum(count[best]) for i in best}
    raw = {e: i for i, e in enumerate(ids.tolist())}
    users = frame["user"].unique().sort().to_list()
    for score, row in zip(all_scores(model, users), model.requests(users).batch["item@past"].numpy(), strict=True):
        line = [raw[i] for i in row[row > 0].tolist()][::-1]
        due = [sum(0.5**a * share.get((t, j), 0) for a, i in enumerate(line) for t in set(TAGS[i])) for j in range(8)]
        np.testing.assert_allclose(score[ids], due, rtol=1e-5)
    with pytest.raises(SchemaError, match="'shop' is none; there are: tags"):
        rs.retrieval.TriggerExpansion(via="shop").fit(log(None, TAGGED))


# -- popularity -------------------------------------------------------------------------------------------------------
def test_a_segment_has_its_own_popularity_with_everybody_behind_it():
    frame = events()
    model = rs.retrieval.Popularity(segment="country", prior=7.0).fit(log(frame, rs.Categorical("country", "context")))
    encoder = model.schema.encoder
    item = encoder.encode_values("item", frame["item"].to_numpy())
    everybody = np.bincount(item, minlength=model.catalog.size)
    for country in ("at", "be", "moon"):
        asked = model.profiles.requests(["1", "2"], context={"country": country})
        own = np.bincount(item[(frame["country"] == country).to_numpy()], minlength=model.catalog.size)
        due = (own + 7 * everybody / everybody.sum()) / (own.sum() + 7)
        every = torch.arange(model.catalog.size).expand(2, -1)
        np.testing.assert_allclose(model.pair_scores(asked, every)[1], due, rtol=1e-5)
        found = model.recommend(asked, 3, exclude_seen=False)
        assert found.ids[0].tolist() == sorted(range(2, len(due)), key=lambda j: (-np.float32(due[j]), j))[:3]


def test_trending_is_a_surprise_in_deviations():
    frame = events()
    model = rs.retrieval.Popularity(half_life=400, trending=50).fit(log(frame))
    item = model.schema.encoder.encode_values("item", frame["item"].to_numpy())
    age = frame["at"].max() - frame["at"].to_numpy()
    long, short = (np.bincount(item, 2.0 ** (-age / h), minlength=model.catalog.size) for h in (400, 50))
    expected = long * short.sum() / long.sum()
    np.testing.assert_allclose(model.counts, (short - expected) / np.sqrt(1 + expected), atol=1e-5)
    assert (model.counts < 0).any()
    assert model.recommend(["1"], 2, exclude_seen=False).ids[0, 0] == model.counts.argmax()


def test_popularity_refuses_what_it_cannot_count():
    with pytest.raises(SchemaError, match="'tags' is no single-valued categorical feature of the user"):
        rs.retrieval.Popularity(segment="tags").fit(log(None, TAGGED))
    with pytest.raises(ConfigError, match="segment= and trending= at once"):
        rs.retrieval.Popularity(segment="country", trending=3.0)
    with pytest.raises(ConfigError, match="below half_life"):
        rs.retrieval.Popularity(half_life=3.0, trending=3.0)
