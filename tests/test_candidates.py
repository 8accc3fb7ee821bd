"""Candidates: sorting, selecting, and merging what several retrievers propose."""

from __future__ import annotations

import math

import pytest
import torch

from recstack.candidates import Candidates
from recstack.errors import ConfigError, DataError


def proposals(rows, width, items, seed, name):
    """Random candidates without repeats; some places are empty, one row is empty altogether."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(items, generator=chance)[:width] + 1 for _ in range(rows)])
    mask = torch.rand(rows, width, generator=chance) < 0.8
    mask[0] = False
    scores = torch.randint(-9, 9, (rows, width), generator=chance) / 4  # with ties
    return Candidates(ids, scores, mask, {name: scores})


def naive_merge(parts, rule, quota):
    """By dicts and loops: [{id: (score, first appearance, {source: score})}] per request."""
    rows = []
    for r in range(len(parts[0])):
        union: dict[int, tuple[list[float], dict[str, float]]] = {}
        for part in parts:
            (name,) = part.source
            live = [(float(part.scores[r, j]), int(part.ids[r, j])) for j in range(part.width) if bool(part.mask[r, j])]
            live = sorted(live, key=lambda pair: -pair[0])[: quota.get(name)]
            low, high = (min(live)[0], max(live)[0]) if live else (0, 0)
            for rank, (score, item) in enumerate(live, 1):
                scaled = (score - low) / (high - low) if high > low else 1.0
                share = {"rrf": 1 / (60 + rank), "max": score, "sum": scaled}[rule]
                shares, sources = union.setdefault(item, ([], {}))
                shares.append(share)
                sources[name] = score
        merged = [
            (item, max(shares) if rule == "max" else math.fsum(shares), sources)
            for item, (shares, sources) in union.items()
        ]
        rows.append(sorted(merged, key=lambda entry: -round(entry[1], 6)))
    return rows


@pytest.mark.parametrize("rule", ["rrf", "max", "sum"])
@pytest.mark.parametrize("quota", [{}, {"b": 3}, {"a": 0, "c": 5}])
def test_merge_is_the_union_by_loops(rule, quota):
    parts = [
        proposals(6, width, 20, seed, name) for seed, (name, width) in enumerate({"a": 8, "b": 5, "c": 12}.items())
    ]
    merged = Candidates.merge(parts, rule=rule, quota=quota)
    expected = naive_merge(parts, rule, quota)
    assert merged.mask.sum(1).tolist() == [len(row) for row in expected]
    for r, row in enumerate(expected):
        assert merged.ids[r, : len(row)].tolist() == [item for item, _, _ in row]
        assert merged.scores[r, : len(row)].tolist() == pytest.approx([score for _, score, _ in row], abs=1e-6)
        for name in "abc":
            got = merged.source[name][r, : len(row)].tolist()
            assert got == pytest.approx([sources.get(name, math.nan) for _, _, sources in row], nan_ok=True)
    assert merged.width == max(len(row) for row in expected)


def test_merging_keeps_the_best_k():
    parts = [proposals(6, 8, 20, seed, str(seed)) for seed in range(3)]
    everything = Candidates.merge(parts)
    few = Candidates.merge(parts, k=4)
    assert torch.equal(few.ids, everything.ids[:, :4])
    assert torch.equal(few.scores, everything.scores[:, :4])


def test_merging_one_part_sorts_it():
    part = proposals(6, 8, 20, 1, "a")
    merged = Candidates.merge([part], rule="max")
    wide = part.top()
    assert torch.equal(merged.ids, wide.ids[:, : merged.width])
    assert torch.equal(merged.scores, wide.scores[:, : merged.width])


def test_an_item_that_one_part_proposes_twice_counts_once_with_its_best():
    scores = torch.tensor([[1.0, 3.0, 2.0]])
    part = Candidates(torch.tensor([[5, 5, 6]]), scores, source={"a": scores})
    merged = Candidates.merge([part])
    assert merged.ids.tolist() == [[5, 6]]
    assert merged.source["a"].tolist() == [[3.0, 2.0]]
    assert merged.scores.tolist() == [pytest.approx([1 / 61, 1 / 62])]


def test_requests_do_not_touch_each_other():
    parts = [proposals(6, 8, 20, seed, str(seed)) for seed in range(3)]
    together = Candidates.merge(parts, rule="sum")
    for r in range(6):
        alone = Candidates.merge(
            [
                Candidates(
                    p.ids[r : r + 1],
                    p.scores[r : r + 1],
                    p.mask[r : r + 1],
                    {n: s[r : r + 1] for n, s in p.source.items()},
                )
                for p in parts
            ],
            rule="sum",
        )
        assert torch.equal(alone.ids[0], together.ids[r, : alone.width])
        assert torch.equal(alone.scores[0], together.scores[r, : alone.width])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_merges_to_nothing(shape):
    parts = [
        Candidates(torch.zeros(shape, dtype=torch.long), torch.zeros(shape), source={n: torch.zeros(shape)})
        for n in "ab"
    ]
    for rule in ("rrf", "max", "sum"):
        merged = Candidates.merge(parts, rule=rule)
        assert merged.ids.shape == (shape[0], 0)


def test_what_cannot_be_merged_is_said_so():
    a, b = proposals(6, 8, 20, 0, "a"), proposals(6, 8, 20, 1, "b")
    with pytest.raises(ConfigError, match="Did you mean 'rrf'"):
        Candidates.merge([a, b], rule="rff")
    with pytest.raises(ConfigError, match="different names"):
        Candidates.merge([a, a])
    with pytest.raises(ConfigError, match="different names"):
        Candidates.merge([a, Candidates(b.ids, b.scores)])
    with pytest.raises(ConfigError, match="none"):
        Candidates.merge([])
    with pytest.raises(ConfigError, match="quota"):
        Candidates.merge([a, b], quota={"x": 3})
    with pytest.raises(DataError, match="6, 5 requests"):
        Candidates.merge([a, proposals(5, 8, 20, 1, "b")])


def test_empty_cells_hold_nothing_whatever_was_given():
    ids, mask = torch.tensor([[4, 7], [9, 0]]), torch.tensor([[True, False], [True, False]])
    scores = torch.tensor([[1.0, float("-inf")], [2.0, float("nan")]])
    found = Candidates(ids, scores, mask, {"a": scores})
    assert found.ids.tolist() == [[4, 0], [9, 0]]
    assert found.scores.tolist() == [[1.0, 0.0], [2.0, 0.0]]
    assert found.source["a"][:, 1].isnan().all()
    assert Candidates(ids, scores).mask.tolist() == [[True, True], [True, False]]


def test_the_order_is_stable_with_not_a_number_and_empty_cells_last():
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[1.0, nan, 2.0, 9.0, 1.0, -inf, 2.0, inf]])
    mask = torch.tensor([[True, True, True, False, True, True, True, True]])
    ids = torch.arange(1, 9)[None]
    assert Candidates(ids, scores, mask).top().ids.tolist() == [[8, 3, 7, 1, 5, 2, 6, 0]]
    assert Candidates(ids, scores, mask).top(3).ids.tolist() == [[8, 3, 7]]
    assert Candidates(ids, scores, mask).top(99).width == 8


def test_the_head_is_the_first_places_as_they_are():
    part = proposals(6, 8, 20, 1, "a")
    head = part.head(3)
    assert torch.equal(head.ids, part.ids[:, :3])
    torch.testing.assert_close(head.source["a"], part.source["a"][:, :3], equal_nan=True)


def test_rescoring_remembers_every_stage():
    part = proposals(6, 8, 20, 1, "retriever")
    ranked = part.rescore(-part.scores, "ranker").top(3)
    assert set(ranked.source) == {"retriever", "ranker"}
    torch.testing.assert_close(ranked.source["ranker"], -ranked.source["retriever"], equal_nan=True)
    torch.testing.assert_close(ranked.scores[ranked.mask], ranked.source["ranker"][ranked.mask])
    assert len(ranked) == 6


def test_shapes_that_differ_are_refused():
    with pytest.raises(DataError, match=r"ids are \[2, 3\], scores \[2, 4\]"):
        Candidates(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(DataError, match=r"give \[R, K\]"):
        Candidates(torch.ones(3), torch.ones(3))
