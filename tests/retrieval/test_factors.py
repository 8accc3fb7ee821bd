"""Factor models against dense equations, plain loops and autograd."""

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

import recstack as rs
from recstack import testing
from recstack.data import Requests
from recstack.errors import ConfigError
from recstack.kernels.als import solve
from recstack.kernels.cooccurrence import interactions, transpose
from recstack.kernels.elastic_net import elastic_nets
from recstack.kernels.factorisation import bpr_epoch, rating_epoch
from recstack.models.counting import user_items

FEATURES = [rs.Categorical("user", "user"), rs.Categorical("item", "item")]


def world(seed=0, users=30, items=20, n=240, ratings=False):
    """Two camps: users choose, or rate higher, what has their parity."""
    rng = np.random.default_rng(seed)
    user = rng.integers(users, size=n)
    item = rng.integers(items // 2, size=n) * 2 + (user + (rng.random(n) < 0.1)) % 2
    data = {"user": user, "item": item}
    if not ratings:
        return rs.Log(data, rs.Schema(FEATURES, [rs.Task("click")]), implicit=True)
    item = data["item"] = rng.integers(items, size=n)
    data["stars"] = 3.0 + ((user + item) % 2) + rng.normal(size=n) * 0.1
    return rs.Log(data, rs.Schema(FEATURES, [rs.Task("stars", "regression")]))


def chosen(seed=0, users=12, items=9, share=0.4):
    """Random interactions, dense and sparse; the last row has none."""
    dense = np.random.default_rng(seed).random((users, items)) < share
    dense[-1] = False
    return dense, interactions(*np.nonzero(dense), users, items)


# -- least squares ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("block", "passes"), [(5, 1), (2, 300), (3, 300), (None, 60)])
def test_an_exact_pass_is_the_normal_equations_and_the_others_come_to_the_same(block, passes):
    dense, rows = chosen()
    rng = np.random.default_rng(1)
    y = rng.normal(size=(9, 5)).astype(np.float32)
    target = rng.normal(size=len(rows.columns)).astype(np.float32)
    half = rng.normal(size=(5, 5)).astype(np.float32)
    gram, ridge = half @ half.T, rng.uniform(0.5, 2, 12).astype(np.float32)
    x = rng.normal(size=(12, 5)).astype(np.float32)
    for _ in range(passes):
        solve(rows, target, y, gram, ridge, x, block)
    for r in range(12):
        own = y[dense[r]].astype(np.float64)
        t = target[rows.offsets[r] : rows.offsets[r + 1]]
        expected = np.linalg.solve(own.T @ own + gram + ridge[r] * np.eye(5), own.T @ t)
        np.testing.assert_allclose(x[r], expected, rtol=2e-3, atol=2e-4)


def test_ials_ends_where_every_item_is_at_its_minimum_and_new_users_are_solved_for():
    log = world()
    model = rs.retrieval.iALS(dim=4, iterations=3, regularisation=0.1, unobserved=0.2, block=4).fit(log)
    columns = model.schema.encoder.encode(log)
    by_user = user_items(columns)
    users, items = (np.count_nonzero(np.diff(m.offsets)) for m in (by_user, transpose(by_user)))
    dense = np.zeros((by_user.height, by_user.width))
    dense[by_user.rows, by_user.columns] = 1

    def minimum(chosen, y, others):
        ridge = 0.1 * (chosen.sum() + 0.2 * others)
        a = y[chosen].T @ y[chosen] + 0.2 * y.T @ y + ridge * np.eye(4)
        return np.linalg.solve(a, y[chosen].sum(0))

    x, y = model.users.astype(np.float64), model.items.astype(np.float64)
    for i in range(2, by_user.width):
        np.testing.assert_allclose(y[i], minimum(dense[:, i] > 0, x, users), rtol=1e-3, atol=1e-5)
    known = model.requests([3, 4])
    strangers = Requests(known.batch, np.array([1, 1]), known.seen)
    for r, vector in enumerate(model.vectors(strangers)):
        seen = known.seen[1][known.seen[0][r] : known.seen[0][r + 1]]
        mine = np.isin(np.arange(by_user.width), seen)
        np.testing.assert_allclose(vector, minimum(mine, y, items), rtol=1e-3, atol=1e-5)
    assert not model.recommend([999], 3).mask.any()


def test_ease_is_its_formula():
    log = world(n=120)
    model = rs.retrieval.EASE(l2=3.0).fit(log)
    rows = user_items(model.schema.encoder.encode(log))
    x = np.zeros((rows.height, rows.width))
    x[rows.rows, rows.columns] = 1
    p = np.linalg.inv(x.T @ x + 3 * np.eye(rows.width))
    b = -p / np.diag(p)
    np.fill_diagonal(b, 0)
    np.testing.assert_allclose(model.weights, b, atol=1e-5)
    requests = model.requests([0, 1, 2])
    every = torch.arange(rows.width).expand(3, -1)
    seen = [requests.seen[1][requests.seen[0][r] : requests.seen[0][r + 1]] for r in range(3)]
    expected = np.stack([b[s].sum(0) for s in seen])
    np.testing.assert_allclose(model.pair_scores(requests, every), expected, atol=1e-5)
    found = model.recommend([0], 1)
    expected[0, [0, 1, *seen[0]]] = -np.inf
    assert found.ids.item() == expected[0].argmax()


def test_ease_says_how_much_memory_it_needs(monkeypatch):
    monkeypatch.setattr("recstack.models.retrieval.ease.free", lambda device: 1000)
    with pytest.raises(rs.ConfigError, match=r"needs 0\.0 GB for its matrix of 22 items"):
        rs.retrieval.EASE().fit(world())


def test_slim_satisfies_the_conditions_of_the_optimum():
    dense, rows = chosen(users=40, items=12)
    l1, l2 = 0.7, 2.0
    found = elastic_nets(rows, l1, l2, tolerance=1e-9, passes=1000)
    w = np.zeros((12, 12))
    w[found.rows, found.columns] = found.values
    a = dense.astype(float)
    pull = a.T @ (a - a @ w) - l2 * w  # minus the gradient of the smooth part
    assert (w >= 0).all()
    assert not w.diagonal().any()
    np.testing.assert_allclose(pull[w > 0], l1, atol=1e-4)
    rest = (w == 0) & ~np.eye(12, dtype=bool)
    assert (pull[rest] <= l1 + 1e-4).all()
    assert (w > 0).any()
    assert rest.any()


# -- ratings ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("plus", [False, True])
def test_an_epoch_of_sgd_is_the_loop_of_the_paper(plus):
    dense, rows = chosen()
    rng = np.random.default_rng(2)
    rows = rows._replace(values=rng.uniform(1, 5, len(rows.columns)).astype(np.float32))
    order, mean, lr, l2 = rng.permutation(12), 3.0, 0.05, 0.1
    p, q, y = (rng.normal(size=(n, 4)).astype(np.float32) for n in (12, 9, 9))
    bu, bi = (rng.normal(size=n).astype(np.float32) for n in (12, 9))
    slow = [a.astype(np.float64) for a in (p, q, y, bu, bi)]
    for _ in range(2):
        rating_epoch(rows, order, mean, (bu, bi), (p, q), y if plus else None, lr, l2)
        sp, sq, sy, sbu, sbi = slow
        for u in order:
            own = np.flatnonzero(dense[u])
            for a in range(rows.offsets[u], rows.offsets[u + 1]):
                i = rows.columns[a]
                z = sp[u] + (sy[own].sum(0) / len(own) ** 0.5 if plus else 0)
                e = rows.values[a] - mean - sbu[u] - sbi[i] - sq[i] @ z
                before = sq[i].copy()
                sbu[u] += lr * (e - l2 * sbu[u])
                sbi[i] += lr * (e - l2 * sbi[i])
                sq[i] += lr * (e * z - l2 * before)
                sp[u] += lr * (e * before - l2 * sp[u])
                if plus:
                    sy[own] += lr * (e * before / len(own) ** 0.5 - l2 * sy[own])
    for fast, wanted in zip((p, q, y, bu, bi), slow, strict=True):
        np.testing.assert_allclose(fast, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"implicit": True}, {"solver": "als"}], ids=str)
def test_ratings_are_learned(options):
    log = world(n=400, ratings=True)
    schema = rs.Encoder(log.schema).fit(log).schema
    model = rs.retrieval.MF(schema, dim=4, epochs=40, lr=0.05, **options).fit(log)
    error = model.score(log)["stars"] - log.events["stars"].to_numpy()
    assert np.sqrt((error**2).mean()) < 0.25  # the mean alone has 0.5
    found = model.recommend([999], 3)  # what is rated best
    best = torch.topk(model.item_bias[2:], 3).indices + 2
    assert set(found.ids[0].tolist()) == set(best.tolist())


def test_svdpp_answers_new_users_from_what_they_have_met():
    log = world(n=400, ratings=True)
    schema = rs.Encoder(log.schema).fit(log).schema
    model = rs.retrieval.MF(schema, dim=4, epochs=2, implicit=True).fit(log)
    requests = model.requests([5, 6])
    stranger = Requests(requests.batch, np.array([1, requests.users[1]]), requests.seen)
    stranger.batch["user"] = torch.as_tensor(stranger.users).int()
    seen = requests.seen[1][: requests.seen[0][1]]
    z = model.feedback[torch.as_tensor(seen).long()].sum(0) / len(seen) ** 0.5
    ids = torch.tensor([[4, 5], [4, 5]])
    found = model.pair_scores(stranger, ids)
    expected = model.mean + model.item_bias[ids[0]] + model.items[ids[0]] @ z
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], model.pair_scores(requests, ids)[1])


def test_what_mf_cannot_learn_from_is_refused():
    log = world()
    schema = rs.Encoder(log.schema).fit(log).schema
    with pytest.raises(rs.DataError, match="MF learns from ratings that differ"):
        rs.retrieval.MF(schema).fit(log)
    with pytest.raises(rs.ConfigError, match="SVD"):
        rs.retrieval.MF(schema, implicit=True, solver="als")


# -- rankings -----------------------------------------------------------------------------------------------------------
def test_a_step_of_bpr_is_minus_the_gradient_of_its_loss():
    """One user, one item of two: what is drawn is known."""
    log = rs.Log({"user": [7, 8], "item": ["a", "b"]}, rs.Schema(FEATURES, [rs.Task("click")]), implicit=True)
    encoder = rs.Encoder(log.schema).fit(log)
    model = rs.retrieval.BPR(encoder.schema, dim=4, l2=0.3)
    batch = {"user": torch.tensor([2]), "item": torch.tensor([[2, 3]]), "click@label": torch.tensor([[1.0, 0.0]])}
    sum(model.losses(batch).values()).backward()
    rows = interactions(np.array([2]), np.array([2]), 4, 4)
    factors = [m.weight.detach().clone().numpy() for m in (model.users, model.items)]
    loss = bpr_epoch(rows, rows.rows.astype(np.int32), False, 0, tuple(factors), 0.1, 0.3)
    assert loss == pytest.approx(float(model.losses(batch)["click"].detach()), rel=1e-5)
    for new, m in zip(factors, (model.users, model.items), strict=True):
        torch.testing.assert_close(torch.from_numpy(new), (m.weight - 0.1 * m.weight.grad).detach())


def test_sampling_by_user_draws_light_users_as_often_as_heavy_ones():
    """With items at zero a user's vector shrinks by the same factor at each step, which counts the steps."""
    rows = interactions(np.repeat([2, 3], [1, 30]), np.r_[2, 2:32], 4, 40)
    steps = {}
    for by_user in (False, True):
        p = np.ones((4, 1), np.float32)
        for seed in range(100):
            q = np.zeros((40, 1), np.float32)
            bpr_epoch(rows, rows.rows.astype(np.int32), by_user, seed, (p, q), 1e-3, 0.5)
        shrunk = -np.log(p[2:, 0])
        steps[by_user] = shrunk[0] / shrunk.sum()
    assert steps[False] == pytest.approx(1 / 31, abs=0.02)
    assert steps[True] == pytest.approx(1 / 2, abs=0.03)


def test_of_many_drawn_items_the_one_with_the_highest_score_is_pushed_down():
    """Of 200 draws from 9 items none is missed: every step moves the best of those that the user has not."""
    rows = interactions(np.full(2, 2), np.array([2, 3]), 3, 12)
    p, q = np.zeros((3, 1), np.float32), np.zeros((12, 1), np.float32)
    p[2], q[2:, 0] = 1, [9, 8, 1, 2, 7, 3, 4, 5, 6, 0]  # the best that the user has not is item 6
    before = q.copy()
    bpr_epoch(rows, rows.rows.astype(np.int32), False, 0, (p, q), 1e-3, 0.0, 200)
    assert set(np.flatnonzero((q != before).any(1)[4:]) + 4) == {6}
    assert q[6] < before[6]
    with pytest.raises(ConfigError, match="drawn is at least 1"):
        rs.retrieval.BPR(testing.schema(), drawn=0)


@pytest.mark.parametrize("kind", ["iALS", "EASE", "SLIM", "BPR", "BPR by a Trainer"])
def test_camps_are_found(kind):
    log = world(n=300)
    schema = rs.Encoder(log.schema).fit(log).schema
    torch.manual_seed(0)
    model = {
        "iALS": lambda: rs.retrieval.iALS(dim=4, iterations=8, unobserved=0.3),
        "EASE": lambda: rs.retrieval.EASE(l2=5.0),
        "SLIM": lambda: rs.retrieval.SLIM(l1=0.1, l2=1.0),
        "BPR": lambda: rs.retrieval.BPR(schema, dim=8, epochs=60),
        "BPR by a Trainer": lambda: rs.retrieval.BPR(schema, dim=8),
    }[kind]()
    by_trainer = {"epochs": 20, "lr": 0.02, "batch_size": 64, "progress": False}
    model.fit(log, **by_trainer if kind == "BPR by a Trainer" else {})
    users = sorted(set(log.events["user"].to_list()))
    found = model.recommend(users, 3)
    raw = torch.from_numpy(model.schema.encoder.decode("item", found.ids.numpy()).astype(np.int64))
    assert (raw % 2 == torch.tensor(users)[:, None] % 2)[found.mask].float().mean() > 0.8


def test_neumf_counts_its_parameters_and_starts_from_its_parts():
    """The authors' layers 64-32-16-8 and 8 factors: per id 8 + 32, then the MLP, then one layer over 16 with a bias."""
    log = world()
    schema = rs.Encoder(log.schema).fit(log).schema
    model = rs.retrieval.NeuMF(schema)
    ids = schema.feature("user").size + schema.feature("item").size
    layers = (64 + 1) * 32 + (32 + 1) * 16 + (16 + 1) * 8 + (16 + 1)
    assert sum(p.numel() for p in model.parameters()) == ids * 40 + layers
    gmf, mlp = rs.retrieval.GMF(schema), rs.retrieval.NeuMF(schema, dim=0)
    torch.nn.init.normal_(gmf.items.weight)
    torch.nn.init.normal_(mlp.items.weight)
    model.pretrain(gmf, mlp, alpha=0.3)
    batch = {"user": torch.tensor([2, 3]), "item": torch.tensor([[2, 3], [5, 4]])}
    with torch.no_grad():
        parts = 0.3 * gmf(batch)["click"] + 0.7 * mlp(batch)["click"]
        torch.testing.assert_close(model(batch)["click"], parts)
        whole = F.embedding(batch["user"], mlp.users.weight)[:, None].expand(-1, 2, -1)
        deep = mlp.mlp(torch.cat([whole, mlp.items.weight[batch["item"]]], -1))
        torch.testing.assert_close(mlp(batch)["click"], mlp.head(deep)[..., 0])
    with pytest.raises(rs.ConfigError, match="starts from a GMF of that dim"):
        model.pretrain(rs.retrieval.GMF(schema, dim=4), mlp)


def test_neumf_recommends_what_it_scores_best():
    log = world()
    encoder = rs.Encoder(log.schema).fit(log)
    model = rs.retrieval.NeuMF(encoder.schema, dim=4, mlp_dim=4, hidden=(8, 4))
    for table in (model.users, model.items):
        torch.nn.init.normal_(table.weight)
    model._remember(encoder.encode(log))
    model.eval()
    requests = model.requests([1, 2, 3])
    n = encoder.catalog.size
    with torch.no_grad():
        batch = {"user": torch.as_tensor(requests.users), "item": torch.arange(n).expand(3, -1)}
        every = model(batch)["click"]
    found = model.recommend(requests, 4, exclude_seen=False)
    every[:, :2] = -torch.inf
    torch.testing.assert_close(found.scores, every.topk(4).values)
    torch.testing.assert_close(model.pair_scores(requests, found.ids), found.scores)


@pytest.mark.parametrize("kind", ["BPR", "GMF", "NeuMF"])
def test_who_knows_ids_alone_refuses_strangers(kind):
    log = world()
    encoder = rs.Encoder(log.schema).fit(log)
    model = getattr(rs.retrieval, kind)(encoder.schema)
    model._remember(encoder.encode(log))
    with pytest.raises(rs.DataError, match=rf"{kind} knows users by their ids alone, and that of request 1"):
        model.eval().recommend([1, 999], 3)


# -- data ---------------------------------------------------------------------------------------------------------------
def test_ncf_lists_hold_the_item_that_was_left_out_first_and_only_once(tmp_path):
    folder = tmp_path / "ncf-ml-1m"
    folder.mkdir()
    (folder / "ml-1m.train.rating").write_text("0\t5\t4\n0\t6\t1\n1\t6\t3\n")
    (folder / "ml-1m.test.negative").write_text("(0,7)\t8\t9\n(1,5)\t5\t8\n")
    (folder / "item_id_map.csv").write_text("ncf_item,movie_id\n5,50\n6,60\n7,70\n8,80\n9,90\n")
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "movies.dat").write_text("")
    (tmp_path / "ml-1m" / "ratings.csv").write_text("user_id,movie_id,seq\n1,60,0\n1,50,1\n2,60,0\n")
    train, test = rs.datasets.ncf(timed=True, data_dir=tmp_path)
    assert train.events.sort("user_id", "seq")["item_id"].to_list() == [6, 5, 6]
    assert test.events["item_id"].to_list() == [7, 8, 9, 5, 8]
    assert test.events["interacted"].to_list() == [1, 0, 0, 1, 0]
    assert test.events["user_id"].to_list() == [0, 0, 0, 1, 1]
    (folder / "ml-1m.test.negative").write_text("(0,7)\t8\t9\n(1,5)\t8\n")
    with pytest.raises(rs.DataError, match="line 2"):
        rs.datasets.ncf(data_dir=tmp_path)


def test_citeulike_lists_hold_the_paper_that_was_left_out_first(tmp_path):
    folder = tmp_path / "citeulike-a"
    folder.mkdir()
    (folder / "train.txt").write_text("0 5\n0 6\n1 6\n")
    (folder / "test_negatives.txt").write_text("(0,7) 8 9\n(1,5) 7 8\n")
    train, test = rs.datasets.citeulike_a(data_dir=tmp_path)
    assert train.events.rows() == [(0, 5), (0, 6), (1, 6)]
    assert test.events.rows() == [(0, 7, 1), (0, 8, 0), (0, 9, 0), (1, 5, 1), (1, 7, 0), (1, 8, 0)]
    with pytest.raises(rs.DataError, match="citeulike-a"):
        rs.datasets.citeulike_a(data_dir=tmp_path / "elsewhere")


@pytest.mark.real_data
def test_real_citeulike(data_dir):
    if not (data_dir / "citeulike-a").is_dir():
        pytest.skip("no citeulike-a in the data folder")
    train, test = rs.datasets.citeulike_a(data_dir=data_dir)
    assert (len(train), train.events["user_id"].n_unique(), len(test)) == (199_435, 5_551, 5_551 * 101)
    assert test.events["bookmarked"].sum() == 5_551
    pairs = test.events.filter(pl.col("bookmarked") == 1).join(train.events, on=["user_id", "item_id"])
    assert pairs.is_empty()  # what was left out is not in training


@pytest.mark.real_data
def test_real_ncf(data_dir):
    if not (data_dir / "ncf-ml-1m").is_dir():
        pytest.skip("no ncf-ml-1m in the data folder")
    train, test = rs.datasets.ncf(timed=True, data_dir=data_dir)
    assert (len(train), train.events["user_id"].n_unique()) == (994_169, 6_040)
    assert len(test) == 6_040 * 100 - 156
    assert test.events["interacted"].sum() == 6_040
