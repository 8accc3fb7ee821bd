"""TransAct, HSTU and latent cross against loops written from the papers."""

import pytest
import torch
import torch.nn.functional as F

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.models.ranking import HSTU, LatentCross, TransAct
from recstack.nn.sequence.hstu import BUCKETS, TargetHSTU, time_bucket
from recstack.schema import Categorical, History, Schema, Task, Vector

LENGTHS = torch.tensor([0, 1, 3, 5])
MASK = torch.arange(5) < LENGTHS.unsqueeze(-1)


def some(width: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Two targets of four requests, and their steps, rubbish where nothing is."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(4, 2, width, generator=g), torch.randn(4, 5, width, generator=g)


def schema() -> Schema:
    return Schema(
        [
            Categorical("user", "user", size=5),
            Categorical("hour", "context", size=6),
            Vector("place", "context", size=2),
            Categorical("item", "item", size=30),
            Categorical("shelf", "item", size=6),
            History("seen", of=("item", "shelf"), max_len=6),
        ],
        [Task("click")],
    )


@torch.no_grad()
def awake(block):
    for p in block.parameters():
        p += 0.3 * torch.randn(p.shape)
    return block.eval()


# -- HSTU -------------------------------------------------------------------------------------------------------------
def transduced(block: TargetHSTU, steps, target, times=None, now=None) -> torch.Tensor:
    """What one target becomes after `steps`, token by token and head by head; the last token is the target."""
    x = [*steps, target]
    clock = None if times is None else [*times.tolist(), int(now)]
    for unit in block.layers:
        parts = [F.silu(unit.project(unit.before(token))).chunk(4) for token in x]
        size = len(parts[0][0]) // unit.heads
        out = []
        for i, (u, _, q, _) in enumerate(parts):
            read = torch.zeros_like(u)
            for j in range(i + 1):
                bias = unit.position[min(i - j, unit.steps)]
                bias = bias + unit.time[0 if clock is None else int(time_bucket(torch.tensor(clock[i] - clock[j])))]
                for h in range(unit.heads):
                    at = slice(h * size, (h + 1) * size)
                    read[at] += F.silu(q[at] @ parts[j][3][at] + bias) / unit.steps * parts[j][1][at]
            out.append(x[i] + unit.out(unit.after(read) * u))
        x = out
    return x[-1]


@pytest.mark.parametrize("timed", [False, True])
def test_hstu_by_tokens_one_at_a_time(timed):
    torch.manual_seed(0)
    block = awake(TargetHSTU(3, layers=3, heads=2, steps=4))  # two heads of two, though three is odd; T is over `steps`
    query, steps = some()
    times, now = torch.tensor([0, 4, 90, 95, 7000]).expand(4, 5), torch.tensor([9000, 9000, 100, 7001])
    fast = block(query, steps, MASK, times=(times, now) if timed else None)
    for r, n in enumerate(LENGTHS.tolist()):
        for l in range(2):
            slow = torch.zeros(3)
            if n:
                given = (times[r, :n], now[r]) if timed else ()
                slow = transduced(block, steps[r, :n], query[r, l], *given)
            torch.testing.assert_close(fast[r, l], slow)


def test_candidates_do_not_see_one_another_nor_the_history_them():
    block = awake(TargetHSTU(3, layers=2, steps=4))
    query, steps = some()
    both = block(query, steps, MASK)
    torch.testing.assert_close(block(query[:, :1], steps, MASK), both[:, :1])
    query[:, 1] = 9.0
    assert torch.equal(block(query, steps, MASK)[:, 0], both[:, 0])


def test_hstu_keeps_how_often_a_step_was():
    """Unlike a softmax: what three equal steps add before the normalisation is three times what one adds."""
    unit = awake(TargetHSTU(3, layers=1, steps=4)).layers[0]
    with torch.no_grad():
        unit.position.zero_()
        unit.after = torch.nn.Identity()
        unit.out.bias.zero_()
    query, steps = some()
    steps = steps[:, :1].expand(4, 5, 3)
    nothing, one, three = (
        unit.of_targets(query, unit.parts(steps), torch.arange(5).expand(4, 5) < n, None) for n in (0, 1, 3)
    )
    torch.testing.assert_close(three - nothing, 3 * (one - nothing))


def test_time_buckets_grow_with_the_distance():
    gaps = torch.tensor([0, 1, -1, 2, 60, 3600, 86_400, 10**9])
    assert time_bucket(gaps).tolist() == [0, 0, 0, 2, 13, 27, 37, BUCKETS - 1]


def test_hstu_takes_times_where_there_are_any():
    model = testing.wake(HSTU(schema(), dim=4, hidden=(6,)))
    batch = testing.batch(schema(), 4, 2, times=True)
    timed = model(batch)["click"]
    torch.testing.assert_close(model(testing.to_jagged(batch, schema()))["click"], timed)
    torch.testing.assert_close(model(testing.pad_histories(batch, schema(), 3))["click"], timed)
    without = model({k: v for k, v in batch.items() if not k.startswith("@time")})["click"]
    assert (timed - without)[-1].abs().max() > 1e-4
    torch.testing.assert_close(timed[0], without[0])  # no past at all


# -- TransAct ---------------------------------------------------------------------------------------------------------
def test_transact_by_tokens_one_at_a_time():
    model = testing.wake(TransAct(schema(), dim=2, heads=2, columns=3, cross_layers=1, hidden=(5,)))
    batch = testing.batch(schema(), 4, 2)
    slots, reader = model.inputs(batch), model.readers["seen"]
    target, (steps, mask) = torch.cat([slots["item"], slots["shelf"]], -1), slots.sequence("seen")
    fast, base = reader(target, steps, mask, mask), slots.flat()
    for r in range(4):
        n = int(mask[r].sum())
        for l in range(2):
            slow = torch.zeros(4 * 8)
            if n:
                x = torch.stack([torch.cat([steps[r, t], target[r, l]]) for t in range(n)])
                for layer in reader.layers:
                    q, k, v = layer.attention.project(x).chunk(3, -1)
                    heads = [
                        (q[:, h] @ k[:, h].T / 2).softmax(-1) @ v[:, h]  # √4, the width of a head
                        for h in (slice(0, 4), slice(4, 8))
                    ]
                    x = layer.norms[0](x + layer.attention.out(torch.cat(heads, -1)))
                    x = layer.norms[1](x + layer.feed(x))
                newest = x.flip(0)[:3].flatten()
                slow = torch.cat([newest, torch.zeros(24 - len(newest)), reader.out(x.max(0).values)])
            torch.testing.assert_close(fast[r, l], slow)
            row = torch.cat([base[r, l], slow])
            crossed = row * model.cross.layers[0](row) + row
            torch.testing.assert_close(model(batch)["click"][r, l], model.heads(model.mlp(crossed[None]))["click"][0])


def test_the_window_hides_the_newest_steps_in_training_only():
    model = TransAct(schema(), dim=2, columns=2, window=1000.0, hidden=(5,))
    mask = torch.ones(2000, 4, dtype=torch.bool)
    mask[0, 2:] = False
    now = torch.full((2000,), 10_000)
    batch = {"@time@seen": (now[:, None] - torch.tensor([1500, 750, 250, 0])) * mask, "@time": now}
    assert torch.equal(model.eval().seen(batch, "seen", mask), mask)
    torch.manual_seed(0)
    kept = model.train().seen(batch, "seen", mask)
    assert not kept[0, 2:].any(), "what is not there is not seen"
    share = kept[1:].float().mean(0)
    torch.testing.assert_close(share, torch.tensor([1.0, 0.75, 0.25, 0.0]), rtol=0, atol=0.04)  # P(age ≥ U(0, 1000))
    assert (kept[1:, :-1].int() >= kept[1:, 1:].int()).all(), "what is hidden are the newest"
    assert torch.equal(model.seen({}, "seen", mask), mask), "without times nothing is hidden"
    model.window = 0.0
    assert torch.equal(model.seen(batch, "seen", mask), mask)


def test_a_hidden_step_leaves_its_column_empty_and_changes_nothing():
    model = testing.wake(TransAct(schema(), dim=2, columns=2, hidden=(5,)))
    reader = model.readers["seen"]
    target, steps = torch.randn(1, 1, 4), torch.randn(1, 3, 4)
    mask, seen = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, False]])
    out = reader(target, steps, mask, seen)[0, 0]
    assert not out[:8].any(), "the newest column"
    assert out[8:16].any()
    steps[0, 2] += 5
    torch.testing.assert_close(reader(target, steps, mask, seen)[0, 0], out)
    assert not reader(target, steps, mask, torch.zeros_like(seen)).any()


def test_transact_trains_with_times_jagged_or_padded():
    model, batch = (
        TransAct(schema(), dim=2, columns=2, window=1e9, hidden=(5,)),
        testing.batch(schema(), 5, 2, times=True),
    )
    found = []
    for some_batch in (batch, testing.to_jagged(batch, schema())):
        torch.manual_seed(3)
        found.append(model.train()(some_batch)["click"])
    torch.testing.assert_close(*found)
    with pytest.raises(ConfigError, match="columns must be at least 1"):
        TransAct(schema(), columns=0)


# -- latent cross -----------------------------------------------------------------------------------------------------
def test_without_crosses_it_is_the_gru():
    model = testing.wake(LatentCross(schema(), dim=3, hidden=(4,)))
    batch = testing.batch(schema(), 4, 2)
    with torch.no_grad():
        for part in (model.before, model.after):
            for p in part.parameters():
                p.zero_()
    slots = model.inputs(batch)
    steps, mask = slots.sequence("seen")
    state = model.state(batch, "seen", steps, mask)
    for r in range(4):
        n = int(mask[r].sum())
        slow = model.grus["seen"].cell(steps[r : r + 1, :n])[1][0, 0] if n else torch.zeros(6)
        torch.testing.assert_close(state[r], slow)
    request, candidate = slots.sides()
    x = torch.cat([torch.cat([request, state], -1).unsqueeze(1).expand(-1, 2, -1), candidate], -1)
    torch.testing.assert_close(model(batch)["click"], model.heads(model.mlp(x))["click"])


def test_it_begins_near_the_identity():
    model, batch = LatentCross(schema().without("place"), dim=8), testing.batch(schema(), 64, 1)
    ones = torch.ones(64, 1, 16)
    for part in (model.before["seen"], model.after["seen"]):
        assert 0 < (part(batch, ones) - 1).abs().max() < 0.1


@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_contexts_cross_where_they_should(place):
    model = testing.wake(LatentCross(schema(), dim=3, place=place, hidden=(4,)))
    batch = testing.batch(schema(), 4, 2)
    steps, mask = model.inputs(batch).sequence("seen")

    def crossed(cross, r, h):
        w = cross.inputs.tables.weight("hour")[int(batch["hour"][r]) - 1]
        return (1 + w + cross.inputs.lifts["place"].weight @ batch["place"][r]) * h

    state = model.state(batch, "seen", steps, mask)
    assert (bool(len(model.before)), bool(len(model.after))) == (place != "after", place != "before")
    for r in range(4):
        x = steps[r, : int(mask[r].sum())]
        h = torch.zeros(6)
        if place != "after":
            x = crossed(model.before["seen"], r, x)
        if len(x):
            h = model.grus["seen"].cell(x[None])[1][0, 0]
        if place != "before":
            h = crossed(model.after["seen"], r, h)
        torch.testing.assert_close(state[r], h)


def test_latent_cross_needs_a_context_and_knows_its_places():
    with pytest.raises(SchemaError, match="LatentCross needs a feature with role='context' or 'user'"):
        LatentCross(schema().without("hour", "place", "user"))
    with pytest.raises(SchemaError, match="'shelf' has role='item'"):
        LatentCross(schema(), context=("shelf",))
    crossing = LatentCross(schema().without("hour", "place")).before["seen"].inputs
    assert list(crossing.widths) == ["user"], "without a context, the user's own features cross"
    with pytest.raises(ConfigError, match="Did you mean 'after'"):
        LatentCross(schema(), place="aftr")


@pytest.mark.parametrize("model", [HSTU, TransAct, LatentCross])
def test_several_histories_and_a_finite_score_without_a_past(model):
    two = schema().replace(features=[*schema().features, History("liked", of=("item",), max_len=3)])
    net, batch = testing.wake(model(two, dim=4, hidden=(6,))), testing.batch(two, 4, 2)
    before = net(batch)["click"]
    for key in ("item@seen", "item@liked"):
        other = {**batch, key: (batch[key] + 3) % 28 * (batch[key] > 0) + (batch[key] > 0)}
        assert (net(other)["click"] - before)[1:].abs().max() > 1e-5, key
        torch.testing.assert_close(net(other)["click"][0], before[0])
