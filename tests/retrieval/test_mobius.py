"""MOBIUS: which bad cases are made up, what they are for, and what a bid does."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.models.base import Retriever

SCHEMA = testing.keys_only(testing.schema())


class Sides(Retriever):
    """A teacher that knows: users and items of one side (odd or even ids, by the raw value) belong together."""

    def user_vectors(self, batch):
        return self._side(batch, self.schema.user).unsqueeze(1)

    def item_vectors(self, batch):
        return self._side(batch, self.schema.item)

    def _side(self, batch, key):
        ids = batch[key].long()
        if self.schema.encoder is not None:
            values = self.schema.encoder.decode(key, np.arange(self.schema.feature(key).size))
            ids = torch.tensor([0 if v is None else int(v) for v in values])[ids]
        return torch.nn.functional.one_hot(ids % 2, 2).float()


def teacher(schema):
    one = Sides(schema)
    one.fitted = True
    return one


def mobius(**options):
    torch.manual_seed(0)
    model = rs.retrieval.MOBIUS(SCHEMA, **({"dim": 4, "hidden": (8,), "width": 4, "relevance": 0.5} | options))
    return testing.wake(model)


def pairs(model, batch, times=1):
    """How often each pair of a row and a cell was made up."""
    ids = batch["item_id"].long()
    model.teacher = (teacher(SCHEMA),)
    users, items = model._of_users(batch), model._of_items(batch)
    count = torch.zeros(len(ids), ids.numel())
    for _ in range(times):
        row, cell = model.bad_cases(batch, users, items, ids, batch.get("@mask", torch.ones_like(ids).bool()))
        count.index_put_((row, cell), torch.ones(len(row)), accumulate=True)
    return count


def test_bad_cases_are_irrelevant_not_shown_and_drawn_by_click_rate():
    # all that was shown is relevant, so below its least score is what lies on the other side
    batch = {
        "user_id": torch.tensor([2, 3, 4, 5]),
        "item_id": torch.tensor([[2, 4], [3, 5], [6, 2], [3, 7]]),
        "@mask": torch.tensor([[True, True], [True, True], [True, True], [True, False]]),
    }
    model = mobius(bad=1 / 7)  # one a draw, of seven cells
    count = pairs(model, batch, times=800)
    ids = batch["item_id"].flatten()
    wrong = (batch["user_id"].unsqueeze(1) % 2 != ids % 2) & batch["@mask"].flatten()
    assert not count[~wrong].any()
    with torch.no_grad():
        logit = torch.einsum("rcd,lcd->rlc", model._of_users(batch), model._of_items(batch).flatten(0, 1)) / 0.2
    rate = logit.softmax(-1)[..., 0] * wrong
    assert_close(count / 800, rate / rate.sum(), atol=0.06, rtol=0)
    assert rate[wrong].max() > 3 * rate[wrong].min()
    assert pairs(mobius(bad=9.0), batch).sum() == wrong.sum()  # without replacement: all there are, each once


def test_what_a_user_was_shown_is_never_made_up_elsewhere():
    batch = {"user_id": torch.tensor([2, 3]), "item_id": torch.tensor([[3], [3]])}  # 2 was shown what is irrelevant
    assert not pairs(mobius(relevance=1.0, bad=9.0), batch).any()


def test_three_inner_products_are_three_classes_and_the_bid_weighs_one():
    schema = testing.schema()
    torch.manual_seed(0)
    free, paid = (testing.wake(rs.retrieval.MOBIUS(schema.without("price"), dim=4)) for _ in range(2))
    torch.manual_seed(0)
    declared = schema.replace(
        features=[rs.Numeric("price", "item") if f.name == "price" else f for f in schema.features]
    )
    paid = rs.retrieval.MOBIUS(declared, dim=4, bid="price")
    paid.load_state_dict(free.state_dict())
    batch = testing.batch(schema, 3, 4)
    users, items = (
        t.unflatten(-1, (3, 32))
        for t in (
            free.user_tower.out(free.user_tower.mlp(free.inputs(batch, "user", "context", "history").flat())),
            free.item_tower.out(free.item_tower.mlp(free.inputs(batch, "item").flat())),
        )
    )
    cosine = torch.nn.functional.cosine_similarity(users.unsqueeze(1), items, dim=-1)
    free, paid = free.eval(), paid.eval()
    assert_close(free.chances(batch), (cosine / 0.2).softmax(-1))
    assert_close(free(batch)["click"], cosine[..., 0] / 0.2)
    assert_close(paid(batch)["click"], cosine[..., 0] / 0.2 * batch["price"].clamp(min=0))
    with pytest.raises(SchemaError, match=r"declare Numeric\('price', 'item'\) without a transform"):
        rs.retrieval.MOBIUS(
            schema.replace(
                features=[
                    rs.Numeric("price", "item", transform="log") if f.name == "price" else f for f in schema.features
                ]
            ),
            bid="price",
        )


@pytest.mark.slow
def test_made_up_cases_teach_what_the_log_never_shows():
    """Users were shown their own side only; even items are clickbait. Without bad cases everybody gets clickbait."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, 40, 2000)
    item = 2 * rng.integers(0, 15, 2000) + user % 2
    click = (rng.random(2000) < np.where(item % 2, 0.2, 0.8)).astype(int)
    features = [rs.Categorical("user", "user"), rs.Categorical("item", "item")]
    schema = rs.Schema(features, [rs.Task("click")], time="at")
    log = rs.Log({"user": user, "item": item, "click": click, "at": np.arange(2000)}, schema)
    encoder = rs.Encoder(schema).fit(log)
    odd = [u for u in range(40) if u % 2]

    def relevance(guide):
        torch.manual_seed(0)
        model = rs.retrieval.MOBIUS(encoder.schema, dim=8, hidden=(16,), width=8, relevance=0.5)
        model.fit(log, teacher=guide, epochs=12, batch_size=128, lr=0.01, progress=False)
        assert model.teacher == ()
        found = model.recommend(odd, 5, exclude_seen=False)
        return float((np.array(encoder.decode("item", found.ids.flatten().numpy())).astype(int) % 2).mean())

    assert relevance(None) < 0.5
    assert relevance(teacher(encoder.schema)) > 0.9


def test_a_teacher_has_to_be_a_fitted_retriever():
    world = testing.communities()
    encoder = rs.Encoder(world.log.schema).fit(world.log)
    for wrong in (rs.retrieval.DSSM(encoder.schema), "DSSM"):
        with pytest.raises(ConfigError, match="teacher= takes a fitted retriever of two towers"):
            rs.retrieval.MOBIUS(encoder.schema).fit(world.log, teacher=wrong)
