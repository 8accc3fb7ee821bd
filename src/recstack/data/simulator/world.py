"""The truth of a simulated market: who likes what, and every probability behind the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from recstack.errors import ConfigError, unknown

DIM = 8  # of the latent tastes
MEMORY = 0.3  # of the interest, at each request with clicks
PLEASES, ANNOYS = 0.5, 1.5  # in logits of staying: a click more than usual, an ad that is seen and not liked
SEGMENTS = 8  # of users
BRANDS = 5  # per category
DAY = 86_400
AGES = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
COUNTRIES = ("BR", "DE", "FR", "IN", "JP", "US")


@dataclass(frozen=True)
class MarketConfig:
    """The few numbers that make a market. Weights are in units of a logit.

    Args:
        users, items: how many; ids are 0, 1, 2 ...
        impressions: rows of the log, in full lists: rounded down to a multiple of `list_size`.
        list_size: candidates shown per request.
        domains: places where lists are shown; each has its own taste and base rate.
        seed: of everything.
        days: the span of the log.
        categories: of items.
        ctr: clicks per impression; expected, so the log's own rate is near it.
        cart_rate: carts per click.
        order_rate: orders per cart.
        eta: position k (from 1) is examined with probability k^-eta.
        taste, quality, price: weights of affinity, of an item's quality, and of price (against, by the user's
            sensitivity).
        drift: weight of the recent clicks: what comes next is near what was clicked last. 0: order carries nothing.
        shift: how far the taste of the other domains is turned away from domain 0, in [0, 1]; 0 leaves one taste.
        last_rate: click rate of the last domain over the first's, those between falling evenly; 1 makes them alike, and with
            ``shift=0`` domains differ in nothing but their name.
        policy: how well the logging policy knows its users; 0 shows items at random, clicked before or not, so that
            exposure carries nothing.
        cold: share of users who arrive, and of items that are released, late.
        queries: requests come with a query, a category that the user looks for.
        ads: share of items that are ads with a bid and a budget.
        order_delay: days from cart to order, on average (exponential).
        mature_days: 0: every label is final. Else the log is read at its last moment: what was clicked less than this
            ago and has not converted is NaN, and what converts later than that counts as not converted.

    Raises:
        ConfigError: naming the number that cannot be.
    """

    users: int = 2000
    items: int = 1000
    impressions: int = 200_000
    list_size: int = 10
    domains: int = 1
    seed: int = 0
    days: float = 14.0
    categories: int = 12
    ctr: float = 0.1
    cart_rate: float = 0.25
    order_rate: float = 0.4
    eta: float = 0.5
    taste: float = 3.0
    quality: float = 0.7
    price: float = 0.5
    drift: float = 4.0
    shift: float = 0.6
    last_rate: float = 0.5
    policy: float = 1.0
    cold: float = 0.1
    queries: bool = False
    ads: float = 0.0
    order_delay: float = 0.5
    mature_days: float = 0.0

    def __post_init__(self) -> None:
        for name in ("users", "items", "impressions", "list_size", "domains", "categories"):
            if getattr(self, name) < 1:
                raise ConfigError(f"A market needs {name} of at least 1; got {getattr(self, name)!r}.")
        for name in ("ctr", "cart_rate", "order_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"A market's {name} lies between 0 and 1; got {getattr(self, name)!r}.")
        for name in ("shift", "cold", "ads"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"A market's {name} is a share from 0 to 1; got {getattr(self, name)!r}.")
        for name in ("eta", "policy", "mature_days"):
            if getattr(self, name) < 0:
                raise ConfigError(f"A market's {name} is not negative; got {getattr(self, name)!r}.")
        for name in ("days", "last_rate", "order_delay"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"A market's {name} must be positive; got {getattr(self, name)!r}.")
        if self.impressions < self.list_size:
            raise ConfigError(f"impressions={self.impressions} do not fill one list of list_size={self.list_size}.")
        always = self.items - round(self.cold * self.items) - round(self.ads * self.items)
        if always < self.list_size:
            raise ConfigError(
                f"Only {max(always, 0)} of {self.items} items are neither cold nor ads; a list needs {self.list_size}. "
                "Give more items, or lower cold, ads or list_size."
            )
        examined = np.mean(np.arange(1, self.list_size + 1) ** -float(self.eta))
        if self.ctr * domain_rates(self.domains, self.last_rate).max() > 0.95 * examined:
            raise ConfigError(
                f"ctr={self.ctr} cannot be reached: with eta={self.eta} and list_size={self.list_size} only "
                f"{examined:.0%} of impressions are examined. Lower ctr or eta."
            )


def domain_shares(domains: int) -> np.ndarray:
    """Share of the traffic of each domain."""
    share = np.geomspace(1, 0.4, domains)
    return share / share.sum()


def domain_rates(domains: int, last: float) -> np.ndarray:
    """Click rate of each domain over the market's, `last` that of the last over the first's."""
    rate = np.geomspace(1, last, domains)
    return rate / (domain_shares(domains) @ rate)


class Response(NamedTuple):
    """What users did with a page: click bool [n, k], stays bool [n], interest float32 [n, D] from now on."""

    click: np.ndarray
    stays: np.ndarray
    interest: np.ndarray


class Truth:
    r"""Every probability behind the log, for what was shown and for any pair.

    With position :math:`k` counted from 1, user :math:`u`, item :math:`i`, domain :math:`d`, category :math:`c`, and
    interest :math:`h`, the trace of what the user clicked lately (:mod:`recstack.data.simulator`):

    .. math::
        P(\text{examined}) &= k^{-\eta} \\
        P(\text{click} \mid \text{examined}) &= \sigma(b_d + w_t \langle p_u^d, q_i \rangle + w_q g_i - w_p s_u r_i
            + w_h \langle h, q_i \rangle + 2 \cdot [c_i = \text{query}]) \\
        P(\text{cart} \mid \text{click}) &= \sigma(b' + \tfrac{w_t}{2} \langle p_u^d + T p_u^d, q_i \rangle
            - w_p s_u r_i) \\
        P(\text{order} \mid \text{cart}) &= \sigma(b'' + \tfrac{w_t}{2} \langle T p_u^d, q_i \rangle - 2 w_p s_u r_i)

    Tastes :math:`p` and items :math:`q` are unit vectors, :math:`g` quality, :math:`s` price sensitivity, :math:`r` the
    standardised logarithm of the price, :math:`T` a rotation: what is bought is not quite what is clicked. The taste of
    domain :math:`d > 0` is :math:`(1 - \text{shift})\, p_u + \text{shift}\, R_d\, p_u`, made unit; each domain has its
    own rotation.

    Attributes:
        shown: the same probabilities for each row of the log, in its order: arrays "examine", "click", "cart", "order",
            "convert". Row = request · list_size + position − 1.
        interest: float32 [requests, D]: the interest in which each request was made.
        last_interest: float32 [users, D]: the interest of each user when the log ends.
        latents: what the attributes hint at: "taste" [domains, users, D], "item" [items, D], "quality" [items],
            "popularity" [items] (of the logging policy), "sensitivity" [users], "category" [items].
    """

    def __init__(self, config: MarketConfig, rng: np.random.Generator) -> None:
        self.config = config
        c = config
        centre = _unit(rng.standard_normal((c.categories, DIM)))
        self._make_items(rng, centre)
        self._make_users(rng, centre)
        # One linear form per step: logit = base + <side(user), item side>, with item side (q, quality, price).
        self.base = {"click": np.zeros(c.domains, np.float32), "cart": np.float32(0), "order": np.float32(0)}
        self.items = np.concatenate([self.item, self.quality[:, None], self.price[:, None]], 1).astype(np.float32)
        self._turn = _rotation(rng)
        self.shown: dict[str, np.ndarray] = {}
        self.interest = np.zeros((0, DIM), np.float32)
        self.last_interest = np.zeros((c.users, DIM), np.float32)

    def _make_items(self, rng: np.random.Generator, centre: np.ndarray) -> None:
        c = self.config
        n, horizon = c.items, c.days * DAY
        self.centre = centre
        self.category = rng.integers(c.categories, size=n)
        self.brand = self.category * BRANDS + rng.integers(BRANDS, size=n)
        brand = _unit(rng.standard_normal((c.categories * BRANDS, DIM)))
        own = _unit(rng.standard_normal((n, DIM)))
        self.item = _unit(centre[self.category] + 0.5 * brand[self.brand] + 0.6 * own).astype(np.float32)
        log_price = 3 + 0.7 * rng.standard_normal(c.categories)[self.category]
        log_price += 0.4 * rng.standard_normal(c.categories * BRANDS)[self.brand] + 0.3 * rng.standard_normal(n)
        self.money = np.round(np.exp(log_price), 2)
        self.price = (log_price - log_price.mean()) / max(log_price.std(), 1e-6)
        released = rng.uniform(-365 * DAY, 0, n)
        late = rng.permutation(n)[: round(c.cold * n)]
        released[late] = rng.uniform(0.5 * horizon, horizon, len(late))
        self.released = np.floor(released).astype(np.int64)
        newness = np.argsort(np.argsort(released)) / n
        self.quality = rng.standard_normal(n) + 0.6 * (newness - newness.mean())
        rank = np.argsort(np.argsort(-(self.quality + 0.5 * rng.standard_normal(n)))) + 1
        self.popularity = rank**-0.8 / np.sum(rank**-0.8)
        old = np.setdiff1d(np.arange(n), late)
        self.ad = np.zeros(n, bool)
        self.ad[rng.permutation(old)[: round(c.ads * n)]] = True
        self.bid = np.where(self.ad, np.round(rng.lognormal(-1, 0.5, n), 2) + 0.01, 0)
        self.budget = np.where(self.ad, self.bid * np.ceil(c.impressions * c.ctr / n * rng.lognormal(0, 0.7, n)), 0)

    def _make_users(self, rng: np.random.Generator, centre: np.ndarray) -> None:
        c = self.config
        n = c.users
        segment = rng.integers(SEGMENTS, size=n)
        liking = _unit(rng.dirichlet(np.full(c.categories, 0.3), SEGMENTS) @ centre)
        taste = _unit(liking[segment] + 0.7 * _unit(rng.standard_normal((n, DIM))))
        self.age = _draw(rng, rng.dirichlet(np.full(len(AGES), 0.7), SEGMENTS)[segment])
        self.country = _draw(rng, rng.dirichlet(np.full(len(COUNTRIES), 0.7), SEGMENTS)[segment])
        self.gender = (rng.random(n) < rng.beta(1, 1, SEGMENTS)[segment]).astype(np.int64)
        thrift = np.linspace(1.5, 0.5, len(AGES))[self.age]  # the young look at the price
        self.sensitivity = (thrift * rng.lognormal(0, 0.3, n)).astype(np.float32)
        turns = [np.eye(DIM)] + [_rotation(rng) for _ in range(c.domains - 1)]
        self.taste = np.stack([_unit((1 - c.shift) * taste + c.shift * taste @ t) for t in turns]).astype(np.float32)

    @property
    def latents(self) -> dict[str, np.ndarray]:
        names = ("taste", "item", "quality", "popularity", "sensitivity", "category")
        return {name: getattr(self, name) for name in names}

    # -- probabilities of any pair ------------------------------------------------------------------------------------
    def examine(self, position: ArrayLike) -> np.ndarray:
        """Probability that a position (1 is the top) is looked at; any shape."""
        position = np.asarray(position)
        if position.size and position.min() < 1:
            raise ConfigError(f"Positions count from 1; got {position.min()}.")
        return (position ** -float(self.config.eta)).astype(np.float32)

    def click(
        self,
        user: ArrayLike,
        item: ArrayLike,
        domain: ArrayLike = 0,
        *,
        interest: ArrayLike | None = None,
        query: ArrayLike | None = None,
    ) -> np.ndarray:
        """P(click | examined). `user`, `item`, `domain` and `query` (a category) broadcast to the result's shape [..].

        interest: float [.., D] beside `user`; None is a user who has not clicked lately.
        """
        return sigmoid(self.logit("click", user, item, domain, interest, query))

    def cart(self, user: ArrayLike, item: ArrayLike, domain: ArrayLike = 0) -> np.ndarray:
        """P(cart | click), of any pair [..]."""
        return sigmoid(self.logit("cart", user, item, domain))

    def order(self, user: ArrayLike, item: ArrayLike, domain: ArrayLike = 0) -> np.ndarray:
        """P(order | cart), of any pair [..]."""
        return sigmoid(self.logit("order", user, item, domain))

    def convert(self, user: ArrayLike, item: ArrayLike, domain: ArrayLike = 0) -> np.ndarray:
        """P(order | click) = P(cart | click) · P(order | cart), of any pair [..]."""
        return self.cart(user, item, domain) * self.order(user, item, domain)

    def logit(
        self,
        step: str,
        user: ArrayLike,
        item: ArrayLike,
        domain: ArrayLike = 0,
        interest: ArrayLike | None = None,
        query: ArrayLike | None = None,
    ) -> np.ndarray:
        """The logit of "click", "cart" or "order", [..]."""
        user, item, domain = self._known(user, item, domain)
        z = np.einsum("...d,...d->...", self.side(step, user, domain, interest), self.items[item])
        z = z + (self.base["click"][domain] if step == "click" else self.base[step])
        return z if step != "click" or query is None else z + np.float32(2) * (self.category[item] == query)

    def side(self, step: str, user: np.ndarray, domain: np.ndarray, interest: ArrayLike | None = None) -> np.ndarray:
        """The user's side [.., D + 2] of a step's logit."""
        c = self.config
        p, s = self.taste[domain, user], self.sensitivity[user, None]
        if step == "click":
            p = np.float32(c.taste) * p
            if interest is not None:
                p = p + np.float32(c.drift) * np.asarray(interest, np.float32)
            return _join(p, c.quality, -c.price * s)
        if step == "cart":
            return _join(np.float32(c.taste / 2) * (p + p @ self._turn), 0, -c.price * s)
        if step == "order":
            return _join(np.float32(c.taste / 2) * (p @ self._turn), 0, -2 * c.price * s)
        raise unknown("step", step, ("click", "cart", "order"))

    # -- pages --------------------------------------------------------------------------------------------------------
    def best_page(
        self,
        users: ArrayLike,
        k: int = 10,
        domain: ArrayLike = 0,
        *,
        interest: ArrayLike | None = None,
        query: ArrayLike | None = None,
        by: str = "click",
        exclude: np.ndarray | None = None,
    ) -> np.ndarray:
        """The best possible page of each user under the truth: item ids [n, k], best first.

        Clicks are independent given what is examined, and examination falls with position, so the order by gain
        has the highest expected value of all pages.

        Args:
            users: user ids [n].
            domain, query: one, or one per user [n].
            interest: [n, D], as of `truth.interest` or `truth.last_interest`; None without recent clicks.
            by: the gain: "click", or "order" for P(click) · P(order | click).
            exclude: bool [n, items], True for what may not be shown; a page without enough items ends in -1.
        """
        k = min(k, self.config.items)
        users, domain, query = _per_user(users, domain, query)
        interest = None if interest is None else np.asarray(interest)
        page = np.empty((len(users), k), np.int64)
        step = max(1, (1 << 22) // self.config.items)
        item = np.arange(self.config.items)
        for lo in range(0, len(users), step):
            s = slice(lo, lo + step)
            gain = self._grid("click", users[s], domain[s], None if interest is None else interest[s])
            if query is not None:
                gain = gain + np.float32(2) * (self.category[item] == query[s, None])
            gain = sigmoid(gain)
            if by == "order":
                gain *= sigmoid(self._grid("cart", users[s], domain[s]))
                gain *= sigmoid(self._grid("order", users[s], domain[s]))
            elif by != "click":
                raise unknown("gain", by, ("click", "order"))
            if exclude is not None:
                gain = np.where(exclude[s], -1, gain)
            top = np.argpartition(-gain, k - 1, axis=1)[:, :k]
            score = np.take_along_axis(gain, top, 1)
            order = np.argsort(-score, axis=1, kind="stable")
            page[s] = np.where(np.take_along_axis(score, order, 1) >= 0, np.take_along_axis(top, order, 1), -1)
        return page

    def value(
        self,
        users: ArrayLike,
        pages: ArrayLike,
        domain: ArrayLike = 0,
        *,
        interest: ArrayLike | None = None,
        query: ArrayLike | None = None,
        by: str = "click",
    ) -> np.ndarray:
        """Expected clicks (or orders) of pages [n, k] shown to users [n]: [n]. Item -1 is an empty place."""
        gain, item, live = self._page(users, pages, domain, interest, query)
        if by == "order":
            users, domain, _ = _per_user(users, domain, None)
            gain = gain * self.convert(users[:, None], item, domain[:, None])
        elif by != "click":
            raise unknown("gain", by, ("click", "order"))
        return (gain * live * self.examine(np.arange(1, item.shape[1] + 1))).sum(1)

    def regret(
        self,
        users: ArrayLike,
        pages: ArrayLike,
        domain: ArrayLike = 0,
        *,
        interest: ArrayLike | None = None,
        query: ArrayLike | None = None,
        by: str = "click",
        exclude: np.ndarray | None = None,
    ) -> np.ndarray:
        """What the best page of the same length would have earned more: [n], never negative up to rounding.

        The arguments are those of `best_page` and `value`.
        """
        pages = np.asarray(pages)
        best = self.best_page(users, pages.shape[1], domain, interest=interest, query=query, by=by, exclude=exclude)
        earned = [self.value(users, p, domain, interest=interest, query=query, by=by) for p in (best, pages)]
        return earned[0] - earned[1]

    def stays(
        self,
        users: ArrayLike,
        pages: ArrayLike,
        domain: ArrayLike = 0,
        *,
        interest: ArrayLike | None = None,
        query: ArrayLike | None = None,
    ) -> np.ndarray:
        r"""Probability ``[n]`` that users ask for another page after pages ``[n, k]``: pleasing ones keep them, ads do not.

        .. math:: \sigma\Big(\log 3 + \tfrac12 \sum_{k \text{ organic}} k^{-\eta} (p_k - \text{ctr})
                  - \tfrac32 \sum_{k \text{ ad}} k^{-\eta} (1 - p_k)\Big)

        with :math:`p_k` = P(click | examined), and ctr the market's. It is what `respond` plays by; visits of the log end by
        chance, after four requests on average, whatever was shown. Arguments are those of `value`.
        """
        gain, item, live = self._page(users, pages, domain, interest, query)
        seen = live * self.examine(np.arange(1, item.shape[1] + 1))
        felt = np.where(self.ad[item], -ANNOYS * (1 - gain), PLEASES * (gain - self.config.ctr))
        return sigmoid(np.log(3) + (seen * felt).sum(1))

    def respond(
        self,
        users: ArrayLike,
        pages: ArrayLike,
        domain: ArrayLike = 0,
        *,
        interest: ArrayLike | None = None,
        query: ArrayLike | None = None,
        seed: int | np.random.Generator = 0,
    ) -> Response:
        """What users do with pages: clicks, whether they stay, and the interest that their clicks leave behind.

        Clicks are drawn with k^-eta · P(click | examined), independently, whose expected sum is `value`; staying is drawn with
        `stays`. Arguments are those of `value`; give a Generator as the seed to play page after page.

        >>> from recstack.data.simulator import simulate
        >>> truth = simulate(users=20, items=50, impressions=1000, ads=0.2).truth
        >>> first = truth.respond([3, 4], truth.best_page([3, 4], k=5), seed=1)
        >>> first.click.shape, first.stays.shape, first.interest.shape
        ((2, 5), (2,), (2, 8))
        """
        rng = np.random.default_rng(seed)
        gain, item, live = self._page(users, pages, domain, interest, query)
        click = rng.random(item.shape) < gain * live * self.examine(np.arange(1, item.shape[1] + 1))
        stays = rng.random(len(item)) < self.stays(users, pages, domain, interest=interest, query=query)
        before = np.zeros((len(item), DIM), np.float32) if interest is None else np.asarray(interest, np.float32)
        return Response(click, stays, drifted(before, self.item[item], click))

    def _page(
        self, users: ArrayLike, pages: ArrayLike, domain: ArrayLike, interest: ArrayLike | None, query: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P(click | examined), items and filled places of pages, all [n, k]."""
        users, domain, query = _per_user(users, domain, query)
        pages = np.asarray(pages)
        item, live = np.maximum(pages, 0), pages >= 0
        interest = None if interest is None else np.asarray(interest)[:, None]
        query = None if query is None else query[:, None]
        return self.click(users[:, None], item, domain[:, None], interest=interest, query=query), item, live

    def _grid(self, step: str, users: np.ndarray, domain: np.ndarray, interest=None) -> np.ndarray:
        """Logits of users [n] by all items: [n, items]."""
        users, _, domain = self._known(users, np.int64(0), domain)
        base = self.base["click"][domain][:, None] if step == "click" else self.base[step]
        return self.side(step, users, domain, interest) @ self.items.T + base

    def _known(self, user: ArrayLike, item: ArrayLike, domain: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        out = []
        sizes = (("user", user, self.config.users), ("item", item, self.config.items))
        for name, ids, size in (*sizes, ("domain", domain, self.config.domains)):
            ids = np.asarray(ids)
            if ids.size and (ids.min() < 0 or ids.max() >= size):
                bad = ids.min() if ids.min() < 0 else ids.max()
                raise ConfigError(f"This market has {name}s 0 to {size - 1}; got {bad}.")
            out.append(ids)
        return out[0], out[1], out[2]


def drifted(interest: np.ndarray, item: np.ndarray, click: np.ndarray) -> np.ndarray:
    """The interest [n, D] after clicks [n, k] on items with those vectors [n, k, D]; without a click it stays."""
    clicks = click.sum(1, keepdims=True)
    mean = np.einsum("al,ald->ad", click.astype(np.float32), item) / np.maximum(clicks, 1)
    return np.where(clicks > 0, MEMORY * interest + (1 - MEMORY) * mean, interest)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return (0.5 * (1 + np.tanh(0.5 * z))).astype(np.float32)  # no overflow on either side


def _per_user(
    users: ArrayLike, domain: ArrayLike, query: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    users = np.atleast_1d(np.asarray(users))
    query = None if query is None else np.broadcast_to(np.asarray(query), users.shape)
    return users, np.broadcast_to(np.asarray(domain), users.shape), query


def _join(p: np.ndarray, quality: float, price: np.ndarray) -> np.ndarray:
    quality_ = np.full((*p.shape[:-1], 1), quality, np.float32)
    return np.concatenate([p, quality_, np.broadcast_to(price, quality_.shape)], -1).astype(np.float32)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


def _rotation(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].astype(np.float32)


def _draw(rng: np.random.Generator, p: np.ndarray) -> np.ndarray:
    """One choice per row of p [n, choices]."""
    return np.minimum((p.cumsum(1) < rng.random((len(p), 1))).sum(1), p.shape[1] - 1)
