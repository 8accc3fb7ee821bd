"""The compiled table of ids against one of dicts, written from its docstring."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.kernels.id_table import IdTable


class Slow:
    """Dicts and sorting; knows nothing of slots. `room`: ids that are remembered at a time."""

    def __init__(self, rows, admit, evict, ttl):
        self.rows, self.admit, self.evict, self.ttl = rows, admit, evict, ttl
        self.row, self.count, self.last, self.used, self.step = {}, {}, {}, set(), 0

    def learn(self, ids):
        self.step += 1
        want = []
        for i in ids:
            if i < 2:
                continue
            self.count[i] = self.count.get(i, 0) + 1
            if i in self.row:
                self.last[self.row[i]] = self.step
            elif self.count[i] >= self.admit and i not in want:
                want.append(i)
        free = sorted(set(range(2, self.rows + 2)) - set(self.row.values()))
        if len(want) > len(free) and self.evict:
            old = [(self._score(i), r, i) for i, r in self.row.items() if self.last[r] != self.step]
            if self.evict == "ttl":
                gone = [x for x in old if self.last[x[1]] < self.step - self.ttl]
            else:
                gone = sorted(old)[: max(len(want) - len(free), self.rows // 64)]
            for _, _, i in gone:
                del self.row[i]
                self.count[i] = 0
            free = sorted(set(range(2, self.rows + 2)) - set(self.row.values()))
        fresh = []
        for i, r in zip(want, free, strict=False):
            self.row[i] = r
            self.last[r] = self.step
            fresh += [r] if r in self.used else []
            self.used.add(r)
        return [i if i < 2 else self.row.get(i, 1) for i in ids], fresh

    def _score(self, i):
        last = self.last[self.row[i]]
        return (self.count[i], last) if self.evict == "lfu" else (last,)


batches = st.lists(st.lists(st.integers(0, 40), max_size=12), min_size=1, max_size=20)


@settings(deadline=None, max_examples=150)
@given(
    batches,
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([None, "lfu", "lru", "ttl"]),
    st.integers(1, 4),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_it_is_the_table_of_dicts(some, rows, admit, evict, ttl, dtype):
    ttl = ttl if evict == "ttl" else None
    table, slow = IdTable(rows, admit, evict, ttl), Slow(rows, admit, evict, ttl)
    for ids in some:
        table.gathering()
        found, fresh = table.learn(torch.tensor(ids, dtype=dtype))
        assert (found.tolist(), fresh.tolist()) == slow.learn(ids)
        assert len(table) == len(slow.row)
        everything = torch.arange(45)
        assert table.find(everything).tolist() == [0, 1, *(slow.row.get(i, 1) for i in range(2, 45))]


@pytest.mark.parametrize("evict", ["lfu", "lru"])
def test_many_ids_that_no_int32_holds(evict):
    g = torch.Generator().manual_seed(0)
    table, slow = IdTable(300, 2, evict), Slow(300, 2, evict, None)
    for _ in range(40):
        ids = (torch.rand(500, generator=g) ** 3 * 2000).long() * 4_611_686_018 + 7
        table.gathering()
        found, fresh = table.learn(ids)
        assert (found.tolist(), fresh.tolist()) == slow.learn(ids.tolist())


def test_full_slots_are_laid_anew_and_owners_stay():
    """Ids that come once each fill the slots over and over; those that own rows keep them, and their counts."""
    table = IdTable(rows=10, admit=2, slots=64)
    own = torch.arange(100, 110)
    table.gathering()
    table.learn(own.repeat(2))
    before = table.find(own)
    for start in range(1000, 3000, 20):
        table.gathering()
        assert (table.learn(torch.arange(start, start + 20))[0] == 1).all()
    assert torch.equal(table.find(own), before)
    assert int((table.state["keys"] > 0).sum()) < 64
    assert sorted(table.state["count"][table.state["row"] > 0].tolist()) == [2] * 10


def test_a_batch_of_more_ids_than_slots_ends():
    table = IdTable(rows=30, slots=64)
    found, _ = table.learn(torch.arange(2, 5000))
    assert sorted(found[found > 1].tolist()) == list(range(2, 32))
    assert (found[48:] == 1).all()


def test_a_row_of_this_step_is_never_taken_within_it():
    table = IdTable(rows=2, evict="lru")
    table.stepped()
    table.learn(torch.tensor([5, 6]))
    assert table.learn(torch.tensor([7]))[0].tolist() == [1]  # a second pass of the same step
    table.stepped()
    found, fresh = table.learn(torch.tensor([7, 6]))
    assert (found.tolist(), fresh.tolist()) == ([2, 3], [2])


def test_a_copied_state_goes_on_equally():
    g = torch.Generator().manual_seed(1)
    some = [(torch.rand(40, generator=g) ** 2 * 60).long() for _ in range(30)]
    one = IdTable(12, 2, "lfu", slots=64)
    for ids in some[:15]:
        one.gathering()
        one.learn(ids)
    other = IdTable(12, 2, "lfu", slots=64)
    other.load({name: tensor.clone() for name, tensor in one.state.items()})
    for ids in some[15:]:
        for table in (one, other):
            table.gathering()
        assert [t.tolist() for t in one.learn(ids)] == [t.tolist() for t in other.learn(ids)]
    assert all(torch.equal(other.state[n], t) for n, t in one.state.items())
