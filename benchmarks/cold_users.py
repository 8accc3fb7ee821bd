"""Ways to show a model who a user is, compared on users that training never saw and on users that it knew.

    python benchmarks/cold_users.py            # every way, seed 0; skips what --out holds
    python benchmarks/cold_users.py --table    # trains nothing, draws the table into docs/benchmarks.md

Films that were watched (movielens-1m) or clicks of a market where taste alone decides (simulator). A tenth of the users is
the cold test, a tenth cold validation; of the others the last ten events are the warm test, the ten before them warm
validation, and at most 20 before these training. Each user's own items are ranked among the whole catalogue, without what they met before
(150 users of each validation part, 600 of the cold test and 300 of the warm one): NDCG@10, and the mean AUC of the users.

What is compared is how gender, age and occupation (the simulator: age, gender, country) come into a DeepFM of width 16 with an
MLP of 64-32 over the item's id, genres and year. Four drawn negatives for each positive, 256 positives a batch; the Trainer's
default optimisers with the rates below; the epoch of the best mean AUC of both validations. Vectors, tables and the
autoencoder are learned on training users alone.

popularity: how often an item was chosen in training.
no user: the items' columns alone.
one-hot, LR: weights of attributes and items are added, so all users get one order.
one-hot: the attributes' one-hots as one vector, lifted to the width by a matrix.
embedding: a table for each attribute, learned with the task.
pretrained, frozen: tables of a factorisation machine that told liked films from others (clicked lists from the shown).
pretrained, tuned: the same as a start, at a tenth of the tables' rate.
autoencoder: rs.ProfileEncoder, 16 floats.
user id: no attributes; strangers share the row of the unknown.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pages
import polars as pl
import torch

import recstack as rs
from recstack.data import Columns, Loader

RESULTS = Path(__file__).parent / "results" / "cold_users.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- cold users: drawn by benchmarks/cold_users.py -->", "<!-- cold users: end -->"
KEPT, HELD, SHARE = 20, 10, 0.1
WIDTH, GIVEN = 16, 8
TABLES = "inputs.tables*given*"  # the parameters of pretrained tables
RATES = {"embedding": 0.05, "default": 1e-3, TABLES: 0.005}


class Part(NamedTuple):
    """Users, one request each, and what they chose among what they had not met."""

    columns: Columns
    rows: np.ndarray
    chosen: torch.Tensor  # bool [users, items]
    allowed: torch.Tensor


class Data(NamedTuple):
    encoder: rs.Encoder
    attributes: tuple[str, ...]
    train: Columns
    judged: rs.Log  # liked or not, clicked or not, up to the end of training: what tables are pretrained on
    parts: dict[str, Part]


def movielens(data_dir: str | None) -> Data:
    log, judged = (rs.datasets.movielens_1m(task, data_dir=data_dir) for task in ("watched", "liked"))
    return prepared(log, judged, ("gender", "age", "occupation"), ("item_id", "genres", "year"))


def simulator(data_dir: str | None = None, **size: int) -> Data:
    size = {"users": 2000, "items": 200, "impressions": 200_000, **size}
    shown = rs.simulator.planted("taste", **size).log()
    shown.schema = shown.schema.with_features(rs.Categorical("country", "user"))
    clicked = shown.events.filter(pl.col("click") == 1).drop("click")
    clicks = rs.Log(clicked, shown.schema, users=shown.users, items=shown.items, implicit=True)
    return prepared(clicks, shown, ("age", "gender", "country"), ("item_id", "category", "brand", "price"))


def prepared(log: rs.Log, judged: rs.Log, attributes: tuple[str, ...], items: tuple[str, ...]) -> Data:
    """Split by user, the rest by the order of each user's events; encoded once, with every spelling of the attributes."""
    user, time = str(log.schema.user), str(log.schema.time)
    features = [f for f in log.schema.features if f.name in (user, *attributes, *items)]
    assert log.users is not None
    hot = log.users.select(attributes).to_dummies(attributes).to_numpy().astype(np.float32)
    judged.schema = judged.schema.replace(features=features)
    log.schema = log.schema.replace(features=[*features, rs.Vector("one_hot", "user", hot.shape[1])])
    log.users = log.users.with_columns(pl.Series("one_hot", hot))

    known, cold_valid, cold = rs.split.by_user(log, SHARE, SHARE)
    train, warm_valid, warm = rs.split.last_per_user(known, HELD, HELD)
    profile = rs.ProfileEncoder(attributes, size=WIDTH).fit(train, progress=False)
    train, *logs = (profile.transform(x) for x in (train, cold_valid, warm_valid, cold, warm))
    encoder = rs.Encoder(train.schema).fit(train)
    met = encoder.encode(train), encoder.encode(logs[1])
    ends = train.events.group_by(user).agg(pl.col(time).max().alias("end"))
    before = judged.events.join(ends, on=user, how="left", maintain_order="left").select(pl.col(time) <= pl.col("end"))
    return Data(
        encoder,
        attributes,
        met[0].select(met[0].newer() < KEPT),
        judged.select(before.to_series().fill_null(False)),
        {
            "cold valid": part(encoder, logs[0], (), 150),
            "warm valid": part(encoder, logs[1], met[:1], 150),
            "cold": part(encoder, logs[2], (), 600),
            "warm": part(encoder, logs[3], met, 300),
        },
    )


def part(encoder: rs.Encoder, log: rs.Log, met: tuple[Columns, ...], users: int) -> Part:
    columns = encoder.encode(log)
    _, rows, which = np.unique(log.events[str(log.schema.user)].to_numpy(), return_index=True, return_inverse=True)
    some = np.linspace(0, len(rows) - 1, min(users, len(rows))).astype(np.int64)
    chosen = torch.zeros(len(rows), encoder.catalog.size, dtype=torch.bool)
    chosen[torch.from_numpy(which), torch.from_numpy(columns.item_ids).long()] = True
    chosen, rows = chosen[some], rows[some]
    allowed = torch.ones_like(chosen)
    for earlier in met:
        offsets, items = earlier.seen(columns.user_ids[rows])
        allowed[torch.from_numpy(np.repeat(np.arange(len(rows)), np.diff(offsets))), torch.from_numpy(items).long()] = (
            False
        )
    allowed[:, :2] = False
    return Part(columns, rows, chosen & allowed, allowed)


DATA = {"movielens-1m": movielens, "simulator": simulator}


# -- the ways ---------------------------------------------------------------------------------------------------------
WAYS = (
    "popularity",
    "no user",
    "one-hot, LR",
    "one-hot",
    "embedding",
    "pretrained, frozen",
    "pretrained, tuned",
    "autoencoder",
    "user id",
)


def build(way: str, data: Data) -> torch.nn.Module:
    schema = data.encoder.schema
    seen = {
        "no user": (),
        "one-hot": ("one_hot",),
        "autoencoder": ("profile",),
        "user id": (schema.user,),
    }.get(way, data.attributes)
    schema = schema.without(*(f.name for f in schema.by_role("user") if f.name not in seen))
    if way == "one-hot, LR":
        return rs.ranking.LR(schema)
    if not way.startswith("pretrained"):
        return rs.ranking.DeepFM(schema, dim=WIDTH, hidden=(64, 32), norm=None)
    kept = {"trainable": False} if way.endswith("frozen") else {"arena": "given"}
    given = [replace(schema.feature(name), dim=GIVEN, **kept) for name in data.attributes]  # type: ignore[type-var]
    model = rs.ranking.DeepFM(schema.with_features(*given), dim=WIDTH, hidden=(64, 32), norm=None)
    encoder = rs.Encoder(data.judged.schema).fit(data.judged)
    fm = rs.ranking.FM(encoder.schema.without(str(encoder.schema.user)), dim=GIVEN)
    rows = encoder.encode(data.judged)
    fm.fit(rows.select(rows.newer() < KEPT), epochs=2, lr={"embedding": 0.05, "default": 1e-3}, progress=False)
    for name in data.attributes:
        table = fm.inputs.tables.by_id(name).detach()
        model.load_vectors(name, (encoder.decode(name, np.arange(2, len(table))), table[2:]))
    return model


@torch.no_grad()
def measure(model: torch.nn.Module, data: Data, which: Part) -> dict[str, float]:
    """The mean over users of NDCG@10 and AUC."""
    catalog, scores = data.encoder.catalog, []
    items = torch.arange(catalog.size)
    for rows in np.array_split(which.rows, -(-len(which.rows) // 16)):
        batch = which.columns.request_batch(rows) | catalog.batch(items.expand(len(rows), -1))
        scores.append(next(iter(model(batch).values())))
    return judged(torch.cat(scores), which)


def judged(score: torch.Tensor, which: Part) -> dict[str, float]:
    label, group = which.chosen.float(), torch.arange(len(score)).unsqueeze(-1).expand(score.shape)
    area = rs.metrics.gauc(score, label, where=which.allowed, group=group, weights="uniform")
    return {
        "ndcg@10": rs.metrics.get("ndcg@10", ties="average")(score, label, where=which.allowed).item(),
        "auc": area.item(),
    }


def run(way: str, data: Data, seed: int, epochs: int) -> dict[str, Any]:
    """One way trained and measured; "popularity" is only counted."""
    if way == "popularity":
        count = torch.bincount(torch.from_numpy(data.train.item_ids).long(), minlength=data.encoder.catalog.size)
        found = {n: judged(count.float().expand(len(p.rows), -1), p) for n, p in data.parts.items()}
        return {**_flat(found), "epochs": 0, "seconds": 0.0}
    torch.manual_seed(seed)  # of the initial weights
    model = build(way, data)
    model.validate = lambda given: {  # type: ignore[assignment]
        "auc": float(np.mean([measure(model, data, data.parts[f"{n} valid"])["auc"] for n in ("cold", "warm")]))
    }
    rates = RATES if way == "pretrained, tuned" else {k: v for k, v in RATES.items() if k != TABLES}
    optimizer = {k: "adam" if k == "default" else "rowwise_adagrad" for k in rates}
    options: dict[str, Any] = {"optimizer": optimizer, "lr": rates, "monitor": "auc", "patience": 1, "progress": False}
    trainer = rs.Trainer(model, epochs=epochs, seed=seed, **options)
    result = trainer.fit(Loader(data.train, 256, shuffle=True, seed=seed, negatives=4), data.parts)
    found = {n: measure(model, data, p) for n, p in data.parts.items()}
    return {**_flat(found), "epochs": len(result.epochs), "seconds": round(result.seconds, 1)}


def _flat(found: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{n} {metric}": round(v, 5) for n, values in found.items() for metric, v in values.items()}


# -- the page ---------------------------------------------------------------------------------------------------------
def read(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """{(data, way, seed): its newest line}."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
    return {(r["data"], r["way"], r["seed"]): r for r in lines}


def table(path: Path) -> str:
    """Markdown: means over the seeds that were run."""
    found, out = read(path), []
    metrics = [f"{part} {metric}" for part in ("cold", "warm") for metric in ("ndcg@10", "auc")]
    for data in DATA:
        head = ["way", "seeds", *metrics]
        rows = []
        for way in WAYS:
            runs = [r for (d, w, _), r in sorted(found.items()) if (d, w) == (data, way)]
            if runs:
                cells = [f"{np.mean([r[m] for r in runs]):.4f}" for m in metrics]
                rows.append([way, " ".join(str(r["seed"]) for r in runs), *cells])
        if rows:
            out += [f"**{data}**", ""]
            out += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]
    return "\n".join(out).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=["movielens-1m"])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=3, help="at most; validation ends a run before")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.data if not args.table else ():
        data = None
        for seed, way in [(s, w) for s in args.seeds for w in args.way]:
            if (name, way, seed) in read(args.out):
                continue
            data = data or DATA[name](args.data_dir)
            line = json.dumps({"data": name, "way": way, "seed": seed, **run(way, data, seed, args.epochs)})
            print(line, flush=True)
            with args.out.open("a", encoding="utf8") as file:
                file.write(line + "\n")
    pages.put(table(args.out), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
