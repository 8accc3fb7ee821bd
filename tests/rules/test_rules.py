"""Rules against naive loops over single lists, and the laws of all rules at once."""

from __future__ import annotations

import math

import pytest
import torch

from recstack import bundle
from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules import MMR, CategoryCap, Filter, PageContext, Pins, moved

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
    candidates = Candidates(ids, scores, mask, {"ranker": scores}).top()
    return candidates, PageContext(k, vectors, {"genre": genre})


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
]
KEEPING = [rule for rule in RULES if not isinstance(rule, Filter) and not getattr(rule, "strict", False)]


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


def naive(rule, items, context):
    if isinstance(rule, MMR):
        return naive_mmr(rule, items, context)
    if isinstance(rule, CategoryCap):
        return naive_cap(rule, items, context)
    if isinstance(rule, Pins):
        return naive_pins(rule, items, context)
    return [i for i, _ in items if genre_of(context, i) not in rule.values]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("k", [1, 6, 12, 40])
def test_a_rule_is_its_loop(rule, k):
    for seed in range(3):
        candidates, context = world(k=k, seed=seed)
        after = rule(candidates, context)
        for r in range(len(candidates)):
            assert [i for i, _ in live(after, r)] == naive(rule, live(candidates, r), context)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_scores_and_sources_travel_with_their_items_and_empty_places_are_last(rule):
    candidates, context = world()
    after = rule(candidates, context)
    for r in range(len(candidates)):
        assert dict(live(after, r)).items() <= dict(live(candidates, r)).items()
        assert not after.mask[r].int().diff().gt(0).any()
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
        alone = rule(Candidates(ids, scores, mask), context)
        assert live(alone, 0) == live(after, r)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_stays_nothing(rule, shape):
    _, context = world()
    empty = Candidates(torch.zeros(shape, dtype=torch.long), torch.zeros(shape))
    assert rule(empty, context).ids.shape == shape


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_is_remembered(rule, tmp_path):
    bundle.write(tmp_path / "b", {"rule.0": rule.to_piece()})
    piece = bundle.read(tmp_path / "b").piece("rule.0")
    assert bundle.resolve(piece.class_path).from_piece(piece) == rule


def test_full_relevance_changes_nothing():
    candidates, context = world()
    assert torch.equal(MMR(1.0)(candidates, context).ids, candidates.ids)


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
    with pytest.raises(ConfigError, match="at least 1"):
        CategoryCap("genre", 0)
    with pytest.raises(ConfigError, match="each once"):
        Pins(items=(1, 1), places=(0, 1))
    with pytest.raises(ConfigError, match="ids from 1"):
        Pins(items=(0,), places=(0,))
