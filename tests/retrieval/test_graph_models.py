"""UltraGCN, SimGCL and NGCF against the dense matrices of their papers: values and gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import recstack as rs
from recstack.kernels.cooccurrence import interactions, scaled_counts
from recstack.models.retrieval import ultra_gcn

DIM = 6


def world(seed=0, users=30, items=20, n=240):
    rng = np.random.default_rng(seed)
    user = rng.integers(users, size=n)
    item = rng.integers(items // 2, size=n) * 2 + (user + (rng.random(n) < 0.1)) % 2
    data = {"user": user, "item": item, "click": (rng.random(n) < 0.8).astype(int)}
    schema = rs.Schema([rs.Categorical("user", "user"), rs.Categorical("item", "item")], [rs.Task("click")])
    return rs.Log(data, schema)


def prepared(model, **options):
    log = world()
    encoder = rs.Encoder(log.schema).fit(log)
    torch.manual_seed(0)
    model = model(encoder.schema, dim=DIM, **options)
    columns = encoder.encode(log)
    model.prepare(columns)
    with torch.no_grad():
        for p in model.parameters():
            p[1:] += torch.randn(p[1:].shape) / 2
    return model, columns


def matrix(model, columns):
    """R [U, N], and the symmetric normalisation of it."""
    r = torch.zeros(model.users.num_embeddings, model.items.num_embeddings)
    kept = columns.labels["click"] == 1
    r[columns.user_ids[kept].tolist(), columns.item_ids[kept].tolist()] = 1
    rows, cols = r.sum(1).clamp(min=1).rsqrt(), r.sum(0).clamp(min=1).rsqrt()
    return r, rows[:, None] * r * cols


def triples(columns, negatives=2):
    rng = torch.Generator().manual_seed(1)
    user, positive = torch.from_numpy(columns.user_ids[:40]), torch.from_numpy(columns.item_ids[:40])[:, None]
    negative = torch.randint(2, 20, (40, negatives), generator=rng, dtype=torch.int32)
    label = torch.tensor([[1.0] + [0.0] * negatives]).expand(40, -1)
    return {"user": user, "item": torch.cat([positive, negative], 1), "click@label": label}


def leaves(model):
    return [table.weight.detach().clone().requires_grad_() for table in (model.users, model.items)]


def same_gradients(model, losses, slow, start):
    sum(losses.values()).backward()
    sum(slow.values()).backward()
    for table, leaf in zip((model.users, model.items), start, strict=True):
        torch.testing.assert_close(table.weight.grad, leaf.grad, rtol=1e-4, atol=1e-5)


def test_neighbours_are_those_of_the_full_matrix():
    rng = np.random.default_rng(0)
    users = interactions(rng.integers(15, size=80), rng.integers(9, size=80), 15, 9)
    r = np.zeros((15, 9))
    r[users.rows, users.columns] = 1
    a, b = rng.random(9) + 0.5, rng.random(9) + 0.5
    slow = r.T @ r / (a[:, None] * b)
    np.fill_diagonal(slow, 0)
    found = scaled_counts(users, a, b, 3)
    for i in range(9):
        row = slice(found.offsets[i], found.offsets[i + 1])
        best = np.argsort(-slow[i], kind="stable")[:3]
        np.testing.assert_allclose(found.values[row], slow[i][best][slow[i][best] > 0], rtol=1e-6)


@pytest.mark.parametrize("sharing", [1000, 16])
def test_ultra_gcn_is_its_loss_written_out(monkeypatch, sharing):
    monkeypatch.setattr(ultra_gcn, "SHARING", sharing)
    w = (0.3, 2.0, 0.1, 3.0)
    model, columns = prepared(
        rs.retrieval.UltraGCN, negatives=7, negative_weight=5.0, constraints=w, neighbours=4, item_weight=0.4, l2=0.2
    )
    batch = triples(columns)
    torch.manual_seed(3)
    found = model.losses(batch)

    torch.manual_seed(3)
    groups = -(-40 // sharing)
    drawn = torch.randint(2, model.items.num_embeddings, (groups, 7))
    r, _ = matrix(model, columns)
    du, di = r.sum(1), r.sum(0)
    g = r.T @ r
    total = g.sum(1)
    omega = g / (total - g.diagonal()).clamp(min=1)[:, None] * (total.clamp(min=1)[:, None] / total.clamp(min=1)).sqrt()
    omega.fill_diagonal_(0)
    start = leaves(model)
    slow = {"click": torch.zeros(()), "items": torch.zeros(())}
    for row, (u, i) in enumerate(zip(batch["user"].tolist(), batch["item"][:, 0].tolist(), strict=True)):
        beta = lambda j, u=u: ((du[u] + 1).sqrt() / du[u].clamp(min=1)) / (di[j] + 1).sqrt()  # noqa: E731
        s = lambda j, u=u: start[0][u] @ start[1][j]  # noqa: E731
        slow["click"] = slow["click"] - (w[0] + w[1] * beta(i)) * F.logsigmoid(s(i))
        for j in drawn[row // -(-40 // groups)].tolist():
            slow["click"] = slow["click"] - 5 / 7 * (w[2] + w[3] * beta(j)) * F.logsigmoid(-s(j))
        value, near = omega[i].topk(4)
        for k in range(4):
            slow["items"] = slow["items"] - 0.4 * value[k] * F.logsigmoid(s(near[k]))
    slow["l2"] = 0.1 * sum(e.square().sum() for e in start)
    for name, value in slow.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    same_gradients(model, found, slow, start)


CAMPS = {
    "UltraGCN": {"negatives": 20, "negative_weight": 5.0, "item_weight": 0.1},
    "SimGCL": {"layers": 2, "contrast": 0.1},
    "NGCF": {"hidden": (8,)},
}


@pytest.mark.parametrize("name", CAMPS)
def test_two_camps_are_found(name):
    log = world()
    clicks = rs.Log(log.events.filter(log.events["click"] == 1).drop("click"), log.schema, implicit=True)
    encoder = rs.Encoder(clicks.schema).fit(clicks)
    torch.manual_seed(0)
    model = getattr(rs.retrieval, name)(encoder.schema, dim=8, **CAMPS[name])
    model.fit(clicks, epochs=20, lr=0.05, batch_size=64, progress=False)
    users = sorted(set(clicks.events["user"].to_list()))
    found = model.recommend(users, 3)
    raw = torch.from_numpy(encoder.decode("item", found.ids.numpy()).astype(np.int64))
    assert (raw % 2 == torch.tensor(users)[:, None] % 2).float().mean() > 0.8
    with pytest.raises(rs.DataError, match=f"{name} knows users by their ids alone"):
        model.recommend([10**6], 3)


def test_what_is_labelled_row_by_row_is_trained_on_its_positives():
    model, columns = prepared(rs.retrieval.NGCF, hidden=(4,))
    chosen = model.training_columns(columns)
    assert chosen.implicit
    assert not columns.implicit
    assert (chosen.labels["click"] == 1).all()
    assert len(chosen) == columns.positives().sum()


def test_sim_gcl_is_the_dense_formula():
    model, columns = prepared(rs.retrieval.SimGCL, layers=2, contrast=0.7, noise=0.3, temperature=0.5, weight_decay=0.3)
    batch = triples(columns)
    torch.manual_seed(5)
    found = model.losses(batch)

    torch.manual_seed(5)
    _, a = matrix(model, columns)
    start = leaves(model)

    def view(noise):
        u, i = start
        mean = [torch.zeros_like(u), torch.zeros_like(i)]
        for _ in range(2):
            pair = [a @ i, a.T @ u]
            for side in (0, 1):
                if noise:
                    r = torch.rand_like(pair[side])
                    pair[side] = pair[side] + noise * pair[side].sign() * r / r.norm(dim=1, keepdim=True)
                mean[side] = mean[side] + pair[side] / 2
            u, i = pair
        return mean

    one, other = view(0.3), view(0.3)
    slow = {"contrast": torch.zeros(())}
    for side, ids in enumerate((batch["user"], batch["item"][:, 0])):
        met = sorted(set(ids.tolist()))
        for m in met:
            near = torch.stack([F.cosine_similarity(one[side][m], other[side][n], 0) / 0.5 for n in met])
            slow["contrast"] = slow["contrast"] - 0.7 / len(met) * near.log_softmax(0)[met.index(m)]
    users, items = view(0)
    u, i, j = users[batch["user"].long()], items[batch["item"][:, :1].long()], items[batch["item"][:, 1:].long()]
    slow["click"] = -F.logsigmoid((u[:, None] * (i - j)).sum(-1)).mean()
    slow["l2"] = (
        0.15 * (start[0][batch["user"].long()].square().sum() + start[1][batch["item"].long()].square().sum()) / 40
    )
    for name, value in slow.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    same_gradients(model, found, slow, start)


def test_ngcf_is_the_dense_formula():
    model, columns = prepared(rs.retrieval.NGCF, hidden=(5, 4), dropout=0.0, weight_decay=0.0)
    batch = triples(columns)
    _, a = matrix(model, columns)
    start = leaves(model)
    n_users = len(start[0])
    whole = torch.cat(
        [torch.cat([torch.zeros(n_users, n_users), a], 1), torch.cat([a.T, torch.zeros(len(a.T), len(a.T))], 1)]
    )
    e = torch.cat(start)
    parts = [e]
    for alike, common in zip(model.alike, model.common, strict=True):
        eye = torch.eye(len(e))
        e = F.leaky_relu((whole + eye) @ e @ alike.weight.T + (whole @ e * e) @ common.weight.T, 0.2)
        parts.append(e / e.norm(dim=1, keepdim=True).clamp(min=1e-6))
    users, items = torch.cat(parts, 1).split([n_users, len(a.T)])
    expected = (users[batch["user"].long(), None] * items[batch["item"].long()]).sum(-1)
    torch.testing.assert_close(model(batch)["click"], expected, rtol=1e-4, atol=1e-5)
    slow = {"bpr": -F.logsigmoid(expected[:, :1] - expected[:, 1:]).mean()}
    same_gradients(model, model.losses(batch), slow, start)


def test_pin_sage_is_its_sums_written_out():
    rng = np.random.default_rng(0)
    n = 200
    user = rng.integers(20, size=n)
    item = np.append(rng.integers(6, size=n - 1) * 2 + user[:-1] % 2, 50)
    click = np.append(np.ones(n - 1, int), 0)
    tags = [[int(i) % 2, 2 + int(i) % 3] for i in item]
    features = [
        rs.Categorical("user", "user"),
        rs.Categorical("item", "item"),
        rs.Categorical("tags", "item", multi=True),
        rs.History("past", of=("item",), where="click", max_len=4),
    ]
    schema = rs.Schema(features, [rs.Task("click")], time="time")
    log = rs.Log({"user": user, "item": item, "tags": tags, "click": click, "time": np.arange(n)}, schema)
    encoder = rs.Encoder(schema).fit(log)
    columns = encoder.encode(log)
    torch.manual_seed(0)
    model = rs.retrieval.PinSage(encoder.schema, dim=4, neighbours=3, steps=200, negatives=5, margin=0.7)
    model.prepare(columns)
    model.eval()

    cold = int(encoder.encode_values("item", [50])[0])
    assert cold > 1
    assert not model.met[cold]
    assert not model.importance[cold].any()
    h = []
    for i in range(model.own.num_embeddings):
        values = [int(v) for v in model.value_ids[i] if v > 0]
        mean = sum(model.of_values.weight[v] for v in values) / max(len(values), 1)
        h.append(model.own.weight[i] * model.met[i] + mean)
    for asked, joined in zip(model.asked, model.joined, strict=True):
        said = [F.relu(asked(x)) for x in h]
        new = []
        for i, x in enumerate(h):
            heard = sum(model.importance[i, k] * said[int(model.neighbours[i, k])] for k in range(3))
            out = F.relu(joined(torch.cat([x, heard])))
            new.append(out / out.norm().clamp(min=1e-6))
        h = new
    z = torch.stack([model.last(x) for x in h])
    torch.testing.assert_close(model.convolved(), z)

    batch = columns.batch(np.arange(100, 140))
    past = model._steps(batch)
    for r in range(40):
        mean = z[past[r][past[r] > 0].long()].mean(0)
        torch.testing.assert_close(model.user_vectors(batch)[r, 0], mean)
    torch.manual_seed(4)
    found = model.losses(batch)["click"]
    torch.manual_seed(4)
    drawn = torch.randint(2, len(z), (5,))
    slow = []
    for r in range(40):
        q, i = z[past[r][past[r] > 0][-1].long()], z[batch["item"][r, 0].long()]
        slow += [(q @ z[d] - q @ i + 0.7).clamp(min=0) for d in drawn]
    slow = torch.stack(slow).mean()
    torch.testing.assert_close(found, slow)
    weights = list(model.parameters())
    for one, other in zip(torch.autograd.grad(found, weights), torch.autograd.grad(slow, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_length_of_ultra_gcns_tables_has_the_value_and_the_gradient_of_a_sum_of_squares():
    ours, theirs = (torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True) for _ in range(2))
    one, other = 0.3 * ultra_gcn._SquaredLength.apply(ours), 0.3 * theirs.square().sum()
    torch.testing.assert_close(one, other)
    one.backward()
    other.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
