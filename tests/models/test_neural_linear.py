"""NeuralLinear's regression against the closed form over all rows at once, and what it does with what is missing."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import recstack as rs
from recstack import testing
from recstack.errors import ConfigError
from recstack.schema import Task

TASKS = (
    Task("click"),
    Task("stay", kind="regression", given="click"),
    Task("both", product=("click", "click2")),
    Task("click2", given="click"),
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return rs.ranking.NeuralLinear(testing.schema(tasks=TASKS), hidden=(5,), ridge=0.5, prior=(3.0, 2.0)).eval()


def test_the_posterior_is_the_regression_over_all_live_rows_of_all_batches(model):
    schema = model.schema
    batches = [testing.batch(schema, 4, 3, seed=s, mask=True) for s in range(3)]
    for batch in batches:
        batch["stay@label"][0, 0] = torch.nan
        model.observe(batch)
    for task, parent in (("click", None), ("stay", "click")):
        z, r = [], []
        for batch in batches:
            hidden = model.hidden(batch)[0].detach().double().numpy()
            label, given = batch[f"{task}@label"].numpy(), None if parent is None else batch[f"{parent}@label"].numpy()
            for where in np.ndindex(label.shape):
                alive = "@mask" not in batch or bool(batch["@mask"][where])
                if alive and np.isfinite(label[where]) and (given is None or given[where] == 1):
                    z.append([*hidden[where], 1.0])
                    r.append(float(label[where]))
        z, r = np.array(z), np.array(r)
        square = z.T @ z + 0.5 * np.eye(6)
        mean = np.linalg.solve(square, z.T @ r)
        mu, factor, a, b = model.posterior(task)
        np.testing.assert_allclose(mu.numpy(), mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose((factor @ factor.mT).numpy(), square, rtol=1e-9)
        assert (a, b) == pytest.approx((3 + len(r) / 2, 2 + (r @ r - mean @ square @ mean) / 2))


def test_draws_scatter_as_the_posterior_says(model):
    batch = testing.batch(model.schema, 1, 2)
    model.observe(batch)
    many = {n: v.expand(20_000, *v.shape[1:]) for n, v in batch.items() if "@offsets" not in n}
    drawn = model.draw(many, generator=torch.Generator().manual_seed(0))["click"]
    expected = model.bounds(batch, alpha=0.0)["click"][0]
    _, _, a, _ = model.posterior("click")
    spread = (model.bounds(batch)["click"][0] - expected) * (a / (a - 1)) ** 0.5  # the variance of IG is b / (a - 1)
    torch.testing.assert_close(drawn.mean(0), expected, atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.05, atol=0)


def test_what_was_observed_is_saved_and_forgotten(model, tmp_path):
    batch = testing.batch(model.schema, 3, 2)
    prior = model.bounds(batch)["click"]
    known = model.observe(batch).bounds(batch)
    again = rs.load(model.save(tmp_path / "m"))
    for name, value in again.bounds(batch).items():
        assert torch.equal(value, known[name])
    assert (known["click"] - model.bounds(batch, 0.0)["click"] < prior).all()
    assert torch.equal(model.forget().bounds(batch)["click"], prior)


def test_what_it_cannot_read_is_named(model):
    with pytest.raises(ConfigError, match="one vector for all tasks"):
        rs.ranking.NeuralLinear(model.schema, trunk=partial(rs.multitask.MMoE, hidden=(4,), towers=(3,)))
    with pytest.raises(ConfigError, match="positive ridge"):
        rs.ranking.NeuralLinear(model.schema, ridge=0.0)
    with pytest.raises(ConfigError, match="Unknown observed task 'both'"):
        model.posterior("both")
