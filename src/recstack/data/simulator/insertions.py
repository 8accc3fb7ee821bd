"""A log of lists into which ads came by chance, as models learn from it that insert them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recstack.data.simulator.world import DIM, Truth
from recstack.errors import ConfigError
from recstack.schema import Categorical, History, Numeric, Schema, Task

if TYPE_CHECKING:
    from recstack.data.log import Log
    from recstack.data.simulator.market import Market

ADS, POOL, NOISE, MOST = 4, 40, 0.7, 15  # ads offered, items ranked, in logits, pages of a session
STAYS = 0.1  # what a user who stays is worth, and one who leaves costs
APART = 100_000  # seconds between the beginnings of sessions; pages follow each other by the minute


def insertions(market: Market) -> Log:
    r"""Sessions in which an ad, drawn of four, comes into a list at a drawn location, or none does.

    A list has `list_size` organic items, the best of 40 drawn ones by the true logit and noise; location 0 is no ad, ℓ above the
    ℓ-th item, `list_size` + 1 at the end, all alike. Users click and stay as `Truth.respond` says, at most for 15 pages, and
    begin without an interest. A row is an ad that could have come; the one that was decided on has the labels: ``location``, and
    ``earned``, the bid if it was clicked, plus 0.1 if the user stays and minus 0.1 if not. There are about as many requests as
    in the market's log.

    Raises:
        ConfigError: the market has no ads.

    >>> from recstack.data.simulator import simulate
    >>> log = insertions(simulate(users=20, items=60, impressions=500, list_size=5, ads=0.2))
    >>> log.events["location"].drop_nulls().unique().sort().to_list()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    """
    import polars as pl

    from recstack.data.log import Log

    truth, c = market.truth, market.config
    ads, length = np.flatnonzero(truth.ad), c.list_size
    if not len(ads):
        raise ConfigError("Ads can only be inserted in a market that has some: simulate(ads=0.2).")
    rng, wanted = np.random.default_rng([c.seed, 1]), max(1, c.impressions // length)
    few, parts, done, begin = min(ADS, len(ads)), [], 0, 0
    while done < wanted:
        here = np.arange(max(1, (wanted - done) // 4 + 1))
        user, interest = rng.integers(c.users, size=len(here)), np.zeros((len(here), DIM), np.float32)
        clicked: list[list[int]] = [[] for _ in here]
        seen: list[list[int]] = [[] for _ in here]
        for step in range(MOST):
            n, u, h = len(here), user[here], interest[here]
            best, offered = _organic(truth, rng, u, h), _drawn(rng, ads, n, few)
            chosen, location = rng.integers(few, size=n), rng.integers(length + 2, size=n)
            ad = np.where(location > 0, offered[np.arange(n), chosen], -1)
            place = np.concatenate(
                [np.tile(np.arange(length), (n, 1)), np.where(location > 0, location, np.inf)[:, None] - 1.5], 1
            )
            page = np.take_along_axis(np.concatenate([best, ad[:, None]], 1), place.argsort(1), 1)
            answer = truth.respond(u, page, interest=h, seed=rng)
            paid = (answer.click * (truth.bid[page] * (page >= 0))).sum(1)
            labels = np.full((2, n, few), np.nan)
            labels[:, np.arange(n), chosen] = paid + STAYS * np.where(answer.stays, 1, -1), location
            shared = pl.DataFrame(
                {
                    "user_id": u,
                    "request": done + np.arange(n),
                    "time": (begin + here) * APART + 60 * step,
                    "clicked": pl.Series([clicked[s] for s in here], dtype=pl.List(pl.Int64)),
                    "ads_seen": pl.Series([seen[s] for s in here], dtype=pl.List(pl.Int64)),
                    "page": pl.Series(best.tolist(), dtype=pl.List(pl.Int64)),
                }
            )
            rows = {"item_id": offered.ravel(), "earned": labels[0].ravel(), "location": labels[1].ravel()}
            parts.append(
                shared[np.repeat(np.arange(n), few)].with_columns(**{k: pl.Series(v) for k, v in rows.items()})
            )
            for s, items, clicks, one in zip(here, page, answer.click, ad, strict=True):
                clicked[s] = clicked[s] + items[clicks].tolist()
                seen[s] = seen[s] + ([int(one)] if one >= 0 else [])
            interest[here], done = answer.interest, done + n
            here = here[answer.stays]
            if not len(here):
                break
        begin += len(user)
    events = pl.concat(parts).with_columns(pl.col("earned", "location").fill_nan(None))
    return Log(events, _schema(length), users=market.users, items=market.items, name="simulator", request="request")


def _schema(length: int) -> Schema:
    features = [
        Categorical("user_id", role="user"),
        Categorical("age", role="user"),
        Categorical("gender", role="user"),
        Categorical("item_id", role="item"),
        Categorical("category", role="item"),
        Categorical("brand", role="item"),
        Numeric("price", role="item", transform="log"),
        Numeric("bid", role="item"),
        History("page", of=("item_id", "category"), max_len=length),
        History("clicked", of=("item_id", "category"), max_len=20),
        History("ads_seen", of=("item_id", "category"), max_len=10),
    ]
    tasks = (Task("earned", kind="regression"), Task("location", kind="multiclass", classes=length + 2))
    return Schema(features, tasks, user="user_id", item="item_id", time="time")


def _drawn(rng: np.random.Generator, pool: np.ndarray, rows: int, n: int) -> np.ndarray:
    """n different ones of a pool for each row."""
    return pool[rng.random((rows, len(pool))).argsort(1)[:, :n]]


def _organic(truth: Truth, rng: np.random.Generator, user: np.ndarray, interest: np.ndarray) -> np.ndarray:
    """The list that would be shown without an ad, [n, list_size]."""
    length = truth.config.list_size
    pool = _drawn(rng, np.flatnonzero(~truth.ad), len(user), max(POOL, length))
    guess = truth.logit("click", user[:, None], pool, 0, interest[:, None])
    order = (-(guess + rng.normal(0, NOISE, pool.shape))).argsort(1)
    return np.take_along_axis(pool, order[:, :length], 1)
