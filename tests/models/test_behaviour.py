"""Behaviour models and what they are made of, against loops written from the papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.models.ranking import BST, CAN, DIEN, DIN, DSIN, ETA, SDIM, SIM, STAMP, TIN, TWIN, DINBase
from recstack.nn.interaction.coaction import co_action, size
from recstack.nn.sequence import POOLINGS, pooling
from recstack.nn.sequence.attention import MultiHead, age, masked_softmax
from recstack.nn.sequence.augru import AttentionalGRU, InterestEvolution
from recstack.nn.sequence.hashing import HashAttention
from recstack.nn.sequence.hstu import time_bucket
from recstack.nn.sequence.recurrent import GRU, SRU, _looped, _scanned, gru_step
from recstack.nn.sequence.search import (
    FoundInTime,
    HashSearch,
    MatchSearch,
    SharedSearch,
    SoftSearch,
    newest,
    top_steps,
)
from recstack.nn.sequence.sessions import SessionInterest, by_position, by_time
from recstack.nn.sequence.short_term import ShortTermMemory
from recstack.nn.sequence.target_transformer import TargetTransformer
from recstack.nn.sequence.temporal import TemporalInterest
from recstack.schema import Categorical, History, Schema, Task

SHARED = ("target_attention", "transformer", "temporal", "augru", "gru", "sru", "sessions", "short_term")
LENGTHS = torch.tensor([0, 1, 3, 5])
MASK = torch.arange(5) < LENGTHS.unsqueeze(-1)
SEARCHES = [HashSearch, SharedSearch, SoftSearch, MatchSearch]
MODELS = [DINBase, DIEN, BST, TIN, DSIN, CAN, STAMP, SIM, ETA, SDIM, TWIN]


def some(width: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two targets of four requests, and their steps, rubbish where nothing is."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(4, 2, width, generator=g), torch.randn(4, 5, width, generator=g)


def awake(block: nn.Module) -> nn.Module:
    """With weights of ordinary size."""
    with torch.no_grad():
        for p in block.parameters():
            p += 0.3 * torch.randn(p.shape)
    return block.eval()


def schema(tasks=("click",)) -> Schema:
    return Schema(
        [
            Categorical("user", "user", size=5),
            Categorical("item", "item", size=30),
            Categorical("shelf", "item", size=6),
            History("seen", of=("item", "shelf"), max_len=6),
        ],
        [Task(t) for t in tasks],
    )


# -- the registry -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted({*POOLINGS, *SHARED}))
def test_every_name_pools_for_every_model_that_takes_one(name):
    model = testing.wake(DIN(testing.schema(), dim=4, hidden=(6,), history=name))
    batch = testing.batch(testing.schema(), 4, 3)
    out = model(batch)["click"]
    assert out.shape == (4, 3)
    more = testing.pad_histories(batch, testing.schema(), 4)
    torch.testing.assert_close(model(more)["click"], out)
    torch.testing.assert_close(model(testing.to_jagged(batch, testing.schema()))["click"], out)
    base = testing.wake(DINBase(testing.schema(), dim=4, hidden=(6,), history=name))
    assert base(batch)["click"].isfinite().all()


@pytest.mark.parametrize("name", sorted(POOLINGS))
@pytest.mark.parametrize("training", [False, True])
def test_what_stands_in_a_padded_step_changes_nothing(name, training):
    torch.manual_seed(0)
    block = awake(pooling(name, 3)).train(training)
    query, steps = some()
    found = []
    for rubbish in (0.0, 50.0):
        torch.manual_seed(1)
        given = torch.where(MASK.unsqueeze(-1), steps, rubbish)
        found.append(block(query if block.targeted else None, given, MASK))
    torch.testing.assert_close(found[0], found[1])
    assert not found[0][0].any(), "an empty history gives zeros"
    assert found[0].shape[-1] == block.width


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_gradients_of_an_empty_history_are_finite(name):
    block = awake(pooling(name, 3))
    query, steps = some()
    steps.requires_grad_()
    block(query if block.targeted else None, steps, MASK).square().sum().backward()
    assert steps.grad.isfinite().all()
    assert not steps.grad[~MASK].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


def test_distance_is_counted_from_the_target():
    assert age(MASK)[:, 0].tolist() == [0, 1, 3, 5]  # of three steps the first lies three back
    assert age(MASK)[3].tolist() == [5, 4, 3, 2, 1]
    assert not masked_softmax(torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.bool)).any()


@pytest.mark.parametrize("name", ["temporal", "transformer", "sessions"])
def test_the_last_steps_mean_the_same_however_many_came_before_them_was_cut(name):
    """Positions from the left would call the most recent of three and of five steps by different names."""
    torch.manual_seed(0)
    block = awake(pooling(name, 3))
    query, steps = some()
    short = block(query[3:], steps[3:, 2:], torch.ones(1, 3, dtype=torch.bool))
    padded = F.pad(steps[3:, 2:], (0, 0, 0, 4))
    torch.testing.assert_close(block(query[3:], padded, torch.arange(7)[None] < 3), short)
    turned = block(query[3:], steps[3:, 2:].flip(1), torch.ones(1, 3, dtype=torch.bool))
    assert (turned - short).abs().max() > 1e-3, "order should matter"


# -- attention --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("own", [False, True])
def test_multi_head_attention_by_the_equation(own):
    block = awake(MultiHead(3, heads=2))  # two heads of two, though three is odd
    query, steps = some()
    fast = block(query, steps, MASK, own)
    for r, n in enumerate(LENGTHS.tolist()):
        for l in range(2):
            read = torch.cat([steps[r, :n], query[r, l : l + 1]]) if own else steps[r, :n]
            heads = []
            for h in (slice(0, 2), slice(2, 4)):
                q, k = block.query(query[r, l])[h], block.key(read)[:, h]
                heads.append((k @ q / math.sqrt(2)).softmax(0) @ block.value(read)[:, h])
            torch.testing.assert_close(fast[r, l], block.out(torch.cat(heads)))


# -- recurrent --------------------------------------------------------------------------------------------------------
def test_a_gru_is_torchs_on_what_is_there():
    block = awake(GRU(3, 4))
    _, steps = some()
    fast = block(steps, MASK)
    for r, n in enumerate(LENGTHS.tolist()):
        if n:
            torch.testing.assert_close(fast[r, :n], block.cell(steps[r : r + 1, :n])[0][0])
        assert not fast[r, n:].any()


def paper(block: AttentionalGRU, steps: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """The last state for one target, by the equations of the paper; u is 1 - z of torch's layout."""
    h = torch.zeros(block.width)
    for x, a in zip(steps, attention, strict=True):
        i = a * x if block.cell == "aigru" else x
        of_input = (block.weight_ih @ i + block.bias_ih).chunk(2 if block.cell == "agru" else 3)
        of_state = (block.weight_hh @ h + block.bias_hh).chunk(len(of_input))
        reset = (of_input[0] + of_state[0]).sigmoid()
        new = (of_input[-1] + reset * of_state[-1]).tanh()
        if block.cell == "agru":
            update = a
        else:
            update = 1 - (of_input[1] + of_state[1]).sigmoid()
            update = a * update if block.cell == "augru" else update
        h = (1 - update) * h + update * new
    return h


@pytest.mark.parametrize("cell", ["augru", "agru", "aigru"])
def test_attentional_grus_by_the_equations(cell):
    block = awake(AttentionalGRU(3, cell))
    _, steps = some()
    attention = torch.rand(4, 2, 5) * MASK.unsqueeze(1)
    fast = block(steps, attention, MASK)
    for r, n in enumerate(LENGTHS.tolist()):
        for l in range(2):
            torch.testing.assert_close(fast[r, l], paper(block, steps[r, :n], attention[r, l, :n]))


@pytest.mark.parametrize("cell", ["augru", "aigru"])
def test_augru_with_attention_one_is_the_gru(cell):
    block, plain = awake(AttentionalGRU(3, cell)), nn.GRU(3, 3, batch_first=True)
    plain.load_state_dict({f"{n}_l0": p for n, p in block.state_dict().items()})
    _, steps = some()
    fast = block(steps, MASK.float().unsqueeze(1), MASK)
    for r, n in enumerate(LENGTHS.tolist()):
        slow = plain(steps[r : r + 1, :n])[1][0, 0] if n else torch.zeros(3)
        torch.testing.assert_close(fast[r, 0], slow, rtol=1e-5, atol=1e-5)


def test_augru_with_attention_zero_keeps_its_state():
    block = awake(AttentionalGRU(3))
    assert not block(some()[1], torch.zeros(4, 1, 5), MASK).any()


def test_an_unknown_cell_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'augru'"):
        AttentionalGRU(3, "augruu")


def test_interest_evolution_attends_to_states_and_returns_the_last_live_one():
    block = awake(InterestEvolution(3))
    query, steps = some()
    fast = block(query, steps, MASK)
    for r, n in enumerate(LENGTHS.tolist()):
        for l in range(2):
            if not n:
                assert not fast[r, l].any()
                continue
            states = block.extract.cell(steps[r : r + 1, :n])[0][0]
            weight = (states @ block.attention(query[r, l])).softmax(0)
            torch.testing.assert_close(fast[r, l], paper(block.evolve, states, weight))


def test_a_scan_is_the_loop():
    gates, update = torch.randn(4, 2, 6), torch.rand(4, 2, 1)
    given = gru_step, torch.zeros(2, 2), (gates, update), (torch.randn(6, 2), torch.randn(6))
    with torch.no_grad():
        torch.testing.assert_close(_scanned(*given, False), _looped(*given, False))
        torch.testing.assert_close(_scanned(*given, True), _looped(*given, True))


def test_an_sru_is_its_loop():
    block = awake(SRU(3))
    _, steps = some()
    fast = block(None, steps, MASK)
    for r, n in enumerate(LENGTHS.tolist()):
        c = h = torch.zeros(3)
        for x in steps[r, :n]:
            forget, reset = block.gates(x).sigmoid().chunk(2)
            c = forget * c + (1 - forget) * block.project(x)
            h = reset * c.tanh() + (1 - reset) * x
        torch.testing.assert_close(fast[r], h)


# -- BST, TIN ---------------------------------------------------------------------------------------------------------
def test_one_layer_read_at_the_target_needs_no_copy_per_candidate():
    block = awake(TargetTransformer(3, heads=2, steps=4))
    query, steps = some()
    fast = block(query, steps, MASK)
    every = torch.cat(
        [
            (steps + block.positions(MASK)).unsqueeze(1).expand(4, 2, 5, 3),
            (query + block.positions.target).unsqueeze(2),
        ],
        2,
    )
    live = torch.cat([MASK, torch.ones(4, 1, dtype=torch.bool)], 1).unsqueeze(1).expand(4, 2, 6)
    slow = block.layers[0](every, every, live)[:, :, -1]
    torch.testing.assert_close(fast[1:], slow[1:])
    assert not fast[0].any()


def test_the_transformer_by_tokens_one_at_a_time():
    query, steps = some()
    for reduction in ("target", "mean", "concat"):
        torch.manual_seed(0)
        block = awake(TargetTransformer(3, layers=2, heads=1, steps=4, reduction=reduction))
        fast = block(query, steps, MASK)
        for r, n in enumerate(LENGTHS.tolist()):
            for l in range(2) if n else ():
                place = torch.arange(n, 0, -1).clamp(max=4)
                x = torch.cat(
                    [steps[r, :n] + block.positions.weight[place], query[r, l : l + 1] + block.positions.weight[:1]]
                )
                for layer in block.layers:
                    a = layer.attention
                    mixed = a.out((a.query(x) @ a.key(x).T / math.sqrt(3)).softmax(-1) @ a.value(x))
                    x = layer.norms[0](x + mixed)
                    x = layer.norms[1](x + layer.feed(x))
                newest_first = x.flip(0)[:5].flatten()
                slow = {"target": x[-1], "mean": x.mean(0), "concat": F.pad(newest_first, (0, 15 - len(newest_first)))}
                torch.testing.assert_close(fast[r, l], slow[reduction])


def test_the_transformer_guesses_the_reduction():
    with pytest.raises(ConfigError, match="Did you mean 'concat'"):
        BST(schema(), reduction="conact")


def test_temporal_interest_by_the_equation():
    block = awake(TemporalInterest(3, heads=2, steps=4))
    assert block.width == 4
    query, steps = some()
    fast = block(query, steps, MASK)
    p = block.positions.weight
    for r, n in enumerate(LENGTHS.tolist()):
        for l in range(2):
            q = block.query(query[r, l] + p[0])
            slow = torch.zeros(4)
            for h in (slice(0, 2), slice(2, 4)):
                e = torch.stack([steps[r, t] + p[min(n - t, 4)] for t in range(n)]) if n else torch.zeros(0, 3)
                weight = (block.key(e)[:, h] @ q[h] / math.sqrt(2)).softmax(0)
                slow[h] = (weight.unsqueeze(-1) * block.value(e)[:, h] * q[h]).sum(0)
            torch.testing.assert_close(fast[r, l], slow)


# -- DSIN -------------------------------------------------------------------------------------------------------------
def test_sessions_by_time_and_by_position():
    times = torch.tensor([[0, 10, 200, 210, 220, 900], [5, 6, 0, 0, 0, 0]])
    mask = torch.tensor([[True] * 6, [True, True] + [False] * 4])
    session, place = by_time(times, mask, 100)
    assert session[0].tolist() == [2, 2, 1, 1, 1, 0]
    assert place[0].tolist() == [1, 0, 2, 1, 0, 0]
    assert (session[1, :2].tolist(), place[1, :2].tolist()) == ([0, 0], [1, 0])
    session, place = by_position(MASK, 2)
    assert (session[3].tolist(), place[3].tolist()) == ([2, 1, 1, 0, 0], [0, 1, 0, 1, 0])
    assert (session[2, :3].tolist(), place[2, :3].tolist()) == ([1, 0, 0], [0, 1, 0])


def session_interest(block, query, sessions):
    """For one target: `sessions`, the most recent first, each of its steps, the most recent first."""
    if not sessions:
        return torch.zeros(block.width)
    interest = []
    for k, steps in enumerate(sessions):
        x = steps + block.of_session[k] + block.of_place[: len(steps)] + block.of_unit
        interest.append(block.layer(x, x, torch.ones(len(x), dtype=torch.bool)).mean(0))
    states = torch.zeros(len(interest), 3)
    for cell, order in ((block.older, range(len(interest))[::-1]), (block.newer, range(len(interest)))):
        h = c = torch.zeros(1, 3)
        for k in order:
            h, c = cell(interest[k][None], (h, c))
            states[k] += h[0]
    out = []
    for weigh, x in ((block.to_interest, torch.stack(interest)), (block.to_state, states)):
        out.append((x @ weigh(query)).softmax(0) @ x)
    return torch.cat(out)


def test_sessions_by_the_equations_and_missing_ones_change_nothing():
    block = awake(SessionInterest(3, sessions=4, items=2, heads=1))
    query, steps = some()
    fast = block(query, steps, MASK)
    for r, n in enumerate(LENGTHS.tolist()):
        back = steps[r, :n].flip(0)
        for l in range(2):
            slow = session_interest(block, query[r, l], list(back.split(2)) if n else [])
            torch.testing.assert_close(fast[r, l], slow)


def test_only_the_most_recent_sessions_and_items_are_kept():
    block = awake(SessionInterest(3, sessions=2, items=2, heads=1))
    query, steps = some()
    times = torch.tensor([0, 1, 2, 50, 99]).expand(4, 5)
    fast = block(query[3:], steps[3:], MASK[3:], parts=by_time(times[3:], MASK[3:], 10.0))
    kept = [steps[3, 4:5], steps[3, 3:4]]
    for l in range(2):
        torch.testing.assert_close(fast[0, l], session_interest(block, query[3, l], kept))
    fast = block(query[3:], steps[3:], MASK[3:], parts=by_time(times[3:].clamp(max=2), MASK[3:], 10.0))
    for l in range(2):
        torch.testing.assert_close(fast[0, l], session_interest(block, query[3, l], [steps[3, [4, 3]]]))


def test_dsin_takes_sessions_from_times_where_there_are_any():
    model = testing.wake(DSIN(schema(), dim=4, items=2, gap=100.0, heads=1, hidden=(6,)))
    batch = testing.batch(schema(), 4, 2, times=True)  # a minute between steps: all one session, of which two are kept
    by_gap = model(batch)["click"]
    torch.testing.assert_close(model(testing.to_jagged(batch, schema()))["click"], by_gap)
    without = model({k: v for k, v in batch.items() if not k.startswith("@time")})["click"]
    assert (by_gap - without)[-1].abs().max() > 1e-4
    torch.testing.assert_close(by_gap[0], without[0])  # no past at all


# -- STAMP, CAN -------------------------------------------------------------------------------------------------------
def test_short_term_memory_by_the_equations():
    block = awake(ShortTermMemory(3))
    _, steps = some()
    fast = block(None, steps, MASK)
    for r, n in enumerate(LENGTHS.tolist()):
        slow = torch.zeros(6)
        if n:
            e = steps[r, :n]
            both = block.of_last(e[-1]) + block.of_mean(e.mean(0))
            memory = sum(block.score((block.of_step(x) + both).sigmoid()) * x for x in e)
            slow = torch.cat([block.general(memory).tanh(), block.current(e[-1]).tanh()])
        torch.testing.assert_close(fast[r], slow)


def test_stamp_adds_the_three_way_product():
    model = testing.wake(STAMP(schema(), dim=3, hidden=(4,)))
    batch = testing.batch(schema(), 4, 2)
    slots = model.inputs(batch)
    deep = model.heads(model.mlp(slots.flat()))["click"]
    for r in range(4):
        for l in range(2):
            general, current = slots["seen"][r, :6], slots["seen"][r, 6:]
            target = torch.cat([slots["item"][r, l], slots["shelf"][r, l]])
            torch.testing.assert_close(model(batch)["click"][r, l], deep[r, l] + (general * current * target).sum())


def test_co_action_by_the_equation_and_padding_is_not_a_step():
    assert size((16, 8, 4)) == 172  # the paper's 16 x 8 + 8 x 4 weights and 12 biases
    widths = (3, 2, 1)
    networks, steps = torch.randn(4, 2, size(widths)), some()[1]
    fast = co_action(networks, steps, MASK, widths, 2)
    assert fast.shape == (4, 2, 6)
    for r, n in enumerate(LENGTHS.tolist()):
        for l in range(2):
            p = networks[r, l]
            first, second = p[:6].view(3, 2), p[8:10].view(2, 1)
            slow = torch.zeros(6)
            for order in (1, 2):
                for x in steps[r, :n]:
                    hidden = (x**order @ first + p[6:8]).tanh()
                    slow[3 * order - 3 : 3 * order] += torch.cat([hidden, (hidden @ second + p[10:]).tanh()])
            torch.testing.assert_close(fast[r, l], slow)


def test_can_reads_its_own_tables_and_its_pairs():
    model = testing.wake(CAN(schema(), dim=4, layers=(3, 2), orders=2, pairs=("user",), hidden=(6,)))
    batch = testing.batch(schema(), 4, 2)
    history, user = model.actions(batch)
    networks = model.networks.tables.weight("item")[batch["item"].long() - 1]
    met = model.met.tables.weight("item")[(batch["item@seen"].long() - 1).clamp(min=0)]
    torch.testing.assert_close(history, co_action(networks, met, batch["item@seen"] > 0, (3, 2), 2))
    one = model.met.tables.weight("user")[batch["user"].long() - 1].unsqueeze(1)
    torch.testing.assert_close(user, co_action(networks, one, torch.ones(4, 1, dtype=torch.bool), (3, 2), 2))
    assert sum(p.numel() for p in model.networks.parameters()) == 30 * size((3, 2))
    with pytest.raises(SchemaError, match="'item' is none"):
        CAN(schema(), pairs=("item",))


# -- long histories ---------------------------------------------------------------------------------------------------
def test_a_step_with_a_negative_score_never_loses_to_padding():
    score = torch.tensor([[-5.0, -1.0, -9.0, 3.0, 7.0]])
    live = torch.tensor([[True, True, True, False, False]])
    index, there = top_steps(score, live, 2)
    assert (sorted(index[0].tolist()), there.tolist()) == ([0, 1], [[True, True]])
    index, there = top_steps(score, live, 4)
    assert sorted(index[0][there[0]].tolist()) == [0, 1, 2]
    index, there = top_steps(score, live, 9)  # more than there are steps
    assert (int(there.sum()), index.shape) == (3, (1, 9))


def test_the_newest_steps_are_the_last_live_ones():
    _, steps = some()
    found, there = newest(steps, MASK, 2)
    assert there.tolist() == [[False, False], [True, False], [True, True], [True, True]]
    torch.testing.assert_close(found[1], torch.stack([steps[1, 0], torch.zeros(3)]))
    torch.testing.assert_close(found[2], steps[2, 1:3])
    torch.testing.assert_close(found[3], steps[3, 3:5])
    assert newest(steps, MASK, 7)[1].sum(-1).tolist() == LENGTHS.tolist()


def untimed(block, steps):
    """What SIM's attention reads where no times are given: all steps of one bucket."""
    return steps + block.read.time[0] if isinstance(getattr(block, "read", None), FoundInTime) else steps


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("keep", [5, 8])
def test_a_search_that_keeps_everything_is_full_attention(search, keep):
    block = awake(search(4, keep=keep, heads=2, recent=2))
    query, steps = some(4)
    attention = block.attention if search is SharedSearch else block.read.attention
    full = attention(query, untimed(block, steps), MASK) * MASK.any(-1)[:, None, None]
    torch.testing.assert_close(block(query, steps, MASK)[..., :4], full)


def chosen(search, block, query, steps) -> torch.Tensor:
    """The score by which each search should choose among `steps`, higher first."""
    newer = torch.arange(len(steps)) / 1000
    if search is HashSearch:
        return -(block.codes(query) != block.codes(steps)).sum(-1) + newer
    if search is SoftSearch:
        return block.of_step(steps) @ block.of_target(query)
    if search is SharedSearch:
        return block.attention.key(steps) @ block.attention.query(query)
    return newer


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_reads_only_the_best_steps_even_if_all_scores_are_negative(search):
    torch.manual_seed(2)
    block = awake(search(4, keep=2, heads=1, recent=2))
    attention = block.attention if search is SharedSearch else block.read.attention
    for sign in (1, -1):
        query, steps = some(4, seed=sign + 5)
        query = sign * query
        fast = block(query, steps, MASK)[..., :4]
        for r, n in enumerate(LENGTHS.tolist()):
            for l in range(2) if n else ():
                best = chosen(search, block, query[r, l], steps[r, :n]).topk(min(2, n)).indices
                read = steps[r : r + 1, :n][:, best]
                slow = attention(
                    query[r : r + 1, l : l + 1], untimed(block, read), torch.ones(1, len(best), dtype=torch.bool)
                )
                torch.testing.assert_close(fast[r, l], slow[0, 0])


def test_the_hard_search_takes_the_newest_of_the_targets_category():
    model = testing.wake(SIM(schema(), dim=4, search="hard", keep=2, recent=1, hidden=(6,)))
    batch = testing.batch(schema(), 6, 3)
    match = model.matches(batch, schema().histories[0])
    assert torch.equal(match, batch["shelf"].unsqueeze(-1) == batch["shelf@seen"].unsqueeze(1))
    block, slots = model.searches["seen"], model.inputs(batch)
    (steps, mask), target = slots.sequence("seen"), torch.cat([slots["item"], slots["shelf"]], -1)
    fast = block(target, steps, mask, None, match=match)
    for r in range(6):
        for l in range(3):
            same = (match[r, l] & mask[r]).nonzero()[:, 0][-2:]
            slow = torch.zeros(8)
            if len(same):
                live = torch.ones(1, len(same), dtype=torch.bool)
                read = untimed(block, steps[r : r + 1, same])
                slow = block.read.attention(target[r : r + 1, l : l + 1], read, live)[0, 0]
            torch.testing.assert_close(fast[r, l, :8], slow)
    with pytest.raises(ConfigError, match="Did you mean 'hard'"):
        SIM(schema(), search="hart")


@pytest.mark.parametrize("search", ["soft", "hard"])
def test_a_found_step_carries_how_long_ago_it_was(search):
    torch.manual_seed(0)
    model = testing.wake(SIM(schema(), dim=4, search=search, keep=6, recent=1, hidden=(6,)))
    batch = testing.batch(schema(), 6, 3, times=True)
    block, slots = model.searches["seen"], model.inputs(batch)
    steps, mask = slots.sequence("seen")
    live = (mask & (batch["item@seen"] > 0)).unsqueeze(1).expand(-1, 3, -1)
    more = {}
    if search == "hard":
        live = live & model.matches(batch, schema().histories[0])
        more["match"] = live
    since = batch["@time"].unsqueeze(-1) - batch["@time@seen"]
    query = torch.cat([slots["item"], slots["shelf"]], -1)
    fast = block.long(query, steps, mask, since=since, **more)
    named = steps + block.read.time[time_bucket(since)]
    for r, l in [(r, l) for r in range(6) for l in range(3) if live[r, l].any()]:
        read = named[r : r + 1, live[r, l]]
        every = torch.ones(read.shape[:2], dtype=torch.bool)
        torch.testing.assert_close(fast[r, l], block.read.attention(query[r : r + 1, l : l + 1], read, every)[0, 0])
    later = batch | {"@time": batch["@time"] + 10**7}
    assert not torch.allclose(model(later)["click"], model(batch)["click"])


def test_the_soft_search_learns_from_its_own_loss_only():
    model = testing.wake(SIM(schema(("click", "like")), dim=4, keep=2, hidden=(6,)))
    batch = testing.batch(schema(("click", "like")), 6, 3)
    losses = model.losses(batch)
    assert list(losses) == ["click", "like", "click@search", "like@search"]
    weight = model.searches["seen"].of_step.weight
    assert torch.autograd.grad(losses["click"], weight, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(losses["click@search"], weight)[0].abs().sum() > 0
    assert list(SIM(schema(), alpha=0.0).losses(testing.batch(schema()))) == ["click"]


def test_hash_attention_is_a_loop_over_buckets():
    block = awake(HashAttention(4, hashes=6, bits=2, recent=2))
    query, steps = some(4)
    fast = block(query, steps, MASK)[..., :4]
    for r, n in enumerate(LENGTHS.tolist()):
        for l in range(2):
            slow = torch.zeros(4)
            for g in range(3):
                planes = block.directions[:, 2 * g : 2 * g + 2]
                same = ((steps[r, :n] @ planes > 0) == (query[r, l] @ planes > 0)).all(-1)
                total = steps[r, :n][same].sum(0)
                slow += total / total.norm().clamp(min=1e-6) / 3
            torch.testing.assert_close(fast[r, l], slow)


def test_hashes_collide_as_often_as_the_angle_says():
    torch.manual_seed(0)
    block = HashAttention(8, hashes=6000, bits=3)
    a, b = torch.randn(2, 8)
    together = (block.buckets(a) * block.buckets(b)).sum(-1).mean()
    angle = torch.arccos(F.cosine_similarity(a, b, 0))
    assert abs(together - (1 - angle / math.pi) ** 3) < 0.03


@pytest.mark.parametrize("block", [*SEARCHES, HashAttention])
def test_ten_thousand_steps_are_searched(block):
    found = block(4, recent=3)(torch.randn(1, 2, 4), torch.randn(1, 10_000, 4), torch.ones(1, 10_000, dtype=torch.bool))
    assert found.shape == (1, 2, 8)
    assert found.isfinite().all()


def test_hashes_are_saved():
    for model in (ETA, SDIM):
        one, other = (testing.wake(model(schema(), dim=4, hidden=(6,))) for _ in range(2))
        other.load_state_dict(one.state_dict())
        assert torch.equal(other.inputs.poolings["seen"].directions, one.inputs.poolings["seen"].directions)


# -- DIEN, DIN's base -------------------------------------------------------------------------------------------------
def test_dien_is_its_last_live_state_the_sum_of_steps_its_product_with_the_target_and_the_other_features():
    for cell in ("augru", "agru", "aigru"):
        model = testing.wake(DIEN(schema(), dim=3, cell=cell, hidden=(4,)))
        batch = testing.batch(schema(), 4, 2)
        slots, block = model.inputs(batch), model.evolutions["seen"]
        target, (steps, mask) = torch.cat([slots["item"], slots["shelf"]], -1), slots.sequence("seen")
        once, other = slots.sides()
        total = torch.stack([steps[r, mask[r]].sum(0) for r in range(4)])
        both = lambda x: x.unsqueeze(1).expand(-1, 2, -1)  # noqa: E731
        found = [both(once), both(total), other, block(target, steps, mask), target * both(total)]
        wanted = model.heads(model.mlp(torch.cat(found, -1)))
        torch.testing.assert_close(model(batch)["click"], wanted["click"])


def test_diens_auxiliary_loss_by_hand():
    """With one item in all histories nothing drawn differs from what follows, so that only the first half is left."""
    model = testing.wake(DIEN(schema(), dim=3, hidden=(4,), alpha=2.0, auxiliary=(5,))).eval()
    batch = testing.batch(schema(), 5, 2)
    judge = model.judges["seen"]
    for key in ("item@seen", "shelf@seen"):
        batch[key] = (batch[key] > 0).int()
    slots, states = model._states(batch)
    (steps, mask), h = slots.sequence("seen"), states["seen"]
    pairs = [(r, t) for r in range(5) for t in range(4) if mask[r, t + 1]]
    right = [F.softplus(-judge(h[r, t][None], steps[r, t + 1][None])) for r, t in pairs]
    torch.testing.assert_close(model.losses(batch)["auxiliary"], 2 * torch.stack(right).mean())


@pytest.mark.parametrize("length", [0, 1])
def test_diens_auxiliary_loss_of_nothing_is_zero(length):
    model = DIEN(schema(), dim=3, hidden=(4,))
    batch = testing.batch(schema(), 3, 2, steps=1)
    for key in ("item@seen", "shelf@seen"):
        batch[key] = batch[key] * length
    found = model.losses(batch)["auxiliary"]
    assert found == 0
    found.backward()
    assert list(DIEN(schema(), alpha=0.0).losses(batch)) == ["click"]


def test_diens_negatives_are_live_steps_and_not_what_follows():
    model = testing.wake(DIEN(schema(), dim=3, hidden=(4,), auxiliary=(5,)))
    batch = testing.batch(schema(), 5, 2)
    seen = []
    judge = model.judges["seen"]
    judge.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    model.losses(batch)
    (steps, mask), drawn = model.inputs(batch).sequence("seen"), seen[1].flatten(0, 1)
    known = (drawn.unsqueeze(1) == steps[mask].unsqueeze(0)).all(-1).any(-1)
    assert known.all()


def test_the_base_of_din_sums_the_history():
    model = testing.wake(DINBase(schema(), dim=3, hidden=(4,)))
    batch = testing.batch(schema(), 4, 2)
    slots = model.inputs(batch)
    steps, mask = slots.sequence("seen")
    pooled = torch.stack([steps[r, mask[r]].sum(0) for r in range(4)]).unsqueeze(1).expand(4, 2, 6)
    user = slots["user"].unsqueeze(1).expand(4, 2, 3)
    x = torch.cat([user, pooled, slots["item"], slots["shelf"]], -1)
    torch.testing.assert_close(model(batch)["click"], model.heads(model.mlp(x))["click"])


# -- all of them ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", MODELS)
def test_behaviour_models_need_a_history_and_take_several(model):
    with pytest.raises(SchemaError, match=f"{model.__name__} needs a feature with role='history'"):
        model(testing.schema().without("watched"))
    two = testing.schema().replace(features=[*testing.schema().features, History("liked", of=("item_id",), max_len=3)])
    net, batch = testing.wake(model(two, dim=4, hidden=(6,))), testing.batch(two, 4, 2)
    before = net(batch)["click"]
    for key in ("item_id@watched", "item_id@liked"):
        other = {**batch, key: (batch[key] + 3) % 18 * (batch[key] > 0) + (batch[key] > 0)}
        assert (net(other)["click"] - before)[1:].abs().max() > 1e-5, key
        torch.testing.assert_close(net(other)["click"][0], before[0])
