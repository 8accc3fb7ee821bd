"""A generated set in the shape of Criteo's: 26 categorical columns of skewed ids, 13 numbers, a click that can be learned.

The columns' sizes are the cardinalities of Criteo's public 45 million rows, scaled to a total; the numbers of ids asked per
row and their skew are what makes embedding tables expensive, and neither depends on what the values mean. An id is drawn
with probability about 1/rank (its logarithm is uniform) and ranks are scattered over the table. The click has a hidden
weight per id, six pairs of columns that interact, and a linear effect of five numbers.

    python benchmarks/speed/criteo_shaped.py --rows 1000000 --vocabulary 1000000 --out runs/speed/1m
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

# Distinct values of C1..C26 in the public training file.
CRITEO = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
NUMBERS = 13
PAIRS = ((0, 1), (4, 7), (10, 12), (9, 17), (6, 18), (14, 24))


def sizes(total: int) -> list[int]:
    """Ids of each column, so that all together are `total` (to a few in a thousand)."""
    share, small = total / sum(CRITEO), 1.0
    for _ in range(50):  # columns that would fall under their floor keep it, the large ones give what that costs
        found = [max(min(c, 1000), round(c * share * small)) for c in CRITEO]
        small *= total / sum(found)
    return found


def generate(rows: int, total: int, seed: int = 0) -> dict[str, np.ndarray]:
    """{"ids": int32 [rows, 26] from 0, "numbers": float32 [rows, 13], "click": float32 [rows], "sizes": int64 [26]}."""
    chance, sized = np.random.default_rng(seed), sizes(total)
    ids = np.empty((rows, len(sized)), np.int32)
    score = np.full(rows, -1.1, np.float32)
    factors = {}
    for f, size in enumerate(sized):
        rank = np.minimum(np.floor(np.exp(chance.random(rows) * np.log(size + 1))) - 1, size - 1).astype(np.int64)
        step = next(s for s in range(int(size * 0.618) | 1, 2 * size + 3, 2) if np.gcd(s, size) == 1) if size > 2 else 1
        ids[:, f] = rank * step % size
        hidden = np.random.default_rng((seed, f)).standard_normal(min(size, 100_000), np.float32)
        score += 0.35 * hidden[ids[:, f] % len(hidden)]
        if any(f in pair for pair in PAIRS):
            factors[f] = np.random.default_rng((seed, f, 1)).standard_normal((min(size, 100_000), 4), np.float32)
    for a, b in PAIRS:
        score += 0.3 * (factors[a][ids[:, a] % len(factors[a])] * factors[b][ids[:, b] % len(factors[b])]).sum(1)
    numbers = chance.standard_normal((rows, NUMBERS), np.float32)
    score += numbers[:, :5] @ np.array([0.3, -0.2, 0.2, 0.1, -0.3], np.float32)
    click = (chance.random(rows, np.float32) < 1 / (1 + np.exp(-score))).astype(np.float32)
    return {"ids": ids, "numbers": numbers, "click": click, "sizes": np.array(sized, np.int64)}


def save(folder: Path, data: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in data.items():
        np.save(folder / f"{name}.npy", array)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--vocabulary", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    save(args.out, generate(args.rows, args.vocabulary))


if __name__ == "__main__":
    main()
