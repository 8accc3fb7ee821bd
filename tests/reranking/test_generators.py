"""Generate and evaluate: each equation against a loop, nothing read of padding, and a planted effect of the list learned."""

import itertools
import math

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError
from recstack.models.reranking import eg_rerank, nar4rec
from recstack.models.reranking.eg_rerank import EGRerank
from recstack.models.reranking.nar4rec import NAR4Rec
from recstack.models.reranking.pier import PIER
from recstack.nn.lists.evaluator import ListEvaluator
from recstack.nn.lists.omnidirectional import Omnidirectional
from recstack.nn.lists.orders import by_candidate, page_value, placed
from recstack.nn.lists.permutations import SimHash, arrangements, hamming
from recstack.nn.lists.pointer import Pointer
from recstack.schema import Task
from recstack.testing import Case, batch

SMALL = {
    EGRerank: {"dim": 6, "width": 8, "hidden": (12,), "state": 5, "places": 3},
    NAR4Rec: {"dim": 6, "width": 8, "hidden": (12,), "places": 3, "dropout": 0.0},
    PIER: {"dim": 4, "hidden": (6,), "final": (8,), "items": 4, "places": 3, "keep": 6, "bits": 12},
}
EACH = pytest.mark.parametrize("model", SMALL, ids=lambda m: m.__name__)


def built(model, **options):
    return Case(model, {**SMALL[model], **options}).build()


# -- the evaluator, and what is answered ---------------------------------------------------------------------------------
def test_evaluator_reads_an_order_and_no_padding():
    torch.manual_seed(0)
    for kind in ("bigru", "transformer"):
        block = wake_block(ListEvaluator(kind, 8, (6,), max_list=4))
        x, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, True, True, False, False]])
        orders = torch.tensor(list(itertools.permutations(range(3)))[:4]).expand(2, -1, -1)
        orders = torch.cat([orders, torch.tensor([3, 4]).expand(2, 4, 2)], -1)
        many, there = placed(x.unsqueeze(1).expand(-1, 4, -1, -1), orders), mask.unsqueeze(1).expand(-1, 4, -1)
        together = block(many, there)
        for r, k in itertools.product(range(2), range(4)):
            alone = block(x[r, orders[r, k]].unsqueeze(0), mask[r : r + 1])
            torch.testing.assert_close(together[r, k][mask[r]], alone[0][mask[r]])
        turned = by_candidate(together, orders)[0]
        assert (turned[0] - turned[1]).abs().max() > 1e-3, "the order changes nothing"
        dirty = torch.where(mask.unsqueeze(-1), x, 1e4)
        torch.testing.assert_close(block(dirty, mask)[mask], block(x, mask)[mask])


def wake_block(block):
    with torch.no_grad():
        for p in block.parameters():
            p += 0.3 * torch.randn(p.shape)
    return block.eval()


def test_a_list_is_worth_its_probabilities_by_place():
    chance, mask = torch.tensor([[0.5, 0.2, 0.9]]), torch.tensor([[True, True, False]])
    torch.testing.assert_close(page_value(chance, mask), torch.tensor([0.5 + 0.2 / math.log2(3)]))


@EACH
@torch.no_grad()
def test_sorting_by_the_scores_gives_a_list_whose_values_are_the_evaluators(model):
    model = built(model)
    some = batch(model.schema, 9, 4, mask=True)
    seen = []
    model.answer, answer = lambda *a: seen.append(a) or answer(*a), model.answer
    found = model(some)["click"]
    logits, order, mask = seen[0]
    for r, n in enumerate(some["@mask"].sum(-1).tolist()):
        assert sorted(order[r, :n].tolist()) == list(range(n)), "a dead candidate stands before a live one"
        assert found[r, :n].argsort(descending=True).tolist() == order[r, :n].tolist()
        torch.testing.assert_close(found[r, :n].sort().values, logits["click"][r, :n].sort().values)
    assert mask is some["@mask"]
    assert (order != torch.arange(4)).any(), "nothing moves"


@pytest.mark.parametrize("model", [NAR4Rec, PIER], ids=lambda m: m.__name__)
@torch.no_grad()
def test_the_best_of_the_proposed_lists_is_answered(model):
    model = built(model)
    some = batch(model.schema, 6, 4)
    if isinstance(model, PIER):
        slots, x, mask, past = model._read(some)
        orders = model.propose(slots, mask)[0]
    else:
        (x, mask), past = model.vectors(some), ()
        orders = model.propose(x, mask)
    order = model(some)["click"].argsort(-1, descending=True)
    for r in range(6):
        worth = {}
        for one in orders[r]:
            more = tuple(t[r : r + 1] for t in past)
            p = model.evaluate(x[r : r + 1, one], mask[r : r + 1], *more)["click"][0].sigmoid()
            worth[tuple(one.tolist())] = sum(float(p[t]) / math.log2(t + 2) for t in range(4))
        assert worth[tuple(order[r].tolist())] == pytest.approx(max(worth.values()), abs=1e-5)


# -- EGRerank ------------------------------------------------------------------------------------------------------------
def test_clipped_ratio_against_a_loop():
    torch.manual_seed(0)
    new, old, gain = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3)
    where = torch.rand(4, 3) < 0.7
    values = []
    for r, t in where.nonzero().tolist():
        ratio = math.exp(float(new[r, t]) - float(old[r, t]))
        a = float(gain[r, t])
        values.append(-min(ratio * a, min(max(ratio, 0.8), 1.2) * a))
    found = eg_rerank.clipped(new, old, gain, 0.2, where)
    assert float(found) == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_returns_and_their_standing_among_samples_against_a_loop():
    reward = torch.tensor([[1.0, 2.0, 4.0]])
    assert eg_rerank.returns(reward, 0.5).tolist() == [[1 + 1 + 1, 2 + 2, 4]]
    assert eg_rerank.returns(reward, 0.0).tolist() == reward.tolist()
    gain = torch.rand(2, 5, 3)
    found = eg_rerank.standardised(gain)
    for r, t in itertools.product(range(2), range(3)):
        some = gain[r, :, t]
        std = ((some - some.mean()) ** 2).mean().sqrt()
        torch.testing.assert_close(found[r, :, t], (some - some.mean()) / std, rtol=1e-3, atol=1e-4)
    assert eg_rerank.standardised(torch.ones(1, 5, 2)).abs().max() == 0


@torch.no_grad()
def test_the_chances_of_all_pages_sum_to_one():
    torch.manual_seed(0)
    policy = wake_block(Pointer(4, (6,), 5, places=3))
    x, mask = torch.randn(1, 5, 4), torch.tensor([[True, True, True, True, False]])
    total, chances = 0.0, {}
    for page in itertools.permutations(range(4), 3):
        walk = policy(x, mask, lambda logit, place, page=page: torch.tensor([page[place]]))
        assert walk.order[0, :3].tolist() == list(page)
        assert walk.order[0, 4] == 4
        assert walk.left.tolist() == [[4, 3, 2]]
        chances[page] = float(walk.log_chance.sum().exp())
        total += chances[page]
    assert total == pytest.approx(1, abs=1e-5)
    assert max(chances.values()) > 2 * min(chances.values())


def test_the_older_policy_follows_in_training_only():
    model = built(EGRerank, renewal=0.25)
    some = batch(model.schema, 4, 4)
    was, now = ([p.clone() for p in m.parameters()] for m in (model.old, model.policy))
    model.eval().losses(some)
    assert all(torch.equal(a, b) for a, b in zip(was, model.old.parameters(), strict=True))
    model.train().losses(some)
    for a, b, c in zip(was, now, model.old.parameters(), strict=True):
        torch.testing.assert_close(c, 0.75 * a + 0.25 * b)


def test_the_policy_does_not_move_what_the_evaluator_reads():
    model = built(EGRerank).train()
    torch.manual_seed(0)
    model.losses(batch(model.schema, 4, 4))["policy"].backward()
    moved = {n.partition(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"policy"}


# -- NAR4Rec -------------------------------------------------------------------------------------------------------------
def test_likelihood_by_utility_against_a_loop():
    torch.manual_seed(0)
    log, u, weight = -torch.rand(3, 4) * 3, torch.tensor([0.5, -0.25, 0.0]), torch.rand(3, 4)
    weight[0, 2:] = 0
    log[0, 2:] = -1e9
    total = norm = 0.0
    for r, t in itertools.product(range(3), range(4)):
        if weight[r, t] == 0:
            continue
        p, w = math.exp(float(log[r, t])), abs(float(u[r])) * float(weight[r, t])
        total -= w * (math.log(p) if u[r] > 0 else math.log(1 - p))
        norm += w
    assert float(nar4rec.likelihood(log, u, weight)) == pytest.approx(total / norm, rel=1e-5)


def test_what_was_not_shown_is_no_place_of_the_list_but_can_be_chosen():
    model = built(NAR4Rec, places=4)
    some = batch(model.schema, 3, 4)
    some["click@label"] = torch.tensor([[1.0, math.nan, 0.0, 1.0], [0.0, 0.0, 0.0, math.nan], [1.0, 0.0, 0.0, 1.0]])
    x, mask = model.vectors(some)
    log = model.generate(x, mask)[1].detach()
    shown = [[0, 2, 3], [0, 1, 2], [0, 1, 2, 3]]
    worth = []
    for r, places in enumerate(shown):
        w = [1 / math.log2(t + 2) for t in range(len(places))]
        label = [float(some["click@label"][r, i]) for i in places]
        worth.append(sum(a * b for a, b in zip(w, label, strict=True)) / sum(w))
    total = norm = 0.0
    for r, places in enumerate(shown):
        u = worth[r] - sum(worth) / 3
        for t, i in enumerate(places):
            value = log[r, t, i] if u > 0 else torch.log1p(-log[r, t, i].exp())
            total, norm = total - abs(u) * float(value), norm + abs(u)
    assert float(model.losses(some)["generator"]) == pytest.approx(total / norm, rel=1e-4)
    assert (log.exp().sum(-1) - 1).abs().max() < 1e-5


@torch.no_grad()
def test_contrastive_decoding_against_a_loop():
    for alpha, pages in ((0.0, 1), (0.3, 5), (1.0, 3)):
        model = built(NAR4Rec, alpha=alpha, pages=pages)
        some = batch(model.schema, 5, 5, mask=True)
        x, mask = model.vectors(some)
        h, log = model.generate(x, mask)
        found = model.propose(x, mask)
        assert found.shape == (5, pages, 5)
        for r, n in enumerate(mask.sum(-1).tolist()):
            beam = [(0.0, [])]
            for t in range(min(3, n)):
                grown = []
                for total, chosen in beam:
                    for i in set(range(n)) - set(chosen):
                        near = max((float(torch.cosine_similarity(h[r, i], h[r, j], 0)) for j in chosen), default=0.0)
                        grown.append((total + (1 - alpha) * float(log[r, t, i].exp()) - alpha * near, [*chosen, i]))
                beam = sorted(grown, key=lambda page: -page[0])[:pages]
            beam += beam[:1] * (pages - len(beam))
            for order, (_, chosen) in zip(found[r].tolist(), beam, strict=True):
                rest = sorted(set(range(n)) - set(chosen), key=lambda i, r=r: -float(log[r, 0, i]))
                assert order[:n] == [*chosen, *rest]


# -- PIER ----------------------------------------------------------------------------------------------------------------
def test_arrangements_are_all_permutations_and_say_which_lists_they_fit():
    table, reach = arrangements(4, 2)
    assert len({tuple(row) for row in table.tolist()}) == 12
    for row, n in zip(table.tolist(), reach.tolist(), strict=True):
        assert sorted(row) == [0, 1, 2, 3]
        assert row[2:] == sorted(row[2:])
        assert n == max((t + 1 for t, i in enumerate(row) if t != i), default=0)
    assert (arrangements(4, 4)[1] <= 2).sum() == 2


def test_signatures_of_all_arrangements_by_brute_force():
    torch.manual_seed(0)
    table, _ = arrangements(4, 3)
    hashes, x = SimHash(5, 3, 16), torch.randn(2, 4, 5)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    found = hashes.arranged(x, mask, table)
    assert found.shape == (2, 24, 16)
    for r, (p, row) in itertools.product(range(2), enumerate(table.tolist())):
        total = torch.zeros(5)
        for t in range(3):
            total += hashes.weights[t] * x[r, row[t]] * mask[r, row[t]]
        bits = [1.0 if float(total @ hashes.directions[:, b]) > 0 else -1.0 for b in range(16)]
        assert found[r, p].tolist() == bits
        rows = torch.tensor(row[:3])
        assert torch.equal(hashes(x[r, rows], mask[r, rows]), found[r, p])
    others, weight = hashes.arranged(x[:, :3], mask[:, :3], table[:2, :3].clamp(max=2)), torch.rand(2, 2)
    distance = hamming(found, others, weight)
    for r, p in itertools.product(range(2), range(24)):
        naive = sum(float(weight[r, g]) * int((found[r, p] != others[r, g]).sum()) for g in range(2))
        assert float(distance[r, p]) == pytest.approx(naive, abs=1e-4)


@torch.no_grad()
def test_pier_keeps_the_arrangements_nearest_to_the_past_pages():
    model = built(PIER)
    some = batch(model.schema, 6, 5, seed=3, mask=True, steps=7)
    mask, (h,) = some["@mask"], model.schema.histories
    slots = model.inputs(some)
    near, far = model.propose(slots, mask)
    items = torch.cat([slots[name] for name in h.of], -1)
    steps, live = slots.sequence(h.name)
    hashes = model.hashes[h.name]

    def code(vectors):
        total = sum((e * v for e, v in zip(hashes.weights, vectors, strict=False)), torch.zeros(items.shape[-1]))
        return total @ hashes.directions > 0

    for r, n in enumerate(mask.sum(-1).tolist()):
        past = steps[r, : int(live[r].sum())]
        pages = []
        while len(past):
            pages.append(past[-3:])
            past = past[:-3]
        distance = {}
        for head in itertools.permutations(range(min(n, 4)), min(n, 3)):
            one = [*head, *(i for i in range(n) if i not in head)]
            # a page that is not full has its steps at the end of the page, as they would have been read
            own = code(items[r, one[:3]])
            distance[tuple(one)] = sum(
                int((own != code([torch.zeros_like(items[0, 0])] * (3 - len(page)) + list(page))).sum()) / (g + 1)
                for g, page in enumerate(pages)
            )
        wanted = sorted(distance.values())
        for found, values in ((near, wanted), (far, wanted[::-1])):
            kept = [tuple(one[:n]) for one in found[r].tolist()]
            most = min(6, len(distance))
            assert [distance[one] for one in kept[:most]] == pytest.approx(values[:most], abs=1e-5)
            assert len(set(kept[:most])) == most
            assert set(kept[most:]) <= {tuple(range(n))}, "what cannot be arranged stays as it came"


def test_without_a_past_the_order_that_came_and_its_neighbours_are_kept():
    model = built(PIER)
    some = batch(model.schema, 2, 4)
    for key in ("item_id@watched", "genre@watched"):
        some[key] = torch.zeros_like(some[key])
    near, far = model.propose(model.inputs(some), torch.ones(2, 4, dtype=torch.bool))
    assert torch.equal(near, far)
    assert near[0].tolist() == model.table[:6].tolist()
    assert model.losses(some)["contrast"].abs() < 1e-6


@torch.no_grad()
def test_omnidirectional_attention_is_its_equation():
    torch.manual_seed(0)
    block = wake_block(Omnidirectional(4, max_list=3))
    x, mask = torch.randn(1, 4, 2, 4), torch.tensor([[True, True, True, False]])
    whole, items = block(x, mask)
    places = block.places[[0, 1, 2]]
    every = torch.ones(1, 3, dtype=torch.bool)
    y = torch.zeros(3, 2, 4)
    for f in range(2):
        column = x[0, :3, f] + places
        y[:, f] = column + block.along_items(column.unsqueeze(0), every)[0]
    a = y.mean(0)
    torch.testing.assert_close(whole[0], (a + block.along_list(a.unsqueeze(0), every[:, :2])[0]).mean(0))
    for t in range(3):
        torch.testing.assert_close(items[0, t], (y[t] + block.along_item(y[t : t + 1], every[:, :2])[0]).mean(0))
    turned = block(x.flip(2), mask)
    torch.testing.assert_close(turned[0], whole)  # attributes have no order
    assert (block(x[:, [1, 0, 2, 3]], mask)[0] - whole).abs().max() > 1e-3  # items have


# -- errors, learning ----------------------------------------------------------------------------------------------------
@EACH
def test_the_first_task_must_be_binary(model):
    schema = testing.schema(tasks=(Task("stay", kind="regression"), Task("click")))
    with pytest.raises(ConfigError, match=f"{model.__name__} orders by its first task, which must be binary"):
        model(schema)


def test_options_that_make_no_sense_are_said():
    schema = testing.schema()
    with pytest.raises(ConfigError, match="places must be from 1 to the 5 items"):
        PIER(schema, places=6)
    with pytest.raises(ConfigError, match="have 3628800 arrangements; arrange fewer"):
        PIER(schema, items=10, places=10)
    with pytest.raises(ConfigError, match="alpha from 0 to 1"):
        NAR4Rec(schema, alpha=1.5)
    with pytest.raises(ConfigError, match="samples at least 2"):
        EGRerank(schema, samples=1)
    with pytest.raises(ConfigError, match="hidden one width at least"):
        EGRerank(schema, hidden=())


LOUD = torch.arange(20) % 3 == 0


def planted(order):
    """Who sees a loud item looks no further; loud items are clicked most. ``[R, L]`` ids in order → probabilities."""
    loud = LOUD[order]
    below = (loud.cumsum(-1) - loud.long()) > 0
    return torch.where(below, 0.03, torch.where(loud, 0.7, 0.5))


def lists(schema, seed, requests=64):
    some = batch(schema, requests, 4, seed)
    g = torch.Generator().manual_seed(seed)
    some["item_id"] = torch.stack([2 + torch.randperm(18, generator=g)[:4] for _ in range(requests)])
    some["click@label"] = torch.bernoulli(planted(some["item_id"]), generator=g)
    return some


LESSON = {
    EGRerank: ({"dim": 4, "width": 16, "hidden": (16,), "places": 4}, 60),
    NAR4Rec: ({"dim": 4, "width": 16, "hidden": (16,), "places": 4, "dropout": 0.0, "pages": 12}, 120),
    PIER: ({"dim": 4, "hidden": (8,), "final": (16,), "items": 4, "places": 2, "keep": 10}, 80),
}


@pytest.mark.slow
@EACH
def test_a_planted_effect_of_the_list_is_learned(model):
    """Loud items have the most clicks and belong at the end: no score of an item by itself can find that."""
    schema = testing.keys_only(testing.schema(), ("item", "history"))
    options, steps = LESSON[model]
    torch.manual_seed(0)
    model = model(schema, **options)
    rows, test = [lists(schema, s) for s in range(steps)], lists(schema, 10_000, 300)
    model.fit(rows, epochs=1, optimizer="adam", lr=0.01, progress=False)
    with torch.no_grad():
        order = model.eval()(test)["click"].argsort(-1, descending=True)
    ids = test["item_id"]
    every = torch.tensor(list(itertools.permutations(range(4))))
    values = planted(ids[:, every]).sum(-1)  # [R, 24]
    by_clicks = planted(ids.gather(1, LOUD[ids].long().argsort(dim=-1, descending=True, stable=True))).sum(-1).mean()
    chance, best = values.mean(), values.amax(1).mean()
    found = planted(ids.gather(1, order)).sum(-1).mean()
    share = float((found - chance) / (best - chance))
    assert by_clicks < chance
    assert share > 0.7, f"{share:.2f} of the way from chance to the best list"
