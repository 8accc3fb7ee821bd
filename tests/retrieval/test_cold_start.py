"""Retrievers for users and items that training has not met: their equations, and that content answers for both."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import recstack as rs
from recstack.data import Requests
from recstack.features import Inputs
from recstack.models.base import Retriever

FEATURES = [
    rs.Categorical("user", "user"),
    rs.Categorical("item", "item"),
    rs.Categorical("kind", "item"),
    rs.History("past", of=("item", "kind"), max_len=10),
]
COLD_USERS, COLD_ITEMS = range(60, 70), range(30, 40)


def world(seed=0, users=70, items=40, each=8):
    """Two camps: users choose items of their parity, which is the items' kind. An encoder of all of it, and what is warm."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), each)
    item = np.concatenate([rng.permutation(items // 2)[:each] * 2 + u % 2 for u in range(users)])
    data = {"user": user, "item": item, "kind": item % 2, "at": np.tile(np.arange(each), users)}
    log = rs.Log(data, rs.Schema(FEATURES, [rs.Task("click")], time="at"), implicit=True).with_histories()
    warm = log.select((user < COLD_USERS[0]) & (item < COLD_ITEMS[0]))
    return rs.Encoder(log.schema).fit(log), warm, log


def camps(model, encoder, log, items=None, k=5):
    """The share of proposals to cold users, at their last event, that are of their own camp; of given items alone."""
    columns = encoder.encode(log)
    last = np.flatnonzero((log.events["user"].to_numpy() >= COLD_USERS[0]) & (log.events["at"].to_numpy() == 7))
    asked = Requests.of(columns, last)
    asked = Requests(asked.batch, np.ones(len(last), np.int64), (np.zeros(len(last) + 1, np.int64), asked.seen[1][:0]))
    asked.batch["user"] = torch.ones_like(asked.batch["user"])  # whoever is new has the id of the unknown
    where = None
    if items is not None:
        where = torch.zeros(encoder.catalog.size, dtype=torch.bool)
        where[torch.from_numpy(encoder.encode_values("item", list(items))).long()] = True
    found = model.recommend(asked, k, exclude_seen=False, where=where)
    assert found.mask.all()
    kind = encoder.decode("item", found.ids.numpy().ravel()).astype(int) % 2
    return float((kind == np.repeat(log.events["user"].to_numpy()[last] % 2, k)).mean())


# -- DropoutNet ---------------------------------------------------------------------------------------------------------
def dropout_net(encoder, warm, **options):
    factors = rs.retrieval.iALS(encoder.schema, dim=4, iterations=3, unobserved=0.3).fit(encoder.encode(warm))
    return rs.retrieval.DropoutNet(encoder.schema, dim=4, width=4, hidden=(16,), **options).pretrain(factors), factors


def test_dropout_net_learns_the_scores_it_was_given():
    encoder, warm, _ = world()
    model, factors = dropout_net(encoder, warm, dropout=0.0)
    batch = encoder.encode(warm).batch(np.arange(6))
    wanted = (factors.users[batch["user"]] * factors.items[batch["item"][:, 0]]).sum(1)
    score = torch.einsum(
        "rkd,rd->r", model.user_vectors(batch), model.item_vectors({n: batch[n][:, 0] for n in ("item", "kind")})
    )
    expected = ((score.detach().numpy() - wanted) ** 2).mean()
    np.testing.assert_allclose(model.losses(batch)["preferences"].item(), expected, rtol=1e-5)


def test_dropout_net_answers_for_new_users_and_new_items():
    encoder, warm, log = world()
    model, _ = dropout_net(encoder, warm)
    torch.manual_seed(0)
    model.fit(encoder.encode(warm), epochs=8, lr=0.01, progress=False)
    assert not model.items[torch.from_numpy(encoder.encode_values("item", list(COLD_ITEMS))).long()].any()
    assert camps(model, encoder, log) > 0.9
    assert camps(model, encoder, log, COLD_ITEMS) > 0.9
    batch = Requests.of(encoder.encode(log), np.array([3, 7])).batch | {"user": torch.tensor([1, 1])}
    known = [v[v.any(-1)] for v in (model.items[b.long()] for b in batch["item@past"])]  # new items say nothing
    mean = torch.stack([v.mean(0) for v in known])
    torch.testing.assert_close(model.user_vectors(batch), model._user(batch, mean))


def test_dropout_net_says_what_is_missing():
    encoder, warm, _ = world()
    model = rs.retrieval.DropoutNet(encoder.schema, dim=4)
    with pytest.raises(rs.TrainingError, match="no preference vectors"):
        model.fit(encoder.encode(warm), epochs=1, progress=False)
    with pytest.raises(rs.ConfigError, match=r"needs users of shape \[72, 4\]"):
        model.pretrain(rs.retrieval.iALS(encoder.schema, dim=3, iterations=1).fit(encoder.encode(warm)))


# -- MeLU ---------------------------------------------------------------------------------------------------------------
def test_melu_answers_for_new_users_and_new_items_from_a_history():
    encoder, warm, log = world()
    torch.manual_seed(0)
    model = rs.retrieval.MeLU(encoder.schema, dim=8, hidden=(16,))
    model.fit(encoder.encode(warm), epochs=10, lr=0.02, progress=False)
    assert camps(model, encoder, log) > 0.9
    assert camps(model, encoder, log, COLD_ITEMS) > 0.9
    requests = model.requests([3, 4])
    found = model.recommend(requests, 4)
    torch.testing.assert_close(model.pair_scores(requests, found.ids), found.scores)


# -- MetaEmbedding ------------------------------------------------------------------------------------------------------
BASE = partial(rs.retrieval.DSSM, dim=4, hidden=(8,), temperature=0.2)


class Squares(Retriever):
    """A base whose rows do not see each other, as they do in a softmax."""

    def __init__(self, schema):
        super().__init__(schema)
        self.inputs = Inputs(schema, 4, std=1.0)
        self.tower, self.users = nn.Linear(8, 3), nn.Embedding(100, 3)

    def item_vectors(self, batch):
        return self.tower(self.inputs(batch, "item").flat()).tanh()

    def losses(self, batch):
        score = (self.users(batch["user"]).unsqueeze(1) * self.item_vectors(batch)).sum(-1)
        return {"square": (1 - score).square()[batch["click@label"] == 1].mean()}


def test_meta_embedding_is_the_loss_after_one_step_of_each_item():
    encoder, warm, _ = world()
    torch.manual_seed(0)
    model = rs.retrieval.MetaEmbedding(encoder.schema, base=Squares, alpha=0.3, warm_lr=0.5).eval()
    base, columns = model.base, encoder.encode(warm)
    one, other = (np.flatnonzero(columns.item_ids == i) for i in np.unique(columns.item_ids)[:2])
    batch = columns.batch(np.concatenate([one[:4], other[:2]]))  # rows 0, 2 and 4 are the first half
    items = {n: batch[n][:, 0] for n in ("item", "kind")}
    start = model.generated(items).detach()

    def squares(embeddings):
        """Of each row, with these embeddings of its item."""
        vectors = base.tower(torch.cat([embeddings, base.inputs(items, "item")["kind"]], -1)).tanh()
        return (1 - (base.users(batch["user"]) * vectors).sum(-1)).square()

    with torch.no_grad():
        half = torch.tensor([1.0, 0, 1, 0, 1, 0])
        slope, e = torch.zeros_like(start), 1e-2
        for d in range(4):
            up, down = (squares(start + sign * e * torch.eye(4)[d]) for sign in (1, -1))
            each = (up - down) / (2 * e) * half
            slope[:4, d], slope[4:, d] = each[:4].sum() / 2, each[4:].sum()  # the mean over an item's own events
        expected = 0.3 * squares(start)[::2].mean() + 0.7 * squares(start - 0.5 * slope)[1::2].mean()
    torch.testing.assert_close(model._meta(batch), expected, rtol=2e-3, atol=1e-4)


def test_meta_embedding_gives_new_items_an_embedding_and_leaves_the_base_alone():
    encoder, warm, log = world()
    torch.manual_seed(0)
    rows = encoder.encode(warm)
    base = BASE(encoder.schema).fit(rows, epochs=6, lr=0.05, batch_size=64, progress=False)
    model = rs.retrieval.MetaEmbedding(encoder.schema, base=BASE, epochs=5).pretrain(base)
    model.fit(rows, batch_size=64, progress=False)
    before, after = (m.inputs.tables.by_id("item") for m in (base, model.base))
    new = torch.from_numpy(encoder.encode_values("item", list(COLD_ITEMS))).long()
    old = torch.from_numpy(np.setdiff1d(encoder.catalog.ids, new.numpy()))
    assert torch.equal(after[old], before[old])
    assert not torch.equal(after[new], before[new])
    assert all(p.requires_grad for p in model.base.parameters())
    torch.testing.assert_close(after[new], model.generated(encoder.catalog.batch(new)))
    assert camps(model, encoder, log, COLD_ITEMS) > 0.9


def test_meta_embedding_generates_for_items_that_came_later():
    _, warm, log = world()
    encoder = rs.Encoder(warm.schema).fit(warm)
    model = rs.retrieval.MetaEmbedding(encoder.schema, base=BASE)
    model.prepare(encoder.encode(warm))
    assert model.generate() == 0
    later = encoder.grown(log)
    new = model.grown(later)
    assert new.generate() == len(COLD_ITEMS)
    ids = torch.from_numpy(later.encode_values("item", list(COLD_ITEMS))).long()
    vectors = new.base.inputs.tables.by_id("item")
    torch.testing.assert_close(vectors[ids], new.generated(later.catalog.batch(ids)))
    assert torch.equal(vectors[2 : len(model.met)], model.base.inputs.tables.by_id("item")[2:])
