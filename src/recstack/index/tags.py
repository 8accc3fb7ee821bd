"""Ads under tags: from what a user holds (items, shops, categories, keywords) to the ads that carry it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from recstack import bundle
from recstack.bundle import Piece
from recstack.candidates import Candidates
from recstack.errors import ConfigError, DataError, unknown
from recstack.kernels import tags as kernels
from recstack.kernels.topk import Sparse, offsets_of

Tags = Any  # Sparse, (offsets [R + 1], tags) or (offsets, tags, weights), or int [R]: one tag each, -1 for none
_TAIL = 4096  # new ads that are kept apart before all postings are sorted again


class TagIndex:
    r"""Inverted lists from tags to ads, forward lists from ads to tags, cut at both steps; ads come and go at any time.

    .. math:: s(u, a) = v_a \sum_{t \in \mathrm{top}_{N_t}(u)} w_{ut}\, m_{ta}\, [\, a \in \mathrm{top}_{N_a}(t, u)\,]

    with w the user's weight for the tag, m the ad's, and :math:`v_a` what the ad is worth, such as bid times click rate. The
    user starts from the :math:`N_t` tags of most weight; of each tag the :math:`N_a` ads of most :math:`v_a m_{ta}` count
    *that this user may get*: an ad that is off line, excluded or aimed at others takes no place.

    An ad may be aimed at an audience (`only`): the user then holds one of its tags of each kind that it names. That is all of
    targeting: at who visited an item or shop (retargeting), at keywords, at ages or countries, at who is alike (`look_alike`
    makes such an audience). A user's tag of weight 0 is held and leads nowhere.

    Args:
        kinds: the kinds of tags and how many tags each has; tags of a kind are numbered from 0.
        tags_per_user: :math:`N_t`; ads_per_tag: :math:`N_a`; None cuts nothing.

    Raises:
        ConfigError: no kinds, or numbers below 1.

    >>> index = TagIndex({"shop": 3, "age": 2})
    >>> carried, aimed = index.tags(shop=np.array([0, 0, 2])), index.tags(age=np.array([-1, 1, -1]))
    >>> index.build(
    ...     torch.tensor([7, 8, 9]), carried, worth=np.array([0.2, 0.5, 0.1]), only=aimed, budget=np.full(3, 1.0)
    ... )
    TagIndex(3 ads, 5 tags)
    >>> users = index.tags(shop=np.array([0, 0]), age=np.array([0, 1]))
    >>> index.search(users, k=2)[0]  # 8 is for the second age only
    tensor([[7, 0],
            [8, 7]])
    >>> index.charge(torch.tensor([8]), np.array([1.0]))  # its budget is out
    >>> index.search(users, k=2)[0]
    tensor([[7, 0],
            [7, 0]])
    """

    def __init__(
        self, kinds: Mapping[str, int], *, tags_per_user: int | None = 500, ads_per_tag: int | None = 500
    ) -> None:
        if not kinds or min(kinds.values()) < 1:
            raise ConfigError(f"A TagIndex needs kinds of at least one tag each; got {dict(kinds)}.")
        for name, value in (("tags_per_user", tags_per_user), ("ads_per_tag", ads_per_tag)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is at least 1, or None; got {value}.")
        self.kinds, self.tags_per_user, self.ads_per_tag = dict(kinds), tags_per_user, ads_per_tag
        self._first = dict(zip(kinds, offsets_of(np.array(list(kinds.values())))[:-1].tolist(), strict=True))
        self.n_tags = sum(kinds.values())
        self._kind_of = np.repeat(np.arange(len(kinds)), list(kinds.values()))
        nothing = Sparse(np.zeros(1, np.int64), np.zeros(0, np.int32), self.n_tags, np.zeros(0, np.float32))
        none = np.zeros(0, np.int64), nothing, np.zeros(0, np.float32), nothing, np.zeros(0)
        self._hold(*none, np.zeros(0, bool))

    def __len__(self) -> int:
        """Ads held, off line or not."""
        return int(self._alive.sum())

    def __repr__(self) -> str:
        return f"TagIndex({len(self):,} ads, {self.n_tags:,} tags)"

    @property
    def ads(self) -> Tensor:
        """The ad ids held, int64 [A]."""
        return torch.from_numpy(self._ads[self._alive])

    # -- tags ---------------------------------------------------------------------------------------------------------
    def tags(self, **of_kind: Tags) -> Sparse:
        """Tags of several kinds side by side, for users or ads: one row each, weights of a repeated tag added up.

        Args:
            of_kind: for each kind an int array [R] of one tag each (-1: none), or ``(offsets [R + 1], tags)`` or
                ``(offsets, tags, weights)`` of several.

        Raises:
            ConfigError: a kind that was not declared.
            DataError: numbers of rows that differ, a tag out of range, a weight that is negative or not finite.
        """
        rows, columns, values, height = [], [], [], None
        for kind, given in of_kind.items():
            if kind not in self.kinds:
                raise unknown("kind of tag", kind, self.kinds)
            row, tag, weight, n = _entries(given)
            if height not in (None, n):
                raise DataError(f"Tags of kind {kind!r} have {n} rows, those before them {height}; give the same.")
            if len(tag) and (tag.min() < 0 or tag.max() >= self.kinds[kind]):
                wrong = tag[(tag < 0) | (tag >= self.kinds[kind])][0]
                raise DataError(f"Tag {wrong} of kind {kind!r} is not in [0, {self.kinds[kind]}).")
            if not np.isfinite(weight).all() or (weight < 0).any():
                raise DataError(f"Weights of kind {kind!r} hold negative numbers or NaN; they are finite, at least 0.")
            rows, columns = [*rows, row], [*columns, tag + self._first[kind]]
            values, height = [*values, weight], n
        if height is None:
            raise ConfigError(f"Name at least one kind of tags: {', '.join(self.kinds)}.")
        key = np.concatenate(rows) * self.n_tags + np.concatenate(columns)
        key, place = np.unique(key, return_inverse=True)
        row, column = np.divmod(key, self.n_tags)
        value = np.bincount(place, np.concatenate(values), minlength=len(key)).astype(np.float32)
        return Sparse(offsets_of(np.bincount(row, minlength=height)), column.astype(np.int32), self.n_tags, value)

    # -- ads come and go ----------------------------------------------------------------------------------------------
    def build(self, ads: Any, tags: Sparse, worth: Any = None, only: Sparse | None = None, budget: Any = None) -> Self:
        """Hold these ads, and nothing else.

        Args:
            ads: int [A], positive ids, each once.
            tags: [A, T] from `tags`, what the ads are found by.
            worth: float [A], at least 0; None: all are worth 1.
            only: [A, T] from `tags`, their audiences; a row without tags is for everybody. None: all are.
            budget: float [A], what each may cost before it goes off line; None: without end.

        Raises:
            DataError: naming what does not fit.
        """
        self._hold(*self._checked(ads, tags, worth, only, budget))
        return self

    def add(self, ads: Any, tags: Sparse, worth: Any = None, only: Sparse | None = None, budget: Any = None) -> Self:
        """Add ads, arguments as in `build`, sorting only what came lately; one that is there already is replaced."""
        new = self._checked(ads, tags, worth, only, budget)
        self.remove(new[0])
        old = self._ads, self._forward, self._worth, self._aim, self._left
        held = [
            _stack(a, b) if isinstance(a, Sparse) else np.concatenate([a, b]) for a, b in zip(old, new, strict=True)
        ]
        alive = np.concatenate([self._alive, np.ones(len(new[0]), bool)])
        split = self._split if len(alive) - self._split <= max(_TAIL, self._split // 8) else None
        self._hold(*held, alive=alive, split=split)  # type: ignore[arg-type]
        return self

    def remove(self, ads: Any) -> int:
        """Remove ads; returns how many of them were there."""
        place = self._places(np.unique(np.asarray(ads, np.int64)))
        place = place[place >= 0]
        self._alive[place], self._closed[place], self._by_id = False, 2, None
        if 2 * len(self) < len(self._alive):  # the dead cost memory and time: make room
            kept = np.flatnonzero(self._alive)
            rows = self._forward.take(kept), self._worth[kept], self._aim.take(kept), self._left[kept]
            self._hold(self._ads[kept], *rows)
        return len(place)

    def charge(self, ads: Any, cost: Any) -> None:
        """Take costs [n] off the budgets of ads [n]; one whose budget is out is gone from the next search on."""
        self._pay(ads, -np.asarray(cost, np.float64))

    def fund(self, ads: Any, amount: Any) -> None:
        """Add amounts [n] to what is left of the budgets of ads [n]; with something left they are back on line."""
        self._pay(ads, np.asarray(amount, np.float64))

    def _pay(self, ads: Any, amount: np.ndarray) -> None:
        ads = np.asarray(ads, np.int64)
        if amount.shape != ads.shape or not np.isfinite(amount).all():
            raise DataError(f"{len(ads)} ads need as many finite amounts; got {list(amount.shape)}.")
        place = self._places(ads)
        if (place < 0).any():
            raise DataError(f"Ad {ads[place < 0][0]} is not in the index, so it has no budget; add it first.")
        np.add.at(self._left, place, amount)
        self._closed[place] = np.where(self._left[place] > 0, 0, 2)

    def live(self, ads: Tensor) -> Tensor:
        """Which of these ads, of any shape, are held and on line: bool."""
        place = self._places(ads.numpy().ravel())
        return torch.from_numpy((place >= 0) & (np.append(self._closed, 2)[place] == 0)).view(ads.shape)

    # -- asking -------------------------------------------------------------------------------------------------------
    def search(
        self,
        users: Sparse,
        k: int,
        *,
        exclude: tuple[Any, Any] | None = None,
        where: Tensor | None = None,
        weights: Mapping[str, float] | None = None,
        whole: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The k best ads of each user: ids int64 [R, k] and scores float32 [R, k], best first.

        Args:
            users: [R, T] from `tags`.
            exclude: (offsets [R + 1], ads) that a user may not get.
            where: the ads that may come: bool by ad id, or the ids.
            weights: {kind: factor of its tags}, 1 by default.
            whole: cut nothing.

        Returns:
            places that stay empty have id 0 and score -inf; equal scores stand in the order in which ads came.
        """
        return self._best(users, self._cut(users, weights, whole), k, exclude, where, whole)

    def by_kind(
        self,
        users: Sparse,
        k: int,
        *,
        exclude: tuple[Any, Any] | None = None,
        where: Tensor | None = None,
        whole: bool = False,
    ) -> list[Candidates]:
        """The k best of each kind of tags by itself, to be merged: by quota, by rank or by learned weights.

        Arguments as in `search`. Kinds that no ad is found by are left out.
        ``Candidates.merge(index.by_kind(users, k), quota={"shop": 20})`` merges.
        """
        lead, parts = self._cut(users, None, whole), []
        used = np.unique(self._kind_of[self._forward.columns])
        for number, kind in enumerate(self.kinds):
            if number in used:
                own = lead.where(self._kind_of[lead.columns] == number)
                ids, scores = self._best(users, own, k, exclude, where, whole)
                parts.append(Candidates(ids, scores, source={kind: scores}))
        return parts

    def reach(self, users: Sparse, *, whole: bool = False) -> np.ndarray:
        """How many ads each user's tags lead to, int64 [R]; with `whole`, how many if nothing were cut."""
        return self._walk(users, self._cut(users, None, whole), 0, None, None, whole)[3]

    def eligible(self, users: Sparse, ads: Tensor) -> Tensor:
        """Which of these ads [n] each user may get, by audience and budget: bool [R, n]."""
        aim = _with_empty_row(self._aim).take(self._places(ads.numpy()))
        return torch.from_numpy(kernels.allowed(users, aim, self._kind_of)) & self.live(ads)

    def tags_of(self, ads: Any) -> Sparse:
        """The forward list: tags and weights of these ads [n, T]; none for one that is not held."""
        return _with_empty_row(self._forward).take(self._places(np.asarray(ads, np.int64)))

    def _best(
        self, users: Sparse, lead: Sparse, k: int, exclude: Any, where: Any, whole: bool
    ) -> tuple[Tensor, Tensor]:
        place, score, found, _ = self._walk(users, lead, k, exclude, where, whole)
        empty = np.arange(k) >= found[:, None]
        score[empty] = -np.inf
        return torch.from_numpy(np.append(self._ads, 0)[np.where(empty, -1, place)]), torch.from_numpy(score)

    def _walk(
        self, users: Sparse, lead: Sparse, k: int, exclude: Any, where: Any, whole: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        if exclude is not None:
            offsets, ads = np.asarray(exclude[0], np.int64), self._places(np.asarray(exclude[1], np.int64))
            if len(offsets) != users.height + 1:
                raise DataError(f"exclude has {len(offsets)} offsets for {users.height} users; give one more.")
            exclude = Sparse(offsets, ads.astype(np.int32), len(self._ads)).where(ads >= 0)
        closed = self._closed
        if where is not None:
            where = torch.as_tensor(where)
            chosen = where.nonzero().squeeze(1) if where.dtype == torch.bool else where
            closed = np.where(np.isin(self._ads, chosen.numpy()), closed, 2).astype(np.uint8)
        limit = kernels.EVERY if whole or self.ads_per_tag is None else self.ads_per_tag
        return kernels.walk(lead, users, self._postings, self._aim, self._kind_of, closed, k, limit=limit, seen=exclude)

    def _cut(self, users: Sparse, weights: Mapping[str, float] | None, whole: bool) -> Sparse:
        """The tags that users start from: the `tags_per_user` of most weight, the smaller first among equals."""
        if users.width != self.n_tags:
            raise DataError(f"Users have {users.width} tags and the index {self.n_tags}; make them by index.tags(...).")
        for kind in weights or {}:
            if kind not in self.kinds:
                raise unknown("kind of tag", kind, self.kinds)
        factor = np.array([(weights or {}).get(kind, 1.0) for kind in self.kinds], np.float32)
        assert users.values is not None  # made by `tags`
        users = users._replace(values=users.values * factor[self._kind_of[users.columns]])
        users = users.where(users.values > 0)  # type: ignore[operator]
        n = self.tags_per_user
        if whole or n is None or users.counts.max(initial=0) <= n:
            return users
        order = np.lexsort((-users.values, users.rows))  # type: ignore[operator]  # stable: equal ones by tag
        kept = np.zeros(len(order), bool)
        kept[order[np.arange(len(order)) - users.offsets[users.rows] < n]] = True
        return users.where(kept)

    # -- saving -------------------------------------------------------------------------------------------------------
    def to_piece(self) -> Piece:
        """This index as a piece of a bundle, budgets as they stand."""
        config = {"kinds": self.kinds, "tags_per_user": self.tags_per_user, "ads_per_tag": self.ads_per_tag}
        kept = np.flatnonzero(self._alive)
        forward, aim = self._forward.take(kept), self._aim.take(kept)
        arrays = {"ads": self._ads[kept], "worth": self._worth[kept], "left": self._left[kept]}
        arrays |= {"tags.offsets": forward.offsets, "tags": forward.columns, "tags.weights": forward.values}
        arrays |= {"only.offsets": aim.offsets, "only": aim.columns}
        return Piece(bundle.class_path(type(self)), bundle.encode_config(config), arrays)  # type: ignore[arg-type]

    @classmethod
    def from_piece(cls, piece: Piece) -> Self:
        """The index that `to_piece` saved."""
        new = cls(**bundle.decode_config(piece.config))
        at = {name: value.numpy() for name, value in piece.tensors.items()}  # type: ignore[union-attr]
        forward = Sparse(at["tags.offsets"], at["tags"], new.n_tags, at["tags.weights"])
        aim = Sparse(at["only.offsets"], at["only"], new.n_tags, np.ones(len(at["only"]), np.float32))
        new._hold(at["ads"], forward, at["worth"], aim, at["left"])
        return new

    # -- own ----------------------------------------------------------------------------------------------------------
    def _hold(
        self,
        ads: np.ndarray,
        forward: Sparse,
        worth: np.ndarray,
        aim: Sparse,
        left: np.ndarray,
        alive: np.ndarray | None = None,
        split: int | None = None,
    ) -> None:
        """Take these arrays; with `split` the postings of places before it are those that are there."""
        self._ads, self._forward, self._worth, self._aim, self._left = ads, forward, worth, aim, left.copy()
        self._alive = np.ones(len(ads), bool) if alive is None else alive
        self._closed = np.where(self._alive & (left > 0), 0, 2).astype(np.uint8)
        self._by_id: tuple[np.ndarray, np.ndarray] | None = None
        if split is None:
            self._split = len(ads)
            self._main = self._sorted(0, len(ads))
        self._tail = self._sorted(self._split, len(ads))

    @property
    def _postings(self) -> tuple[Sparse, Sparse]:
        return self._main, self._tail

    def _sorted(self, begin: int, end: int) -> Sparse:
        """The inverted lists [T, A] of the ads at these places, the most valuable first."""
        part = slice(self._forward.offsets[begin], self._forward.offsets[end])
        tag, ad = self._forward.columns[part], np.repeat(np.arange(begin, end), self._forward.counts[begin:end])
        value = self._forward.values[part] * self._worth[ad]  # type: ignore[index]
        order = np.lexsort((ad, -value, tag))
        offsets = offsets_of(np.bincount(tag, minlength=self.n_tags))
        return Sparse(offsets, ad[order].astype(np.int32), len(self._ads), value[order].astype(np.float32))

    def _places(self, ads: np.ndarray) -> np.ndarray:
        """The place of each ad id [n], -1 for one that is not held."""
        if self._by_id is None:
            place = np.flatnonzero(self._alive)
            place = place[np.argsort(self._ads[place])]
            self._by_id = self._ads[place], place
        ordered, place = self._by_id
        if not len(ordered):
            return np.full(len(ads), -1)
        at = np.searchsorted(ordered, ads).clip(max=len(ordered) - 1)
        return np.where(ordered[at] == ads, place[at], -1)

    def _checked(self, ads: Any, tags: Sparse, worth: Any, only: Sparse | None, budget: Any) -> tuple:
        ads = np.asarray(ads).astype(np.int64)  # a copy
        if ads.ndim != 1 or len(np.unique(ads)) < len(ads) or (len(ads) and ads.min() < 1):
            raise DataError("Ad ids are positive and differ; 0 is the padding.")
        if only is None:
            only = Sparse(np.zeros(len(ads) + 1, np.int64), np.zeros(0, np.int32), self.n_tags, np.zeros(0, np.float32))
        for what, given in (("tags", tags), ("only", only)):
            if given.height != len(ads) or given.width != self.n_tags:
                raise DataError(
                    f"{what}= has {given.height} rows of {given.width} tags for {len(ads)} ads and an index of "
                    f"{self.n_tags}; make it by index.tags(...)."
                )
        worth = np.ones(len(ads), np.float32) if worth is None else np.array(worth, np.float32)
        budget = np.full(len(ads), np.inf) if budget is None else np.array(budget, np.float64)
        for what, given in (("worth", worth), ("budget", budget)):
            good = given.shape == ads.shape and not np.isnan(given).any() and not (given < 0).any()
            if not good or (what == "worth" and not np.isfinite(given).all()):
                raise DataError(f"{what}= holds one number of at least 0 for each of the {len(ads)} ads.")
        return ads, tags, worth, only, budget


def look_alike(vectors: Tensor | Sparse, seeds: Any, share: float) -> np.ndarray:
    r"""An audience: the seeds, and the `share` of all other users who are nearest to them, bool [U].

    .. math:: \cos\Big(x_u,\ \tfrac1{|S|} \sum_{s \in S} x_s / |x_s| \Big)

    Args:
        vectors: of all users, [U, D], or their tags [U, T].
        seeds: int [n], the rows of the seed users.
        share: in [0, 1].

    Raises:
        DataError: no seeds, or a share that is none.

    >>> look_alike(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 1.0]]), [0], share=0.4).tolist()
    [True, True, False, False]
    """
    seeds = np.asarray(seeds, np.int64)
    if not len(seeds) or not 0 <= share <= 1:
        raise DataError(f"look_alike needs seed users and a share in [0, 1]; got {len(seeds)} seeds and {share:g}.")
    if isinstance(vectors, Sparse):
        weight = np.ones(len(vectors.columns)) if vectors.values is None else vectors.values.astype(np.float64)
        length = np.sqrt(np.bincount(vectors.rows, weight**2, minlength=vectors.height)).clip(1e-30)
        unit = vectors._replace(values=weight / length[vectors.rows])
        of_seeds = unit.take(seeds)
        mean = np.bincount(of_seeds.columns, of_seeds.values, minlength=unit.width)
        near = np.bincount(unit.rows, unit.values * mean[unit.columns], minlength=unit.height)  # type: ignore[operator]
    else:
        dense = vectors.double().numpy()
        dense = dense / np.linalg.norm(dense, axis=1, keepdims=True).clip(1e-30)
        near = dense @ dense[seeds].sum(0)
    out = np.zeros(len(near), bool)
    out[seeds] = True
    others = np.flatnonzero(~out)
    best = others[np.argsort(-near[others], kind="stable")]
    out[best[: round(share * len(others))]] = True
    return out


def ecpm_queue(ctr: Tensor, bid: Tensor, ads: Tensor, k: int, *, allowed: Tensor | None = None) -> Candidates:
    r"""Each user's k ads of the highest expected revenue, over all ads and cut nowhere: what truncated search is held to.

    .. math:: \mathrm{eCPM}_{ua} = 1000\, \mathrm{bid}_a\, p(\mathrm{click} \mid u, a)

    Made offline, for a block of users at a time; on line it is looked up and what has gone off line struck out:
    ``Candidates(queue.ids, queue.scores, index.live(queue.ids))``.

    Args:
        ctr: [R, A]; bid: [A]; ads: int64 [A], ids.
        allowed: bool [R, A], such as `TagIndex.eligible`; None: all.

    >>> queue = ecpm_queue(torch.tensor([[0.1, 0.02]]), torch.tensor([1.0, 8.0]), torch.tensor([7, 9]), k=2)
    >>> queue.ids, queue.scores
    (tensor([[9, 7]]), tensor([[160., 100.]]))
    """
    worth = 1000 * bid * ctr
    if allowed is not None:
        worth = worth.masked_fill(~allowed, -torch.inf)
    scores, place = worth.topk(min(k, worth.shape[1]), dim=1)
    return Candidates(ads[place], scores, scores > -torch.inf, {"ecpm": scores})


def queue_recall(ids: Tensor, queue: Candidates) -> dict[str, float]:
    """How much of each user's queue is among `ids` [R, K]: the share of its ads ("recall"), of its scores ("worth").

    Of a queue by eCPM that is what truncation costs; of the ads that were clicked, with their bids for scores, it is click
    recall and cost recall. Means over the users whose queue is not empty.

    >>> queue = Candidates(torch.tensor([[9, 7]]), torch.tensor([[160.0, 40.0]]))
    >>> queue_recall(torch.tensor([[9, 3]]), queue)
    {'recall': 0.5, 'worth': 0.8}
    """
    hit = ((queue.ids.unsqueeze(2) == ids.unsqueeze(1)).any(2) & queue.mask).double()
    there = queue.mask.any(1)
    worth = queue.scores.double()
    count = (hit.sum(1) / queue.mask.sum(1))[there]
    value = ((hit * worth).sum(1) / worth.sum(1).clamp(min=1e-30))[there]
    return {"recall": float(count.mean()), "worth": float(value.mean())}


def _entries(given: Tags) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(row, tag, weight) of each entry, and the number of rows."""
    if isinstance(given, Sparse):
        given = (given.offsets, given.columns) if given.values is None else (given.offsets, given.columns, given.values)
    if not isinstance(given, tuple):
        tag = np.asarray(given)
        row = np.flatnonzero(tag >= 0)
        return row, tag[row].astype(np.int64), np.ones(len(row)), len(tag)
    offsets, tag = np.asarray(given[0], np.int64), np.asarray(given[1], np.int64)
    weight = np.ones(len(tag)) if len(given) < 3 else np.asarray(given[2], np.float64)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(tag) or len(weight) != len(tag):
        raise DataError(
            f"Offsets end at {offsets[-1] if len(offsets) else None}, with {len(tag)} tags and {len(weight)} weights; "
            "give (offsets [R + 1], tags, weights)."
        )
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), tag, weight, len(offsets) - 1


def _stack(above: Sparse, below: Sparse) -> Sparse:
    offsets = np.concatenate([above.offsets, above.offsets[-1] + below.offsets[1:]])
    values = np.concatenate([above.values, below.values])  # type: ignore[list-item]
    return Sparse(offsets, np.concatenate([above.columns, below.columns]), above.width, values)


def _with_empty_row(matrix: Sparse) -> Sparse:
    """One row more, found at -1."""
    return matrix._replace(offsets=np.append(matrix.offsets, matrix.offsets[-1]))
