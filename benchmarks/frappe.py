"""Frappe_x1 (BARS): which app is used in a context; 202,027 / 57,722 / 28,860 rows, ten categorical fields.

    python benchmarks/frappe.py     # the whole table: every model, three seeds; what --out holds already is not run again

One seed of every model comes before the next seed of any, each run appends a line of JSON as it ends, and the table in
docs/benchmarks.md is drawn anew after each: stop it where you like, and start it again. `--model` and `--seeds` choose;
`--table` trains nothing and draws.

The published settings, the same for all but where the table below says so: embeddings of 10 from N(0, 1e-4²), Adam 1e-3,
batch 4096, L2 on whole tables (first-order tables too) at every step, gradients clipped at norm 10; validation AUC after
each epoch: one that is not better divides the rate by 10, the second in a row ends the run. The weights of the best
validation epoch are measured on the test part, once.

Where AFN's own train file is not at hand the items of the training negatives are drawn again (see `rs.datasets.frappe`;
valid and test are AFN's): the lines say so, and whoever quotes them should.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pages
import torch

import recstack as rs
from recstack.data.datasets.files import has_file
from recstack.data.datasets.frappe import ABOUT

RESULTS = Path(__file__).parent / "results" / "frappe.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- frappe: drawn by benchmarks/frappe.py -->", "<!-- frappe: end -->"


class EarlierAdam(torch.optim.Optimizer):
    """Adam as in torch 1.0, with which the published runs were made: ε is added before the bias is corrected.

    That makes ε = 1e-8 up to thirty times larger in the first steps, of the size of HOFM's first gradients for triples of
    vectors from N(0, 1e-4²). With today's form they grow an epoch earlier.
    """

    def __init__(self, params: Any, lr: float = 1e-3):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            (beta, gamma), eps = group["betas"], group["eps"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                state["step"] += 1
                t = int(state["step"])
                state["mean"].lerp_(p.grad, 1 - beta)
                state["square"].mul_(gamma).addcmul_(p.grad, p.grad, value=1 - gamma)
                rate = group["lr"] * (1 - gamma**t) ** 0.5 / (1 - beta**t)
                p.addcdiv_(state["mean"], state["square"].sqrt().add_(eps), value=-rate)


class Row(NamedTuple):
    """One line of the published table.

    Args:
        model: class under `rs.ranking`.
        options: of its constructor.
        penalty: λ of the embeddings' L2.
        cell: the published best AUC and logloss.
        parameters: as published.
        runs: AUC's and logloss's (mean, deviation) over five runs, where they are published.
        training: what differs in the trainer's arguments.
        scales: whether the scales of batch norms begin from U(0, 1), as in torch 1.0, and not as ones. With ones AFN's first
            steps overshoot: a loss of 13 in the second; .80 over the first epoch, where this has .51 and published is .49.
    """

    model: str
    options: dict[str, Any]
    penalty: float
    cell: tuple[float, float]
    parameters: int
    runs: tuple[tuple[float, float], tuple[float, float]] | None = None
    training: dict[str, Any] = {}  # noqa: RUF012 - never changed
    scales: bool = False


WIDE = (400, 400, 400)
ALONE = {"structure": "stacked", "hidden": (), "norm": None}
ROWS = {
    "FinalMLP": Row(
        "FinalMLP",
        {
            "first": (400,),
            "second": (100,),
            "first_context": ("user_id",),
            "second_context": ("item_id",),
            "gate": (400,),
            "heads": 5,
            "dropout": 0.4,
        },
        0.05,
        (0.9861, 0.1484),
        253392,
    ),
    "FinalNet": Row("FinalNet", {"dropout": 0.1}, 0.1, (0.9857, 0.1311), 338502),
    "EDCN": Row("EDCN", {"temperature": 5.0, "dropout": 0.3}, 0.05, (0.985, 0.1547), 86351),
    "AutoInt+": Row(
        "AutoInt",
        {"layers": 5, "width": 128, "heads": 4, "scale": True, "layer_norm": True, "hidden": WIDE, "dropout": 0.1},
        0.1,
        (0.9848, 0.149),
        622180,
    ),
    "DCNv2": Row(
        "DCNv2",
        {"layers": 4, "dropout": 0.4},
        0.05,
        (0.9845, 0.1491),
        458391,
        ((0.983824, 0.000435), (0.152036, 0.002065)),
    ),
    "xDeepFM": Row(
        "xDeepFM",
        {"maps": (64,), "hidden": WIDE, "dropout": 0.2},
        0.1,
        (0.9845, 0.1466),
        429809,
        ((0.984138, 0.000372), (0.146125, 0.002103)),
    ),
    "DeepFM": Row(
        "DeepFM", {"dropout": 0.2}, 0.05, (0.9842, 0.1482), 423280, ((0.983947, 0.000161), (0.149462, 0.001753))
    ),
    "IPNN": Row("IPNN", {"dropout": 0.3}, 0.05, (0.9841, 0.154), 433491, training={"patience": 3}),
    "WideDeep": Row(
        "WideDeep",
        {"hidden": WIDE, "norm": "batch", "dropout": 0.6},
        0.1,
        (0.9841, 0.149),
        423280,
        ((0.983073, 0.000786), (0.153978, 0.003177)),
    ),
    "DLRM": Row(
        "DLRM",
        {"interaction": "cat", "hidden": WIDE, "norm": "batch", "dropout": 0.4},
        0.1,
        (0.984, 0.1444),
        417891,
    ),
    "DCN": Row("DCN", {"dropout": 0.2}, 0.05, (0.9839, 0.1527), 418591, ((0.983418, 0.000312), (0.150676, 0.00233))),
    "MaskNet": Row(
        "MaskNet", {"blocks": (50, 50, 50), "embedding_norm": False, "dropout": 0.1}, 0.1, (0.9837, 0.1696), 571691
    ),
    # Published as YoutubeDNN; that count holds a second MLP that nothing reads.
    "DNN": Row(
        "TextMLP",
        {"hidden": WIDE, "dropout": 0.2},
        0.05,
        (0.9833, 0.1622),
        781892,
        ((0.984045, 0.00051), (0.15837, 0.002151)),
    ),
    "FiBiNET": Row("FiBiNET", {"reduction": 2, "dropout": 0.3}, 0.05, (0.9832, 0.1941), 743480),
    "AutoInt": Row("AutoInt", {"layers": 6, "width": 128, "heads": 4}, 0.05, (0.9831, 0.1637), 306051),
    "AFN+": Row(
        "AFN",
        {"neurons": 1000, "hidden": (400,), "dropout": 0.4, "deep": WIDE, "deep_dropout": 0.2, "smallest": 1e-5},
        0.001,
        (0.9826, 0.2139),
        4482205,
        ((0.980178, 0.001353), (0.227092, 0.009444)),
        scales=True,
    ),
    "AFN": Row(
        "AFN",
        {"neurons": 1000, "hidden": (400,), "dropout": 0.4, "smallest": 1e-5},
        0.001,
        (0.9811, 0.2331),
        4066711,
        scales=True,
    ),
    "NFM": Row(
        "NFM",
        {"hidden": WIDE, "norm": None, "products_dropout": 0.0, "dropout": 0.4},
        1e-4,
        (0.9804, 0.2058),
        384880,
    ),
    "FFM": Row("FFM", {}, 1e-6, (0.9786, 0.186), 490400),
    "CIN": Row("xDeepFM", {"maps": (64, 64, 64), "hidden": ()}, 5e-4, (0.9782, 0.2352), 147984),
    "FwFM": Row("FwFM", {"linear": "FeLV"}, 5e-6, (0.9776, 0.203), 107826),
    "FmFM": Row("FmFM", {"interaction": "vectorized"}, 1e-5, (0.9749, 0.2004), 59730),
    "HOFM": Row("HOFM", {}, 1e-6, (0.9742, 0.2073), 113170, training={"optimizer": EarlierAdam}),
    # The published rule cuts the rate at the first dip, here in epoch 7, before the crosses have grown; theirs had no dip.
    "CrossNetV2": Row(
        "DCNv2",
        {"layers": 4, **ALONE},
        1e-3,
        (0.9729, 0.2216),
        94391,
        training={"schedule": None, "patience": 6},
    ),
    "AFM": Row("AFM", {"attention": 128, "attention_dropout": 0.1, "dropout": 0.1}, 1e-5, (0.9697, 0.2264), 60826),
    "FM": Row("FM", {}, 5e-6, (0.9671, 0.2065), 59280),
    "CrossNet": Row("DCN", {"layers": 6, **ALONE}, 1e-4, (0.9594, 0.2715), 55191),
    "LR": Row("LR", {}, 1e-5, (0.9356, 0.3076), 5390),
}
TRAINING: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 1e-3,
    "batch_size": 4096,
    "clip": 10.0,
    "schedule": "plateau",
    "monitor": "auc",
    "patience": 2,
    "min_delta": 1e-6,
}


def parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(all, those that BARS counts): there a field has one row besides its ids; here the tables of a width share another,
    for padding."""
    count = sum(p.numel() for p in model.parameters())
    return count, count - sum(m.embedding_dim for m in model.modules() if isinstance(m, torch.nn.Embedding))


def run(
    name: str, seed: int, epochs: int, parts: list[Any], encoder: rs.Encoder, folder: Path | None = None
) -> dict[str, Any]:
    """One training; what the table and a reader of it need."""
    (train, valid, test), row = parts, ROWS[name]
    torch.manual_seed(seed)  # of the initial weights
    options = row.options if row.model == "LR" else {"dim": 10, **row.options}
    model = getattr(rs.ranking, row.model)(encoder.schema, **options)
    if row.scales:
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)):
            torch.nn.init.uniform_(norm.weight)
    settings = {**TRAINING, "regularization": {"embedding": row.penalty}, **row.training}
    trainer = rs.Trainer(model, epochs=epochs, seed=seed, checkpoint=folder, **settings)
    result = trainer.fit(train, valid, resume=folder is not None)
    if result.interrupted:
        raise SystemExit(f"Interrupted after epoch {len(result.epochs)} of {name}.")
    assert result.best is not None
    valued = {part: trainer.evaluate(data) for part, data in (("valid", valid), ("test", test))}
    everything, counted = parameters(model)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "data": "frappe_x1",
        "model": name,
        "seed": seed,
        **{f"{part}_{m}": round(v[f"click/{m}"], 6) for part, v in valued.items() for m in ("auc", "logloss")},
        "epochs": len(result.epochs),
        "best_epoch": result.best["epoch"],
        "seconds": round(sum(record["seconds"] for record in result.epochs), 1),
        "samples_per_second": [round(record["rate"]) for record in result.epochs],
        "threads": torch.get_num_threads(),
        "parameters": everything,
        "parameters_without_padding": counted,
    }


def read(path: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """{model: {seed: its newest line}}."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf8").splitlines():
            record = json.loads(line)
            runs.setdefault(record["model"], {})[record["seed"]] = record
    return runs


def table(path: Path) -> str:
    """Markdown, in the order of the published table; what was not run is not in it."""
    lines = [
        "| model | seeds | valid AUC | test AUC | cell | five runs | test logloss | cell | five runs | parameters¹ "
        "| published | best epoch |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    found = read(path)
    for name, row in ROWS.items():
        if name not in found:
            continue
        records = [found[name][seed] for seed in sorted(found[name])]
        cells = [name, " ".join(str(r["seed"]) for r in records), pages.spread([r["valid_auc"] for r in records], 5)]
        for k, metric in enumerate(("auc", "logloss")):
            five = "{:.5f} ± {:.5f}".format(*row.runs[k]) if row.runs else ""
            cells += [pages.spread([r[f"test_{metric}"] for r in records], 5), f"{row.cell[k]:.4f}", five]
        cells += [f"{records[0]['parameters_without_padding']:,}", f"{row.parameters:,}"]
        cells.append(" ".join(str(r["best_epoch"]) for r in records))
        lines.append("| " + " | ".join(cells) + " |")
    drawn = {r["train"] for by_seed in found.values() for r in by_seed.values()}
    lines += ["", f"Train rows: {'; '.join(sorted(drawn))}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=ROWS, default=list(ROWS), help="lines of the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=200, help="at most; validation ends a run long before")
    parser.add_argument("--checkpoints", type=Path, help="folder; a run that was stopped goes on from there")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the table is drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    done = read(args.out)
    todo = [(seed, name) for seed in args.seeds for name in args.model if seed not in done.get(name, {})]
    if todo and not args.table:
        logs = rs.datasets.frappe(data_dir=args.data_dir)
        encoder = rs.Encoder(logs[0].schema).fit(logs[0])
        parts = [encoder.encode(log) for log in logs]
        own = has_file(ABOUT[0].folder(args.data_dir), "train.libsvm")
        train = "AFN's own" if own else "items of the negatives drawn again"
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for seed, name in todo:
            folder = None if args.checkpoints is None else args.checkpoints / f"{name}-{seed}"
            line = json.dumps(run(name, seed, args.epochs, parts, encoder, folder) | {"train": train})
            print(line, flush=True)
            with args.out.open("a", encoding="utf8") as file:
                file.write(line + "\n")
            pages.put(table(args.out), args.page, BEGIN, END)
    pages.put(table(args.out), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
