"""PAPERec: the reward is the norm of the last layer's gradient, and weights follow the user."""

import numpy as np
import pytest
import torch

import recstack as rs
from recstack.nn.pareto import pareto_reward


def test_the_reward_is_the_norm_of_the_weighted_gradient_of_the_last_layer():
    torch.manual_seed(0)
    h, w = torch.randn(2, 3, 2, 5), torch.rand(2, 3, 2)
    label, live = torch.randint(0, 2, (2, 3, 2)).float(), torch.rand(2, 3, 2) < 0.8
    layer = torch.randn(2, 5)
    error = (h * layer).sum(-1).sigmoid() - label
    found = pareto_reward(w, error, h, live)
    for r in range(2):
        for i in range(3):
            total = torch.zeros(5)
            for k in range(2):
                one = layer[k].clone().requires_grad_()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(h[r, i, k] @ one, label[r, i, k])
                share = w[r, i, k] * live[r, i, k] / (w[r, i] * live[r, i]).sum().clamp(min=1e-12)
                total += share * torch.autograd.grad(loss, one)[0]
            torch.testing.assert_close(found[r, i], -total.square().sum())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Parameter .* did not move")  # lists of one have no state to hand on
def test_who_is_sure_of_a_task_weighs_it():
    """Even users always click and like by chance, odd ones the other way round: gradients cancel out best on the sure task."""
    chance = np.random.default_rng(0)
    user, coin = chance.integers(0, 20, 4000), chance.integers(0, 2, 4000).astype(float)
    even = user % 2 == 0
    events = {
        "user": user,
        "item": chance.integers(0, 9, 4000),
        "click": np.where(even, 1.0, coin),
        "like": np.where(even, coin, 1.0),
    }
    features = [rs.Categorical("user", "user"), rs.Categorical("item", "item")]
    log = rs.Log(events, rs.Schema(features, [rs.Task("click"), rs.Task("like")]))
    encoder = rs.Encoder(log.schema).fit(log)
    torch.manual_seed(0)
    model = rs.multitask.PAPERec(encoder.schema, dim=4, hidden=(8,), discount=0.0)
    model.fit(log, epochs=8, batch_size=200, lr=0.02, progress=False)
    weight = model.weights(encoder.encode(log).batch(slice(0, 4000)))["click"][:, 0].numpy()
    assert weight[even].mean() > weight[~even].mean() + 0.5


def test_towers_without_a_layer_are_one_sentence():
    log = rs.simulator.small()
    with pytest.raises(rs.ConfigError, match="give hidden= at least one width"):
        rs.multitask.PAPERec(rs.Encoder(log.schema).fit(log).schema, hidden=())
