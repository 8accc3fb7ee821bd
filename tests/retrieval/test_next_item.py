"""Retrievers that read a history: what is trained at every step, against slow loops and against shorter histories."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import recstack as rs
from recstack import losses, testing
from recstack.candidates import Candidates
from recstack.errors import ConfigError, SchemaError
from recstack.models.next_item import NextItem, balance
from recstack.nn.sequence.capsules import routed
from recstack.nn.sequence.lengths import GROUPS
from recstack.nn.sequence.recurrent import LSTM
from recstack.nn.sequence.sessions import begins
from recstack.rules import Diversity, PageContext

IDS = testing.keys_only(testing.schema(), ("history",))
SMALL = {"dim": 6}
HISTORY = "item_id@watched"


def model(name, schema=IDS, seed=0, **options):
    torch.manual_seed(seed)
    return testing.wake(getattr(rs.retrieval, name)(schema, **(SMALL | options))).eval()


def timed(schema):
    (history,) = schema.histories
    steps = rs.History(history.name, of=history.of, max_len=history.max_len, timed=True)
    return schema.replace(features=[steps if f.name == history.name else f for f in schema.features])


# -- the blocks ------------------------------------------------------------------------------------------------------
def slow_routing(votes, prefix, logits, alive, iterations):
    """One prefix, one interest, one step at a time; `votes` of the rounds before the last are cut from the graph."""
    r, p, k, d = votes.shape[0], prefix.shape[1], logits.shape[0], votes.shape[-1]
    out = torch.zeros(r, p, k, d, dtype=votes.dtype)
    for row in range(r):
        for which in range(p):
            b = logits.clone()
            for round_ in range(iterations):
                ê = votes[row] if round_ == iterations - 1 else votes[row].detach()
                live = [j for j in range(k) if alive[row, which, j]]
                found = []
                for j in live:
                    total = torch.zeros(d, dtype=votes.dtype)
                    for i in prefix[row, which].nonzero().flatten().tolist():
                        w = b[j, i].exp() / sum(b[m, i].exp() for m in live)
                        total = total + w * ê[j % len(ê), i]
                    length = (total @ total + 1e-24).sqrt()
                    found.append(total * length / (1 + length**2))
                b = b.clone()
                for j, u in zip(live, found, strict=True):
                    for i in range(b.shape[1]):
                        b[j, i] += (u @ ê[j % len(ê), i]).detach()
            for j, u in zip(live, found, strict=True):
                out[row, which, j] = u
    return out


@pytest.mark.parametrize("shared", [True, False])
def test_routing_is_the_slow_loop_and_learns_in_its_last_round_only(shared):
    g = torch.Generator().manual_seed(0)
    votes = torch.randn(2, 1 if shared else 3, 4, 5, generator=g).requires_grad_()
    prefix = torch.tensor([[True, True, False, False], [True, True, True, True]]).expand(2, 2, 4)
    alive = torch.tensor([[True, True, False], [True, True, True]]).expand(2, 2, 3)
    logits, slope = torch.randn(3, 4, generator=g), torch.randn(2, 2, 3, 5, generator=g)
    found = [f(votes, prefix, logits, alive, 3) for f in (routed, slow_routing)]
    assert_close(*found)
    assert_close(*[torch.autograd.grad(u, votes, slope)[0] for u in found])


def test_an_lstm_begins_anew_where_told():
    torch.manual_seed(0)
    block, x = LSTM(3, 5), torch.randn(2, 6, 3)
    begin = torch.tensor([[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    whole = torch.nn.LSTM(3, 5, batch_first=True)
    for name, value in block.cell.named_parameters():
        getattr(whole, f"{name}_l0").data = value.data
    states = block(x, begin)
    assert_close(states[1], whole(x[1])[0])
    assert_close(states[0], torch.cat([whole(x[0, :3])[0], whole(x[0, 3:])[0]]))


def test_sessions_begin_after_a_gap_or_after_so_many_steps():
    g = torch.Generator().manual_seed(0)
    times = torch.randint(1, 100, (5, 12), generator=g).cumsum(1)
    found = begins(times, torch.ones(5, 12, dtype=torch.bool), 60, 3)
    for row in range(5):
        begin = 0
        for t in range(12):
            if t and (times[row, t] - times[row, t - 1] > 60 or t - begin == 3):
                begin = t
            assert found[row, t] == begin


# -- the losses ------------------------------------------------------------------------------------------------------
def test_bpr_max_is_the_slow_loop():
    g = torch.Generator().manual_seed(0)
    score = torch.randn(4, 6, generator=g, dtype=torch.float64).requires_grad_()
    label, where = torch.zeros(4, 6), torch.rand(4, 6, generator=g) < 0.7
    label[:, 0], where[:, 0] = 1, torch.tensor([True, True, True, False])
    total = []
    for r in range(3):  # the last list has no live positive
        drawn = [j for j in range(1, 6) if where[r, j]]
        share = torch.stack([score[r, j] for j in drawn]).softmax(0)
        inner = sum(s * torch.sigmoid(score[r, 0] - score[r, j]) for s, j in zip(share, drawn, strict=True))
        total.append(-inner.log() + 0.3 * sum(s * score[r, j] ** 2 for s, j in zip(share, drawn, strict=True)))
    slow, fast = torch.stack(total).mean(), losses.bpr_max(score, label, penalty=0.3, where=where)
    assert_close(fast, slow)
    assert_close(*[torch.autograd.grad(x, score)[0] for x in (fast, slow)])


def test_drawn_items_are_shared_by_neighbours_and_are_never_the_rows_own():
    g = torch.Generator().manual_seed(0)
    user, item, log_q = torch.randn(5, 3, generator=g), torch.randn(7, 3, generator=g), torch.randn(7, generator=g)
    target, drawn = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([[0, 6, 1], [4, 4, 2]])
    score, where = losses.drawn_scores(user, item, target, drawn, log_q)
    for row in range(5):
        ids = [int(target[row]), *drawn[row // 3].tolist()]
        assert_close(score[row], torch.stack([user[row] @ item[i] - log_q[i] for i in ids]))
        assert where[row].tolist() == [True, *(i != ids[0] for i in ids[1:])]


@pytest.mark.parametrize("name", ["MIND", "ComiRecDR", "ComiRecSA", "SDM", "STAMP", "DUPN"])
def test_histories_of_like_length_are_read_together_and_nothing_changes(name, monkeypatch):
    (history,) = IDS.histories
    schema = IDS.with_features(rs.History(history.name, of=history.of, max_len=12))
    one, batch = model(name, schema, loss="softmax"), testing.batch(schema, 20, 2, steps=12)
    lengths = torch.tensor([1, 2, 3, 4, 5] * 3 + [11, 12, 9, 10, 0])
    batch[HISTORY] = batch[HISTORY].clamp(min=1) * (torch.arange(12) < lengths.unsqueeze(-1))
    asked, read = [], one.interests
    monkeypatch.setattr(one, "interests", lambda some, prefix: asked.append(tuple(prefix.shape)) or read(some, prefix))
    grouped = one.losses(testing.to_jagged(batch, schema))["next"]
    assert [shape[1] for shape in asked] == [2, 3, 5, 12]
    whole = one.losses(batch)["next"]
    assert asked[GROUPS:] == [(20, 12, 12)]
    assert_close(grouped, whole)
    given = list(one.parameters())
    pairs = zip(*(torch.autograd.grad(loss, given, allow_unused=True) for loss in (grouped, whole)), strict=True)
    for mine, other in pairs:
        assert (mine is None) == (other is None)
        if mine is not None:
            assert_close(mine, other)


@pytest.mark.parametrize("name", ["SASRec", "HSTU", "MIND"])
def test_each_live_step_looks_for_the_next_among_all_items(name):
    one, batch = model(name, loss="softmax"), testing.batch(IDS, 5, 3)
    states, _ = one.states(batch)
    items = one.item_vectors({"item_id": torch.arange(20)})
    slow = []
    for row in range(5):
        steps = [i for i in batch[HISTORY][row].tolist() if i]
        follow = [*steps[1:], int(batch["item_id"][row, 0]) if batch["click@label"][row, 0] > 0 else 0]
        for t, i in enumerate(follow[: len(steps)]):
            if i > 1:
                state = states[row, t] if states.dim() == 3 else states[row, t][(states[row, t] @ items[i]).argmax()]
                slow.append(-(items[2:] @ state).log_softmax(0)[i - 2])
    assert_close(one.losses(batch)["next"], torch.stack(slow).mean())


def test_what_is_hidden_from_bert4rec_is_all_it_learns():
    """Nothing is hidden but the last: the loss is that of what it answers when it is asked."""
    one, batch = model("BERT4Rec", hidden=0.0), testing.batch(IDS, 6, 2)
    batch["click@label"][:] = 1
    batch["item_id"] = batch["item_id"].clamp(min=2)
    items = one.item_vectors({"item_id": torch.arange(2, 20)})
    wanted = batch["item_id"][:, 0].long() - 2
    assert_close(one.losses(batch)["hidden"], F.cross_entropy((one.user_vectors(batch) @ items.T).squeeze(1), wanted))


# -- prefixes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["GRU4Rec", "HSTU", "LatentCross", "STAMP", "MIND", "ComiRecDR", "ComiRecSA", "SDM"])
def test_a_state_is_the_answer_to_the_shorter_history(name):
    schema = timed(IDS)
    one = model(name, schema, **({"session": 3, "gap": 90.0} if name == "SDM" else {}))
    batch = testing.batch(schema, 4, 2, steps=6, times=True)
    batch["@time@watched"] = batch["@time@watched"] + 100 * (torch.arange(6) > 3)
    del batch["@time"]
    states, mask = one.states(batch)
    for t in range(6):
        cut = {k: v[:, : t + 1] if k.endswith("@watched") else v for k, v in batch.items()}
        there = mask[:, t]
        wanted = states[:, t] if states.dim() == 4 else states[:, t].unsqueeze(1)
        if name in ("HSTU", "LatentCross") and t < 5:  # they know when the next step was
            cut["@time"] = batch["@time@watched"][:, min(t + 1, 5)]
            there = mask[:, t + 1]
        assert_close(one.user_vectors(cut)[there], wanted[there])


def test_hstu_compares_directions_at_a_temperature():
    one, batch = model("HSTU", temperature=0.5), testing.batch(IDS, 5, 3)
    items = one.item_vectors({"item_id": torch.arange(2, 20)})
    asked = one.user_vectors(batch).norm(dim=-1)[batch[HISTORY].bool().any(1)]
    assert_close(items.norm(dim=-1), torch.ones(18))
    assert_close(asked, torch.full_like(asked, 2.0))


def test_what_comirec_routes_at_first_is_not_squashed_to_nothing():
    torch.manual_seed(0)
    fresh = rs.retrieval.ComiRecDR(IDS)
    ids = torch.arange(2, 8).expand(1, 6)
    assert (fresh.user_vectors({HISTORY: ids.int()}).norm(dim=-1) > 0.1).all()


def test_longer_histories_have_more_interests():
    one = model("MIND", interests=4)
    ids = torch.arange(2, 10).expand(4, 8) * (torch.arange(8) < torch.tensor([[0], [3], [4], [8]]))
    users = one.user_vectors({HISTORY: ids.int()})
    assert [len(torch.unique(u, dim=0)) for u in users] == [1, 1, 2, 3]


@pytest.mark.parametrize("clicks_only", [True, False])
def test_every_event_is_learned_once(clicks_only):
    """All but the first of a user, whatever was shown in between; windows of 4 over up to 15 clicks."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(8), 30)
    click = (rng.random(240) < 0.4) if clicks_only else np.ones(240, bool)
    history = rs.History("clicked", of=("item",), max_len=4, where="click" if clicks_only else None)
    schema = rs.Schema(
        [rs.Categorical("user", "user"), rs.Categorical("item", "item"), history], [rs.Task("click")], time="at"
    )
    data = {"user": user, "item": np.arange(240), "click": click.astype(int), "at": np.arange(240)}  # no item twice
    log = rs.Log(data, schema)
    encoder = rs.Encoder(schema).fit(log)
    columns = encoder.encode(log)
    chosen = rs.retrieval.SASRec(encoder.schema, dim=4).training_columns(columns)
    learned = []
    for row in range(len(chosen)):
        batch = chosen.batch(slice(row, row + 1), padded=True)
        learned += batch["item@clicked"][0, 1:].tolist() if batch["item@clicked"].shape[1] > 1 else []
        learned += [int(batch["item"])] * bool(batch["click@label"] == 1)
    wanted = [i for u in range(8) for i in columns.item_ids[(user == u) & click][1:].tolist()]
    first = {int(columns.item_ids[(user == u) & click][0]) for u in range(8)}
    assert sorted(i for i in learned if i and i not in first) == sorted(wanted)
    assert len(chosen) <= sum(-(-((user == u) & click).sum() // 4) + 1 for u in range(8))


# -- single models ---------------------------------------------------------------------------------------------------
def test_youtube_takes_as_much_of_everyone_and_forgets_the_age_when_asked():
    world = testing.communities(users=10, each=6)
    schema = timed(world.log.schema)
    log = rs.Log(world.log.events, schema, implicit=True)
    encoder = rs.Encoder(schema).fit(log)
    columns = encoder.encode(log)
    one = testing.wake(rs.retrieval.YouTubeDNN(encoder.schema, dim=4, hidden=(8, 6), examples=2, loss="softmax")).eval()
    one.prepare(columns)
    chosen = one.training_columns(columns)
    assert np.bincount(chosen.user_ids)[2:].tolist() == [2] * 10
    new, old = chosen.batch(slice(None)), chosen.batch(slice(None))
    assert "@time" in new
    old["@time"] = torch.zeros_like(old["@time"])
    assert one.losses(new)["next"] != one.losses(old)["next"]
    assert torch.equal(one.user_vectors(new), one.user_vectors(old))


def test_popular_items_are_drawn_more_often():
    world = testing.communities()
    encoder = rs.Encoder(world.log.schema).fit(world.log)
    columns = encoder.encode(world.log)
    one = rs.retrieval.GRU4Rec(encoder.schema, dim=4, loss="sampled_softmax", negatives=4, alpha=0.5)
    one.prepare(columns)
    met = np.bincount(columns.item_ids)[2:] ** 0.5
    assert_close(one.log_share.exp(), torch.from_numpy(met / met.sum()).float())


def test_wrong_options_are_told_in_a_sentence():
    with pytest.raises(ConfigError, match=r"Unknown loss 'softmx'\. Did you mean 'softmax'"):
        rs.retrieval.SASRec(IDS, loss="softmx")
    with pytest.raises(SchemaError, match="'price' has role='item'; give context="):
        rs.retrieval.LatentCross(testing.schema(), context=("price",))


# -- diversity -------------------------------------------------------------------------------------------------------
def test_diversity_is_the_greedy_loop():
    g = torch.Generator().manual_seed(0)
    genre = torch.randint(0, 4, (30,), generator=g)
    ids = torch.stack([torch.randperm(28, generator=g)[:9] + 2 for _ in range(5)])
    scores = torch.rand(5, 9, generator=g).sort(descending=True).values
    found = Diversity(0.2, "genre")(Candidates(ids, scores), PageContext(4, attributes={"genre": genre}))
    for row in range(5):
        left, page = list(range(9)), []
        for _ in range(4):
            alike = [sum(int(genre[ids[row, i]] == genre[ids[row, j]] != 0) for j in page) for i in left]
            best = max(zip(left, alike, strict=True), key=lambda x: scores[row, x[0]] - 0.2 * x[1])[0]
            page.append(best)
            left.remove(best)
        assert found.ids[row].tolist() == ids[row, page + left].tolist()
    with pytest.raises(ConfigError, match="finite weight"):
        Diversity(-1.0, "genre")


@pytest.mark.parametrize(("name", "t"), [("gbce", 0.75), ("bce", 0.0)])
def test_where_nothing_is_known_negatives_pull_as_hard_as_their_positive(name, t):
    k, items = 16, 101
    score = torch.zeros(3, 1 + k, requires_grad=True)
    label = F.one_hot(torch.zeros(3, dtype=torch.long), 1 + k).float()
    shifted = score + balance(k, items, t)
    value = losses.gbce(shifted, label, n_items=items, t=t) if name == "gbce" else losses.bce(shifted, label)
    (slope,) = torch.autograd.grad(value, score)
    assert_close(slope[:, 1:].sum(-1), -slope[:, 0])


def test_sasrec_answers_with_its_last_state():
    one, batch = model("SASRec"), testing.batch(IDS, 6, 2, steps=6)
    ids = next(value for name, value in batch.items() if name.endswith("@watched"))
    ids[0] = 0  # nothing met
    last = NextItem.user_vectors(one, batch)
    assert_close(one.user_vectors(batch), last)
    assert not last[0].any()
    assert last[1:].any(-1).all()
