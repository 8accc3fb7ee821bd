"""Retrieval for users and for items that training never saw.

    python benchmarks/cold_start.py            # what --out does not hold yet, then the tables
    python benchmarks/cold_start.py --data beauty --model DropoutNet
    python benchmarks/cold_start.py --table    # trains nothing, draws the tables into docs/benchmarks.md

beauty: S3-Rec's Amazon Beauty; what is known of an item are its attributes, of a user nothing. movielens-1m: films watched; genres
and year, and the user's gender, age and occupation.

A tenth of the users is new for the test, a tenth new for validation, and so are a tenth of the items each, drawn by seed 0. Of
the other users the newest choice among known items is the test, the one before it validation, and at most 20 before these are
trained on. Four questions, of at most 500 users each (200 in validation):

known: the last choice of known users, among all known items.
new users: what new users chose after their first three choices, which they come with, among all known items.
new items: what known users chose of the new items, among the new items of that part alone.
both: what new users chose of the new items, coming with the same three choices, among these items alone.

ndcg@10 and recall@10, what was met before left out. Settings are fixed, below; the epoch is the one whose mean ndcg@10 over the
four questions of validation is best. "content": the tables of user and item ids are frozen at one tiny number, so that a model
lives on what users and items are.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pages
import polars as pl
import torch

import recstack as rs
from recstack.data import Columns, Profiles, Requests
from recstack.kernels.cooccurrence import interactions
from recstack.kernels.topk import Sparse, evaluate_topk

RESULTS = Path(__file__).parent / "results" / "cold_start.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- cold start: drawn by benchmarks/cold_start.py -->", "<!-- cold start: end -->"
QUESTIONS = ("known", "new users", "new items", "both")
SHARE, KEPT, GIVEN = 0.1, 20, 3
ASKED = {"valid": 200, "test": 500}
DSSM: dict[str, Any] = {"dim": 16, "hidden": (128, 64)}
MODELS = (
    "Popularity",
    "ContentBased",
    "EGES",
    "iALS",
    "DSSM",
    "DSSM, content",
    "DropoutNet",
    "MetaEmbedding",
    "MeLU",
)


class Question(NamedTuple):
    """Users, what they look for [R, N], and among which items."""

    requests: Requests
    truth: Sparse
    where: torch.Tensor


class Data(NamedTuple):
    encoder: rs.Encoder
    train: Columns
    parts: dict[str, dict[str, Question]]  # stage → question


def beauty(data_dir: str | None) -> Data:
    return prepared(rs.datasets.s3rec("Beauty", data_dir=data_dir))


def movielens(data_dir: str | None) -> Data:
    log = rs.datasets.movielens_1m(data_dir=data_dir)
    past = rs.History("history", of=("item_id", "genres", "year"), max_len=50)
    log.schema = log.schema.without("title", "zip").with_features(past)
    return prepared(log)


DATA = {"beauty": beauty, "movielens-1m": movielens}


def prepared(log: rs.Log, seed: int = 0) -> Data:
    user, item, time = str(log.schema.user), str(log.schema.item), str(log.schema.time)
    rng = np.random.default_rng(seed)
    of = {}  # 0: known, 1: new in validation, 2: new in the test
    for name in (user, item):
        raw = np.sort(log.events[name].unique().to_numpy())
        drawn = rng.random(len(raw))
        of[name] = (drawn < 2 * SHARE).astype(int) + (drawn < SHARE)
        of[name] = of[name][np.searchsorted(raw, log.events[name].to_numpy())]
    known_item, known_user = of[item] == 0, of[user] == 0
    usual = log.select(known_user & known_item)
    newest = usual.events.select((pl.len() - pl.col(time).rank("ordinal").over(user).cast(pl.Int64)).over(user))
    newest = newest.to_series().to_numpy()  # 0 is each user's last choice
    train = usual.select(newest >= 2)
    encoder = rs.Encoder(log.schema).fit(log.select(known_user))  # new items have ids, new users have not
    columns = encoder.encode(train)
    parts: dict[str, dict[str, Question]] = {}
    for stage, (held, new) in {"valid": (1, 1), "test": (0, 2)}.items():
        before = Profiles.build(usual.select(newest > held), encoder)
        strangers = log.select((of[user] == new) & known_item)
        place = strangers.events.select(pl.col(time).rank("ordinal").over(user)).to_series().to_numpy()
        first = Profiles.build(strangers.select(place <= GIVEN), encoder)
        fresh = of[item] == new
        wanted = {
            "known": (before, usual.select(newest == held), False),
            "new users": (first, strangers.select(place > GIVEN), False),
            "new items": (before, log.select(known_user & fresh), True),
            "both": (first, log.select((of[user] == new) & fresh), True),
        }
        chosen = encoder.encode_values(item, log.events.filter(pl.Series(fresh))[item].unique().to_list())
        new_ids = torch.zeros(encoder.catalog.size, dtype=torch.bool)
        new_ids[torch.from_numpy(chosen).long()] = True
        every = encoder.encode_values(item, log.events.filter(pl.Series(known_item))[item].unique().to_list())
        old_ids = torch.zeros_like(new_ids)
        old_ids[torch.from_numpy(every).long()] = True
        parts[stage] = {
            name: question(profiles, part, new_ids if new_only else old_ids, ASKED[stage])
            for name, (profiles, part, new_only) in wanted.items()
        }
    return Data(encoder, columns.select(columns.newer() < KEPT), parts)


def question(profiles: Profiles, log: rs.Log, where: torch.Tensor, most: int) -> Question:
    """What users chose in a log, asked as their profiles stand; of items that the encoder knows."""
    encoder = profiles.encoder
    ids = encoder.encode_values(encoder.schema.item, log.events[encoder.schema.item].to_list())
    users = log.events[encoder.schema.user].to_numpy()
    met = np.array([u in profiles for u in users.tolist()])
    users, ids = users[met & (ids > 1)], ids[met & (ids > 1)]
    raw, row = np.unique(users, return_inverse=True)
    some = np.unique(np.linspace(0, len(raw) - 1, min(most, len(raw))).astype(int))
    place = np.full(len(raw), -1)
    place[some] = np.arange(len(some))
    live = place[row] >= 0
    truth = interactions(place[row][live], ids[live], len(some), encoder.catalog.size)
    return Question(profiles.requests(raw[some].tolist()), truth, where)


def measure(model: Any, questions: dict[str, Question]) -> dict[str, float]:
    out: dict[str, float] = {}
    for name, (requests, truth, where) in questions.items():
        requests.memo.clear()
        found = model.recommend(requests, 10, where=where)
        recall, ndcg = evaluate_topk(found.ids.numpy(), truth, found.mask.sum(1).numpy())
        out |= {f"{name} ndcg@10": float(np.nanmean(ndcg)), f"{name} recall@10": float(np.nanmean(recall))}
    return out


def mean_ndcg(found: dict[str, float]) -> dict[str, float]:
    return {"ndcg@10": float(np.mean([found[f"{q} ndcg@10"] for q in QUESTIONS]))}


# -- models -------------------------------------------------------------------------------------------------------------
TRAINED: dict[
    tuple[int, int], Any
] = {}  # the DSSM of some data and seed, which MetaEmbedding starts from where it was run


def learn(name: str, data: Data, seed: int, epochs: int) -> tuple[Any, dict[str, Any]]:
    """A model, trained, and how it was built."""
    schema, encoder = data.encoder.schema, data.encoder
    side = [f.name for f in schema.by_role("item") if f.name != schema.item]
    if name == "Popularity":
        return rs.retrieval.Popularity(schema).fit(data.train), {}
    if name == "ContentBased":
        return rs.retrieval.ContentBased(schema).fit(data.train), {}
    if name == "EGES":
        options = {"features": tuple(side), "dim": 32, "walks": 5, "negatives": 5, "seed": seed}
        return rs.retrieval.EGES(schema, **options).fit(data.train), options  # type: ignore[arg-type]
    factors = {"dim": 32, "regularisation": 0.01, "unobserved": 0.03, "iterations": 8, "seed": seed}
    if name == "iALS":
        return rs.retrieval.iALS(schema, **factors).fit(data.train), factors  # type: ignore[arg-type]

    def watched(model: Any) -> Any:
        model.validate = lambda given: mean_ndcg(measure(model, given))
        return model

    torch.manual_seed(seed)  # of the initial weights
    training = {"optimizer": "adam", "lr": 3e-3, "batch_size": 256, "seed": seed, "progress": False}
    training |= {"epochs": epochs, "monitor": "ndcg@10", "patience": 1}
    if name == "DropoutNet":
        options = {"dim": 32, "width": 16, "hidden": (128,)}
        given = rs.retrieval.iALS(schema, **factors).fit(data.train)  # type: ignore[arg-type]
        model = rs.retrieval.DropoutNet(schema, **options).pretrain(given)  # type: ignore[arg-type]
        options |= {f"iALS {k}": v for k, v in factors.items()}
    elif name == "MeLU":
        options = {"dim": 16, "hidden": (64, 32)}
        model = rs.retrieval.MeLU(schema, **options)  # type: ignore[arg-type]
    elif name == "MetaEmbedding":
        options = {"base": "DSSM", **DSSM}
        model = rs.retrieval.MetaEmbedding(schema, base=partial(rs.retrieval.DSSM, **DSSM))
        if (id(data), seed) in TRAINED:
            model.pretrain(TRAINED[id(data), seed])
        watched(model.base)
    else:
        options = DSSM
        if name.endswith("content"):
            ids = [replace(schema.feature(n), dim=1, trainable=False) for n in (schema.user, schema.item)]  # type: ignore[type-var, arg-type]
            schema = schema.with_features(*ids).replace(encoder=encoder)
        model = rs.retrieval.DSSM(schema, **DSSM)
    model = watched(model).fit(data.train, data.parts["valid"], **training)
    if name == "DSSM":
        TRAINED[id(data), seed] = model
    return model, options


def run(name: str, data: Data, seed: int, epochs: int) -> dict[str, Any]:
    begun, used = time.perf_counter(), time.process_time()
    model, options = learn(name, data, seed, epochs)
    seconds = {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - used}
    found = {f"valid {n}": v for n, v in mean_ndcg(measure(model, data.parts["valid"])).items()}
    found |= measure(model, data.parts["test"])
    trained = getattr(model, "trained", None)
    return {
        **{n: round(v, 5) for n, v in found.items()},
        "epochs": 0 if trained is None else len(trained.epochs),
        **{n: round(v, 1) for n, v in seconds.items()},
        "options": options,
    }


# -- the page ---------------------------------------------------------------------------------------------------------
def read(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """{(data, model, seed): its newest line}."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
    return {(r["data"], r["model"], r["seed"]): r for r in lines}


def table(path: Path) -> str:
    """Markdown: what was run, means over the seeds."""
    found, out = read(path), []
    for data in DATA:
        rows = []
        for name in MODELS:
            runs = [r for (d, m, _), r in sorted(found.items()) if (d, m) == (data, name)]
            if runs:
                cells = [pages.spread([r[f"{q} ndcg@10"] for r in runs]) for q in QUESTIONS]
                seconds = f"{np.mean([r['processor_seconds'] for r in runs]):.0f}"
                rows.append([name, " ".join(str(r["seed"]) for r in runs), *cells, seconds])
        if rows:
            head = ["model", "seeds", *QUESTIONS, "processor s"]
            out += [f"**{data}**, ndcg@10", ""]
            out += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]
    return "\n".join(out).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=6, help="at most; validation ends a run before")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.data if not args.table else ():
        data = None
        for seed, model in [(s, m) for s in args.seeds for m in args.model]:
            if (name, model, seed) in read(args.out):
                continue
            data = data or DATA[name](args.data_dir)
            line = json.dumps({"data": name, "model": model, "seed": seed, **run(model, data, seed, args.epochs)})
            print(line, flush=True)
            with args.out.open("a", encoding="utf8") as file:
                file.write(line + "\n")
    pages.put(table(args.out), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
