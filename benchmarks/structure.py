"""Structure search on MovieLens-1M: what a tree, a graph and paths find of what scoring every item would, and at what share.

    python benchmarks/structure.py     # every part, one seed; skips what --out holds

SASRec's ml-1m; of each user the last item is the test, the one before it validation, what was met before is not ranked. The
newest 50 events of each user are trained, and the last 50 items before an event are its history, which keeps a run within
minutes. Epochs are fixed beforehand.

A search has one width: nodes kept of each level (TDM), best items kept on a walk (RPG), paths followed (DeepRetrieval). It is
chosen on validation, the smallest at which 90 % of the ten best items by the same scorer are found, or else the widest within
a tenth of the catalogue. Of the test are reported: recall of those ten, the share of the catalogue's size that was scored
(nodes of a structure count as items do), and how often the user's next item is among the ten found, and among the ten that
scoring everything finds. Users are the same --users for all.

tdm: as published, on the tree of singular vectors; then the tree grown anew from what was learned, and as many epochs again;
    then RPG over that network, which knows no tree.
agree: TDM whose levels learn to lead to the network's own best leaves, for a beam of 24, and whose search goes down three levels at a
    time and keeps 2.4 times fewer nodes of the upper ones; its tree grown anew twice. Chosen on validation: of the ten best a search
    of a tenth of the items found .77 one level at a time, .84 two, .87 three, and .90 with fewer kept above.
rpg: a ranker, DIN with linear attention, whose lists cost too much to score whole.
paths: DeepRetrieval, of 20 nodes a layer: with 32, the first try, validation found .831 at 9.0 % and .911 at 13.0 %, since a
    beam of 6 asks 224 nodes and finds few items at the end of each path.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pages
import sequences
import torch

import recstack as rs
from recstack.data import Requests
from recstack.models.scored import best_of_all
from recstack.models.structure import CELLS

RESULTS = Path(__file__).parent / "results" / "structure.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- structure: drawn by benchmarks/structure.py -->", "<!-- structure: end -->"
K, STEPS = 10, 50
WANTED, MOST = 0.9, 0.1  # of the ten best, at this share of the items
WIDTHS = {
    "beam": (10, 14, 20, 22, 24, 28, 40, 56, 80, 112),
    "effort": (10, 14, 20, 28, 40, 56, 80, 112, 160),
    "paths": (2, 4, 6, 7, 8, 9, 10, 12, 16, 24),
}


def curve(model: Any, width: str, part: Any, known: Any, users: np.ndarray) -> list[dict[str, float]]:
    """For each width: recall of the scorer's ten best, share scored, and hits of the next item by search and by all scores."""
    requests, wanted = Requests.of(part, users, seen=known), torch.from_numpy(part.item_ids[users].astype(np.int64))
    allowed = torch.ones(model.catalog.size, dtype=torch.bool)
    allowed[:2] = False
    every, best = best_of_all(model.every_score, requests, K, True, allowed, CELLS)
    hits = lambda ids: float((ids == wanted.unsqueeze(1)).any(1).float().mean())  # noqa: E731
    found = []
    name = "beam" if width == "paths" else width
    for value in WIDTHS[width]:
        setattr(model, name, value)
        ids, scores, counted = model.counted_search(requests, K, True, allowed)
        recall = (scores >= best[:, -1:] - 1e-5 * best[:, -1:].abs()).float().mean()
        share = counted.double().mean() / (model.catalog.size - 2)
        line = {
            "width": value,
            "recall": float(recall),
            "share": float(share),
            "truth": hits(ids),
            "brute": hits(every),
        }
        found.append({key: round(v, 5) for key, v in line.items()})
        if recall > 0.99:
            break
    return found


def chosen(valid: list[dict[str, float]]) -> int:
    """The width that validation chooses."""
    good = [line for line in valid if line["recall"] >= WANTED and line["share"] <= MOST]
    within = [line for line in valid if line["share"] <= MOST]
    return int((good or within[-1:] or valid)[0]["width"])


def fitted(model: Any, data: Any, args: argparse.Namespace, **options: Any) -> Any:
    newest = data.train.select(data.train.newer() < STEPS)
    return model.fit(newest, seed=args.seed, progress=False, **options)


def tdm(data: Any, args: argparse.Namespace) -> Iterator[tuple[str, Any, str, int]]:
    model = rs.retrieval.TDM(data.encoder.schema, hidden=(32, 16), sample=0.2, agree=0)
    for name in ("TDM", "TDM, tree grown anew"):
        if name != "TDM":
            model.recluster()
        fitted(model, data, args, epochs=args.epochs or 8, lr=3e-3, batch_size=32)
        yield name, model, "beam", args.epochs or 8
    yield "RPG over TDM's network", graph(model, data, args), "effort", 0


def agreeing(data: Any, args: argparse.Namespace) -> Iterator[tuple[str, Any, str, int]]:
    model = rs.retrieval.TDM(data.encoder.schema, hidden=(32, 16), sample=0.2, beam=24, stride=3, taper=2.4)
    for name in AGREEING:
        if name != AGREEING[0]:
            model.recluster()
        model.beam = 24  # it trains for
        fitted(model, data, args, epochs=args.epochs or 8, lr=3e-3, batch_size=32)
        yield name, model, "beam", args.epochs or 8


def rpg(data: Any, args: argparse.Namespace) -> Iterator[tuple[str, Any, str, int]]:
    ranker = rs.ranking.DIN(
        data.encoder.schema.without("user_id"), dim=16, hidden=(32, 16), activation="relu", history="linear_attention"
    )
    newest = data.train.select(data.train.newer() < 12)
    ranker.fit(newest, epochs=args.epochs or 1, lr=3e-3, batch_size=512, seed=args.seed, progress=False)
    yield "RPG over DIN, linear attention", graph(ranker, data, args), "effort", args.epochs or 1


def graph(model: Any, data: Any, args: argparse.Namespace) -> Any:
    return rs.retrieval.RPG(probes=200, seed=args.seed).fit(data.train, over=model)


def deep_retrieval(data: Any, args: argparse.Namespace) -> Iterator[tuple[str, Any, str, int]]:
    model = rs.retrieval.DeepRetrieval(data.encoder.schema, dim=32, hidden=(64,), depth=2, nodes=20, paths=2)
    fitted(model, data, args, epochs=args.epochs or 6, lr=2e-3, batch_size=64)
    yield "DeepRetrieval", model, "paths", args.epochs or 6


AGREEING = ("TDM, levels agree", "TDM, levels agree, tree grown anew", "TDM, levels agree, tree grown anew twice")
PARTS: dict[str, tuple[Callable[..., Iterator[tuple[str, Any, str, int]]], tuple[str, ...]]] = {
    "tdm": (tdm, ("TDM", "TDM, tree grown anew", "RPG over TDM's network")),
    "agree": (agreeing, AGREEING),
    "paths": (deep_retrieval, ("DeepRetrieval",)),
    "rpg": (rpg, ("RPG over DIN, linear attention",)),
}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """{model: its newest line}."""
    lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
    return {record["model"]: record for record in map(json.loads, lines)}


def table(path: Path) -> str:
    """Markdown; what was not run is not in it."""
    lines = [
        "| model | width | recall of the ten best | share scored | recall@10, next item | by scoring everything | epochs | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = read(path)
    for name in [n for _, names in PARTS.values() for n in names if n in found]:
        r = found[name]
        line = next((x for x in r["test"] if x["width"] == r["width"]), r["test"][-1])
        cells = [name, f"{r['width']}", f"{line['recall']:.3f}", f"{line['share']:.3f}"]
        cells += [f"{line['truth']:.4f}", f"{line['brute']:.4f}", f"{r['epochs'] or ''}", f"{r['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    curves = [
        f"- {name}: " + ", ".join(f"{x['recall']:.3f} at {x['share']:.3f}" for x in found[name]["test"])
        for _, names in PARTS.values()
        for name in names
        if name in found
    ]
    return "\n".join([*lines, "", "Recall of the ten best at the share scored, by width:", "", *curves])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--users", type=int, default=500, help="measured")
    parser.add_argument("--epochs", type=int, help="of each training, in place of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="users, for a try")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the table is drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    todo = [p for p in args.part if not set(PARTS[p][1]) <= set(read(args.out))] if not args.table else []
    if todo:
        log = sequences.some(rs.datasets.sasrec("ml-1m", max_len=STEPS, data_dir=args.data_dir), args.limit)
        data = sequences.encoded(rs.split.leave_last_out(log.with_histories()), batch_size=0, options={})
        rng = np.random.default_rng(args.seed)
        users = np.sort(rng.choice(len(data.test), min(args.users, len(data.test)), replace=False))
    for part in todo:
        torch.manual_seed(args.seed)  # of the initial weights
        begun = time.process_time()
        for name, model, width, epochs in PARTS[part][0](data, args):
            seconds = time.process_time() - begun
            valid = curve(model, width, data.valid, data.train, users)
            test = curve(model, width, data.test, data.known, users)
            record = {
                "data": "movielens-1m",
                "model": name,
                "seed": args.seed,
                "width": chosen(valid),
                "epochs": epochs,
            }
            record |= {"users": len(users), "seconds": round(seconds, 1), "valid": valid, "test": test}
            record["config"] = {k: v for k, v in model.config.items() if k not in ("schema", "scorer")}
            line = json.dumps(record)
            print(line, flush=True)
            with args.out.open("a", encoding="utf8") as file:
                file.write(line + "\n")
            pages.put(table(args.out), args.page, BEGIN, END)
            begun = time.process_time()
    pages.put(table(args.out), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
