"""RCF: its two attentions and its relations in slow loops, and what relations are good for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import recstack as rs
from recstack import testing
from recstack.errors import ConfigError, SchemaError, TrainingError

SMALL = {"dim": 6, "attention": 5, "hidden": (4,), "dropout": 0.0}


def world():
    """Communities with a shop beside the genres."""
    log = testing.communities().log
    shop = (log.events["item_id"] // 4).alias("shop")
    schema = log.schema.with_features(rs.Categorical("shop", "item"))
    return rs.Log(log.events.with_columns(shop), schema, implicit=True)


@pytest.fixture(scope="module")
def prepared():
    log = world()
    encoder = rs.Encoder(log.schema).fit(log)
    torch.manual_seed(0)
    model = rs.retrieval.RCF(encoder.schema, smoothing=0.3, relation_weight=0.5, **SMALL)
    columns = encoder.encode(log)
    model.prepare(columns)
    return testing.wake(model).eval(), columns


def values(model, item):
    """{type: its values} of an item, as rows of the table."""
    return [set(row[row > 0].tolist()) for row in model.shared.of_items[item]]


def test_relations_are_those_of_the_catalogue(prepared):
    model, _ = prepared
    catalog = model.catalog.batch(torch.arange(model.size))
    sizes = [f.size for f in model.types]
    for item in range(2, model.size):
        for t, f in enumerate(model.types):
            raw = set(np.atleast_1d(catalog[f.name][item].numpy()).tolist()) - {0, 1}
            assert values(model, item)[t] == {1 + sum(sizes[:t]) + v for v in raw}
    for v in range(1, 1 + sum(sizes)):
        found = model.shared.members[model.shared.starts[v] : model.shared.starts[v + 1]].tolist()
        assert found == [i for i in range(model.size) if any(v in own for own in values(model, i))]


def slow(model, user, history, target):
    q, p = model.items.weight, model.users.weight[user]
    own, kinds = values(model, target), 1 + len(model.types)
    logits, said = [], []
    one, two = (
        layer.weight.view(kinds, -1, q.shape[1]) for layer in (model.relation.of_target, model.relation.of_step)
    )
    for t in range(kinds):
        logits.append(model.relation.type_out(F.relu(model.relation.type_layer(p * model.relation.of_types[t])))[0])
        weights, steps = [], []
        for j in dict.fromkeys(history):
            both = [a & b for a, b in zip(own, values(model, j), strict=True)]
            if (t == 0 and any(both)) or (t > 0 and not both[t - 1]):
                continue
            inner = one[t] @ q[target] + two[t] @ q[j]
            if t:
                z = model.of_values.weight[sorted(both[t - 1])].mean(0)
                inner = inner + z @ model.relation.of_shared[t - 1]
            weights.append((model.relation.step_out[t] @ inner.tanh()).exp())
            steps.append(q[j])
        total = sum(weights) ** model.relation.smoothing if weights else 1.0
        said.append(sum((w / total * s for w, s in zip(weights, steps, strict=True)), torch.zeros_like(p)))
    alpha = torch.stack(logits).softmax(0)
    mu = p + sum(a * s for a, s in zip(alpha, said, strict=True))
    return model.out(model.mlp((mu * q[target])[None]))[0, 0]


def test_the_score_is_the_slow_loop(prepared):
    model, columns = prepared
    requests = rs.data.Requests.of(columns, np.arange(100, 106))
    batch = {**requests.batch, "user_id": requests.batch["user_id"].clone()}
    batch["item_id@watched"][0] = 0  # nothing
    batch["item_id@watched"][1, 1] = batch["item_id@watched"][1, 0]  # one item twice
    requests = rs.data.Requests(batch, requests.users, requests.seen)
    ids = torch.arange(2, model.size).expand(6, -1)
    with torch.no_grad():
        wanted = torch.stack(
            [
                torch.stack(
                    [
                        slow(model, int(batch["user_id"][r]), [j for j in batch["item_id@watched"][r].tolist() if j], i)
                        for i in ids[r].tolist()
                    ]
                )
                for r in range(6)
            ]
        )
        assert_close(model({**batch, "item_id": ids})["click"], wanted, rtol=1e-4, atol=1e-5)
    assert_close(model.pair_scores(requests, ids), wanted, rtol=1e-4, atol=1e-5)
    found = model.recommend(requests, 5, exclude_seen=False)
    assert_close(found.scores, wanted.topk(5).values, rtol=1e-4, atol=1e-5)


def test_the_loss_of_relations_is_the_slow_loop(prepared):
    model, _ = prepared
    items = torch.arange(2, 20)
    torch.manual_seed(3)
    found = model.relations(items)
    torch.manual_seed(3)
    chance, place = torch.rand(len(items), *model.shared.of_items.shape[1:]), torch.rand(len(items), len(model.types))
    other, total = torch.randint(2, model.size, place.shape), 0.0
    q = model.items.weight
    for n, i in enumerate(items.tolist()):
        for t in range(len(model.types)):
            own = model.shared.of_items[i, t]
            v = max(
                (int(own[c]) for c in range(len(own)) if own[c]),
                key=lambda v: float(chance[n, t, own.tolist().index(v)]),
            )
            have = [j for j in range(model.size) if v in values(model, j)[t]]
            plus, minus = have[int(place[n, t] * len(have))], int(other[n, t])
            if plus == i or minus in have:
                continue
            f = lambda j: (q[i] * (model.relation.of_types[1 + t] + model.of_values.weight[v]) * q[j]).sum()  # noqa: B023, E731
            total = total + F.softplus(f(minus) - f(plus)) / len(items)
    assert_close(found, total)


def test_it_finds_the_community_of_strangers_and_what_is_related():
    log, made = world(), testing.communities()
    torch.manual_seed(0)
    model = rs.retrieval.RCF(rs.Encoder(log.schema).fit(log).schema, relation_weight=0.5, **(SMALL | {"dim": 16}))
    model.fit(log, epochs=15, batch_size=64, progress=False)
    requests = model.requests(made.users[0])
    requests.batch["user_id"][:] = 1  # whoever they are
    own = model.schema.encoder.encode_values("item_id", made.items[0])
    assert np.isin(model.recommend(requests, 4).ids.numpy(), own).mean() > 0.9
    fresh = rs.retrieval.RCF(model.schema, **(SMALL | {"dim": 16}))
    fresh.prepare(model.schema.encoder.encode(log))
    apart = []
    for each in (model, fresh):
        torch.manual_seed(0)
        apart.append(each.relations(torch.arange(2, model.size).repeat(20)).item())
    assert apart[0] < 0.7 * apart[1]


def test_what_cannot_be_is_said(prepared):
    model, _ = prepared
    with pytest.raises(ConfigError, match="smoothing"):
        rs.retrieval.RCF(model.schema, smoothing=2.0)
    with pytest.raises(SchemaError, match="colour"):
        rs.retrieval.RCF(model.schema, features=("colour",))
    with pytest.raises(TrainingError, match="no relations"):
        rs.retrieval.RCF(model.schema).losses(testing.batch(model.schema, 2, 2))
