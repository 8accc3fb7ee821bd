"""LightGCN against the dense matrices of its paper: scores, loss, gradients; and its graph in a bundle."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import recstack as rs

LAYERS, DIM, DECAY = 2, 6, 0.3


def world(seed=0, users=30, items=20, n=240):
    rng = np.random.default_rng(seed)
    user = rng.integers(users, size=n)
    item = rng.integers(items // 2, size=n) * 2 + (user + (rng.random(n) < 0.1)) % 2
    data = {"user": user, "item": item, "click": (rng.random(n) < 0.8).astype(int)}
    schema = rs.Schema([rs.Categorical("user", "user"), rs.Categorical("item", "item")], [rs.Task("click")])
    return rs.Log(data, schema)


def prepared(log, **options):
    encoder = rs.Encoder(log.schema).fit(log)
    torch.manual_seed(0)
    model = rs.retrieval.LightGCN(encoder.schema, dim=DIM, layers=LAYERS, weight_decay=DECAY, **options)
    columns = encoder.encode(log)
    model.prepare(columns)
    return model, columns


def dense(model, columns, links=0.0):
    """Initial and smoothed embeddings by id, from the (U + N) x (U + N) matrix; the initial ones are leaves."""
    user, item = (model.schema.feature(n).size for n in ("user", "item"))
    r = torch.zeros(user, item)
    kept = columns.labels["click"] == 1
    r[columns.user_ids[kept].tolist(), columns.item_ids[kept].tolist()] = 1
    a = torch.cat([torch.cat([links + torch.zeros(user, user), r], 1), torch.cat([r.T, torch.zeros(item, item)], 1)])
    degree = a.sum(1)
    scale = torch.where(degree > 0, degree.rsqrt(), 0)
    a = scale[:, None] * a * scale
    start = [e.weight.detach().clone().requires_grad_() for e in (model.users, model.items)]
    layer = total = torch.cat(start)
    for _ in range(LAYERS):
        layer = a @ layer
        total = total + layer
    return start, (total / (LAYERS + 1)).split([user, item])


def test_scores_are_those_of_the_dense_matrices():
    model, columns = prepared(world())
    model.eval()
    batch = columns.batch(np.arange(50))
    _, (users, items) = dense(model, columns)
    expected = (users[batch["user"].long(), None] * items[batch["item"].long()]).sum(-1)
    torch.testing.assert_close(model(batch)["click"], expected)
    with torch.no_grad():
        torch.testing.assert_close(model(batch)["click"], expected)
        torch.testing.assert_close(model.user_vectors(batch)[:, 0], users[batch["user"].long()])
        torch.testing.assert_close(model.item_vectors({"item": batch["item"][:, 0]}), items[batch["item"][:, 0].long()])


def friends(model, seed=5):
    """Raw pairs, some of them twice or the other way round or with oneself, and the symmetric matrix of them by id."""
    rng = np.random.default_rng(seed)
    one, other = rng.integers(30, size=(2, 25))
    one, other = np.append(one, [other[0], 7, 999]), np.append(other, [one[0], 7, 3])
    ids = [model.schema.encoder.encode_values("user", side) for side in (one, other)]
    s = torch.zeros(model.users.num_embeddings, model.users.num_embeddings)
    s[ids[0].tolist(), ids[1].tolist()] = s[ids[1].tolist(), ids[0].tolist()] = 1
    s.fill_diagonal_(0)
    s[1], s[:, 1] = 0, 0  # whom nobody knows
    return one, other, s


@pytest.mark.parametrize("strength", [0.4, 0.0])
def test_links_between_users_are_those_of_the_dense_matrix(strength, tmp_path):
    model, columns = prepared(world())
    one, other, s = friends(model)
    assert model.link(one, other, strength) is model
    start, (users, items) = dense(model, columns, strength * s)
    got = model.smoothed()
    torch.testing.assert_close(got, (users, items))
    slope = torch.randn(2, DIM)
    sum((v * w).sum() for v, w in zip(got, slope, strict=True)).backward()
    sum((v * w).sum() for v, w in zip((users, items), slope, strict=True)).backward()
    torch.testing.assert_close([model.users.weight.grad[1:], model.items.weight.grad[1:]], [e.grad[1:] for e in start])
    if not strength:
        torch.testing.assert_close(got, prepared(world())[0].smoothed(), rtol=0, atol=0)
    model.save(tmp_path / "b")
    torch.testing.assert_close(rs.load(tmp_path / "b").smoothed(), got, rtol=0, atol=0)
    heard = model.propagation.hop(model.users.weight, model.items.weight)
    scale = (model.propagation.offsets.diff() + strength * s.sum(1)).clamp(min=1e-30).rsqrt()
    alone = prepared(world())[0].propagation
    degree = alone.offsets.diff().clamp(min=1).float().sqrt()
    wanted = (
        alone.to_users(model.items.weight) * (degree * scale)[:, None]
        + strength * (scale[:, None] * s * scale) @ model.users.weight
    )
    known = model.propagation.offsets.diff() > 0
    torch.testing.assert_close(heard[0][known], wanted[known])


def test_links_that_cannot_be_are_told():
    model, _ = prepared(world())
    with pytest.raises(rs.errors.DataError, match="two users for each link"):
        model.link([1, 2], [3])
    with pytest.raises(rs.errors.ConfigError, match="strength"):
        model.link([1], [3], -1.0)


def test_loss_and_gradient_are_those_of_the_dense_matrices():
    model, columns = prepared(world())
    rng = torch.Generator().manual_seed(1)
    user = torch.from_numpy(columns.user_ids[:40])
    positive = torch.from_numpy(columns.item_ids[:40])[:, None]
    negative = torch.randint(2, 20, (40, 2), generator=rng, dtype=torch.int32)
    batch = {"user": user, "item": torch.cat([positive, negative], 1)}
    batch["click@label"] = torch.tensor([[1.0, 0.0, 0.0]]).expand(40, -1)
    found = model.losses(batch)
    (e_user, e_item), (users, items) = dense(model, columns)
    u, p, n = user.long(), positive.long(), negative.long()
    score = lambda i: (users[u, None] * items[i]).sum(-1)  # noqa: E731
    bpr = -F.logsigmoid(score(p) - score(n)).mean()
    l2 = DECAY / 2 * (e_user[u].square().sum() + e_item[p].square().sum() + e_item[n].square().sum()) / 40
    torch.testing.assert_close(found["click"], bpr)
    torch.testing.assert_close(found["l2"], l2)
    sum(found.values()).backward()
    (bpr + l2).backward()
    torch.testing.assert_close(model.users.weight.grad, e_user.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.items.weight.grad, e_item.grad, rtol=1e-4, atol=1e-6)


def test_masked_candidates_touch_nothing():
    model, columns = prepared(world())
    batch = columns.batch(np.arange(20))
    wide = {
        "user": batch["user"],
        "item": F.pad(batch["item"], (0, 2), value=3),
        "click@label": F.pad(batch["click@label"], (0, 2), value=float("nan")),
        "@mask": F.pad(torch.ones(20, 1, dtype=torch.bool), (0, 2)),
    }
    for name, value in model.losses(batch).items():
        torch.testing.assert_close(model.losses(wide)[name], value)


def test_kept_vectors_follow_the_weights_and_the_graph():
    model, columns = prepared(world())
    model.eval()
    batch = columns.batch(np.arange(9))
    with torch.no_grad():
        before = model(batch)["click"].clone()
        assert model.smoothed()[0] is model.smoothed()[0]
        for p in model.parameters():
            p.mul_(2)
        torch.testing.assert_close(model(batch)["click"], 4 * before)
        model.prepare(columns.select(np.arange(30)))
        assert not torch.allclose(model(batch)["click"], 4 * before)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_between_two_measurements_is_seen(fused):
    """Fused Adam leaves the weights' version counters as they were; vectors kept by version alone went stale."""
    model, columns = prepared(world())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
    batch = columns.batch(np.arange(9))
    for _ in range(2):
        with torch.no_grad():
            before = model.eval()(batch)["click"].clone()
        sum(model.train().losses(batch).values()).backward()
        optimizer.step()
        with torch.no_grad():
            assert not torch.allclose(model.eval()(batch)["click"], before)


def test_a_bundle_holds_the_graph(tmp_path):
    log = world()
    model, columns = prepared(log)
    model.eval()
    again = rs.load(model.save(tmp_path / "bundle"))
    batch = columns.batch(slice(None))
    with torch.no_grad():
        assert torch.equal(again(batch)["click"], model(batch)["click"])
    fresh = rs.retrieval.LightGCN(model.schema, dim=DIM, layers=LAYERS)
    assert not len(fresh.propagation.columns)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.propagation.columns, model.propagation.columns)


def test_fit_finds_two_camps():
    log = world(n=300)
    encoder = rs.Encoder(log.schema).fit(log)
    torch.manual_seed(0)
    model = rs.retrieval.LightGCN(encoder.schema, dim=16, layers=2)
    clicks = log.select(log.events["click"] == 1)
    implicit = rs.Log(clicks.events.drop("click"), log.schema, implicit=True)
    model.fit(implicit, epochs=30, lr=0.02, batch_size=64, progress=False)
    users = sorted(set(clicks.events["user"].to_list()))
    found = model.recommend(users, 3)
    camp = torch.tensor(users)[:, None] % 2
    raw = torch.from_numpy(encoder.decode("item", found.ids.numpy()).astype(np.int64))
    assert (raw % 2 == camp).float().mean() > 0.8
    assert len(model.propagation.columns) == len(set(zip(clicks.events["user"], clicks.events["item"], strict=True)))


def test_it_does_not_train_without_its_graph():
    log = world()
    encoder = rs.Encoder(log.schema).fit(log)
    model = rs.retrieval.LightGCN(encoder.schema, dim=4)
    with pytest.raises(rs.TrainingError, match="has no graph"):
        model.losses(encoder.encode(log).batch(np.arange(4)))


def test_it_needs_a_user_and_an_item():
    log = world()
    schema = rs.Encoder(log.schema).fit(log).schema
    with pytest.raises(rs.SchemaError, match="LightGCN needs a feature with role='user'"):
        rs.retrieval.LightGCN(schema.without("user"))
    with pytest.raises(rs.SchemaError, match="needs a user key"):
        rs.retrieval.LightGCN(schema.without("user").with_features(rs.Numeric("age", "user")))
