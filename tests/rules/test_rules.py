"""Rules against naive loops over single lists, and the laws of all rules at once."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack import bundle
from recstack.candidates import Candidates
from recstack.errors import ConfigError, DataError
from recstack.rules import (
    DPP,
    MMR,
    Boost,
    Calibrated,
    CategoryCap,
    Coverage,
    Diversity,
    FairCo,
    FairExposure,
    FairTopK,
    Filter,
    Freshness,
    Limit,
    MinimumGap,
    PageContext,
    Personalised,
    Pins,
    Repeats,
    Reserve,
    RoundRobin,
    Transform,
    XQuAD,
    moved,
)
from recstack.rules.fair_topk import minimum_protected

ITEMS = 30


def world(rows=5, width=12, k=6, seed=0):
    """Sorted candidates with empty places (row 0 is all empty), item vectors (some missing), a genre (some without)."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(ITEMS - 1, generator=chance)[:width] + 1 for _ in range(rows)])
    mask = torch.rand(rows, width, generator=chance) < 0.85
    mask[0] = False
    scores = torch.randn(rows, width, generator=chance)
    vectors = torch.randn(ITEMS - 2, 4, generator=chance)  # the last two ids are new items
    vectors[5], vectors[6, 2] = 0, float("nan")
    genre = torch.randint(0, 4, (ITEMS - 2,), generator=chance)
    tags = torch.randint(0, 4, (ITEMS - 2, 2), generator=chance)
    age = torch.rand(ITEMS - 2, generator=chance) * 20
    history = torch.randint(0, ITEMS, (rows, 5), generator=chance)
    history[-1] = 0
    bait = torch.rand(rows, width, generator=chance).where(torch.rand(rows, width, generator=chance) < 0.7, torch.nan)
    candidates = Candidates(ids, scores, mask, {"ranker": scores, "bait": bait}).top()
    return candidates, PageContext(k, vectors, {"genre": genre, "tags": tags, "age": age}, history)


def alone(context, r):
    return dataclasses.replace(context, history=context.history[r : r + 1])


RULES = [
    MMR(0.6),
    MMR(0.3, column="genre"),
    MMR(0.5, window=2),
    MMR(0.5, window=1),
    MMR(0.0),
    CategoryCap("genre", 1),
    CategoryCap("genre", 2, strict=True),
    Filter("genre", (1, 3)),
    Pins(items=(3, 8, 12, 20), places=(2, 0, 9, 1)),
    Diversity(0.4, column="genre"),
    DPP(0.6),
    DPP(0.2, window=3),
    DPP(0.5, window=1),
    DPP(0.0),
    XQuAD(0.4, column="tags"),
    Coverage(2.0, column="tags"),
    Calibrated(0.3, column="tags"),
    RoundRobin("genre"),
    MinimumGap("genre", 3),
    MinimumGap("genre", 4, 2),
    FairTopK("genre", (2, 3), share=0.6, significance=0.2),
    Limit("bait", 0.5),
    Limit("age", 9.0, strict=False),
    Reserve("genre", (1, 2), places=(4, 1)),
    Boost("genre", (1, 3), add=0.7),
    Freshness("age", 5.0, weight=1.5),
    Personalised(likeness=0.5, sources={"bait": 0.3}),
    Transform("rank"),
]
SCORES = (Boost, Freshness, Repeats, Personalised, Transform)
KEEPING = [r for r in RULES if not isinstance(r, Filter) and not getattr(r, "strict", False)]


def live(candidates, r):
    return [
        (int(i), float(s))
        for i, s, m in zip(candidates.ids[r], candidates.scores[r], candidates.mask[r], strict=True)
        if m
    ]


def genre_of(context, item):
    column = context.attributes["genre"]
    return int(column[item]) if item < len(column) else 0


def cosine(context, a, b):
    vectors = [context.vectors[i].tolist() if i < len(context.vectors) else [0.0] for i in (a, b)]
    for v in vectors:
        if not all(map(math.isfinite, v)) or not any(v):
            return 0.0
    dot = sum(x * y for x, y in zip(*vectors, strict=True))
    return dot / math.prod(math.sqrt(sum(x * x for x in v)) for v in vectors)


def naive_mmr(rule, items, context):
    score = dict(items)
    low, high = (min(score.values()), max(score.values())) if items else (0, 0)
    gain = {i: (s - low) / (high - low) if high > low else 1.0 for i, s in items}
    page, rest = [], [i for i, _ in items]
    while rest and len(page) < context.k:
        chosen = page if rule.window is None else page[-rule.window :]

        def worth(i, chosen=chosen):
            if rule.column:
                like = [float(genre_of(context, i) == genre_of(context, j) != 0) for j in chosen]
            else:
                like = [cosine(context, i, j) for j in chosen]
            return rule.relevance * gain[i] - (1 - rule.relevance) * max(like, default=0.0)

        page.append(max(rest, key=worth))
        rest.remove(page[-1])
    return page + rest


def naive_cap(rule, items, context):
    kept, over, count = [], [], {}
    for i, _ in items:
        genre = genre_of(context, i)
        (over if genre and count.get(genre, 0) >= rule.most else kept).append(i)
        count[genre] = count.get(genre, 0) + 1
    return kept if rule.strict else kept + over


def naive_pins(rule, items, context):
    present = [i for i, _ in items]
    page = [i for i in present if i not in rule.items]
    for place, item in sorted(zip(rule.places, rule.items, strict=True)):
        if item in present:
            page.insert(place, item)
    return page


def unit(items):
    score = dict(items)
    low, high = (min(score.values()), max(score.values())) if items else (0, 0)
    return {i: (s - low) / (high - low) if high > low else 1.0 for i, s in items}


def one_by_one(items, k, worth):
    """Places filled with the item of the highest worth(item, page)."""
    page, rest = [], [i for i, _ in items]
    while rest and len(page) < k:
        page.append(max(rest, key=lambda i: worth(i, page)))
        rest.remove(page[-1])
    return page + rest


def shares(context, item):
    values = set(context.attributes["tags"][item].tolist()) - {0} if 0 < item < ITEMS - 2 else set()
    return {c: 1 / len(values) for c in values}


def summed(context, items):
    total = {}
    for i in items:
        for c, share in shares(context, i).items():
            total[c] = total.get(c, 0.0) + share
    return total


def normal(total):
    return {c: x / sum(total.values()) for c, x in total.items()}


def interest(context, items):
    return normal(summed(context, context.history[0].tolist()) or summed(context, [i for i, _ in items]))


def naive_diversity(rule, items, context):
    def worth(i, page):
        return dict(items)[i] - rule.weight * sum(genre_of(context, i) == genre_of(context, j) != 0 for j in page)

    return one_by_one(items, context.k, worth)


def naive_dpp(rule, items, context):
    def likeness(i, j):
        known = [n < len(context.vectors) and cosine(context, n, n) > 0 for n in (i, j)]
        return 1.0 if i == j else (1 + cosine(context, i, j)) / 2 if all(known) else 0.0

    def variance(i, given):  # the Schur complement
        across = torch.tensor([likeness(i, j) for j in given], dtype=torch.float64)
        square = torch.tensor([[likeness(a, b) for a in given] for b in given], dtype=torch.float64)
        return 1.0 if not given else 1.0 - float(across @ torch.linalg.pinv(square, hermitian=True) @ across)

    relevance, held, page, rest = unit(items), [], [], [i for i, _ in items]
    while rest and len(page) < context.k:
        worth = {
            i: rule.relevance * relevance[i] + (1 - rule.relevance) * math.log(max(variance(i, held), 1e-10))
            for i in rest
        }
        page.append(max(rest, key=lambda i, worth=worth: worth[i]))
        rest.remove(page[-1])
        if len(held) == rule.window:
            held.pop(0)
        if variance(page[-1], held) >= 1e-10:
            held.append(page[-1])
    return page + rest


def naive_xquad(rule, items, context):
    relevance, wanted = unit(items), interest(context, items) if items else {}

    def worth(i, page):
        served = sum(
            w
            * relevance[i]
            * shares(context, i).get(c, 0.0)
            * math.prod(1 - relevance[j] * shares(context, j).get(c, 0.0) for j in page)
            for c, w in wanted.items()
        )
        return rule.relevance * relevance[i] + (1 - rule.relevance) * served

    return one_by_one(items, context.k, worth)


def covered(rule, relevance, wanted, page, context):
    have = summed(context, page)
    return sum(relevance[i] for i in page) + rule.weight * sum(
        w * math.log1p(have.get(c, 0)) for c, w in wanted.items()
    )


def naive_coverage(rule, items, context):
    relevance, wanted = unit(items), interest(context, items) if items else {}
    return one_by_one(items, context.k, lambda i, page: covered(rule, relevance, wanted, [*page, i], context))


def naive_calibrated(rule, items, context):
    p, relevance = normal(summed(context, context.history[0].tolist())), unit(items)
    if not p:
        return [i for i, _ in items]

    def worth(i, page):
        q = normal(summed(context, [*page, i]))
        divergence = sum(w * math.log(w / (0.99 * q.get(c, 0.0) + 0.01 * w)) for c, w in p.items())
        return rule.relevance * relevance[i] - (1 - rule.relevance) * divergence

    return one_by_one(items, context.k, worth)


def naive_turns(rule, items, context):
    queues = {}
    for n, (i, _) in enumerate(items):
        queues.setdefault(genre_of(context, i) or -1 - n, []).append(i)
    page = []
    while any(queues.values()):
        page += [queue.pop(0) for queue in queues.values() if queue]
    return page


def naive_gap(rule, items, context):
    def fits(i, page):
        genres = [genre_of(context, j) for j in page[-(rule.window - 1) :]]
        return genre_of(context, i) == 0 or genres.count(genre_of(context, i)) < rule.most

    return one_by_one(items, context.k, fits)  # max() takes the first


def naive_fair(rule, items, context):
    page, rest = [], [i for i, _ in items]
    needed = minimum_protected(min(context.k, 12), rule.share, rule.significance)
    while rest and len(page) < context.k:
        some = [i for i in rest if genre_of(context, i) in rule.protected]
        short = sum(genre_of(context, i) in rule.protected for i in page) < needed[len(page)]
        page.append(some[0] if short and some else rest[0])
        rest.remove(page[-1])
    return page + rest


def naive_limit(rule, items, context):
    def bad(i):
        given = (
            context.bait.get(i) if rule.of == "bait" else float(context.attributes["age"][i]) if i < ITEMS - 2 else 0
        )
        return given > rule.most

    return [i for i, _ in items if not bad(i)] + ([] if rule.strict else [i for i, _ in items if bad(i)])


def naive_reserve(rule, items, context):
    page = [i for i, _ in items]
    for place in sorted(rule.places):
        wanted = [i for i in page[place:] if genre_of(context, i) in rule.values]
        if wanted:
            page.remove(wanted[0])
            page.insert(place, wanted[0])
    return page


def naive_scores(rule, items, context):
    age = {i: float(context.attributes["age"][i]) if i < ITEMS - 2 else 0.0 for i, _ in items}
    if isinstance(rule, Boost):
        new = {i: s + rule.add * (genre_of(context, i) in rule.values) for i, s in items}
    elif isinstance(rule, Freshness):
        new = {i: s + rule.weight * 0.5 ** (age[i] / rule.half_life) for i, s in items}
    elif isinstance(rule, Personalised):
        said = unit([(i, s) for i, s in context.bait.items() if not math.isnan(s)])
        met = [j for j in context.history[0].tolist() if 0 < j < len(context.vectors) and cosine(context, j, j) > 0]
        profile = sum((torch.nn.functional.normalize(context.vectors[j], dim=0) for j in met), torch.zeros(4))

        def like(i):
            if i >= len(context.vectors) or not met or cosine(context, i, i) == 0:
                return 0.0
            return float(torch.nn.functional.cosine_similarity(profile, context.vectors[i], dim=0))

        new = {i: r + rule.likeness * like(i) + 0.3 * said.get(i, 0.0) for i, r in unit(items).items()}
    else:
        new = dict(items)
    return sorted(new, key=lambda i: -new[i])


LOOPS = {
    MMR: naive_mmr,
    CategoryCap: naive_cap,
    Pins: naive_pins,
    Filter: lambda rule, items, context: [i for i, _ in items if genre_of(context, i) not in rule.values],
    Diversity: naive_diversity,
    DPP: naive_dpp,
    XQuAD: naive_xquad,
    Coverage: naive_coverage,
    Calibrated: naive_calibrated,
    RoundRobin: naive_turns,
    MinimumGap: naive_gap,
    FairTopK: naive_fair,
    Limit: naive_limit,
    Reserve: naive_reserve,
    **dict.fromkeys(SCORES, naive_scores),
}


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("k", [1, 6, 40])
def test_a_rule_is_its_loop(rule, k):
    for seed in range(2):
        candidates, context = world(k=k, seed=seed)
        after = rule(candidates, context)
        for r in range(len(candidates)):
            own, ids = alone(context, r), candidates.ids[r].tolist()
            object.__setattr__(
                own, "bait", {i: s for i, s in zip(ids, candidates.source["bait"][r].tolist(), strict=True) if i}
            )
            assert [i for i, _ in live(after, r)] == LOOPS[type(rule)](rule, live(candidates, r), own)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_scores_and_sources_travel_with_their_items_and_empty_places_are_last(rule):
    candidates, context = world()
    after = rule(candidates, context)
    for r in range(len(candidates)):
        assert dict(live(after, r)).keys() <= dict(live(candidates, r)).keys()
        assert not after.mask[r].int().diff().gt(0).any()
    before = {(r, i): s for r in range(len(candidates)) for i, s in live(candidates, r)}
    for r, place in after.mask.nonzero().tolist():
        assert float(after.source["ranker"][r, place]) == before[r, int(after.ids[r, place])]
    if not isinstance(rule, SCORES):
        torch.testing.assert_close(after.source["ranker"][after.mask], after.scores[after.mask])


@pytest.mark.parametrize("rule", KEEPING, ids=repr)
def test_nothing_is_lost_or_invented(rule):
    candidates, context = world()
    after = rule(candidates, context)
    assert torch.equal(after.ids.sort(1).values, candidates.ids.sort(1).values)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_requests_do_not_touch_each_other_and_more_padding_changes_nothing(rule):
    candidates, context = world()
    after = rule(candidates, context)
    for r in range(len(candidates)):
        ids = torch.nn.functional.pad(candidates.ids[r : r + 1], (0, 5), value=9)
        scores = torch.nn.functional.pad(candidates.scores[r : r + 1], (0, 5), value=99.0)
        mask = torch.nn.functional.pad(candidates.mask[r : r + 1], (0, 5))
        source = {n: torch.nn.functional.pad(v[r : r + 1], (0, 5)) for n, v in candidates.source.items()}
        one = rule(Candidates(ids, scores, mask, source), alone(context, r))
        assert [i for i, _ in live(one, 0)] == [i for i, _ in live(after, r)]
        assert [s for _, s in live(one, 0)] == pytest.approx([s for _, s in live(after, r)])


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_stays_nothing(rule, shape):
    _, context = world()
    context = dataclasses.replace(context, history=context.history[: shape[0]])
    empty = torch.zeros(shape)
    empty = Candidates(empty.long(), empty, source={"bait": empty})
    assert rule(empty, context).ids.shape == shape


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_is_remembered(rule, tmp_path):
    bundle.write(tmp_path / "b", {"rule.0": rule.to_piece()})
    piece = bundle.read(tmp_path / "b").piece("rule.0")
    assert bundle.resolve(piece.class_path).from_piece(piece) == rule


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 12))
@settings(max_examples=10, deadline=None)
def test_only_what_was_proposed_is_shown_whatever_the_scores(seed, width, k):
    chance = torch.Generator().manual_seed(seed)
    candidates, context = world(rows=4, width=width, k=k, seed=seed)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, 1.0])
    drawn = odd[torch.randint(5, candidates.ids.shape, generator=chance)]
    candidates = Candidates(candidates.ids, drawn, candidates.mask, candidates.source)
    for rule in [*RULES, FairCo("genre"), FairExposure("genre", (1,), seed=3)]:
        after = rule(candidates, context)
        for r in range(4):
            ids = [i for i, _ in live(after, r)]
            proposed = {i for i, _ in live(candidates, r)}
            assert len(set(ids)) == len(ids)
            assert (set(ids) == proposed) if rule in KEEPING else (set(ids) <= proposed)


@pytest.mark.parametrize(
    "rule",
    [MMR(1.0), DPP(1.0), XQuAD(1.0, "tags"), Calibrated(1.0, "tags"), Coverage(0.0, "tags"), Diversity(0.0, "genre")],
    ids=repr,
)
def test_full_relevance_changes_nothing(rule):
    candidates, context = world()
    assert torch.equal(rule(candidates, context).ids, candidates.ids)


def test_an_item_without_a_vector_resembles_nothing():
    # one vector shared by all but the missing one: after the first pick only the missing one is new
    vectors = torch.ones(6, 3)
    vectors[4] = 0
    candidates = Candidates(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    assert MMR(0.5)(candidates, PageContext(2, vectors)).ids.tolist() == [[1, 4, 2, 3]]


def test_infinite_and_missing_scores_do_not_break_the_page():
    candidates = Candidates(torch.tensor([[1, 2, 3]]), torch.tensor([[float("nan"), float("inf"), 1.0]]))
    page = MMR(0.5)(candidates, PageContext(3, torch.eye(4)))
    assert page.ids[0, 0] == 2
    assert sorted(page.ids[0].tolist()) == [1, 2, 3]


def test_rules_follow_each_other_and_the_cap_fills_up_from_what_mmr_left():
    candidates, context = world(k=4)
    page = CategoryCap("genre", 1)(MMR(0.7)(candidates, context), context).head(4)
    for r in range(1, len(candidates)):
        genres = [genre_of(context, i) for i, _ in live(page, r)]
        everything = {genre_of(context, i) for i, _ in live(candidates, r)} - {0}
        capped = [g for g in genres if g]
        assert len(capped) == len(set(capped)) or set(capped) == everything


def test_what_moved_is_told():
    candidates, context = world()
    after = MMR(0.3)(candidates, context)
    table = moved(candidates, after)
    for r in range(len(candidates)):
        for place in range(after.width):
            was = int(table[r, place])
            if after.mask[r, place]:
                assert candidates.ids[r, was] == after.ids[r, place]
            else:
                assert was == -1
    new = Candidates(torch.full((5, 1), 999), torch.ones(5, 1))
    assert (moved(candidates, new) == -1).all()
    assert moved(Candidates(torch.zeros(5, 0), torch.zeros(5, 0)), new).tolist() == [[-1]] * 5


def test_what_a_rule_lacks_is_named():
    candidates, _ = world()
    with pytest.raises(ConfigError, match="page has none"):
        MMR()(candidates, PageContext(3))
    with pytest.raises(ConfigError, match="Did you mean 'genre'"):
        CategoryCap("gener")(candidates, PageContext(3, attributes={"genre": torch.zeros(3)}))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        MMR(1.5)
    with pytest.raises(ConfigError, match="window of at least 1"):
        MMR(0.5, window=0)
    for wrong in (
        lambda: DPP(1.5),
        lambda: DPP(0.5, window=0),
        lambda: XQuAD(-1, "tags"),
        lambda: Calibrated(2, "tags"),
        lambda: Coverage(-1, "tags"),
        lambda: MinimumGap("genre", 1),
        lambda: FairTopK("genre", (1,), share=1.0),
        lambda: Freshness("age", 0),
        lambda: Repeats("genre", 2),
        lambda: Reserve("genre", (1,), places=(1, 1)),
        lambda: Transform("cube"),
        lambda: FairExposure("genre", (1,), pool=1),
        lambda: FairCo("genre", gain=-1),
    ):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(ConfigError, match="history="):
        Calibrated(0.5, "genre")(candidates, PageContext(3, attributes={"genre": torch.zeros(3)}))
    with pytest.raises(ConfigError, match="has several"):
        RoundRobin("tags")(candidates, world()[1])
    with pytest.raises(ConfigError, match="Did you mean 'bait'"):
        Limit("bat", 0.5)(candidates, world()[1])
    with pytest.raises(DataError, match="Transform"):
        Repeats("genre")(candidates, world()[1])
    with pytest.raises(ConfigError, match="at least 1"):
        CategoryCap("genre", 0)
    with pytest.raises(ConfigError, match="each once"):
        Pins(items=(1, 1), places=(0, 1))
    with pytest.raises(ConfigError, match="ids from 1"):
        Pins(items=(0,), places=(0,))
