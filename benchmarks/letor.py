"""Learning to rank: every loss of lists with one small network, LambdaMART, GBDT, AdaRank and LightGBM called directly.

    python benchmarks/letor.py                 # all sets, skips what --out holds
    python benchmarks/letor.py --set mq2008 --model lambdarank

MQ2008 and OHSUMED: five LETOR folds, everything is chosen on the fold's validation part, figures are means over folds.
Yandex 2009 and LightGBM's example have no validation part: every fifth query of train (drawn, seed 0) is one, and what it chose, the
epochs or trees among it, is then trained on all of train. No model sees the test before that.

Numbers are standardised by train. The network: 64 and 32 hidden units, ReLU, Adam, 3e-3, 16 lists a step, at most 20 epochs, the best
by ndcg@10 of validation; of LambdaMART and GBDT, 7 or 31 leaves by the same. Queries with nothing relevant are left out of a
mean; the table also says what ndcg@10 would be if each counted 1 (as on Yandex's published figures, and in LightGBM) or 0.
Equal scores: the mean over their orders.

hybrid (Yandex): GBDT on the grade and on its gain, five seeds, columns also relative to their list; and the mean of that with
the network of the loss that validation chose. Validation chooses between the two.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import lightgbm as lgb
import numpy as np
import pages
import polars as pl
import torch

import recstack as rs
from recstack import metrics
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP, flat

RESULTS = Path(__file__).parent / "results" / "letor.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- letor: drawn by benchmarks/letor.py -->", "<!-- letor: end -->"
FOLDS = {"mq2008": 5, "ohsumed": 5, "yandex2009": 1, "lightgbm": 1}
LOSSES: dict[str, Any] = {
    "mse": "mse",
    "pairwise_logistic (RankNet)": "pairwise_logistic",
    "pairwise_hinge": "pairwise_hinge",
    "lambdarank": "lambdarank",
    "lambdaloss": "lambdaloss",
    "softmax": "softmax",
    "listnet": "listnet",
    "listmle": "listmle",
    "p_listmle": "p_listmle",
    "softrank@10": ("softrank", {"k": 10}),
    "softrank@10, σ = 0.1": ("softrank", {"k": 10, "sigma": 0.1}),
    "approx_ndcg": "approx_ndcg",
    "neural_ndcg@10": ("neural_ndcg", {"k": 10}),
}
OTHERS = ("LambdaMART", "LightGBM, lambdarank", "GBDT", "AdaRank", "hybrid")
TREES = {"trees": 500, "lr": 0.05, "share": 0.5}
LEAVES = (7, 31)
CUTS = ("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "map")


class Network(Model):
    """A multilayer perceptron of each candidate."""

    def __init__(self, schema: rs.Schema, *, hidden: tuple[int, ...] = (64, 32), dropout: float = 0.1):
        super().__init__(schema)
        self.inputs = Inputs(schema, 8)
        self.mlp = MLP(self.inputs.width(), hidden, "relu", dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        return self.heads(self.mlp(flat(self.inputs(batch).sides())))


class Data:
    """A fold: its parts encoded, numbers standardised by train; `whole` is train and validation where the set has none."""

    def __init__(self, name: str, fold: int, data_dir: str | None, relative: bool = False):
        self.whole = None
        if name in ("mq2008", "ohsumed"):
            train, valid, test = (log.events for log in rs.datasets.letor(name, fold=fold, data_dir=data_dir))
        else:
            load = rs.datasets.yandex2009 if name == "yandex2009" else rs.datasets.lightgbm_example
            whole, test = (log.events for log in load(data_dir=data_dir))
            query = whole["query"].unique(maintain_order=True).to_numpy()
            held = np.random.default_rng(0).permutation(query)[: len(query) // 5]
            is_held = whole["query"].is_in(held.tolist())
            train, valid, self.whole = whole.filter(~is_held), whole.filter(is_held), whole
        if relative:
            train, valid, test, self.whole = map(beside_its_list, (train, valid, test, self.whole))
        x = train["features"].to_numpy()
        center, scale = x.mean(0), x.std(0)
        scale[scale < 1e-6] = 1
        self.schema = rs.Schema([rs.Vector("features", "pair", size=x.shape[1])], [self.task()])

        def encoded(events: pl.DataFrame) -> Any:
            value = ((events["features"].to_numpy() - center) / scale).clip(-10, 10)
            grade = events["relevance"]
            frame = pl.DataFrame(
                {
                    "query": events["query"],
                    "relevance": grade,
                    "gain": 2.0**grade - 1,
                    "features": value.astype(np.float32),
                }
            )
            schema = self.schema.replace(tasks=[self.task(), rs.Task("gain", kind="regression")])
            return (
                rs.Encoder(schema)
                .fit(rs.Log(frame, schema, request="query"))
                .encode(rs.Log(frame, schema, request="query"))
            )

        self.train, self.valid, self.test = encoded(train), encoded(valid), encoded(test)
        self.whole = None if self.whole is None else encoded(self.whole)

    @staticmethod
    def task(loss: Any = None) -> rs.Task:
        return rs.Task("relevance", kind="regression", metric="ndcg@10", loss=loss)


def beside_its_list(events: pl.DataFrame | None) -> pl.DataFrame | None:
    """Each number, its distance from the mean of its list in standard deviations, that mean, and the list's length."""
    if events is None:
        return None
    x, (_, row, n) = events["features"].to_numpy(), np.unique(events["query"], return_inverse=True, return_counts=True)
    sums = [
        np.stack([np.bincount(row, column) for column in y.T], 1) / n[:, None] for y in (x, x.astype(np.float64) ** 2)
    ]
    deviation = np.sqrt(np.maximum(sums[1] - sums[0] ** 2, 0))
    z = (x - sums[0][row]) / np.where(deviation > 1e-5, deviation, 1)[row]
    wide = np.concatenate([x, z, sums[0][row], n[row][:, None]], 1).astype(np.float32)
    return events.with_columns(pl.Series("features", wide))


def measured(score: np.ndarray, part: Any) -> dict[str, float]:
    """Every metric over the queries that have something relevant, and the share of those that have not."""
    size = np.diff(part.lists)
    place = np.arange(size.max())
    live = place < size[:, None]
    row = np.minimum(part.lists[:-1, None] + place, len(score) - 1)
    label = torch.from_numpy(part.labels["relevance"].astype(np.float64)[row])
    value, where = torch.from_numpy(score.astype(np.float64)[row]), torch.from_numpy(live)
    found = {cut: float(metrics.get(cut, ties="average")(value, label, where=where)) for cut in CUTS}
    return {**found, "blank": float(((label * where) > 0).logical_not().all(1).double().mean())}


def blank(found: dict[str, float], value: float) -> float:
    """ndcg@10 if a query with nothing relevant counts that much."""
    return found["ndcg@10"] * (1 - found["blank"]) + value * found["blank"]


def scores(model: Any, part: Any) -> np.ndarray:
    return model.score(part)["relevance"]


def network(data: Data, loss: Any, seed: int) -> tuple[Any, dict[str, Any], float]:
    schema = data.schema.replace(tasks=[data.task(loss)])
    options = {"batch_size": 16, "optimizer": "adam", "lr": 3e-3, "seed": seed, "progress": False}

    def new() -> Network:
        torch.manual_seed(seed)
        return Network(schema)

    model = new().fit(data.train, valid=data.valid, epochs=20, monitor="ndcg@10", patience=4, **options)
    best = model.trained.best
    valid = measured(scores(model, data.valid), data.valid)["ndcg@10"]
    if data.whole is not None:
        model = new().fit(data.whole, epochs=best["epoch"] + 1, **options)
    return model, {"epoch": best["epoch"]}, valid


def boosted(data: Data, kind: str) -> tuple[Any, dict[str, Any], float]:
    cls = rs.reranking.LambdaMART if kind == "LambdaMART" else rs.ranking.GBDT
    tried = []
    for leaves in LEAVES:
        model = cls(data.schema, leaves=leaves, **TREES).fit(data.train, valid=data.valid)
        tried.append((measured(scores(model, data.valid), data.valid)["ndcg@10"], leaves, model))
    valid, leaves, model = max(tried, key=lambda one: one[0])
    chosen = {"leaves": leaves, "trees": model.trained["relevance"]["trees"]}
    if data.whole is not None:
        model = cls(data.schema, **{**TREES, **chosen}).fit(data.whole)
    return model, chosen, valid


def directly(data: Data) -> tuple[np.ndarray, dict[str, Any], float]:
    """LightGBM's own call, as its documentation has it, with the options of `boosted`."""

    def columns(part: Any) -> np.ndarray:
        batch = part.batch(np.arange(part.n_requests))
        return batch["features"][batch["@mask"]].numpy()

    def ranks(part: Any, like: Any = None) -> Any:
        return lgb.Dataset(columns(part), part.labels["relevance"], group=np.diff(part.lists), reference=like)

    base = {"objective": "lambdarank", "metric": "ndcg", "eval_at": [10], "learning_rate": TREES["lr"], "verbosity": -1}
    base |= {
        "feature_fraction": TREES["share"],
        "seed": 0,
        "num_threads": torch.get_num_threads(),
        "deterministic": True,
    }
    base |= {"force_row_wise": True}
    tried = []
    for leaves in LEAVES:
        train = ranks(data.train)
        call = lgb.early_stopping(30, verbose=False)
        model = lgb.train(
            {**base, "num_leaves": leaves},
            train,
            TREES["trees"],
            valid_sets=[ranks(data.valid, train)],
            callbacks=[call],
        )
        tried.append((measured(model.predict(columns(data.valid)), data.valid)["ndcg@10"], leaves, model))
    valid, leaves, model = max(tried, key=lambda one: one[0])
    chosen = {"leaves": leaves, "trees": model.best_iteration}
    if data.whole is not None:
        model = lgb.train({**base, "num_leaves": leaves}, ranks(data.whole), model.best_iteration)
    return model.predict(columns(data.test)), chosen, valid


def hybrid(data: Data, losses: dict[str, float], args: argparse.Namespace) -> tuple[np.ndarray, dict[str, Any], float]:
    """See the top of the file; `losses` are what the networks reached on validation."""
    wide = Data(args.now, 1, args.data_dir, relative=True)
    schema = wide.schema.replace(tasks=[wide.task(), rs.Task("gain", kind="regression")])
    options = {"lr": 0.03, "min_rows": 50, "l2": 10.0, "share": 0.3}

    def added(of: dict[str, np.ndarray]) -> np.ndarray:
        return sum(z / z.std() for z in of.values())  # type: ignore[return-value]

    held, test, trees = np.zeros(0), np.zeros(0), []
    for seed in range(5):
        model = rs.ranking.GBDT(schema, trees=500, seed=seed, **options).fit(wide.train, valid=wide.valid)
        held = held + added(model.score(wide.valid)) if len(held) else added(model.score(wide.valid))
        trees.append(max(found["trees"] for found in model.trained.values()))
        model = rs.ranking.GBDT(schema, trees=trees[-1], seed=seed, **options).fit(wide.whole)
        test = test + added(model.score(wide.test)) if len(test) else added(model.score(wide.test))
    loss = max(losses, key=lambda name: losses[name])
    schema = data.schema.replace(tasks=[data.task(LOSSES[loss])])
    torch.manual_seed(0)
    fit = {"batch_size": 16, "optimizer": "adam", "lr": 3e-3, "progress": False, "monitor": "ndcg@10", "patience": 4}
    part = Network(schema).fit(data.train, valid=data.valid, epochs=20, **fit)
    net = scores(part, data.valid)
    both = held / held.std() + net / net.std()
    found = {
        "trees alone": measured(held, data.valid)["ndcg@10"],
        "with a network": measured(both, data.valid)["ndcg@10"],
    }
    chosen = max(found, key=lambda name: found[name])
    if chosen == "with a network":
        net = scores(network(data, LOSSES[loss], 0)[0], data.test)
        test = test / test.std() + net / net.std()
    return test, {"members": chosen, "loss": loss, "trees": trees, "valid": found}, found[chosen]


def runs(args: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    for name in args.set:
        for fold in range(1, FOLDS[name] + 1):
            for model in (*LOSSES, *OTHERS):
                if (args.model is None or model in args.model) and (model != "hybrid" or name == "yandex2009"):
                    yield name, fold, model


def read(path: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    """{(set, fold, model): its newest line}."""
    lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
    return {(r["data"], r["fold"], r["model"]): r for r in map(json.loads, lines)}


def table(path: Path) -> str:
    """Markdown, a table a set; what was not run is not in it."""
    found, out = read(path), []
    for name, folds in FOLDS.items():
        rows = []
        for model in (*LOSSES, *OTHERS):
            some = [found[name, fold, model] for fold in range(1, folds + 1) if (name, fold, model) in found]
            if not some:
                continue
            values = [mean(r["test"][cut] for r in some) for cut in CUTS]
            values += [mean(blank(r["test"], value) for r in some) for value in (1, 0)]
            which = model if len(some) == folds else f"{model} ({len(some)} of {folds} folds)"
            rows.append(
                f"| {which} | " + " | ".join(f"{v:.4f}" for v in values) + f" | {sum(r['seconds'] for r in some):.0f} |"
            )
        if rows:
            share = mean(r["test"]["blank"] for (data, _, _), r in found.items() if data == name)
            out += [
                f"**{name}**, {folds} fold{'s' * (folds > 1)}; {share:.1%} of the test's queries have nothing relevant",
                "",
            ]
            out += [
                "| model | " + " | ".join(CUTS) + " | ndcg@10, blank = 1 | blank = 0 | s |",
                "|---" * (len(CUTS) + 4) + "|",
            ]
            out += [*rows, ""]
    return "\n".join(out[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", choices=FOLDS, default=list(FOLDS))
    parser.add_argument("--model", nargs="+", choices=(*LOSSES, *OTHERS), help="by default all")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the table is drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    data, at = None, None
    for name, fold, kind in [] if args.table else runs(args):
        known = read(args.out)
        if (name, fold, kind) in known:
            continue
        if at != (name, fold):
            data, at, args.now = Data(name, fold, args.data_dir), (name, fold), name
        begun = time.perf_counter()
        if kind in LOSSES:
            model, chosen, valid = network(data, LOSSES[kind], 0)
            score = scores(model, data.test)
        elif kind == "AdaRank":
            model = rs.reranking.AdaRank(data.schema).fit(data.train, valid=data.valid)
            valid, chosen = (
                model.trained["relevance"]["valid"]["ndcg@10"],
                {"rounds": model.trained["relevance"]["rounds"]},
            )
            if data.whole is not None:
                model = rs.reranking.AdaRank(data.schema, rounds=max(chosen["rounds"], 1)).fit(data.whole)
            score = scores(model, data.test)
        elif kind == "LightGBM, lambdarank":
            score, chosen, valid = directly(data)
        elif kind == "hybrid":
            score, chosen, valid = hybrid(
                data, {k: known[name, fold, k]["valid"] for k in LOSSES if (name, fold, k) in known}, args
            )
        else:
            model, chosen, valid = boosted(data, kind)
            score = scores(model, data.test)
        record = {"data": name, "fold": fold, "model": kind, "seconds": round(time.perf_counter() - begun, 1)}
        record |= {"valid": round(valid, 5), "test": {k: round(v, 5) for k, v in measured(score, data.test).items()}}
        line = json.dumps({**record, "chosen": chosen})
        print(line, flush=True)
        with args.out.open("a", encoding="utf8") as file:
            file.write(line + "\n")
    pages.put(table(args.out), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
