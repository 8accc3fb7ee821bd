"""Raw values to ids: learned vocabularies, hashing, and the words of a text. numpy only."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from itertools import pairwise

import numpy as np

from recstack.kernels import lookup

PADDING, OOV, FIRST = 0, 1, 2


class Vocabulary:
    """Distinct values by id: the i-th has id i + 2. Learned ones ascend (text by code point), so order of rows is no matter.

    >>> first = Vocabulary(np.array([10, 30]))
    >>> first.ids(np.array([10, 20, 30]))
    array([2, 1, 3], dtype=int32)
    >>> first.grown(np.array([40, 30, 20])).ids(np.array([10, 20, 30, 40]))
    array([2, 4, 3, 5], dtype=int32)
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.kind = "null" if not len(values) else "text" if values.dtype == object else "int"

    @property
    def size(self) -> int:
        return len(self.values) + FIRST

    @cached_property
    def ascending(self) -> bool:
        """Whether ids follow the order of values, as they do until a vocabulary has grown."""
        return bool((self.values[1:] > self.values[:-1]).all())

    def grown(self, values: np.ndarray) -> Vocabulary:
        """With those of `values` that are new after all others, ascending among themselves; old ids stay."""
        if not len(self.values):
            return Vocabulary(np.unique(values))
        new = np.unique(values[self.ids(values) == OOV])
        return Vocabulary(np.concatenate([self.values, new])) if len(new) else self

    def ids(self, values: np.ndarray) -> np.ndarray:
        """int32 [n]; OOV for what is not in the vocabulary."""
        if self.kind == "null":
            return np.full(len(values), OOV, np.int32)
        if self.kind == "text":
            get = self._index.get
            return np.fromiter((get(v, OOV) for v in values), np.int32, len(values))
        if self._dense is not None:
            return lookup.dense(values, self._low, self._dense, OOV)
        if len(values) < lookup.SMALL:
            ordered, order = self._sorted
            at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
            return np.where(ordered[at] == values, order[at] + FIRST, OOV).astype(np.int32)
        return lookup.hashed(values, *self._hashed, OOV)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {v: i for i, v in enumerate(self.values.tolist(), FIRST)}

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Ascending values, and where each stands in `values`."""
        order = np.arange(len(self.values)) if self.ascending else np.argsort(self.values)
        return self.values[order], order

    @cached_property
    def _low(self) -> int:
        return int(self.values.min())

    @cached_property
    def _dense(self) -> np.ndarray | None:
        """id of low, low + 1, ... where the values are dense enough; a look-up is ten times faster than a search."""
        high = int(self.values.max())
        if high - self._low >= max(4 * len(self.values), 1 << 16):
            return None
        table = np.full(high - self._low + 1, OOV, np.int32)
        table[self.values - self._low] = np.arange(FIRST, self.size, dtype=np.int32)
        return table

    @cached_property
    def _hashed(self) -> tuple[np.ndarray, np.ndarray]:
        return lookup.build(self.values, np.arange(FIRST, self.size, dtype=np.int32))


class Hashed:
    """`buckets` ids from 2 on, by a hash that is salted with the table's name: no state, equal on every machine."""

    def __init__(self, table: str, buckets: int, kind: str) -> None:
        self.table, self.buckets, self.kind = table, buckets, kind

    @property
    def size(self) -> int:
        return self.buckets + FIRST

    def ids(self, values: np.ndarray) -> np.ndarray:
        """int32, the length of `values`."""
        return (hash64(values, self.table) % np.uint64(self.buckets)).astype(np.int32) + np.int32(FIRST)


def hash64(values: np.ndarray, salt: str) -> np.ndarray:
    """uint64 hashes of int64 or text values, salted.

    A value is a row of 64-bit words (a text: its UTF-8 bytes, zero-filled, little-endian); h starts at the first 8
    bytes of blake2b(salt), each word w makes h = mix(h ^ w), and at last h = mix(h ^ number of bytes), mix being the
    finaliser of splitmix64.
    """
    seed = np.uint64(int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=8).digest(), "little"))
    if values.dtype != object:
        return mix64(mix64(seed ^ values.astype(np.int64).view(np.uint64)) ^ np.uint64(8))
    encoded = [v.encode("utf8", "surrogatepass") for v in values]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    words = np.frombuffer(b"".join(b.ljust(-(-len(b) // 8) * 8, b"\0") for b in encoded), "<u8").astype(np.uint64)
    count = -(-lengths // 8)
    start = np.cumsum(count) - count
    h = np.full(len(encoded), seed)
    live = np.arange(len(encoded))
    for k in range(int(count.max(initial=0))):
        live = live[count[live] > k]
        h[live] = mix64(h[live] ^ words[start[live] + k])
    return mix64(h ^ lengths.astype(np.uint64))


def mix64(h: np.ndarray) -> np.ndarray:
    """uint64, one to one: the finaliser of splitmix64."""
    h = (h + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_TOKEN = re.compile(f"[{_CJK}]|[^\\W_{_CJK}]+")


def tokens(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits, and each Chinese or Japanese character by itself.

    >>> tokens("Spider-Man 2: 蜘蛛侠")
    ['spider', 'man', '2', '蜘', '蛛', '侠']
    """
    return _TOKEN.findall(text.lower())


def pack_text(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texts as UTF-8 bytes (uint8) and offsets (int64 [n + 1])."""
    encoded = [v.encode("utf8", "surrogatepass") for v in values]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(b) for b in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def unpack_text(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The texts that `pack_text` packed, an object array."""
    joined, bounds = data.tobytes(), offsets.tolist()
    out = np.empty(len(bounds) - 1, object)
    out[:] = [joined[a:b].decode("utf8", "surrogatepass") for a, b in pairwise(bounds)]
    return out
