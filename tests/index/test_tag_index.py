"""Tags to ads: against a join of tables, cut and whole; audiences, budgets, ads that come and go."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
import torch

from recstack import bundle
from recstack.candidates import Candidates
from recstack.errors import ConfigError, DataError
from recstack.index import TagIndex, ecpm_queue, look_alike, queue_recall
from recstack.kernels.topk import Sparse, offsets_of

KINDS = {"item": 40, "shop": 9, "keyword": 15, "age": 4, "country": 3}
R, A = 30, 120


def drawn(rng, rows, tags, most, weighted=True):
    """(offsets, tags, weights) with tags that differ within a row; weights are multiples of 1/8, so sums are exact."""
    lists = [rng.choice(tags, rng.integers(0, min(most, tags) + 1), replace=False) for _ in range(rows)]
    flat = np.concatenate(lists).astype(np.int64)
    weights = rng.integers(1, 30, len(flat)) / 8 if weighted else np.ones(len(flat))
    return offsets_of(np.array([len(x) for x in lists])), flat, weights


def world(seed=0, **cuts):
    """An index of ads, users, and the same as long tables of (row, tag, weight)."""
    rng = np.random.default_rng(seed)
    index = TagIndex(KINDS, **cuts)
    ads = rng.permutation(900)[:A] + 1
    found_by = {kind: drawn(rng, A, KINDS[kind], most) for kind, most in (("item", 5), ("shop", 2), ("keyword", 4))}
    aimed = {
        kind: drawn(rng, A, KINDS[kind], most, False) for kind, most in (("age", 2), ("country", 1), ("keyword", 1))
    }
    holds = {kind: drawn(rng, R, KINDS[kind], most) for kind, most in (("item", 20), ("shop", 6), ("keyword", 9))}
    holds |= {kind: (*drawn(rng, R, KINDS[kind], 2)[:2],) for kind in ("age", "country")}
    holds |= {kind: (*pair, np.zeros(len(pair[1]))) for kind, pair in holds.items() if len(pair) == 2}
    given = {
        "tags": index.tags(**found_by),
        "only": index.tags(**aimed),
        "worth": rng.integers(1, 9, A) / 4,
        "budget": np.where(rng.random(A) < 0.2, 0.0, 5.0),
    }
    return index, ads, given, index.tags(**holds), rng


def rows_of(matrix: Sparse, name: str) -> pl.DataFrame:
    values = np.ones(len(matrix.columns), np.float32) if matrix.values is None else matrix.values
    return pl.DataFrame({name: matrix.rows, "tag": matrix.columns.astype(np.int64), "value": values.astype(np.float64)})


def may_get(index, ads, given, users, closed=frozenset()):
    """[(user, place)], by sets: one tag held of each kind that the ad is aimed at, and money left."""
    starts = np.cumsum([0, *KINDS.values()])
    out = []
    for user, ad in itertools.product(range(users.height), range(len(ads))):
        held = set(users.columns[users.offsets[user] : users.offsets[user + 1]].tolist())
        only = set(given["only"].columns[given["only"].offsets[ad] : given["only"].offsets[ad + 1]].tolist())
        fits = all(
            wanted & held
            for low, high in itertools.pairwise(starts)
            if (wanted := {t for t in only if low <= t < high})
        )
        if fits and given["budget"][ad] > 0 and (user, ad) not in closed:
            out.append((user, ad))
    return pl.DataFrame(out, schema=["user", "ad"], orient="row")


def joined(index, ads, given, users, k, per_user=None, per_tag=None, closed=frozenset()):
    """The brute-force join: [(ad ids, scores)] of each user, and how many ads were reached."""
    lead = rows_of(users, "user").filter(pl.col("value") > 0)
    lead = lead.sort("user", -pl.col("value"), "tag")
    if per_user is not None:
        lead = lead.group_by("user", maintain_order=True).head(per_user)
    worth = pl.DataFrame({"ad": np.arange(len(ads)), "worth": given["worth"]})
    postings = rows_of(given["tags"], "ad").join(worth, on="ad").with_columns(q=pl.col("value") * pl.col("worth"))
    pairs = lead.join(postings.select("ad", "tag", "q"), on="tag").join(
        may_get(index, ads, given, users, closed), on=["user", "ad"]
    )
    if per_tag is not None:
        pairs = pairs.sort("user", "tag", -pl.col("q"), "ad").group_by("user", "tag", maintain_order=True).head(per_tag)
    scored = pairs.group_by("user", "ad").agg(score=(pl.col("value") * pl.col("q")).sum())
    scored = scored.sort("user", -pl.col("score"), "ad")
    every = [scored.filter(pl.col("user") == user) for user in range(users.height)]
    return [(ads[x["ad"][:k].to_numpy()].tolist(), x["score"][:k].to_list()) for x in every], [len(x) for x in every]


def check(found, expected):
    ids, scores = found
    for row, (wanted, values) in enumerate(expected):
        n = len(wanted)
        assert ids[row].tolist() == wanted + [0] * (ids.shape[1] - n)
        assert scores[row, :n].tolist() == pytest.approx(values, rel=1e-6)
        assert bool((scores[row, n:] == -torch.inf).all())


@pytest.mark.parametrize(("per_user", "per_tag"), [(None, None), (6, None), (None, 3), (5, 2)])
def test_search_is_the_join(per_user, per_tag):
    index, ads, given, users, rng = world(tags_per_user=per_user, ads_per_tag=per_tag)
    index.build(ads, **given)
    expected, reached = joined(index, ads, given, users, 12, per_user, per_tag)
    assert max(reached) > 8
    check(index.search(users, 12), expected)
    assert index.reach(users).tolist() == reached
    whole, all_reached = joined(index, ads, given, users, 12)
    check(index.search(users, 12, whole=True), whole)
    assert index.reach(users, whole=True).tolist() == all_reached
    # What may not come takes no place of a cut list.
    barred = {(int(u), int(a)) for u, a in zip(rng.integers(0, R, 300), rng.integers(0, A, 300), strict=True)}
    lists = [[int(ads[a]) for u, a in barred if u == user] + [10**6] for user in range(R)]
    exclude = offsets_of(np.array([len(x) for x in lists])), np.array([a for x in lists for a in x])
    some = rng.random(1000) < 0.6
    closed = barred | {(user, ad) for user in range(R) for ad in range(A) if not some[ads[ad]]}
    filtered = index.search(users, 12, exclude=exclude, where=torch.from_numpy(some))
    check(filtered, joined(index, ads, given, users, 12, per_user, per_tag, closed)[0])
    by_ids = index.search(users, 12, exclude=exclude, where=torch.from_numpy(np.flatnonzero(some)))
    assert torch.equal(by_ids[0], filtered[0])


def test_an_ad_is_for_those_who_hold_a_tag_of_each_kind_it_names():
    index = TagIndex({"shop": 1, "age": 3, "keyword": 2})
    everyone = list(itertools.product([0, 1, 2], [-1, 0, 1]))
    users = index.tags(
        shop=np.zeros(9, int), age=np.array([a for a, _ in everyone]), keyword=np.array([w for _, w in everyone])
    )
    table = {
        "anyone": ([], [], [True] * 9),
        "one age": ([1], [], [a == 1 for a, _ in everyone]),
        "two ages": ([0, 2], [], [a in (0, 2) for a, _ in everyone]),
        "age and keyword": ([0, 1], [1], [a in (0, 1) and w == 1 for a, w in everyone]),
    }
    counts = [offsets_of(np.array([len(row[i]) for row in table.values()])) for i in (0, 1)]
    only = index.tags(
        age=(counts[0], [a for row in table.values() for a in row[0]]),
        keyword=(counts[1], [w for row in table.values() for w in row[1]]),
    )
    index.build(np.arange(1, 5), index.tags(shop=np.zeros(4, int)), only=only)
    expected = torch.tensor([row[2] for row in table.values()]).T
    assert torch.equal(index.eligible(users, torch.arange(1, 5)), expected)
    ids, _ = index.search(users, 4)
    assert torch.equal((ids.unsqueeze(2) == torch.arange(1, 5)).any(1), expected)


def test_ads_come_and_go_as_if_the_index_were_built_anew():
    index, ads, given, users, rng = world(3, tags_per_user=8, ads_per_tag=4)
    rows = {name: lambda at, m=m: m.take(at) if isinstance(m, Sparse) else m[at] for name, m in given.items()}
    part = lambda at: {name: take(np.asarray(at)) for name, take in rows.items()}  # noqa: E731
    held = list(range(60))
    index.build(ads[held], **part(held))
    for step in range(12):
        gone = rng.permutation(held)[: rng.integers(0, 12)].tolist()
        assert index.remove(np.array([ads[g] for g in gone] + [10**6])) == len(gone)
        new = rng.permutation(A)[: rng.integers(1, 25)].tolist()  # some are held already: replaced
        held = [h for h in held if h not in gone and h not in new] + new
        index.add(ads[new], **part(new))
        fresh = TagIndex(KINDS, tags_per_user=8, ads_per_tag=4).build(ads[held], **part(held))
        assert len(index) == len(fresh) == len(held), step
        for found, wanted in zip(index.search(users, 20), fresh.search(users, 20), strict=True):
            assert torch.equal(found, wanted)
    assert index.tags_of(ads[held[-1:]]).columns.tolist() == given["tags"].take(np.array(held[-1:])).columns.tolist()
    assert index.tags_of([10**6]).counts.tolist() == [0]


def test_an_ad_is_gone_when_its_budget_is_out_and_back_when_there_is_money():
    index, ads, given, users, _ = world(5, ads_per_tag=3)
    given["budget"] = np.full(A, 1.0)
    index.build(ads, **given)
    before = index.search(users, 10)
    first = before[0][:, 0].unique()
    first = first[first > 0]
    index.charge(first.repeat(2).numpy(), np.full(2 * len(first), 0.25))
    assert torch.equal(index.search(users, 10)[0], before[0])  # half is left
    index.charge(first.numpy(), np.full(len(first), 0.5))
    assert not index.live(first).any()
    without = index.search(users, 10)
    assert not torch.isin(without[0], first).any()
    given["budget"] = np.where(np.isin(ads, first.numpy()), 0.0, 1.0)
    check(without, joined(index, ads, given, users, 10, 500, 3)[0])
    index.fund(first.numpy(), np.full(len(first), 0.1))
    assert all(torch.equal(a, b) for a, b in zip(index.search(users, 10), before, strict=True))


def test_the_kinds_add_up_and_weights_weigh_them():
    index, ads, given, users, _ = world(7, tags_per_user=10, ads_per_tag=None)
    index.build(ads, **given)
    parts = {name: part for part in index.by_kind(users, A) for name in part.source}
    assert list(parts) == ["item", "shop", "keyword"]  # nothing is found by age or country
    weights = {"item": 2.0, "shop": 0.0, "keyword": 0.5}
    for factor in ({}, weights):
        whole = {} if not factor else {"whole": True}
        of_kind = parts if not factor else {n: p for p in index.by_kind(users, A, whole=True) for n in p.source}
        total = torch.zeros(R, 1000)
        for name, part in of_kind.items():
            total.scatter_add_(1, part.ids, factor.get(name, 1.0) * part.scores)
        ids, scores = index.search(users, A, weights=factor, **whole)
        live = ids > 0
        torch.testing.assert_close(total.gather(1, ids)[live], scores[live])
        assert torch.equal(live.sum(1), (total[:, 1:] > 0).sum(1))
    merged = Candidates.merge(list(parts.values()), quota={"item": 2, "shop": 1})
    for name, n in (("item", 2), ("shop", 1)):
        assert bool(((~merged.source[name].isnan()).sum(1) <= n).all())


def test_a_bundle_brings_it_back(tmp_path):
    index, ads, given, users, _ = world(9, tags_per_user=7, ads_per_tag=3)
    index.build(ads, **given)
    index.remove(ads[:30])
    index.charge(ads[40:80], np.full(40, 4.5))
    bundle.write(tmp_path / "b", {"tags": index.to_piece()})  # what was removed is not in it
    again = TagIndex.from_piece(bundle.read(tmp_path / "b").piece("tags"))
    assert len(again) == 90
    for a in (index, again):
        a.charge(ads[40:60], np.full(20, 0.5))  # what is left was saved too
    assert all(torch.equal(a, b) for a, b in zip(again.search(users, 9), index.search(users, 9), strict=True))


def test_the_whole_search_finds_the_queue_and_the_cut_one_part_of_it():
    """A world whose click chances are what the tags say: ranked by them, nothing but the cuts can lose revenue."""
    index, ads, given, users, _ = world(11, tags_per_user=3, ads_per_tag=2)
    index.build(ads, **given)
    score = torch.zeros(R, 1000)
    ids, found = index.search(users, A, whole=True)
    score.scatter_add_(1, ids, found.where(ids > 0, torch.zeros(())))
    bid = torch.from_numpy(given["worth"]).float()
    ctr = score[:, torch.from_numpy(ads)] / bid / 1e4
    allowed = index.eligible(users, torch.from_numpy(ads))
    queue = ecpm_queue(ctr, bid, torch.from_numpy(ads), 5, allowed=allowed & (ctr > 0))
    assert queue_recall(index.search(users, 5, whole=True)[0], queue) == {"recall": 1.0, "worth": pytest.approx(1.0)}
    cut = queue_recall(index.search(users, 5)[0], queue)
    assert 0.1 < cut["recall"] < cut["worth"] < 1  # what is cut is worth the least
    by_hand = [set(q) & set(f) for q, f in zip(queue.ids.tolist(), index.search(users, 5)[0].tolist(), strict=True)]
    shares = [len(hit - {0}) / n for hit, n in zip(by_hand, queue.mask.sum(1).tolist(), strict=True) if n]
    assert cut["recall"] == pytest.approx(np.mean(shares))


def test_those_who_are_alike_are_the_nearest_to_the_seeds():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 4, 200)
    vectors = torch.from_numpy(np.eye(8)[group] + 0.2 * rng.standard_normal((200, 8)))
    seeds = np.flatnonzero(group == 2)[:5]
    share = ((group == 2).sum() - 5) / 195
    assert (look_alike(vectors, seeds, share) == (group == 2)).mean() > 0.99
    keep = vectors.numpy().clip(min=0)
    row, column = np.nonzero(keep)
    tags = Sparse(offsets_of(np.bincount(row, minlength=200)), column.astype(np.int32), 8, keep[row, column])
    sparse, dense = look_alike(tags, seeds, 0.3), look_alike(torch.from_numpy(keep), seeds, 0.3)
    assert (sparse == dense).all()
    assert sparse.sum() == 5 + round(0.3 * 195)


def test_what_cannot_be_is_said_in_a_sentence():
    index = TagIndex({"shop": 3})
    with pytest.raises(ConfigError, match=r"Unknown kind of tag 'shops'\. Did you mean 'shop'"):
        index.tags(shops=[1])
    with pytest.raises(DataError, match=r"Tag 3 of kind 'shop' is not in \[0, 3\)"):
        index.tags(shop=[3])
    with pytest.raises(DataError, match="at least 0"):
        index.tags(shop=([0, 1], [1], [-1.0]))
    with pytest.raises(DataError, match="tags= has 1 rows"):
        index.build([1, 2], index.tags(shop=[0]))
    with pytest.raises(DataError, match="worth= holds one number"):
        index.build([1], index.tags(shop=[0]), worth=[np.nan])
    with pytest.raises(DataError, match="Ad 5 is not in the index"):
        index.charge([5], [1.0])
    with pytest.raises(ConfigError, match="ads_per_tag is at least 1"):
        TagIndex({"shop": 3}, ads_per_tag=0)
    assert index.search(index.tags(shop=[0]), 2)[0].tolist() == [[0, 0]]
