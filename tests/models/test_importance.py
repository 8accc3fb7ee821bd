"""Importance of columns, strengths of pairs and AutoFIS' search, in worlds whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recstack as rs
from recstack import testing
from recstack.errors import ConfigError
from recstack.models.importance import Strengths, _shuffled, kendall_tau
from recstack.nn.interaction.attention import FieldAttention
from recstack.schema import Categorical, Schema, Task
from recstack.training.optimizers import GRDA

NAMES = ("a", "b", "c", "d", "e")
SEARCH = {"gates": ("grda", {"lr": 0.3, "c": 0.12}), "default": ("adam", {"lr": 0.01})}


def planted(rows: int = 3000, seed: int = 0) -> rs.Log:
    """Clicks follow a and b together, and neither alone; c is a weak signal of its own; d and e say nothing."""
    chance = np.random.default_rng(seed)
    columns = {name: chance.integers(0, 6, rows) for name in NAMES}
    sign = np.where(
        (np.arange(6)[:, None] + np.arange(6)) % 2, 1.5, -1.5
    )  # odd and even: each row and column sums to 0
    logit = sign[columns["a"], columns["b"]] + 0.25 * (columns["c"] - 2.5)
    columns["click"] = (chance.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    roles = dict(zip(NAMES, ("user", "item", "context", "item", "user"), strict=True))
    return rs.Log(columns, Schema([Categorical(n, roles[n]) for n in NAMES], [Task("click")]))


@pytest.fixture(scope="module")
def worlds():
    train, test = planted(), planted(seed=1)
    return rs.Encoder(train.schema).fit(train).schema, train, test


def fitted(model, train, **options):
    torch.manual_seed(0)
    model.fit(train, **{"epochs": 12, "batch_size": 256, "lr": 0.02, "seed": 0, "progress": False, **options})
    return model


# -- columns ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_column_that_says_nothing_has_no_importance_and_the_planted_ones_have(worlds):
    schema, train, test = worlds
    model = fitted(rs.ranking.FM(schema, dim=4), train)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    drops = rs.permutation_importance(model, test, repeats=2, seed=1)
    assert set(list(drops)[:2]) == {"a", "b"}
    assert list(drops)[2] == "c"
    assert min(drops["a"].mean, drops["b"].mean) > 0.15
    assert max(abs(drops[n].mean) for n in "de") < 0.02
    losses = rs.permutation_importance(model, test, "logloss", repeats=2, seed=1)
    assert losses["a"].mean > 0.1  # worse is positive, though logloss goes up
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert kendall_tau(drops, losses) > 0.5


def test_a_column_is_shuffled_as_a_whole_and_alone():
    schema = testing.schema()
    batch = testing.batch(schema, 8, 3, mask=True, times=True)
    live = batch["@mask"]
    for f in schema.features:
        after = _shuffled(batch, f, torch.Generator().manual_seed(0))
        changed = {k for k in batch if not torch.equal(batch[k], after[k])}
        keys = {f"{n}@{f.name}" for n in f.of} | {f"@time@{f.name}"} if f.kind == "history" else {f.name}  # type: ignore[attr-defined]
        assert changed <= keys
        assert changed
    moved = _shuffled(batch, schema.feature("item_id"), torch.Generator().manual_seed(0))["item_id"]
    assert moved[live].sort().values.equal(batch["item_id"][live].sort().values)
    assert moved[~live].equal(batch["item_id"][~live])
    whole = _shuffled(batch, schema.feature("watched"), torch.Generator().manual_seed(0))
    before = [torch.stack([batch["item_id@watched"][r], batch["genre@watched"][r, :, 0]]).tolist() for r in range(8)]
    after = [torch.stack([whole["item_id@watched"][r], whole["genre@watched"][r, :, 0]]).tolist() for r in range(8)]
    assert sorted(before) == sorted(after)


def test_a_metric_without_a_direction_and_no_repeats_are_refused(worlds):
    schema, _, test = worlds
    model = rs.ranking.LR(schema)
    with pytest.raises(ConfigError, match="best value in the middle"):
        rs.permutation_importance(model, test, "calibration_ratio")
    with pytest.raises(ConfigError, match="repeats must be at least 1; got 0"):
        rs.permutation_importance(model, test, repeats=0)


def test_kendall_counts_pairs():
    one, two = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, {"a": 1.0, "b": 1.0, "c": 5.0, "d": 0.0}
    # of six pairs: (a, b) tied in two; (a, c), (b, c) opposite; (a, d), (b, d), (c, d) the same
    assert kendall_tau(one, two) == pytest.approx((3 - 2) / (6 * 5) ** 0.5)
    assert kendall_tau(one, one) == 1.0
    assert kendall_tau(one, {k: -v for k, v in one.items()}) == -1.0
    with pytest.raises(ConfigError, match="two are needed"):
        kendall_tau(one, {"a": 1.0})


# -- pairs --------------------------------------------------------------------------------------------------------------
MODELS = {
    "FwFM": {"dim": 4},
    "FmFM": {"dim": 4},
    "FEFM": {"dim": 4},
    "DCNv2": {"dim": 4, "layers": 1, "hidden": (8,)},
    "AFM": {"dim": 4, "attention": 8},
    "AutoInt": {"dim": 4, "width": 8, "layers": 1},
    "AutoFIS": {"dim": 4, "hidden": ()},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_planted_pair_is_the_strongest(name, worlds):
    schema, train, test = worlds
    options = {"optimizer": SEARCH, "lr": None} if name == "AutoFIS" else {}
    model = fitted(getattr(rs.ranking, name)(schema, **MODELS[name]), train, **options)
    strengths = rs.interaction_strengths(model, test)
    assert len(strengths.pairs()) == 10
    assert set(next(iter(strengths.pairs()))) == {"a", "b"}, strengths.pairs()
    assert set(list(strengths.fields())[:2]) == {"a", "b"}
    np.testing.assert_array_equal(strengths.values, strengths.values.T)


@pytest.mark.slow
def test_the_search_closes_gates_and_the_retrained_model_is_as_good(worlds):
    schema, train, test = worlds
    search = fitted(rs.ranking.AutoFIS(schema, dim=4, hidden=()), train, optimizer=SEARCH, lr=None)
    assert [set(pair) for pair in search.selected()] == [{"a", "b"}]
    model = fitted(rs.ranking.AutoFIS(schema, dim=4, hidden=(), pairs=search.selected()), train)
    label = torch.from_numpy(test.events["click"].to_numpy().copy()).float()
    auc = [float(rs.metrics.auc(torch.from_numpy(m.score(test)["click"]), label)) for m in (search, model)]
    assert auc[1] > auc[0] - 0.005
    assert auc[1] > 0.78


def test_models_without_strengths_or_rows_say_so(worlds):
    schema, _, _ = worlds
    with pytest.raises(ConfigError, match="LR has no strengths of pairs; AFM, AutoFIS"):
        rs.interaction_strengths(rs.ranking.LR(schema))
    with pytest.raises(ConfigError, match="AFM weighs its pairs anew for each row"):
        rs.interaction_strengths(rs.ranking.AFM(schema, dim=4))
    with pytest.raises(ConfigError, match="Unknown field in pairs= 'z'"):
        rs.ranking.AutoFIS(schema, pairs=(("a", "z"),))
    with pytest.raises(ConfigError, match="no pair of fields"):
        rs.ranking.AutoFIS(schema, pairs=())


def test_dcn_blocks_are_norms_of_both_directions(worlds):
    schema, _, _ = worlds
    for rank in (None, 3):
        model = rs.ranking.DCNv2(schema, dim=3, rank=rank, layers=2, hidden=(4,))
        layer = model.cross.layers[0]
        w = (layer.weight if rank is None else layer[1].weight @ layer[0].weight).detach()  # type: ignore[union-attr]
        names = list(model.inputs.widths)
        for (one, two), value in model.strengths().items():
            i, j = names.index(one) * 3, names.index(two) * 3
            slow = sum(float(w[i + p, j + q]) ** 2 + float(w[j + p, i + q]) ** 2 for p in range(3) for q in range(3))
            assert value == pytest.approx(slow**0.5, rel=1e-4)
    with pytest.raises(ConfigError, match="no one matrix"):
        rs.ranking.DCNv2(schema, dim=3, rank=2, experts=2, hidden=(4,)).strengths()


@pytest.mark.parametrize("scale", [False, True])
def test_the_attention_shown_is_the_attention_used(scale):
    torch.manual_seed(0)
    layer = FieldAttention(4, 6, 2, scale=scale, residual=False)
    x = torch.randn(3, 5, 4)
    q, k, v = layer.project(x).chunk(3, -1)
    heads = []
    for h in range(2):
        part = slice(3 * h, 3 * h + 3)
        weights = (q[..., part] @ k[..., part].mT / (3**0.5 if scale else 1)).softmax(-1)
        heads.append((weights, weights @ v[..., part]))
    torch.testing.assert_close(layer.attention(x), (heads[0][0] + heads[1][0]) / 2)
    torch.testing.assert_close(layer(x), torch.cat([heads[0][1], heads[1][1]], -1).relu())


def test_a_picture_is_drawn(tmp_path):
    values = {("user", "item"): -2.0, ("user", "hour"): 0.5, ("item", "hour"): 1.0}
    path = Strengths.of("FwFM", values).plot(tmp_path / "pairs.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_grda_is_the_equation():
    g = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.tensor([0.6, -0.6, 0.02]))
    optimizer, z, start = GRDA([w], lr=0.5, c=0.1, mu=0.7), w.detach().clone(), w.detach().clone()
    for t in range(1, 6):
        w.grad = 0.02 * torch.randn(3, generator=g)
        z = z - 0.5 * w.grad
        optimizer.step()
        threshold = 0.1 * 0.5**1.2 * t**0.7
        wanted = [0.0 if abs(x) <= threshold else (abs(x) - threshold) * (1 if x > 0 else -1) for x in z.tolist()]
        torch.testing.assert_close(w.detach(), torch.tensor(wanted))
    assert w[2] == 0
    assert (w[:2] != start[:2]).all()
