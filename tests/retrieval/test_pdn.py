"""PDN: its equation in slow loops, and path search against scores of given pairs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import recstack as rs
from recstack import testing
from recstack.errors import ConfigError
from recstack.kernels.cooccurrence import co_counts
from recstack.models.counting import user_items

SMALL = {"dim": 6, "hidden": (10, 5), "path_hidden": (8, 4), "neighbours": 9}


@pytest.fixture(scope="module")
def fitted():
    world = testing.communities()
    torch.manual_seed(0)
    schema = rs.Encoder(world.log.schema).fit(world.log).schema
    model = rs.retrieval.PDN(schema, triggers=4, **SMALL).fit(
        world.log, epochs=10, lr=0.03, batch_size=64, progress=False
    )
    return model, world


def slow(model, batch, row, item):
    """y of one request and one item, path by path; the item's own tensors come from the catalogue."""
    x = model.inputs(model.catalog.batch(torch.tensor([item])), "item")
    user, target = model.user_vectors(batch)[row, 0], x.flat("item")[0]
    y = F.softplus(user @ model.item_vectors(model.catalog.batch(torch.tensor([item])))[0])
    ids = [j for j in batch["item_id@watched"][row].tolist() if j]
    for j in set(ids):
        ago = len(ids) - (len(ids) - 1 - ids[::-1].index(j))  # 1: the newest
        key = j * model.size + item
        if ago > model.triggers or key not in model.edges.keys.tolist():
            continue
        c = model.edges.clues[model.edges.keys.tolist().index(key)]
        x_j = model.inputs(model.catalog.batch(torch.tensor([j])), "item")["item_id"][0]
        asks = model.inputs(batch, "user", "context", "domain").flat()[row]
        read = torch.cat([asks, x_j, model.ago.weight[ago], torch.tensor([ids.count(j) + 0.0]).log1p()])
        t = model.trigger_out(model.trigger_net(read[None]))[0]
        s = model.sim_out(
            model.sim_net(F.relu(model.of_trigger(x_j) + model.of_item(target) + model.of_clues(c))[None])
        )[0]
        y = y + F.softplus(t + s)[0]
    return y


def test_scores_are_the_sum_over_paths_whoever_asks(fitted):
    model, world = fitted
    requests = model.requests([*world.users[0][:3], *world.users[1][:3], 999_999])
    requests.batch["item_id@watched"][0, 1] = requests.batch["item_id@watched"][0, 3]  # one that was met twice
    ids = torch.arange(2, model.catalog.size).expand(7, -1)
    with torch.no_grad():
        wanted = torch.stack(
            [torch.stack([slow(model, requests.batch, r, i) for i in ids[r].tolist()]) for r in range(7)]
        )
        batch = {**requests.batch, **model.catalog.batch(ids)}
        found = model(batch)["click"]
    p = 1 - torch.exp(-wanted)
    assert_close(found.sigmoid(), p, rtol=1e-4, atol=1e-6)
    assert_close(model.pair_scores(requests, ids), found, rtol=1e-4, atol=1e-5)
    got = model.recommend(requests, ids.shape[1], exclude_seen=False)
    assert got.mask.all()
    assert_close(got.scores, found.gather(1, got.ids - 2), rtol=1e-4, atol=1e-5)
    assert (got.scores.diff() <= 0).all()


def test_the_loss_is_that_of_the_paper(fitted):
    model, _ = fitted
    batch = testing.batch(model.schema, 6, 3, seed=1, mask=True)
    y, label, live = model.strength(batch), batch["click@label"], batch["@mask"]
    each = torch.where(label > 0, -torch.log(-torch.expm1(-y)), y)
    assert_close(sum(model.losses(batch).values()), each[live].mean())


def test_edges_are_the_nearest_by_cosine_and_know_what_both_share(fitted):
    model, world = fitted
    columns = model.schema.encoder.encode(world.log)
    users = user_items(columns)
    near = co_counts(users, np.ones(users.height), k=9)
    assert sorted(model.edges.keys[:-1].tolist()) == sorted((near.rows * model.size + near.columns).tolist())
    met = np.zeros((users.height, users.width))
    met[users.rows, users.columns] = 1
    common, genre = met.T @ met, model.catalog.batch(torch.arange(model.size))["genre"]
    for key, (cosine, count, shared) in list(zip(model.edges.keys.tolist(), model.edges.clues.tolist(), strict=True))[
        :-1:7
    ]:
        j, i = divmod(key, model.size)
        assert count == pytest.approx(np.log1p(common[j, i]), rel=1e-5)
        assert cosine == pytest.approx(common[j, i] / np.sqrt(common[j, j] * common[i, i]), rel=1e-5)
        assert shared == bool(set(genre[j].tolist()) & set(genre[i].tolist()) - {0, 1})


def test_it_finds_the_community_of_strangers_by_their_history(fitted):
    model, world = fitted
    requests = model.requests(world.users[0])
    requests.batch["user_id"][:] = 1
    found = model.recommend(type(requests)(requests.batch, np.ones_like(requests.users), requests.seen), 4)
    own = model.schema.encoder.encode_values("item_id", world.items[0])
    assert np.isin(found.ids.numpy(), own).mean() > 0.9


def test_the_bias_is_of_training_alone():
    schema = testing.schema()
    torch.manual_seed(0)
    model = testing.wake(rs.retrieval.PDN(schema, bias=("hour", "hits"), **SMALL))
    one = testing.batch(schema, 5, 3)
    other = {**one, "hour": one["hour"].flip(0), "hits": one["hits"] + 1}
    assert_close(model(one), model(other))
    assert not torch.allclose(model.losses(one)["click"], model.losses(other)["click"])
    assert (model.strength(one, bias=True) > model.strength(one)).all()
    with pytest.raises(ConfigError, match="triggers and neighbours"):
        rs.retrieval.PDN(schema, triggers=0)
