"""Pages that learn what they lead to, against the simulator: ads in lists (DEAR), and pages of five (SlateQ, DDPG).

    python benchmarks/slates.py            # seeds 0, 1, 2: a few minutes; then the table
    python benchmarks/slates.py --table    # plays nothing, draws the table into docs/benchmarks.md

Users are those of `rs.simulator`: they click by taste, price and what they clicked last, and ask for another page with the chance
that `Truth.stays` states (3 in 4 for a usual page, more for pleasing ones, less for ads that are seen and not liked); 15 pages at
most. A session begins without an interest. What models learn from is the log of sessions of a policy that chooses by chance; each
policy is then played in 2,000 sessions of its own. All figures are of the policy in play: nothing is estimated from the log.

Ads: 400 users, 300 items of which a fifth are ads with bids; a list of 6 (the best of 40 drawn items by the true click logit, which
the recommender sees through noise of deviation 0.7), 4 drawn ads, and 10,000 logged sessions in which ad and location (none, or one
of 7) are drawn evenly. A page earns the bid of a clicked ad, plus α = 0.1 if the user stays and minus α if not. "Fixed" puts the ad of the
greatest bid above the first, third or sixth item; "the truth, one page ahead" chooses ad and location by the true expected reward of
the page. Pages: 400 users, 200 items, 12 drawn candidates of which 5 are shown; 6,000 logged sessions of pages drawn by chance. "Greedy"
sorts by the click logits that SlateQ learned, "the truth, greedy" by the true chance of a click. All models: embeddings of 8, layers of
64-32, Adam 2e-3, L2 of 1e-3 on whole tables, 256 requests a batch, 4 epochs. α was set so that neither always nor never inserting is right,
by the truth alone; the number of sessions, epochs and the L2 on a market of seed 7, which is not in the table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pages
import polars as pl
import torch

import recstack as rs
from recstack.data.simulator import Market, Truth
from recstack.models.reranking.ddpg import DDPG
from recstack.models.reranking.dear import DEAR, placed
from recstack.models.reranking.slate_q import SlateQ

RESULTS = Path(__file__).parent / "results" / "slates.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- slates: drawn by benchmarks/slates.py -->", "<!-- slates: end -->"
LENGTH, ADS, CANDIDATES, SHOWN, MOST, PLAYED, ALPHA = 6, 4, 12, 5, 15, 2000, 0.1
MINUTE = 60
TRAINER: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 2e-3,
    "regularization": {"embedding": 1e-3},
    "batch_size": 256,
    "epochs": 4,
    "progress": False,
}
FEATURES = [
    rs.Categorical("user_id", role="user"),
    rs.Categorical("age", role="user"),
    rs.Categorical("item_id", role="item"),
    rs.Categorical("category", role="item"),
    rs.Categorical("brand", role="item"),
    rs.Numeric("price", role="item", transform="log"),
    rs.History("clicked", of=("item_id", "category"), max_len=20),
]


class Sessions:
    """Users who ask for pages until they have enough; `play` lets a policy fill them and logs what happens."""

    def __init__(self, truth: Truth, size: int, seed: int):
        self.truth, self.rng = truth, np.random.default_rng(seed)
        self.user = self.rng.integers(truth.config.users, size=size)
        self.interest = np.zeros((size, truth.item.shape[1]), np.float32)
        self.clicked: list[list[int]] = [[] for _ in range(size)]
        self.ads: list[list[int]] = [[] for _ in range(size)]
        self.here = np.arange(size)  # sessions that go on

    def play(
        self, offer: Callable[..., Any], policy: Callable[..., Any], log: list[dict[str, Any]] | None = None
    ) -> dict[str, float]:
        """Means per session of pages, clicks and revenue."""
        size, total = len(self.here), {"pages": 0.0, "clicks": 0.0, "revenue": 0.0, "reward": 0.0, "ads": 0.0}
        for step in range(MOST):
            if not len(self.here):
                break
            offered = offer(self)
            page, chosen = policy(self, *offered)
            u, h = self.user[self.here], self.interest[self.here]
            answer = self.truth.respond(u, page, interest=h, seed=self.rng)
            is_ad = (page >= 0) & self.truth.ad[page]
            revenue = (answer.click * is_ad * self.truth.bid[page]).sum(1)
            reward = revenue + ALPHA * np.where(answer.stays, 1, -1)
            if log is not None:
                log.append(self.rows(step, offered, chosen) | {"click": answer.click, "reward": reward, "page": page})
            for name, value in (("pages", len(u)), ("clicks", answer.click.sum()), ("revenue", revenue.sum())):
                total[name] += float(value)
            total["reward"] += float(reward.sum())
            total["ads"] += float(is_ad.sum())
            self.interest[self.here] = answer.interest
            for s, items, clicks, ads in zip(self.here, page, answer.click, is_ad, strict=True):
                self.clicked[s] = self.clicked[s] + items[clicks].tolist()
                self.ads[s] = self.ads[s] + items[ads].tolist()
            self.here = self.here[answer.stays]
        return {name: value / size for name, value in total.items()}

    def rows(self, step: int, offered: Any, chosen: Any = None) -> dict[str, Any]:
        """What is known of each request before its page is played."""
        return {
            "user": self.user[self.here],
            "session": self.here.copy(),
            "step": step,
            "clicked": [self.clicked[s] for s in self.here],
            "ads": [self.ads[s] for s in self.here],
            "offered": offered,
            "chosen": chosen,
        }


def drawn(rng: np.random.Generator, pool: np.ndarray, rows: int, n: int) -> np.ndarray:
    """n different ones of a pool for each row."""
    return pool[rng.random((rows, len(pool))).argpartition(n, axis=1)[:, :n]]


def frame(parts: list[dict[str, Any]], candidates: Callable[[dict[str, Any]], np.ndarray]) -> pl.DataFrame:
    """One row per candidate: the columns that all requests share."""
    out = []
    for part in parts:
        items = candidates(part)
        n, width = items.shape
        shared = pl.DataFrame(
            {
                "user_id": part["user"],
                "time": part["session"] * 100_000 + part["step"] * MINUTE,  # sessions lie more than a day apart
                "request": part["session"] * 100 + part["step"],
                "clicked": pl.Series(part["clicked"], dtype=pl.List(pl.Int64)),
                "ads_seen": pl.Series(part["ads"], dtype=pl.List(pl.Int64)),
            }
        )
        rows = shared[np.repeat(np.arange(n), width)]
        out.append(rows.with_columns(item_id=pl.Series(items.ravel())))
    return pl.concat(out)


# -- ads in lists -----------------------------------------------------------------------------------------------------
def lists_and_ads(of: Sessions) -> tuple[np.ndarray, np.ndarray]:
    """The list that would be shown without an ad, [n, L], and the ads that could come into it, [n, A]."""
    t, n = of.truth, len(of.here)
    pool = drawn(of.rng, np.flatnonzero(~t.ad), n, 40)
    guess = t.logit("click", of.user[of.here, None], pool, 0, of.interest[of.here, None]) + of.rng.normal(
        0, 0.7, pool.shape
    )
    best = np.take_along_axis(pool, (-guess).argsort(1)[:, :LENGTH], 1)
    return best, drawn(of.rng, np.flatnonzero(t.ad), n, ADS)


def with_ad(page: np.ndarray, ads: np.ndarray, ad: np.ndarray, location: np.ndarray) -> tuple[np.ndarray, Any]:
    chosen = torch.from_numpy(ads[np.arange(len(ads)), ad])
    return placed(torch.from_numpy(page), chosen, torch.from_numpy(location)).numpy(), (ad, location)


def fixed(location: int) -> Callable[..., Any]:
    def policy(of: Sessions, page: np.ndarray, ads: np.ndarray) -> Any:
        return with_ad(page, ads, of.truth.bid[ads].argmax(1), np.full(len(ads), location))

    return policy


def by_chance(of: Sessions, page: np.ndarray, ads: np.ndarray) -> Any:
    return with_ad(page, ads, of.rng.integers(ADS, size=len(ads)), of.rng.integers(LENGTH + 2, size=len(ads)))


def by_truth(of: Sessions, page: np.ndarray, ads: np.ndarray) -> Any:
    t, u, h = of.truth, of.user[of.here], of.interest[of.here]
    gain = np.empty((len(u), ADS, LENGTH + 2))
    for a in range(ADS):
        p = t.click(u, ads[:, a], interest=h)
        for at in range(LENGTH + 2):
            shown, _ = with_ad(page, ads, np.full(len(u), a), np.full(len(u), at))
            seen = t.examine(at) if at else 0.0
            gain[:, a, at] = seen * p * t.bid[ads[:, a]] + ALPHA * (2 * t.stays(u, shown, interest=h) - 1)
    best = gain.reshape(len(u), -1).argmax(1)
    return with_ad(page, ads, best // (LENGTH + 2), best % (LENGTH + 2))


def ad_log(market: Market, parts: list[dict[str, Any]], schema: rs.Schema) -> rs.Log:
    """Rows of all ads that could have come, labels on the one that was decided on."""
    rows = frame(parts, lambda part: part["offered"][1])
    page = [p for part in parts for p in np.repeat(part["offered"][0], ADS, 0).tolist()]
    earned, location = [], []
    for part in parts:
        n = len(part["user"])
        here = np.full((2, n, ADS), np.nan)
        if part["chosen"] is not None:
            ad, at = part["chosen"]
            here[:, np.arange(n), ad] = part["reward"], at
        earned.append(here[0].ravel())
        location.append(here[1].ravel())
    labels = {"earned": np.concatenate(earned), "location": np.concatenate(location)}
    rows = rows.with_columns(
        page=pl.Series(page, dtype=pl.List(pl.Int64)), **{k: pl.Series(v) for k, v in labels.items()}
    )
    return rs.Log(rows, schema, users=market.users, items=market.items, request="request")


def ads(seed: int) -> list[dict[str, Any]]:
    market = rs.simulator.simulate(
        users=400, items=300, impressions=20_000, list_size=LENGTH, ads=0.2, ctr=0.15, cold=0.0, seed=seed
    )
    histories = [
        rs.History("ads_seen", of=("item_id", "category"), max_len=10),
        rs.History("page", of=("item_id", "category"), max_len=LENGTH),
    ]
    tasks = [rs.Task("earned", kind="regression"), rs.Task("location", kind="multiclass", classes=LENGTH + 2)]
    features = [*FEATURES, rs.Numeric("bid", role="item"), *histories]
    schema = rs.Schema(features, tasks, user="user_id", item="item_id", time="time")
    parts: list[dict[str, Any]] = []
    Sessions(market.truth, 10_000, seed + 1000).play(lists_and_ads, by_chance, parts)
    log = ad_log(market, parts, schema)
    encoder = rs.Encoder(schema).fit(log)
    rows = encoder.encode(log)
    out: list[dict[str, Any]] = []

    def measured(name: str, policy: Callable[..., Any], cpu: float = 0.0) -> None:
        found = Sessions(market.truth, PLAYED, seed + 2000).play(lists_and_ads, policy)
        out.append({"seed": seed, "study": "ads", "policy": name, "cpu": round(cpu, 1), **found})
        print(json.dumps(out[-1]), flush=True)

    measured("never", fixed(0))
    measured("by chance", by_chance)
    for at in (1, 3, 6):
        measured(f"fixed, above item {at}", fixed(at))
    for discount in (0.0, 0.9):
        began = time.process_time()
        torch.manual_seed(seed)
        model = DEAR(encoder.schema, dim=8, width=32, hidden=(64, 32), discount=discount)
        model.fit(rows, seed=seed, **TRAINER)

        def policy(of: Sessions, page: np.ndarray, ads: np.ndarray, model: DEAR = model) -> Any:
            asked = ad_log(market, [of.rows(0, (page, ads))], schema)
            ad, at = model.eval().choose(encoder.encode(asked).batch(slice(0, len(ads))))
            return with_ad(page, ads, ad.numpy(), at.numpy())

        measured(f"DEAR, discount {discount:g}", policy, time.process_time() - began)
    measured("the truth, one page ahead", by_truth)
    return out


# -- pages of five ----------------------------------------------------------------------------------------------------
def some_candidates(of: Sessions) -> tuple[np.ndarray]:
    return (drawn(of.rng, np.arange(of.truth.config.items), len(of.here), CANDIDATES),)


def first_ones(of: Sessions, candidates: np.ndarray) -> Any:
    return candidates[:, :SHOWN], None  # drawn in no order


def best_by(score: Callable[[Sessions, np.ndarray], np.ndarray]) -> Callable[..., Any]:
    def policy(of: Sessions, candidates: np.ndarray) -> Any:
        order = np.argsort(-score(of, candidates), 1, kind="stable")[:, :SHOWN]
        return np.take_along_axis(candidates, order, 1), None

    return policy


def page_log(market: Market, parts: list[dict[str, Any]], schema: rs.Schema) -> rs.Log:
    """Rows of all candidates, in the order of the page, labels on those that were shown."""
    rows = frame(parts, lambda part: part["offered"][0])
    click = np.full((len(rows) // CANDIDATES, CANDIDATES), np.nan)
    if "click" in parts[0]:
        click[:, :SHOWN] = np.concatenate([part["click"] for part in parts])
    rows = rows.with_columns(click=pl.Series(click.ravel()))
    return rs.Log(rows, schema, users=market.users, items=market.items, request="request")


def slates(seed: int) -> list[dict[str, Any]]:
    market = rs.simulator.simulate(
        users=400, items=200, impressions=20_000, list_size=SHOWN, ctr=0.15, cold=0.0, seed=seed
    )
    schema = rs.Schema(FEATURES, [rs.Task("click")], user="user_id", item="item_id", time="time")
    parts: list[dict[str, Any]] = []
    Sessions(market.truth, 6000, seed + 1000).play(some_candidates, first_ones, parts)
    log = page_log(market, parts, schema)
    encoder = rs.Encoder(schema).fit(log)
    rows, out = encoder.encode(log), []

    def measured(name: str, policy: Callable[..., Any], cpu: float = 0.0) -> None:
        found = Sessions(market.truth, PLAYED, seed + 2000).play(some_candidates, policy)
        out.append({"seed": seed, "study": "pages", "policy": name, "cpu": round(cpu, 1), **found})
        print(json.dumps(out[-1]), flush=True)

    def scored(logits: Callable[[Any], torch.Tensor]) -> Callable[[Sessions, np.ndarray], np.ndarray]:
        @torch.no_grad()
        def score(of: Sessions, candidates: np.ndarray) -> np.ndarray:
            asked = encoder.encode(page_log(market, [of.rows(0, (candidates,))], schema))
            return logits(asked.batch(slice(0, len(candidates)))).numpy()

        return score

    def fitted(model: Any) -> tuple[Any, float]:
        began = time.process_time()
        model.fit(rows, seed=seed, **TRAINER)
        return model.eval(), time.process_time() - began

    sizes: dict[str, Any] = {"dim": 8, "hidden": (64, 32), "discount": 0.8}
    measured("by chance", first_ones)
    torch.manual_seed(seed)
    slate_q, cpu = fitted(SlateQ(encoder.schema, places=SHOWN, **sizes))
    measured("greedy", best_by(scored(lambda batch: slate_q._read(batch)[1]["click"])), cpu)
    measured("SlateQ", best_by(scored(lambda batch: slate_q(batch)["click"])), cpu)
    torch.manual_seed(seed)
    ddpg, cpu = fitted(DDPG(encoder.schema, **sizes))
    measured("DDPG", best_by(scored(lambda batch: ddpg(batch)["click"])), cpu)
    true = best_by(
        lambda of, items: of.truth.logit("click", of.user[of.here, None], items, 0, of.interest[of.here, None])
    )
    measured("the truth, greedy", true)
    return out


def run(seed: int) -> list[dict[str, Any]]:
    return [*ads(seed), *slates(seed)]


def table() -> str:
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    columns = {
        "ads": {
            "reward": "reward",
            "revenue": "revenue",
            "pages": "pages",
            "ads": "ads",
            "clicks": "clicks",
            "cpu": "s of CPU",
        },
        "pages": {"clicks": "clicks", "pages": "pages", "cpu": "s of CPU"},
    }
    out = []
    for study, names in columns.items():
        out += [f"| {study}, per session | {' | '.join(names.values())} |", "|---|" + "---|" * len(names)]
        for policy in dict.fromkeys(row["policy"] for row in found if row["study"] == study):
            of = [row for row in found if row["study"] == study and row["policy"] == policy]
            cells = [pages.spread([row[c] for row in of], 1 if c == "cpu" else 3) for c in names]
            out.append(f"| {policy} | {' | '.join(cells)} |")
        out.append("")
    return "\n".join(out).strip()


if __name__ == "__main__":
    pages.by_seed(__doc__, run, table, RESULTS, PAGE, BEGIN, END)
