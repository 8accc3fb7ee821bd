"""What the service knows and answers, without HTTP: one cascade, its users, their events."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from recstack import bundle
from recstack.cascade import Cascade
from recstack.data.profiles import Requests
from recstack.data.store import Block
from recstack.errors import BundleError, ConfigError, DataError, RequestError, SchemaError
from recstack.models.base import Recommends, Retriever, load
from recstack.schema import Categorical, Feature, History, Schema
from recstack.serving import ranking
from recstack.serving.events import EventLog
from recstack.serving.items import NAME as ITEMS
from recstack.serving.items import Items, read_items, read_object
from recstack.serving.messages import Event
from recstack.serving.metrics import Metrics

logger = logging.getLogger("recstack.serving")
METRICS = "metrics.json"
REMEMBERED = 100_000  # ids of events, so that a retry is recognised
END = 1 << 62  # a moment after every event
Row = dict[str, Any]


class Service:
    """Answers for one cascade; safe to use from several threads.

    Args:
        cascade: a fitted cascade, a fitted retriever, or the path of a bundle that holds one.
        event_log: a JSONL file; its events are read first, and new ones are written before they count.
        items: titles and attributes for people, ``{str(raw id): {"title": ...}}``; by default the bundle's items.json.
        evaluation: last measurements; by default the bundle's metrics.json.
        trust: packages besides recstack whose classes the bundle may name.
        fusion: an expression over the ranker's tasks that orders candidates in place of the saved one; see `rs.Fusion`.

    Raises:
        BundleError: the bundle is not intact, or holds something that cannot recommend.
        DataError: a line of the event log is not an event.
    """

    def __init__(
        self,
        cascade: Cascade | Recommends | str | Path,
        *,
        event_log: str | Path | None = None,
        items: Mapping[str, Mapping[str, Any]] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        trust: Sequence[str] = (),
        fusion: str | None = None,
    ) -> None:
        if isinstance(cascade, str | Path):
            files = bundle.read(cascade, verify=False).files  # `load` verifies
            cascade = load(cascade, trust=trust)
            if items is None and ITEMS in files:
                items = read_items(files[ITEMS])
            if evaluation is None and METRICS in files:
                evaluation = read_object(METRICS, files[METRICS])
        self.cascade = cascade if isinstance(cascade, Cascade) else _cascade_of(cascade)
        if fusion is not None:
            self.cascade.fusion = fusion
        if self.cascade.profiles is None:
            raise ConfigError("This cascade knows no users yet; call cascade.fit(train) before serving it.")
        self.encoder, self.profiles = self.cascade.encoder, self.cascade.profiles
        self.schema: Schema = self.encoder.schema
        self.user_kind: str = self.encoder.kind(self.schema.user)
        self.item_kind: str = self.encoder.kind(self.schema.item)
        self.items, self.evaluation = Items(self.encoder, items), evaluation
        self.popular = ranking.popularity(self.cascade)
        self.metrics = _metrics(self)
        self._new_event = threading.Lock()
        self._event_ids: dict[str, None] = {}
        self._log = EventLog(event_log) if event_log is not None else None
        try:
            self._replay()
            self._warm_up()
        except BaseException:
            self.close()
            raise

    def _replay(self) -> None:
        """Take the events that the log kept; raises DataError."""
        if self._log is None:
            return
        for number, event in enumerate(self._log, 1):
            try:
                self._take(event)
            except SchemaError as error:
                raise DataError(
                    f"Line {number} of the event log {str(self._log.path)!r} does not fit: {error}"
                ) from None

    def _warm_up(self) -> None:
        """Item vectors, compiled kernels: whatever the first request would wait for."""
        stages = [*self.cascade.retrievers, self.cascade.pre_ranker, self.cascade.ranker, self.cascade.reranker]
        for stage in stages:
            if isinstance(stage, torch.nn.Module):
                stage.eval()
            if isinstance(stage, Retriever):
                stage.catalog_vectors()
        some = self.profiles.users[:1]
        if some:
            self.cascade.pages(self.profiles.requests(some, time=END), 1)
        logger.info("Ready: %d users, %d items.", len(self.profiles), len(self.encoder.catalog))

    # -- answers ------------------------------------------------------------------------------------------------------
    def recommend(
        self, user: int | str, k: int, context: Mapping[str, Any] | None = None, time: int | None = None
    ) -> Row:
        """The page of a user; of one never met, what is popular, unless a context says something of the moment."""
        requests, known = self._requests(user, context, time)
        trace: Row = {"stages": [], "seconds": {}}
        page: list[Row] = []
        if known or context is not None:
            page = self.cascade.rows(self.cascade.pages(requests, k, trace))[0]
        for stage, seconds in trace["seconds"].items():
            self.metrics.observe("stage_seconds", seconds, stage=stage)
        fallback = not page
        if fallback:
            page = self._popular(requests, k)
        self._count_page(known, fallback, page)
        for row in page:
            row["title"] = self.items.title(row["item"])
        return {"user_id": user, "known": known, "fallback": fallback, "items": page}

    def explain(self, user: int | str, k: int, time: int | None = None) -> Row:
        """The page, and what every stage saw, scored and dropped on the way to it."""
        requests, known = self._requests(user, time=time)
        started = perf_counter()
        answer: Row = {"page": [], "stages": []}
        if known:
            answer = self.cascade.explain(user, k, time=time)
        fallback = not answer["page"]
        if fallback:
            page = self._popular(requests, k)
            items = [{"item": row["item"], "score": row["score"]} for row in page]
            seconds = perf_counter() - started
            stage = {"name": "popular", "seconds": seconds, "kept": len(page), "dropped": 0, "items": items}
            answer = {"page": page, "stages": [*answer["stages"], stage]}
        seconds = perf_counter() - started
        for stage in answer["stages"]:
            self.metrics.observe("stage_seconds", stage["seconds"], stage=stage["name"])
        self._count_page(known, fallback, answer["page"])
        about = self.items.describe([row["item"] for row in answer["page"]])
        page = [{**row, **told} for row, told in zip(answer["page"], about, strict=True)]
        shown = {row["item"] for stage in answer["stages"] for row in stage["items"]}
        titles = {str(item): title for item in shown if (title := self.items.title(item)) is not None}
        return {
            "user_id": user,
            "known": known,
            "fallback": fallback,
            "seconds": seconds,
            "catalog": len(self.encoder.catalog),
            "retrievers": self.cascade.names,
            "page": page,
            "stages": answer["stages"],
            "titles": titles,
        }

    def rank(
        self,
        user: int | str,
        items: Sequence[Any],
        context: Mapping[str, Any] | None = None,
        time: int | None = None,
    ) -> Row:
        """Scores of exactly these items (raw ids, or rows of raw columns), in their order."""
        requests, known = self._requests(user, context, time)
        rows = [item for item in items if isinstance(item, dict)]
        if rows and len(rows) < len(items):
            odd = next(i for i, item in enumerate(items) if isinstance(item, dict) is not isinstance(items[0], dict))
            raise RequestError("Items are all ids or all rows; this one differs.", f"items[{odd}]")
        tensors = None
        if rows:
            items, ids, tensors = self._rows_of(rows)
        else:
            ids = self._item_ids(items)
        found = ranking.score(self.cascade, requests, torch.from_numpy(ids)[None], tensors)
        chance = found.pop("probability", None)
        best = found[next(reversed(found))][0].tolist()
        sources = {name: value[0].tolist() for name, value in found.items()}
        chances = [None] * len(items) if chance is None else chance[0].tolist()
        scored = [
            {
                "item": item,
                "score": best[i],
                "probability": chances[i],
                "sources": {n: v[i] for n, v in sources.items()},
            }
            for i, item in enumerate(items)
        ]
        return {"user_id": user, "known": known, "items": scored}

    def user(self, user: int | str) -> Row:
        """Who this is: attributes that can be told, and every history, newest first."""
        requests, known = self._requests(user, time=END)
        about = {}
        for f in self.schema.by_role("user"):
            if isinstance(f, Categorical) and not f.multi and f.buckets is None and f.name != self.schema.user:
                about[f.name] = self.encoder.decode(f.name, requests.batch[f.name].numpy()).tolist()[0]
        histories = {}
        for history in self.schema.histories:
            items = self.profiles.history(user, history.name)[::-1].tolist()
            histories[history.name] = self.items.describe(items)
        met = len(requests.seen[1])
        return {"user_id": user, "known": known, "about": about, "met": met, "histories": histories}

    def users(self, q: str, limit: int) -> Row:
        """Users whose id begins with `q`, or a random sample."""
        users = self.profiles.users
        if q:
            found = list(itertools.islice((u for u in users if str(u).startswith(q)), limit))
            exact = next((u for u in found if str(u) == q), None)
            if exact is None:
                exact = self._user(q, strict=False)
                if exact in self.profiles:
                    found = [exact, *found][:limit]
        else:
            found = random.sample(users, min(limit, len(users)))
        return {"users": found, "total": len(users)}

    def funnel(self) -> Row:
        """The stages, and what the last evaluation measured of them."""
        stages = {n: getattr(self.cascade, n) for n in ("pre_ranker", "ranker", "calibrator", "reranker")}
        return {
            "users": len(self.profiles),
            "catalog": len(self.encoder.catalog),
            "user_kind": self.user_kind,
            "retrievers": [{"name": r.name, "class": type(r).__name__} for r in self.cascade.retrievers],
            "stages": [{"name": n, "class": type(s).__name__} for n, s in stages.items() if s is not None],
            "fusion": None if self.cascade.fusion is None else str(self.cascade.fusion),
            "rules": [type(rule).__name__ for rule in self.cascade.rules],
            "event": next((h.where for h in self.schema.histories if h.where), None),
            "evaluation": self.evaluation,
        }

    def take(self, events: Sequence[Event]) -> Row:
        """Let these events into the users' histories: all of them, or, where one is wrong, none.

        Raises:
            RequestError: naming the event and its field; status 503 where the event log cannot be written.
        """
        several = "" if len(events) == 1 else "events[{}]."
        known_labels = {t.column for t in self.schema.tasks if not t.derived} | {h.where for h in self.schema.histories}
        for i, event in enumerate(events):
            at = several.format(i)
            self._check(event.user_id, self.user_kind, f"{at}user_id")
            self._check(event.item_id, self.item_kind, f"{at}item_id")
            for label in event.labels:
                if label not in known_labels:
                    known = ", ".join(sorted(filter(None, known_labels))) or "none"
                    raise RequestError(f"There is no label {label!r}; known: {known}.", f"{at}labels.{label}")
        with self._new_event:
            fresh, ids = [], set()
            for event in events:
                if event.event_id is None or (event.event_id not in self._event_ids and event.event_id not in ids):
                    fresh.append(event)
                    ids.add(event.event_id)
            if self._log is not None and fresh:
                try:
                    self._log.append(fresh)
                except OSError:
                    logger.exception("The event log cannot be written.")
                    raise RequestError("Events cannot be kept at the moment; none was taken.", None, 503) from None
            unknown = sum(self._take(event) for event in fresh)
        for result, n in (("accepted", len(fresh)), ("duplicate", len(events) - len(fresh)), ("unknown_item", unknown)):
            self.metrics.count("events_total", n, result=result)
        return {"accepted": len(fresh), "duplicates": len(events) - len(fresh), "unknown_items": unknown}

    def close(self) -> None:
        """Let go of the event log."""
        if self._log is not None:
            self._log.close()

    # -- own ----------------------------------------------------------------------------------------------------------
    def _take(self, event: Event) -> bool:
        """Into the user's histories; whether the item is one that the catalogue lacks."""
        where = {h.where: event.labels[h.where] for h in self.schema.histories if h.where in event.labels}
        self.profiles.append(event.user_id, event.item_id, event.time, **where)
        if event.event_id is not None:
            self._event_ids[event.event_id] = None
            if len(self._event_ids) > REMEMBERED:
                del self._event_ids[next(iter(self._event_ids))]
        return self._lacks([event.item_id])[1] is not None

    def _requests(
        self, user: int | str, context: Mapping[str, Any] | None = None, time: int | None = None
    ) -> tuple[Requests, bool]:
        """The user's side of a request, and whether the user was met before; histories before `time`, all of them if None."""
        if time is None and self.schema.timed:
            raise RequestError(
                "This model looks back in time; give the moment, in the unit of the log's times.", "time"
            )
        self._check(user, self.user_kind, "user_id")
        if context is not None:
            names = {f.name for f in self.schema.by_role("context", "domain") if not isinstance(f, History)}
            for name in context:
                if name not in names:
                    known = ", ".join(sorted(names)) or "none"
                    raise RequestError(f"There is no context {name!r}; known: {known}.", f"context.{name}")
            context = {name: context.get(name) for name in names}
        try:
            requests = self.profiles.requests([user], context=context, time=time)
        except SchemaError as error:
            raise RequestError(str(error), "context") from None
        return requests, user in self.profiles

    def user_id(self, text: str) -> int | str:
        """A user id as a URL spells it; raises RequestError."""
        return self._user(text, strict=True)

    def _user(self, text: str, strict: bool) -> Any:
        if self.user_kind == "text":
            return text
        try:
            user = int(text) if len(text) < 32 else None
        except ValueError:
            user = None
        if strict:
            self._check(text if user is None else user, "int", "user_id")
        return user

    def _check(self, value: int | str, kind: str, field: str) -> None:
        """Ids are of the kind that the training rows had; a whole number fits 64 bits."""
        if kind == "int" and (isinstance(value, str) or not -(2**63) <= value < 2**63):
            raise RequestError(f"{_what(field)} are whole numbers here; got {_short(value)}.", field)
        if kind == "text" and not isinstance(value, str):
            raise RequestError(f'{_what(field)} are text here; got {value}, write "{value}".', field)

    def _lacks(self, items: Sequence[Any]) -> tuple[np.ndarray, int | None]:
        """Ids of raw items, and the place of the first one that the catalogue lacks."""
        ids = self.encoder.encode_values(self.schema.item, items)
        back = self.encoder.decode(self.schema.item, ids).tolist()  # of hashed items, several may share an id
        return ids.astype(np.int64), next((i for i, item in enumerate(items) if back[i] != item), None)

    def _item_ids(self, items: Sequence[Any]) -> np.ndarray:
        for i, item in enumerate(items):
            self._check(item, self.item_kind, f"items[{i}]")
        ids, unknown = self._lacks(items)
        if unknown is not None:
            raise RequestError(f"There is no item {_short(items[unknown])} in the catalogue.", f"items[{unknown}]")
        return ids

    def _rows_of(self, rows: list[Row]) -> tuple[list[Any], np.ndarray, dict[str, torch.Tensor]]:
        """Raw keys, ids (1 for new items) and tensors ``[1, L, ...]`` of rows; pair columns are taken where all have them."""
        key: str = self.schema.item  # type: ignore[assignment]
        wanted = {f.name for f in self.schema.by_role("item", "pair")}
        for i, row in enumerate(rows):
            for name in row:
                if name not in wanted:
                    known = ", ".join(sorted(wanted))
                    raise RequestError(f"There is no item column {name!r}; known: {known}.", f"items[{i}].{name}")
            for f in self.schema.by_role("item"):
                if f.name not in row:
                    raise RequestError(
                        f"Column {f.name!r} is missing from this row; null is unknown.", f"items[{i}].{f.name}"
                    )
            if row[key] is not None:
                if isinstance(row[key], bool) or not isinstance(row[key], int | str):
                    raise RequestError(f"{key!r} must be an id.", f"items[{i}].{key}")
                self._check(row[key], self.item_kind, f"items[{i}].{key}")
        pairs = [f for f in self.schema.by_role("pair") if all(f.name in row for row in rows)]
        features = [*self.schema.by_role("item"), *pairs]
        try:
            block = Block.build(
                len(rows), features, lambda f: self.encoder.column(f.name, [row[f.name] for row in rows])
            )
        except SchemaError as error:
            raise self._blame(rows, features, error) from None
        keys = [row[key] for row in rows]
        ids = self.encoder.encode_values(key, keys).astype(np.int64)
        return keys, ids, {name: value[None] for name, value in block.take(slice(None), padded=True).items()}

    def _blame(self, rows: list[Row], features: Sequence[Feature], error: SchemaError) -> RequestError:
        """The first cell that cannot be encoded, or the columns as a whole."""
        for i, row in enumerate(rows):
            for f in features:
                try:
                    self.encoder.column(f.name, [row[f.name]])
                except SchemaError as own:
                    return RequestError(str(own), f"items[{i}].{f.name}")
        return RequestError(str(error), "items")

    def _popular(self, requests: Requests, k: int) -> list[Row]:
        page = ranking.popular_page(self.cascade, self.popular, requests, k)
        rows = self.cascade.rows(page)[0]
        return [{"item": row["item"], "score": row["score"], "sources": {"popular": row["score"]}} for row in rows]

    def _count_page(self, known: bool, fallback: bool, page: list[Row]) -> None:
        self.metrics.count("pages_total")
        self.metrics.count("unknown_users_total", not known)
        self.metrics.count("fallback_pages_total", fallback)
        self.metrics.count("empty_pages_total", not page)


def _cascade_of(model: Any) -> Cascade:
    """A single retriever as a cascade of one stage."""
    if not isinstance(model, Recommends):
        raise BundleError(f"A {type(model).__name__} recommends nothing by itself; serve a cascade or a retriever.")
    cascade = Cascade([model])
    cascade.profiles = model.profiles
    return cascade


def _metrics(service: Service) -> Metrics:
    metrics = Metrics(
        {
            "requests_total": "Requests by endpoint, method and status.",
            "pages_total": "Pages made (recommend and explain).",
            "unknown_users_total": "Pages asked for users who were never met.",
            "fallback_pages_total": "Pages of popular items, since the cascade had nothing.",
            "empty_pages_total": "Pages without any item.",
            "events_total": "Events by what became of them.",
        },
        {
            "request_seconds": "Latency of requests, by endpoint.",
            "stage_seconds": "Time in each stage of the cascade.",
        },
    )
    for name in ("pages_total", "unknown_users_total", "fallback_pages_total", "empty_pages_total"):
        metrics.count(name, 0)
    metrics.gauge("users", "Users that are known.", lambda: len(service.profiles))
    metrics.gauge("items", "Items of the catalogue.", lambda: len(service.encoder.catalog))
    return metrics


def _what(field: str) -> str:
    return "User ids" if field.endswith("user_id") else "Item ids"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
