"""Loss against the correlation of two tasks: the synthetic data of MMoE's paper, as PLE's paper completes it.

    python benchmarks/task_correlation.py            # what --out does not hold yet, then table and figure
    python benchmarks/task_correlation.py --table    # trains nothing, draws them into docs/benchmarks.md

Two regressions on x ~ N(0, I_d) with :math:`y_k = w_k^T x + \\sum_{i=1}^{m} \\sin(\\alpha_i w_k^T x + \\beta_i) + \\epsilon_k`, ε of
variance .01, where :math:`w_1 = u_1, w_2 = p u_1 + \\sqrt{1 - p^2} u_2` for orthonormal u: p is the correlation of the tasks. m = 10 and
α, β ~ N(0, 1) as in PLE's paper, d = 100 and the sizes of the models as in MMoE's: 8 experts of 16 units (PLE: 4 shared and 2 of each task,
in 2 levels), towers of 8, and a shared bottom of 113, so that all have about 13,000 parameters. Scaled down from the papers: STEPS
batches of BATCH fresh rows (PLE's paper: 1.4 million rows of d = 512), a few seeds in place of MMoE's 200 runs. A seed draws
u, α, β, the rows and the initial weights; all models of a seed meet the same rows. Adam; the rate falls to 0 by a cosine; its
beginning is the one of RATES that gives the model the least validation loss at p = .5 and seed 99, which no table holds.

Reported is the mean squared error of both tasks on 20,000 fresh rows, less nothing: .01 of it is noise that nobody can learn.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pages
import torch

import recstack as rs

RESULTS = Path(__file__).parent / "results" / "task_correlation.jsonl"
DOCS = Path(__file__).parents[1] / "docs"
FIGURE = "task_correlation.svg"
BEGIN, END = "<!-- task correlation: drawn by benchmarks/task_correlation.py -->", "<!-- task correlation: end -->"
D, M, BATCH, STEPS, TEST = 100, 10, 256, 2000, 20_000
CORRELATIONS, RATES, TUNED_ON = (0.5, 0.9, 1.0), (3e-3, 1e-2), 99
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SharedBottom": ("SharedBottom", {"hidden": (113,), "towers": (8,)}),
    "MoE": ("MoE", {"experts": 8, "hidden": (16,), "towers": (8,)}),
    "MMoE": ("MMoE", {"experts": 8, "hidden": (16,), "towers": (8,)}),
    "PLE": ("PLE", {"levels": 2, "shared": 4, "specific": 2, "hidden": (16,), "towers": (8,)}),
}
SCHEMA = rs.Schema([rs.Vector("x", "context", size=D)], [rs.Task(f"y{k}", kind="regression") for k in (1, 2)])


class World:
    """Batches of fresh rows, the same in each pass."""

    def __init__(self, correlation: float, seed: int, rows: int, steps: int, stream: int) -> None:
        drawn = torch.Generator().manual_seed(seed)
        u = torch.linalg.qr(torch.randn(D, 2, generator=drawn))[0]
        self.w = torch.stack([u[:, 0], correlation * u[:, 0] + math.sqrt(1 - correlation**2) * u[:, 1]], 1)
        self.alpha, self.beta = torch.randn(2, M, generator=drawn)
        self.rows, self.steps, self.seed = rows, steps, seed * 10 + stream

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        drawn = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            x = torch.randn(self.rows, D, generator=drawn)
            z = x @ self.w  # [rows, 2]
            y = z + (self.alpha * z.unsqueeze(-1) + self.beta).sin().sum(-1)
            y = y + 0.1 * torch.randn(y.shape, generator=drawn)
            yield {"x": x, "y1@label": y[:, :1], "y2@label": y[:, 1:]}


def fit(name: str, correlation: float, seed: int, rate: float, steps: int) -> tuple[torch.nn.Module, float]:
    torch.manual_seed(seed)
    kind, options = MODELS[name]
    model = getattr(rs.multitask, kind)(SCHEMA, **options)
    cosine = lambda step, total: 0.5 * (1 + math.cos(math.pi * step / steps))  # noqa: E731
    began = time.perf_counter()
    trainer = rs.Trainer(model, optimizer="adam", lr=rate, epochs=1, schedule=cosine, seed=seed, progress=False)
    trainer.fit(World(correlation, seed, BATCH, steps, 1))
    return model.eval(), time.perf_counter() - began


@torch.no_grad()
def losses(model: torch.nn.Module, part: World) -> list[float]:
    (batch,) = part
    logits = model(batch)
    return [(logits[f"y{k}"] - batch[f"y{k}@label"]).square().mean().item() for k in (1, 2)]


def run(name: str, correlation: float, seed: int, rate: float, steps: int = STEPS) -> dict[str, Any]:
    model, seconds = fit(name, correlation, seed, rate, steps)
    test = World(correlation, seed, TEST, 1, 2)
    (batch,) = test
    measured = torch.corrcoef(torch.cat([batch["y1@label"], batch["y2@label"]], 1).T)[0, 1].item()
    one, two = losses(model, test)
    return {
        "mse": [round(one, 5), round(two, 5)],
        "rate": rate,
        "label_correlation": round(measured, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seconds": round(seconds, 1),
    }


def rate_of(name: str, path: Path) -> float:
    """The rate that validation chose, remembered as lines of their own."""
    tried = {r["rate"]: mean(r["mse"]) for r in lines(path) if r["model"] == name and r["seed"] == TUNED_ON}
    for rate in RATES:
        if rate not in tried:
            record = run(name, 0.5, TUNED_ON, rate, STEPS // 2)
            add(path, {"model": name, "correlation": 0.5, "seed": TUNED_ON, **record})
            tried[rate] = mean(record["mse"])
    return min(tried, key=tried.__getitem__)


def add(path: Path, record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)
    with path.open("a", encoding="utf8") as file:
        file.write(json.dumps(record) + "\n")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf8").splitlines()] if path.exists() else []


def read(path: Path) -> dict[tuple[str, float], dict[int, dict[str, Any]]]:
    """{(model, correlation): {seed: its newest line}}, without those that chose a rate."""
    found: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for r in lines(path):
        if r["seed"] != TUNED_ON:
            found.setdefault((r["model"], r["correlation"]), {})[r["seed"]] = r
    return found


def table(path: Path) -> str:
    """Markdown: the mean squared error of both tasks, and by how much it rises from the most to the least correlated."""
    found = read(path)
    places = sorted({p for _, p in found}, reverse=True)
    if not places:
        return ""
    met = {p: mean(r["label_correlation"] for (_, q), s in found.items() if q == p for r in s.values()) for p in places}
    head = ["model", "parameters", "rate", "seeds", *(f"p = {p:g} (labels {met[p]:.2f})" for p in places), "rise"]
    out = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in MODELS:
        cells, means = [], {}
        for p in places:
            runs = [mean(r["mse"]) for r in found.get((name, p), {}).values()]
            cells.append(pages.spread(runs) if runs else "")
            means |= {p: mean(runs)} if runs else {}
        if not means:
            continue
        every = [r for (n, _), s in found.items() if n == name for r in s.values()]
        seeds = sorted({s for (n, _), by in found.items() if n == name for s in by})
        rise = f"{means[places[-1]] - means[places[0]]:+.4f}" if len(means) == len(places) else ""
        facts = [name, f"{every[0]['parameters']:,}", f"{every[0]['rate']:g}", " ".join(map(str, seeds))]
        out.append(f"| {' | '.join([*facts, *cells, rise])} |")
    return "\n".join([*out, "", f"![Loss against the correlation of the tasks]({FIGURE})"])


def figure(path: Path, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = read(path)
    plt.rcParams["svg.hashsalt"] = "recstack"
    fig, axis = plt.subplots(figsize=(5, 3.2))
    for name in MODELS:
        by = {p: [mean(r["mse"]) for r in s.values()] for (n, p), s in sorted(found.items()) if n == name}
        spread = [stdev(v) if len(v) > 1 else 0.0 for v in by.values()]
        if by:
            axis.errorbar(list(by), [mean(v) for v in by.values()], spread, marker="o", capsize=3, label=name)
    axis.set(xlabel="correlation of the tasks", ylabel="mean squared error", xticks=CORRELATIONS)
    axis.legend(frameon=False, ncols=4, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    fig.tight_layout()
    fig.savefig(out, metadata={"Date": None})
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--correlation", nargs="+", type=float, default=list(CORRELATIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of benchmarks.md and the figure")
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds if not args.table else ():
        for name in args.model:
            for p in args.correlation:
                if hasattr(rs.multitask, MODELS[name][0]) and seed not in read(args.out).get((name, p), {}):
                    record = run(name, p, seed, rate_of(name, args.out))
                    add(args.out, {"model": name, "correlation": p, "seed": seed, **record})
    if read(args.out):
        figure(args.out, args.docs / FIGURE)
    pages.put(table(args.out), args.docs / "benchmarks.md", BEGIN, END)


if __name__ == "__main__":
    main()
