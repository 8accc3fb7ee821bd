"""Re-rankers beside the order that they are given: MovieLens-1M, trivago, KuaiRand-Pure and a market of known truth.

    python benchmarks/reranking.py                                    # what --out does not hold yet, then the tables
    python benchmarks/reranking.py --data trivago --model PRM MIR --seeds 0
    python benchmarks/reranking.py --table                            # trains nothing, draws into docs/benchmarks.md

trivago: the hotels shown in answer to a search and which of them was clicked, in the order shown; cut 8:1:1 by the
    time of lists. Re-rankers know what the session did before, which that order may not: part of what they gain is due
    to it.
kuairand: the first 50 videos that a user was shown in a day, where these are at least 5, some clicked and some not;
    train 25 to 29 April, validation 30 April, test 1 to 8 May. They were not shown as lists: the order is a ranker's.
    Histories end where the day begins. The user's id is not read (benchmarks/behaviour.py).
simulator: lists of 20 in a market of 1,000 users and 500 items, 200,000 impressions, cut 8:1:1 by time; the order is a
    ranker's, the page its first ten. Clicks belong to the order in which the log showed the list, and what is looked
    at falls with it: map and ndcg are of those clicks (where a list of the test has one), "clicks of the page" is what
    the true equations expect of the page if it is shown. Its clicks depend on no neighbour: what a list could tell
    beyond its items is not there to be found.
movielens-1m: which of the 30 films that the demo's cascade ranks first are among the user's next five. Of each user
    the last five ratings are the test, the five before validation, and the two fives before those teach the re-rankers
    (two lists a user); retrievers, pre-ranker and ranker were trained, by seed 0, on what came before all of these, so
    that their scores are honest wherever a re-ranker reads them. Lists without one of the five are left out.
    Re-rankers read what the demo's does (those scores, the ranker's hidden layer as the personalised vector), and the
    history.

The ranker of kuairand and simulator is a DIN (ids of 16, layers of 64 and 32, Adam 1e-3, the better of 2 epochs by
validation AUC); lists of training are scored by the one of three that has not seen them, others by the mean of the
three. trivago has no score: what it has is the place. Every re-ranker reads the ranker's score and the place in its
order as numbers. So does "MLP", which sees one item at a time and learns by the same loss: what a re-ranker has beyond
it is due to the list.

All alike: ids of 16, width 64, 1 layer of 2 heads, networks of 128 (MLP, DLCM, MIR: 128 and 64), dropout 0.1,
histories of 20 (movielens-1m: 30), the listwise softmax, Adam 1e-3, 64 lists a step, at most 8 epochs, of which the one
with the best validation ndcg@10 is measured on the test. SETTINGS says how many lists teach (drawn once, the same for
all), the L2 on whole tables, and after how many epochs without a better one a run ends.

Settings were chosen on validation. trivago: a rate of 3e-4 for PRM, MIR and MLP gave ndcg@10 +.001, +.002 and -.002 in
twice the epochs, an L2 of 1e-2 less than .002 either way; a test of it had been measured before, for MLP and PRM on all
10,877 lists. kuairand: neither 3e-4, nor an L2 of 1e-2, nor lists of 2 exposures in training (4,000 of them) brought
PRM or MLP more than .0004 above the initial order. simulator: PRM had .449 on 4,000 lists with an L2 of 1e-3 (the
initial order: .450), .464 on all 6,800, and .483 on these with 1e-2: it had learned ids by heart; the test had been
measured under the first of these, and for MLP, PRM and SetRank on 4,000 lists with 1e-2. movielens-1m takes the L2 of the simulator, untried.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import pages
import polars as pl
import torch

import recstack as rs
from recstack.candidates import Candidates
from recstack.cascade.lists import CandidateLists
from recstack.cli import demo
from recstack.data import Loader

RESULTS = Path(__file__).parent / "results" / "reranking.jsonl"
RANKED = Path(__file__).parents[1] / "runs" / "reranking"  # what rankers said, kept between runs
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- re-ranking: drawn by benchmarks/reranking.py -->", "<!-- re-ranking: end -->"
EPOCHS, RATE, FOLDS, SHOWN, STEPS = 8, 1e-3, 3, 10, 20
HELD = (1500, 3000)  # lists of validation and test at most
PLACE = rs.Numeric("place", role="pair", transform="log")
SCORE = rs.Numeric("ranker", role="pair", transform="standard")


class Setting(NamedTuple):
    lists: int  # of training at most
    penalty: float  # λ of the ids' L2
    patience: int  # epochs without a better one


SETTINGS = {
    "trivago": Setting(4000, 1e-3, 2),
    "kuairand": Setting(4000, 1e-3, 2),
    "simulator": Setting(8000, 1e-2, 3),
    "movielens-1m": Setting(4000, 1e-2, 2),
}


class Data(NamedTuple):
    """Lists in their initial order; `worth` says what the pages that scores [n, L] of the test make are worth."""

    schema: rs.Schema
    train: Any
    valid: list[dict[str, torch.Tensor]]
    test: list[dict[str, torch.Tensor]]
    lists: tuple[int, ...]
    worth: Callable[[torch.Tensor], float] | None = None


# -- data -------------------------------------------------------------------------------------------------------------
def movielens(data_dir: str | None) -> Data:
    plan = demo._movielens(data_dir, 0)
    rest, first, second = rs.split.last_per_user(plan.train, test=5, valid=5)
    encoder = rs.Encoder(rest.schema).fit(rest)
    logs = (first, second, plan.valid, plan.test)
    columns = [encoder.encode(log) for log in logs]
    torch.manual_seed(0)
    cascade = demo.build(encoder, plan)
    schema, path = cascade.reranker.schema, RANKED / "movielens-1m.npz"
    schema = schema.with_features(encoder.schema.feature("history"), rs.Numeric("place", role="pair"))
    if not path.exists():
        cascade.keep_ranked, cascade.calibrator, cascade.reranker.fitted = 30, None, True
        cascade.fit(rest, late=plan.late, negatives=plan.negatives, options=demo._options(plan, 0))
        past, kept = rest, {}
        for i, log in enumerate(logs):
            lists, _, hit = cascade.page_lists(columns[i], encoder.encode(past))
            past = past.concat(log)
            kept |= {f"{i}/rows": lists.rows, f"{i}/ids": lists.candidates.ids.numpy(), f"{i}/hit": hit.numpy()}
            kept |= {f"{i}/known/{name}": value.numpy().astype(np.float16) for name, value in lists.known.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **kept)
    kept = np.load(path)

    def lists(source: rs.Columns, *numbers: int) -> CandidateLists:
        def known(name: str) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([kept[f"{i}/{name}"] for i in numbers]))

        ids, hit = known("ids"), known("hit").float()
        begins = np.cumsum([0, *(len(columns[i]) for i in numbers)])
        rows = np.concatenate([kept[f"{i}/rows"] + at for i, at in zip(numbers, begins, strict=False)])
        more = {n.split("/")[2]: known(n[2:]).float() for n in kept.files if n.startswith(f"{numbers[0]}/known")}
        more["place"] = torch.arange(1, 1 + ids.shape[1]).log().expand(ids.shape)
        found = CandidateLists(
            source, rows, Candidates(ids, torch.zeros(ids.shape), ids > 0), {"watched": hit}, more, schema
        )
        return found.select(np.flatnonzero(hit.any(1).numpy()))

    train = lists(encoder.encode(first.concat(second)), 0, 1)
    return cut("movielens-1m", schema, train, lists(columns[2], 2), lists(columns[3], 3))


def trivago(data_dir: str | None) -> Data:
    log = rs.datasets.trivago(data_dir=data_dir)
    log.schema = log.schema.with_features(rs.Categorical("item_id", "item", min_count=5))
    return encoded("trivago", list(rs.split.by_time(log)), unread=("user_id",))


def kuairand(data_dir: str | None) -> Data:
    log = rs.datasets.kuairand_pure(["click"], pool_tabs=700, data_dir=data_dir)
    day, time_ = pl.col("user_id") * 10**8 + pl.col("date"), pl.col("time_ms")
    end = pl.col("watched@end").sort_by(time_).first().over(day)  # as the day begins
    begin = pl.max_horizontal(pl.col("watched@begin").sort_by(time_).first().over(day), end - STEPS)
    log = log.with_columns(log.events.select(day.alias("day"), begin, end).get_columns())
    log = log.select(log.events.select(time_.rank("ordinal").over("day") <= 50).to_series())
    tab = rs.Categorical("tab", "pair")  # a day's exposures may be of several
    log.schema, log.request = short(log.schema).without("hour", "tab").with_features(tab), "day"
    date = log.events["date"]
    parts = [log.select(date < 20220430), log.select(date == 20220430), log.select(date > 20220430)]
    parts = ranked(parts, "kuairand", ("user_id",))
    mixed = (pl.len().over("day") >= 5) & (pl.col("click").min().over("day") != pl.col("click").max().over("day"))
    return encoded(
        "kuairand", [part.select(part.events.select(mixed).to_series()) for part in parts], unread=("user_id",)
    )


def simulator(data_dir: str | None) -> Data:
    market = rs.simulator.simulate(users=1000, items=500, impressions=200_000, list_size=20, seed=1)
    log = market.log(lists=True)
    log.schema = short(log.schema).without("position")
    parts = ranked(list(rs.split.by_time(log)), "simulator")
    events = parts[2].events
    item, request = (events[name].to_numpy().reshape(-1, 20) for name in ("item_id", "request"))
    user, interest = events["user_id"].to_numpy()[::20], market.truth.interest[request[:, 0]]

    def worth(score: torch.Tensor) -> float:
        page = np.take_along_axis(item, (-score).argsort(dim=1, stable=True).numpy(), 1)[:, :SHOWN]
        return float(market.truth.value(user, page, interest=interest).mean())

    return encoded("simulator", parts, worth)


def short(schema: rs.Schema) -> rs.Schema:
    """Histories of the last few steps."""
    return schema.with_features(*(replace(h, max_len=STEPS) for h in schema.histories))


DATA = {"trivago": trivago, "kuairand": kuairand, "simulator": simulator, "movielens-1m": movielens}


def ranked(parts: list[rs.Log], name: str, unread: tuple[str, ...] = ()) -> list[rs.Log]:
    """With the ranker's logit, "ranker", which orders the rows of each list."""
    path = RANKED / f"{name}.npz"
    if not path.exists():
        alone = [part.select(np.arange(len(part))) for part in parts]
        for part in alone:
            part.request = None  # a ranker sees rows
        encoder = rs.Encoder(alone[0].schema).fit(alone[0])
        columns = [encoder.encode(part) for part in alone]
        codes = parts[0].request_codes()
        fold = np.random.default_rng(0).permutation(codes.max() + 1)[codes] % FOLDS
        logits = [np.zeros(len(part)) for part in parts]
        for f in range(FOLDS):
            torch.manual_seed(f)
            model = rs.ranking.DIN(encoder.schema.without(*unread), hidden=(64, 32), activation="relu")
            options = {"epochs": 2, "batch_size": 1024, "optimizer": "adam", "lr": 1e-3, "monitor": "auc"}
            options |= {"regularization": {"embedding": 1e-3}, "progress": False, "seed": f}
            model.fit(encoder.encode(alone[0].select(fold != f)), columns[1], **options)
            print(name, "fold", f, model.trained.best, flush=True)
            said = [next(iter(model.score(of).values())).astype(np.float64) for of in columns]
            said = [np.log(p / (1 - p)) for p in said]
            logits[0][fold == f] = said[0][fold == f]
            for i in (1, 2):
                logits[i] += said[i] / FOLDS
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, *logits)
    kept = np.load(path)
    out = []
    for i, part in enumerate(parts):
        part = part.with_columns([pl.Series("ranker", kept[f"arr_{i}"])])
        order = np.lexsort((-kept[f"arr_{i}"], part.request_codes()))
        part.schema = part.schema.with_features(SCORE)
        out.append(part.select(order))
    return out


def encoded(
    name: str, parts: list[rs.Log], worth: Callable[[torch.Tensor], float] | None = None, unread: tuple[str, ...] = ()
) -> Data:
    """Lists whose rows come in the initial order; without a positive none is left, but in a test that `worth` reads."""
    request, made = parts[0].request, []
    for i, part in enumerate(parts):
        place = (1 + pl.int_range(pl.len())).over(request).cast(pl.Float64).alias("place")
        clicked = pl.lit(i == 2 and worth is not None) | (pl.col("click").max().over(request) == 1)
        made.append(part.with_columns([part.events.select(place).to_series()]))
        made[i].schema = part.schema.with_features(PLACE)
        made[i] = made[i].select(part.events.select(clicked).to_series())
    encoder = rs.Encoder(made[0].schema).fit(made[0])
    schema = encoder.schema.without(*unread)
    return cut(name, schema, *(encoder.encode(part) for part in made), worth=worth)


def cut(name: str, schema: rs.Schema, *parts: Any, worth: Callable[[torch.Tensor], float] | None = None) -> Data:
    """As many lists as SETTINGS and HELD say, drawn once, in their order."""
    few = []
    for part, n in zip(parts, (SETTINGS[name].lists, *HELD), strict=True):
        drawn = np.random.default_rng(0).permutation(len(part))[:n]
        few.append(part.select(np.sort(drawn)) if len(part) > n else part)
    return Data(schema, few[0], batches(few[1]), batches(few[2]), tuple(len(part) for part in few), worth)


def batches(columns: Any, size: int = 1024) -> list[dict[str, torch.Tensor]]:
    return [columns.batch(np.arange(i, min(i + size, len(columns)))) for i in range(0, len(columns), size)]


# -- models -----------------------------------------------------------------------------------------------------------
def listed(encoder: str) -> Callable[[rs.Schema], Any]:
    return lambda schema: rs.reranking.PRM(schema, encoder=encoder, width=64, layers=1, heads=2, hidden=128)


def single(schema: rs.Schema) -> Any:
    (task,) = schema.tasks
    task = rs.Task(task.name, loss="softmax")
    return rs.ranking.TextMLP(schema.replace(tasks=[task]), dim=16, hidden=(128, 64), norm=None, dropout=0.1)


MODELS: dict[str, Callable[[rs.Schema], Any]] = {
    "MLP": single,
    "PRM": listed("transformer"),
    "SetRank": lambda schema: rs.reranking.SetRank(schema, width=64, layers=1, heads=2, max_list=50),
    "DLCM": lambda schema: rs.reranking.DLCM(schema, hidden=(128, 64), width=64, dropout=0.1),
    "Lite Transformer": listed("lite"),
    "LightConv": listed("light_conv"),
    "SRU": listed("sru"),
    "MIR": lambda schema: rs.reranking.MIR(schema, heads=2, hidden=(128, 64), dropout=0.1),
}


@torch.no_grad()
def said(model: Any, part: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, labels and mask [n, L] of all lists; without a model, scores that keep the initial order."""
    width = max(next(v for k, v in batch.items() if k.endswith("@label")).shape[1] for batch in part)
    out: list[list[torch.Tensor]] = [[], [], []]
    for batch in part:
        label = next(v for k, v in batch.items() if k.endswith("@label"))
        mask = batch.get("@mask", torch.ones(label.shape, dtype=torch.bool))
        first = -torch.arange(label.shape[1], dtype=torch.float32).expand(label.shape)
        score = first if model is None else next(iter(model(batch).values()))
        row = (score.masked_fill(~mask, -1e9), label.nan_to_num() * mask, mask)
        for parts, value, fill in zip(out, row, (-1e9, 0.0, False), strict=True):
            parts.append(torch.nn.functional.pad(value, (0, width - value.shape[1]), value=fill))
    score, label, mask = (torch.cat(parts) for parts in out)
    return score, label, mask


def measured(score: torch.Tensor, label: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Over the lists that have a positive."""
    some = label.any(1)
    found = {
        m: rs.metrics.get(m, ties="average")(score[some], label[some], where=mask[some]) for m in ("map", "ndcg@10")
    }
    return {name: round(float(value), 6) for name, value in found.items()}


def run(name: str, data: Data, seed: int, epochs: int, setting: Setting, rate: float = RATE) -> dict[str, Any]:
    """One training; what the tables and their readers need."""
    if name == "initial order":
        model, facts = None, {}
    else:
        torch.manual_seed(seed)
        model = MODELS[name](data.schema)
        model.validate = lambda part: {k: v for k, v in measured(*said(model, part)).items() if k != "map"}
        options: dict[str, Any] = {"optimizer": "adam", "lr": rate, "regularization": {"embedding": setting.penalty}}
        options |= {
            "epochs": epochs,
            "monitor": "ndcg@10",
            "patience": setting.patience,
            "seed": seed,
            "progress": False,
        }
        result = rs.Trainer(model, **options).fit(Loader(data.train, 64, shuffle=True, seed=seed), data.valid)
        model.eval()
        facts = {"best_epoch": result.best["epoch"], "epochs": len(result.epochs), "seconds": round(result.seconds, 1)}
        facts |= {"rate": rate, "penalty": setting.penalty, "parameters": sum(p.numel() for p in model.parameters())}
    score, label, mask = said(model, data.test)
    found = {"valid": measured(*said(model, data.valid)), "test": measured(score, label, mask)}
    if data.worth is not None:
        found["test"]["clicks of the page"] = round(data.worth(score), 6)
    return {**found, **facts, "lists": data.lists, "threads": torch.get_num_threads()}


# -- results ----------------------------------------------------------------------------------------------------------
def read(path: Path) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """{(data, model): {seed: its newest line}}."""
    runs: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf8").splitlines() if path.exists() else ():
        record = json.loads(line)
        runs.setdefault((record["data"], record["model"]), {})[record["seed"]] = record
    return runs


def table(path: Path) -> str:
    """Markdown, a table for each data set; what was not run is not in it."""
    lines, found = [], read(path)
    for data in DATA:
        if (data, "initial order") not in found:
            continue
        base = found[data, "initial order"][0]
        metrics = list(base["test"])
        train, valid, test = base["lists"]
        lines += [f"**{data}**: {train:,} lists of training, {valid:,} of validation, {test:,} of test.", ""]
        head = ["model", "seeds", "valid ndcg@10", *(x for m in metrics for x in (m, "gain"))]
        head += ["parameters", "best epoch", "s"]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        cells = [x for m in metrics for x in (f"{base['test'][m]:.4f}", "")]
        lines.append(f"| initial order | | {base['valid']['ndcg@10']:.4f} | {' | '.join(cells)} | | | |")
        for name in MODELS:
            by_seed = found.get((data, name))
            if not by_seed:
                continue
            runs = [by_seed[seed] for seed in sorted(by_seed)]
            cells = [name, " ".join(map(str, sorted(by_seed))), pages.spread([r["valid"]["ndcg@10"] for r in runs])]
            for m in metrics:
                values = [r["test"][m] for r in runs]
                cells += [pages.spread(values), f"{mean(values) - base['test'][m]:+.4f}"]
            cells += [f"{runs[0]['parameters']:,}", " ".join(str(r["best_epoch"]) for r in runs)]
            lines.append("| " + " | ".join([*cells, f"{mean(r['seconds'] for r in runs):.0f}"]) + " |")
        lines.append("")
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="lines of the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="at most")
    parser.add_argument("--rate", type=float, default=RATE, help="of Adam")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the tables are drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    made: dict[str, Data] = {}
    for seed, name in [(s, n) for s in args.seeds for n in args.data] if not args.table else ():
        for model in ["initial order", *args.model]:
            at = 0 if model == "initial order" else seed  # nothing in it is drawn
            if at in read(args.out).get((name, model), {}):
                continue
            made[name] = made.get(name) or DATA[name](args.data_dir)
            record = {
                "data": name,
                "model": model,
                "seed": at,
                **run(model, made[name], seed, args.epochs, SETTINGS[name], args.rate),
            }
            print(json.dumps(record), flush=True)
            with args.out.open("a", encoding="utf8") as file:
                file.write(json.dumps(record) + "\n")
            pages.put(table(args.out), args.page, BEGIN, END)
    pages.put(table(args.out), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
