"""From a truth to a log: visits, a logging policy, and what users do with its lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recstack.data.delays import as_of
from recstack.data.simulator.world import (
    AGES,
    COUNTRIES,
    DAY,
    DIM,
    MarketConfig,
    Truth,
    domain_rates,
    domain_shares,
    drifted,
    sigmoid,
)
from recstack.errors import unknown
from recstack.schema import Categorical, History, Numeric, Schema, Task

if TYPE_CHECKING:
    import polars as pl

    from recstack.data.log import Log

BLOCK = 1024  # requests that are simulated together, in the order of time
CARRY = 0.7  # of the interest, into the next session
RECENT = 64  # clicked items that are not shown again
CART_DELAY = 600.0  # mean, in seconds
PILOT = 5000  # requests on which base rates are set


class Visits(NamedTuple):
    """Requests in the order of time, all [requests] int64; `query` is a category or None."""

    user: np.ndarray
    time: np.ndarray
    session: np.ndarray
    domain: np.ndarray
    query: np.ndarray | None

    def of(self, rows: np.ndarray) -> Visits:
        query = None if self.query is None else self.query[rows]
        return Visits(self.user[rows], self.time[rows], self.session[rows], self.domain[rows], query)


@dataclasses.dataclass(frozen=True)
class Market:
    """A simulated market.

    Attributes:
        config: what it was made from.
        truth: every probability behind the log; see `Truth`.
        events: polars frame, one row per impression, in the order of time: user_id, item_id, request, session, time
            (seconds), domain, position (from 1), click, cart, order, cart_time, order_time (null without), and
            query or cost where there are queries or ads.
        users: user_id, age, gender, country. items: item_id, category, brand, price, released (seconds; negative is
            before the log), and ad, bid, budget where there are ads.
    """

    config: MarketConfig
    truth: Truth
    events: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame

    def schema(self, tasks: str | Sequence[Task] = "click") -> Schema:
        """What the log's columns mean; `tasks` as in `log`."""
        if isinstance(tasks, str):
            if tasks not in TASKS:
                raise unknown("tasks", tasks, TASKS)
            tasks = TASKS[tasks]
        features = [
            Categorical("user_id", role="user"),
            Categorical("age", role="user"),
            Categorical("gender", role="user"),
            Categorical("item_id", role="item"),
            Categorical("category", role="item"),
            Categorical("brand", role="item"),
            Numeric("price", role="item", transform="log"),
            History("clicked", of=("item_id", "category"), max_len=50, where="click"),
            Categorical("position", role="pair"),
        ]
        if self.config.domains > 1:
            features.append(Categorical("domain", role="domain"))
        if self.config.queries:
            features.append(Categorical("query", role="context"))
        return Schema(features, tasks, user="user_id", item="item_id", time="time")

    def log(self, tasks: str | Sequence[Task] = "click", *, lists: bool = False) -> Log:
        """The raw log.

        Args:
            tasks: "click"; "funnel": click, cart and order given a click, and the products carted and ordered; "steps": click,
                cart and order, each on all rows; "delayed": click, order given a click, and its delay in days, as they
                are known when the log ends (`data.delays.as_of`); "insertions": another log, of ads that came into lists by
                chance (`simulator.insertions`); or your own.
            lists: keep what was shown together as one request of `list_size` candidates; else each row stands alone.
        """
        from recstack.data.log import Log

        if tasks == "insertions":
            from recstack.data.simulator.insertions import insertions

            return insertions(self)
        request, events = "request" if lists else None, self.events
        if tasks == "delayed":
            events = as_of(events, float(events["time"].to_numpy().max()))
        return Log(events, self.schema(tasks), users=self.users, items=self.items, name="simulator", request=request)


TASKS: dict[str, tuple[Task, ...]] = {
    "click": (Task("click"),),
    "funnel": (
        Task("click"),
        Task("cart", given="click"),
        Task("order", given="click"),
        Task("carted", product=("click", "cart")),
        Task("ordered", product=("click", "order")),
    ),
    "steps": (Task("click"), Task("cart"), Task("order")),
    "delayed": (
        Task("click"),
        Task("order", given="click"),
        Task("delay", kind="regression", given="order", weight=0),
    ),
}


def simulate(config: MarketConfig | None = None, **options) -> Market:
    """A market with known truth.

    Args:
        config: all the numbers at once; `options` are single ones of `MarketConfig` that replace it.

    >>> market = simulate(users=100, items=50, impressions=5000, seed=1)
    >>> market.events.height, 0.05 < market.events["click"].mean() < 0.15
    (5000, True)
    >>> best = market.truth.best_page([3, 4], k=5)
    >>> bool((market.truth.value([3, 4], best) >= market.truth.value([3, 4], best[:, ::-1])).all())
    True
    """
    known = [f.name for f in dataclasses.fields(MarketConfig)]
    for name in options:
        if name not in known:
            raise unknown("market option", name, known)
    config = dataclasses.replace(config or MarketConfig(), **options)
    world, arrivals, pilot, play = (np.random.default_rng(s) for s in np.random.SeedSequence(config.seed).spawn(4))
    truth = Truth(config, world)
    visits = _visits(truth, arrivals)
    _set_base_rates(truth, visits, pilot)
    shown = _play(truth, visits, play)
    truth.interest, truth.last_interest = shown.interest, shown.last_interest
    p = {
        step: sigmoid(z).ravel()
        for step, z in (("click", shown.logit), *_conversions(truth, visits, shown.item).items())
    }
    examine = np.tile(truth.examine(np.arange(1, config.list_size + 1)), len(visits.user))
    truth.shown = {"examine": examine, **p, "convert": p["cart"] * p["order"]}
    return Market(config, truth, _events(truth, visits, shown, play), *_frames(truth))


def planted(signal: str, *, seed: int = 0, **options) -> Market:
    """A small market in which one signal decides and exposure is random: for tests of what a model can learn.

    Args:
        signal: "taste" (user by item), "popularity" (items differ, users agree), "price" (users differ in how a price
            repels them), "sequence" (only what was clicked last counts), "position", or "domain" (a taste that is
            another in each of two domains).
        options: of `MarketConfig`.

    >>> market = planted("popularity", seed=1)
    >>> p = market.truth.click([[0], [1]], [3, 7])
    >>> bool((p[0] == p[1]).all())
    True
    """
    if signal not in PLANTED:
        raise unknown("planted signal", signal, PLANTED)
    weights = {"taste": 0.0, "quality": 0.0, "price": 0.0, "drift": 0.0, "eta": 0.0, "policy": 0.0, "cold": 0.0}
    size = {"users": 100, "items": 60, "impressions": 30_000, "list_size": 5, "categories": 6, "ctr": 0.25}
    return simulate(**{**size, **weights, **PLANTED[signal], "seed": seed, **options})


PLANTED: dict[str, dict[str, float]] = {
    "taste": {"taste": 6.0},
    "popularity": {"quality": 2.0},
    "price": {"price": 2.0},
    "sequence": {"drift": 12.0},
    "position": {"eta": 1.0, "ctr": 0.15},
    "domain": {"taste": 6.0, "domains": 2, "shift": 1.0},
}


def small(seed: int = 0, *, tasks: str | Sequence[Task] = "click", lists: bool = False, **options) -> Log:
    """The log of a market of 50 users and 40 items, for examples: 3000 impressions in lists of 5, a quarter clicked.

    Arguments are those of `Market.log` and of `MarketConfig`.

    >>> log = small()
    >>> len(log), log.schema.user, log.schema.item
    (3000, 'user_id', 'item_id')
    """
    size = {"users": 50, "items": 40, "impressions": 3000, "list_size": 5, "categories": 5, "ctr": 0.25, "days": 7.0}
    return simulate(**{**size, "seed": seed, **options}).log(tasks, lists=lists)


# -- who comes, and when ----------------------------------------------------------------------------------------------
def _visits(truth: Truth, rng: np.random.Generator) -> Visits:
    """Requests in sessions of four on average, about a minute apart; activity is log-normal."""
    c = truth.config
    horizon = c.days * DAY
    activity = rng.lognormal(0, 0.8, c.users)
    begin = np.zeros(c.users)
    cold = rng.permutation(c.users)[: round(c.cold * c.users)]
    begin[cold] = rng.uniform(0.8, 1, len(cold)) * horizon
    activity[cold] *= 0.2
    n = c.impressions // c.list_size
    user = np.sort(rng.choice(c.users, n, p=activity / activity.sum()))
    first = rng.random(n) < 0.25
    first[0] = True
    first[1:] |= user[1:] != user[:-1]
    session = np.cumsum(first) - 1
    start = rng.uniform(begin[user[first]], horizon)
    after = np.cumsum(1 + rng.exponential(60, n))
    time = (start[session] + after - after[first][session]).astype(np.int64)
    domain = rng.choice(c.domains, session[-1] + 1, p=domain_shares(c.domains))[session]
    query = None
    if c.queries:
        liking = 3 * truth.taste[domain, user] @ truth.centre.T.astype(np.float32)
        query = np.argmax(liking + rng.gumbel(size=liking.shape), 1)
    return Visits(user, time, session, domain, query).of(np.lexsort((user, time)))


# -- what is shown, and what happens ----------------------------------------------------------------------------------
class Shown(NamedTuple):
    item: np.ndarray  # int32 [requests, L]
    logit: np.ndarray  # float32 [requests, L], of a click where examined
    click: np.ndarray  # bool [requests, L]
    interest: np.ndarray  # float32 [requests, D]
    last_interest: np.ndarray  # float32 [users, D]


def _play(truth: Truth, visits: Visits, rng: np.random.Generator) -> Shown:
    """Blocks of requests in the order of time; within a block, the first request of each user, then the second ..."""
    c = truth.config
    n, L = len(visits.user), c.list_size
    logger = _Logger(truth, rng)
    examine = truth.examine(np.arange(1, L + 1))
    item, logit, click = np.empty((n, L), np.int32), np.empty((n, L), np.float32), np.empty((n, L), bool)
    interest, now = np.empty((n, DIM), np.float32), np.zeros((c.users, DIM), np.float32)
    last_session = np.full(c.users, -1)
    for lo in range(0, n, BLOCK):
        turn = _occurrence(visits.user[lo : lo + BLOCK])
        for k in range(turn.max() + 1):
            rows = lo + np.flatnonzero(turn == k)  # no user twice
            v = visits.of(rows)
            h = now[v.user]
            h[last_session[v.user] != v.session] *= CARRY
            last_session[v.user] = v.session
            page = logger.page(v, h)
            query = None if v.query is None else v.query[:, None]
            z = truth.logit("click", v.user[:, None], page, v.domain[:, None], h[:, None], query)
            y = rng.random(page.shape, np.float32) < examine * sigmoid(z)
            item[rows], logit[rows], click[rows], interest[rows] = page, z, y, h
            now[v.user] = drifted(h, truth.item[page], y)
            logger.saw(v.user, page, y)
    return Shown(item, logit, click, interest, now)


def _conversions(truth: Truth, visits: Visits, item: np.ndarray) -> dict[str, np.ndarray]:
    """Logits of cart and order for all that was shown [requests, L]; nothing that comes later depends on them."""
    out = {step: np.empty(item.shape, np.float32) for step in ("cart", "order")}
    for step, z in out.items():
        for lo in range(0, len(item), 8 * BLOCK):
            s = slice(lo, lo + 8 * BLOCK)
            z[s] = truth.logit(step, visits.user[s, None], item[s], visits.domain[s, None])
    return out


class _Logger:
    """The logging policy: popularity, a blurred idea of each user's taste, what was clicked last, and chance.

    A pool of 5 L items (L at random from the organic ones, the rest by popularity) is scored; the best L are shown.
    Its cost does not grow with the number of items. It does not show again what the user clicked among the last 64,
    what is not released yet, and ads whose budget is spent.
    """

    def __init__(self, truth: Truth, rng: np.random.Generator) -> None:
        c = truth.config
        self.truth, self.rng = truth, rng
        weight = truth.popularity**c.policy
        self.popular = np.cumsum(weight / weight.sum())
        organic = np.flatnonzero(~truth.ad)
        self.organic = organic[np.argsort(truth.released[organic], kind="stable")]
        self.organic_released = truth.released[self.organic]
        blur = rng.standard_normal((c.users, DIM)) / np.sqrt(DIM)
        self.blur = (c.policy * c.taste * blur).astype(np.float32)
        self.bid = np.log(np.where(truth.ad, truth.bid / np.exp(-1), 1)).astype(np.float32)
        self.recent = np.full((c.users, RECENT), -1, np.int32)
        self.clicks = np.zeros(c.users, np.int64)
        self.spent = np.zeros(c.items)

    def page(self, v: Visits, interest: np.ndarray) -> np.ndarray:
        """Distinct items [A, L], the best score first, for users with that interest [A, D]."""
        t, c, rng = self.truth, self.truth.config, self.rng
        pool = np.sort(np.concatenate([self._random(v.time), self._popular(len(v.user))], 1), axis=1)
        taste = c.policy * (c.taste * t.taste[v.domain, v.user] + 0.5 * c.drift * interest) + self.blur[v.user]
        score = np.einsum("apd,ad->ap", t.item[pool], taste)
        score -= np.log(np.maximum(rng.standard_exponential(pool.shape, np.float32), 1e-30))
        if v.query is not None:
            score += c.policy * 2 * (t.category[pool] == v.query[:, None])
        score += self.bid[pool]
        if c.policy:  # shown at random means that: hiding what was clicked would show more of what nobody likes
            score -= 1e3 * (pool[:, :, None] == self.recent[v.user][:, None]).any(-1)
        score[(t.released[pool] > v.time[:, None]) | (t.ad & (self.spent >= t.budget))[pool]] = -np.inf
        score[:, 1:][pool[:, 1:] == pool[:, :-1]] = -np.inf
        top = np.argsort(-score, axis=1)[:, : c.list_size]
        return np.take_along_axis(pool, top, 1)

    def saw(self, user: np.ndarray, page: np.ndarray, click: np.ndarray) -> None:
        """Remembers the clicks [A, L], and lets the ads pay for them."""
        a, b = np.nonzero(click)
        place = self.clicks[user[a]] + (np.cumsum(click, 1) - 1)[a, b]
        self.recent[user[a], place % RECENT] = page[a, b]
        self.clicks[user] += click.sum(1)
        if self.truth.config.ads:
            self.spent += np.bincount(page[a, b], self.truth.bid[page[a, b]], minlength=len(self.spent))

    def _random(self, time: np.ndarray) -> np.ndarray:
        """L different organic items that are released: every page can be filled from these."""
        L = self.truth.config.list_size
        n = np.searchsorted(self.organic_released, time, "right")[:, None]
        start = self.rng.integers(0, n)
        stride = self.rng.integers(1, n // L + 1)  # (L - 1) strides stay below n: no item twice
        return self.organic[(start + stride * np.arange(L)) % n]

    def _popular(self, requests: int) -> np.ndarray:
        u = self.rng.random((requests, 4 * self.truth.config.list_size))
        return np.minimum(np.searchsorted(self.popular, u), len(self.popular) - 1)


def _occurrence(user: np.ndarray) -> np.ndarray:
    """0 for the first time that a value is met, 1 for the second ..."""
    order = np.argsort(user, kind="stable")
    first = np.r_[True, np.diff(user[order]) != 0]
    place = np.arange(len(user))
    out = np.empty_like(place)
    out[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    return out


def _set_base_rates(truth: Truth, visits: Visits, rng: np.random.Generator) -> None:
    """Moves the constants of the logits until the rates are those asked for, on all requests of some users.

    Played twice: the interest follows the clicks, and the clicks the interest.
    """
    c = truth.config
    share = min(1.0, PILOT / len(visits.user))
    sample = visits.of(np.flatnonzero((rng.random(c.users) < share)[visits.user]))
    if not len(sample.user):  # one heavy user, not drawn
        sample = visits
    examine = truth.examine(np.arange(1, c.list_size + 1))[None]
    truth.base["click"][:] = np.log(c.ctr / (1 - c.ctr))

    def corrected() -> Shown:
        shown = _play(truth, sample, rng)
        for d, rate in enumerate(c.ctr * domain_rates(c.domains, c.last_rate)):
            rows = sample.domain == d
            if rows.any():
                truth.base["click"][d] += _offset(shown.logit[rows], rate, examine)
        return shown

    corrected()
    shown = corrected()
    weight = examine * sigmoid(shown.logit)
    for (step, z), rate in zip(
        _conversions(truth, sample, shown.item).items(), (c.cart_rate, c.order_rate), strict=True
    ):
        truth.base[step] += _offset(z, rate, weight / weight.mean())
        weight = weight * sigmoid(z + truth.base[step])


def _offset(z: np.ndarray, rate: float, weight: np.ndarray) -> np.float32:
    """x with mean(weight · sigmoid(z + x)) = rate, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(30):
        x = (low + high) / 2
        low, high = (x, high) if np.mean(weight * sigmoid(z + np.float32(x))) < rate else (low, x)
    return np.float32((low + high) / 2)


# -- tables -----------------------------------------------------------------------------------------------------------
def _events(truth: Truth, visits: Visits, shown: Shown, rng: np.random.Generator) -> pl.DataFrame:
    import polars as pl

    c = truth.config
    n, L = shown.item.shape
    item, click = shown.item.ravel(), shown.click.ravel()
    cart = click & (rng.random(n * L, np.float32) < truth.shown["cart"])
    order = cart & (rng.random(n * L, np.float32) < truth.shown["order"])
    time = np.repeat(visits.time, L)
    cart_time, order_time = np.full(n * L, -1), np.full(n * L, -1)
    cart_time[cart] = time[cart] + 1 + rng.exponential(CART_DELAY, cart.sum()).astype(np.int64)
    order_time[order] = cart_time[order] + 1 + rng.exponential(c.order_delay * DAY, order.sum()).astype(np.int64)
    labels = {"cart": cart.astype(np.float32), "order": order.astype(np.float32)}
    if c.mature_days:
        end = visits.time.max()
        young = click & (time > end - c.mature_days * DAY)
        for label, when in (("cart", cart_time), ("order", order_time)):
            late = when > end
            when[late], labels[label][late] = -1, 0
            labels[label][young & (when < 0)] = np.nan
    columns = {
        "user_id": np.repeat(visits.user, L),
        "item_id": item.astype(np.int64),
        "request": np.repeat(np.arange(n), L),
        "session": np.repeat(visits.session, L),
        "time": time,
        "domain": np.repeat(visits.domain, L),
        "position": np.tile(np.arange(1, L + 1), n),
        "click": click.astype(np.float32),
        **labels,
        "cart_time": cart_time,
        "order_time": order_time,
    }
    if visits.query is not None:
        columns["query"] = np.repeat(visits.query, L)
    if c.ads:
        columns["cost"] = np.where(click, truth.bid[item], 0)
    frame = pl.DataFrame(columns)
    happened = [pl.when(pl.col(x) >= 0).then(pl.col(x)).alias(x) for x in ("cart_time", "order_time")]
    names = [_named("query", "category")] if visits.query is not None else []
    return frame.with_columns(*happened, *names)


def _frames(truth: Truth) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Users and items as one can observe them."""
    import polars as pl

    users = pl.DataFrame(
        {
            "user_id": np.arange(truth.config.users),
            "age": np.array(AGES)[truth.age].tolist(),
            "gender": np.array(("f", "m"))[truth.gender].tolist(),
            "country": np.array(COUNTRIES)[truth.country].tolist(),
        }
    )
    items = pl.DataFrame(
        {
            "item_id": np.arange(truth.config.items),
            "category": truth.category,
            "brand": truth.brand,
            "price": truth.money,
            "released": truth.released,
        }
    ).with_columns(_named("category", "category"), _named("brand", "brand"))
    if truth.config.ads:
        items = items.with_columns(ad=truth.ad, bid=truth.bid, budget=truth.budget)
    return users, items


def _named(column: str, prefix: str) -> pl.Expr:
    import polars as pl

    return pl.concat_str(pl.lit(prefix + "_"), pl.col(column).cast(pl.String)).alias(column)
