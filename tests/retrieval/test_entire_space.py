"""Exposure times click: one inner product, three losses, and what is learned of items that were never shown to a user."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import recstack as rs
from recstack import losses, testing
from recstack.errors import ConfigError

SCHEMA = testing.keys_only(testing.schema(), ("history",))


def tower(**options):
    torch.manual_seed(0)
    return testing.wake(rs.retrieval.EntireSpaceTower(SCHEMA, dim=4, hidden=(8, 6), **options)).eval()


def test_the_inner_product_is_the_logarithm_of_the_product():
    model, batch = tower(), testing.batch(SCHEMA, 4, 3)
    x, v = model.inputs(batch, "user", "history").flat(), model.inputs(batch, "item").flat()
    exposed, clicked = (
        F.cosine_similarity(left(x), right(v).squeeze(-2), dim=-1)
        for left, right in zip(model.users, model.items, strict=True)
    )
    t, b = model.log_temperature.exp(), F.softplus(model.bias)
    chance = ((clicked - 1) / t[1] - b).exp()
    users, items = model.user_vectors(batch), model.candidate_vectors(batch)
    assert_close(model.click_logits(users, items).sigmoid(), chance)
    assert_close(model(batch)["click"], exposed / t[0] + chance.log() + b + 1 / t[1])


def test_each_loss_is_of_its_own_space():
    model, batch = tower(exposure=0.5, product=2.0), testing.batch(SCHEMA, 5, 2)
    batch["item_id"] = batch["item_id"].clamp(min=2)
    found, ids, label = model.losses(batch), batch["item_id"].long(), batch["click@label"]
    users, items = model.user_vectors(batch), model.candidate_vectors(batch)
    p = model.click_logits(users, items).sigmoid()
    assert_close(found["click"], -(label * p.log() + (1 - label) * (1 - p).log()).mean())
    for name, part, live, weight in (
        ("exposure", slice(0, 6), label >= 0, 0.5),
        ("product", slice(None), label > 0, 2.0),
    ):
        row = live.nonzero()[:, 0]
        own, log_q = ids[live], torch.full((int(live.sum()),), 1 / 18).log()  # nothing counted yet: all alike
        slow = losses.in_batch_softmax(users[row][..., part], items[live][..., part], own, log_q=log_q)
        assert_close(found[name], weight * slow)


def test_a_certain_click_has_a_finite_loss():
    model = tower()
    with torch.no_grad():
        model.bias.fill_(-200.0)
    u = torch.zeros(1, 1, 12)
    u[..., 6] = (-model.log_temperature[1]).exp().detach()
    v = torch.zeros(1, 2, 12)
    v[0, 0, 6], v[0, 1, 6] = 1.0, -1.0
    u.requires_grad_()
    logit = model.click_logits(u, v)
    losses.bce(logit, torch.zeros(1, 2)).backward()
    assert logit.isfinite().all()
    assert u.grad.isfinite().all()
    with pytest.raises(ConfigError, match="of exposure and product one is above 0"):
        rs.retrieval.EntireSpaceTower(SCHEMA, exposure=0.0, product=0.0)


@pytest.mark.slow
def test_what_is_never_exposed_to_a_user_is_not_retrieved_for_its_clicks_elsewhere():
    """Users are shown their own side only; even items are clicked far more. A model of clicks alone asks for these."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, 40, 2000)
    item = 2 * rng.integers(0, 15, 2000) + user % 2
    click = (rng.random(2000) < np.where(item % 2, 0.2, 0.8)).astype(int)
    features = [rs.Categorical("user", "user"), rs.Categorical("item", "item")]
    schema = rs.Schema(features, [rs.Task("click")], time="at")
    log = rs.Log({"user": user, "item": item, "click": click, "at": np.arange(2000)}, schema)
    encoder = rs.Encoder(schema).fit(log)

    odd = [u for u in range(40) if u % 2]

    def own(ids):
        return float((np.array(encoder.decode("item", ids.flatten().numpy())).astype(int) % 2).mean())

    torch.manual_seed(0)
    model = rs.retrieval.EntireSpaceTower(encoder.schema, dim=8, hidden=(16, 8), product=0.0)
    model.fit(log, epochs=12, batch_size=128, lr=0.01, progress=False)
    assert own(model.recommend(odd, 5, exclude_seen=False).ids) > 0.9
    users, items = model._users(model.requests(odd)), model.catalog_vectors()
    assert own((users[:, 0, 8:] @ items[2:, 8:].T).topk(5).indices + 2) < 0.5
