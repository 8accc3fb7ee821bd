"""The demo's cascade on one data set for several seeds; one line of JSON per run as it finishes.

    python benchmarks/demo.py --data movielens-1m --seeds 0 1 2
    python benchmarks/demo.py --table

What was tried on validation, and which two changes came after test figures had been seen: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

import numpy as np

from recstack.cli.demo import DATA, PAGE, run

RESULTS = Path(__file__).parent / "results" / "demo.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="movielens-1m")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    options = parser.parse_args()
    if options.table:
        print(table(options.results))
        return
    for seed in options.seeds:
        out = Path("runs") / f"{options.data}-{seed}"
        metrics = run(options.data, options.data_dir, out, serve=False, seed=seed)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of this process, so of all seeds so far
        kept = (
            "data",
            "seed",
            "requests",
            "final",
            "baseline",
            "calibration",
            "expected_clicks_per_page",
            "latency_ms",
        )
        line = {name: metrics[name] for name in kept}
        line["stages"] = {row["name"]: [row["recall"], row["ndcg@k"]] for row in metrics["stages"]}
        line |= {"seconds": metrics["seconds"]["total"], "peak_gib": round(memory, 2)}
        options.results.parent.mkdir(exist_ok=True)
        with options.results.open("a") as file:
            file.write(json.dumps(line) + "\n")


def table(path: Path) -> str:
    """ndcg and recall of page and retrievers, mean ± deviation over seeds."""
    runs: dict[str, dict[int, dict]] = {}
    for text in path.read_text().splitlines():
        line = json.loads(text)
        runs.setdefault(line["data"], {})[line["seed"]] = line
    rows = [f"| data | seeds | what | ndcg@{PAGE} | recall@{PAGE} |", "|---|---|---|---|---|"]
    for data, seeds in runs.items():
        lines = list(seeds.values())
        parts = {"cascade": [x["final"] for x in lines]}
        parts |= {name: [x["baseline"][name] for x in lines] for name in lines[0]["baseline"]}
        for name, values in parts.items():
            cells = [_spread([v[f"{metric}@{PAGE}"] for v in values]) for metric in ("ndcg", "recall")]
            rows.append(f"| {data} | {' '.join(map(str, sorted(seeds)))} | {name} | {' | '.join(cells)} |")
        best = [x["final"][f"ndcg@{PAGE}"] / max(b[f"ndcg@{PAGE}"] for b in x["baseline"].values()) for x in lines]
        popular = [x["final"][f"ndcg@{PAGE}"] / x["baseline"]["popularity"][f"ndcg@{PAGE}"] for x in lines]
        rows.append(
            f"| {data} | | cascade ÷ best retriever, ÷ popularity | {_spread(best, 2)}, {_spread(popular, 2)} | |"
        )
    return "\n".join(rows)


def _spread(values: list[float], digits: int = 4) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    main()
