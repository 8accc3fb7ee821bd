"""Retrieval → pre-ranking → ranking → calibration → re-ranking → page, as one object."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from recstack import bundle
from recstack.candidates import Candidates
from recstack.cascade.lists import CandidateLists, stage_batch
from recstack.cascade.merging import merge_weights
from recstack.data import Columns, Encoder, Loader, Profiles, Requests
from recstack.data.truth import next_events
from recstack.errors import ConfigError, DataError, unknown
from recstack.features import tasks
from recstack.fusion import Fusion
from recstack.kernels.jagged import pad
from recstack.models.base import Model, load_model
from recstack.rules import PageContext, Step, cost, moved

if TYPE_CHECKING:  # a log brings polars, which serving does without
    from recstack.data import Log

Trace = dict[str, Any]
LEARNED = ("pre_ranker", "ranker", "reranker")
EXPLORES = ("draw", "bounds")
PRE_RANKED = 20_000  # lists that teach a pre-ranker enough; scoring all candidates for more is the slowest step
PAGES = 8_000  # users whose whole lists teach calibrator and re-ranker
BLOCK = 256  # requests asked at a time, times hundreds of candidates each


class Cascade:
    """Several retrievers propose, each later stage keeps the best of what the one before let through.

    Args:
        retrievers: at least one; each proposes `candidates` items, merged by reciprocal rank or as `merge` says.
        pre_ranker, ranker, reranker: models; a stage that is None is left out. The re-ranker sees the ranker's best
            `keep_ranked` in the ranker's order.
        calibrator: makes the ranker's probability honest; fitted on held-out requests.
        rules: applied in turn to the re-ranked list.
        candidates: items a retriever proposes; keep_pre_ranked, keep_ranked: items that survive these stages.
        task: the task whose logit ranks; the first one by default.
        fusion: an expression over the ranker's tasks, as in ``"click * like ** 0.3 * log1p(watch_time)"`` (see `rs.Fusion`), by
            which ranked candidates are ordered and cut instead. It can be changed at any time, ``cascade.fusion = "..."``, for
            nothing learns from it: calibrator and re-ranker go on reading the logit of `task`.
        explore: "draw" or "bounds", for a ranker that knows how sure it is (`rs.ranking.NeuralLinear`): its draws, or upper confidence
            bounds, order and cut its candidates, as a fusion would, and may be changed as freely. `recstack.serving.learning.learn`
            lets it learn from events.
        final: an expression over the re-ranker's tasks, the name of one or a fusion of several, by which its list is ordered in
            place of the logit of `task`; it may be changed as freely.
        merge: options of `Candidates.merge`: its rule, quotas or weights, by the retrievers' names. ``{"weights": "learned"}``
            lets `fit` find them, by `merge_weights`, on held-out events.

    A model may declare pair features that earlier stages fill in, ``score_<stage>`` (a retriever's stage is its `name`,
    later ones are "pre_ranker" and "ranker"), and a Vector ``hidden_ranker``, the ranker's last hidden layer.

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(items=200))
    >>> cascade = rs.Cascade([rs.retrieval.Popularity()], rules=[rs.rules.CategoryCap("category", 3)]).fit(train)
    >>> len(cascade.recommend(train.events["user_id"][0], k=5))
    5
    """

    def __init__(
        self,
        retrievers: Sequence[Any],
        *,
        pre_ranker: Model | None = None,
        ranker: Model | None = None,
        calibrator: Any = None,
        reranker: Model | None = None,
        rules: Sequence[Any] = (),
        candidates: int = 200,
        keep_pre_ranked: int = 100,
        keep_ranked: int = 50,
        task: str | None = None,
        fusion: str | Fusion | None = None,
        explore: str | None = None,
        final: str | Fusion | None = None,
        merge: Mapping[str, Any] | None = None,
    ):
        if not retrievers:
            raise ConfigError("A cascade needs at least one retriever: Cascade([rs.retrieval.Popularity()]).")
        if calibrator is not None and ranker is None:
            raise ConfigError("A calibrator works on the ranker's logits; give ranker= too.")
        self.retrievers, self.rules = list(retrievers), list(rules)
        self.pre_ranker, self.ranker, self.reranker, self.calibrator = pre_ranker, ranker, reranker, calibrator
        self.candidates, self.keep_pre_ranked, self.keep_ranked = candidates, keep_pre_ranked, keep_ranked
        self.task, self.merge = task, dict(merge or {})
        self.fusion, self.explore, self.final = fusion, explore, final
        names = [r.name for r in self.retrievers]
        if len(set(names)) < len(names):
            raise ConfigError(f"Two retrievers have one name among {', '.join(names)}; give one of them another .name.")
        self.names = names
        self.scales: dict[str, tuple[float, float, float]] = {}
        self.profiles: Any = None
        self._attributes: dict[str, Tensor] | None = None
        self.encoder: Any = next((m.schema.encoder for m in self._models() if m.schema.encoder is not None), None)

    @property
    def fusion(self) -> Fusion | None:
        """What orders the ranker's candidates in place of one task's logit; takes an expression, or None."""
        return self._fusion

    @fusion.setter
    def fusion(self, expression: str | Fusion | None) -> None:
        if expression is not None and self.ranker is None:
            raise ConfigError("A fusion is of the ranker's tasks; give ranker= too.")
        if expression is not None and getattr(self, "_explore", None) is not None:
            raise ConfigError("This cascade explores, and only one thing can order the ranked; set explore=None first.")
        self._fusion = _of_tasks(expression, self.ranker)

    @property
    def explore(self) -> str | None:
        """How the ranker explores: "draw", "bounds", or None."""
        return self._explore

    @explore.setter
    def explore(self, way: str | None) -> None:
        if way not in (None, *EXPLORES):
            raise unknown("way to explore", way, EXPLORES)
        if way is not None and (self.fusion is not None or not hasattr(self.ranker, way)):
            raise ConfigError(f"explore={way!r} orders by rs.ranking.NeuralLinear as the ranker, and without a fusion.")
        self._explore = way

    @property
    def final(self) -> Fusion | None:
        """What orders the re-ranker's list in place of one task's logit; takes an expression, or None."""
        return self._final

    @final.setter
    def final(self, expression: str | Fusion | None) -> None:
        if expression is not None and self.reranker is None:
            raise ConfigError("final= is of the re-ranker's tasks; give reranker= too.")
        self._final = _of_tasks(expression, self.reranker)

    def _models(self) -> list[Any]:
        stages = [*self.retrievers, self.pre_ranker, self.ranker, self.reranker]
        return [s for s in stages if s is not None and getattr(s, "schema", None) is not None]

    # -- fitting ------------------------------------------------------------------------------------------------------
    def fit(
        self,
        train: Log,
        valid: Log | None = None,
        *,
        late: int = 5,
        negatives: int = 30,
        seed: int = 0,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        status: Callable[[str], AbstractContextManager[Any]] | None = None,
    ) -> Self:
        """Fit what is not fitted yet. Stages that were trained before are kept as they are.

        Where a learned stage is missing its training, each user's last events are set aside: retrievers learn from what
        came before, the pre-ranker and ranker from lists of the next `late` events, each with its own candidates drawn
        from what earlier stages let through, and calibrator and re-ranker from whole lists, labelled with `valid` or
        with the `late` events after those. Retrievers that count are then counted again with what was set aside; those
        that learn stay as the later stages know them (one more epoch shifts their scores, and the ranker with them).

        Args:
            train: the log; `valid`, where given, serves calibrator and re-ranker in place of the set-aside events.
            negatives: candidates beside each positive in a ranker's training list.
            options: {stage: options of rs.Trainer}, e.g. ``{"ranker": {"epochs": 2}}``.
            status: called with a line before each step, gives a context (for progress displays).
        """
        from recstack.data import splits

        options, status = options or {}, status or (lambda line: nullcontext())
        if self.encoder is None:
            self.encoder = train.schema.encoder or Encoder(train.schema).fit(train)
        train, valid = _by_row(train.with_histories()), None if valid is None else _by_row(valid)
        todo = [n for n in LEARNED if getattr(self, n) is not None and not getattr(self, n).fitted]
        calibrate = self.calibrator is not None and not self.calibrator.state
        rest, after = train, valid
        if after is None and (calibrate or "reranker" in todo):
            rest, _, after = splits.last_per_user(train, test=late, valid=0)
        early, lists = rest, None
        if "pre_ranker" in todo or "ranker" in todo:
            early, _, lists = splits.last_per_user(rest, test=late, valid=0)
        known = train if valid is None else train.concat(valid)
        everything = self.encoder.encode(known)
        before = everything if early is train and valid is None else self.encoder.encode(early)
        new = [r for r in self.retrievers if not r.fitted or r.profiles is None]
        for retriever in new:
            with status(f"Retrieval: {retriever.name}"):
                retriever.fit(before, **_retriever_options(retriever, options))
        if self.merge.get("weights") == "learned":
            held = after if lists is None else lists
            if held is None:
                raise ConfigError("Weights are learned on held-out events; give Cascade.fit(train, valid=...).")
            with status("Weights of the retrievers"):
                self.merge["weights"] = merge_weights(
                    self.retrievers,
                    self.encoder.encode(held),
                    before,
                    width=self.candidates,
                    rule=self.merge.get("rule", "rrf"),
                )
        if lists is not None:
            columns = self.encoder.encode(lists)
            some = columns.select(np.flatnonzero(columns.newer() % -(-columns.n_requests // PRE_RANKED) == 0))
            for name in todo:
                if name != "reranker":
                    with status(f"Lists for the {name.replace('_', '-')}"):
                        given = some if name == "pre_ranker" else columns
                        data = self.training_lists(given, before, name, negatives=negatives, seed=seed)
                    self._train(name, data, options.get(name, {}), seed, status)
        counted = [r for r in new if hasattr(r, "count")]
        if early is not rest:
            _count_again(counted, self.encoder.encode(rest), status)
        if calibrate or "reranker" in todo:
            assert after is not None  # set above
            with status("Lists for calibration and re-ranking"):
                data, logit, hit = self.page_lists(self.encoder.encode(after), self.encoder.encode(rest))
            if calibrate:
                self._calibrate(data, logit, hit)
            if "reranker" in todo:
                self._train("reranker", data, options.get("reranker", {}), seed, status)
        if valid is not None or rest is not train:
            _count_again(counted, everything, status)
        self.remember(known)
        return self

    def recalibrate(self, recent: Log, past: Log) -> Self:
        """Fit the calibrator again on recent events, and nothing else: no model is trained, so it takes seconds.

        Args:
            recent: what users did lately, in raw rows that no stage was trained on; a part of a split log.
            past: the part before; it counts as seen.

        Raises:
            ConfigError: there is no calibrator.
        """
        if self.calibrator is None:
            raise ConfigError("This cascade has no calibrator; build it with Cascade(..., calibrator=...).")
        self._calibrate(*self.page_lists(self.encoder.encode(recent), self.encoder.encode(past)))
        return self

    def _calibrate(self, data: CandidateLists, logit: Tensor, hit: Tensor) -> None:
        assert self.calibrator is not None
        live = data.candidates.mask
        field = {name: ids[live] for name, ids in self.field_ids(data.candidates.ids).items()}
        self.calibrator.fit(logit[live], hit[live], **field)

    def field_ids(self, ids: Tensor) -> dict[str, Tensor]:
        """What a calibrator by field asks of items: ``{"field": [...]}``, the column's ids; {} for others. Raises ConfigError."""
        name = None if self.calibrator is None else self.calibrator.field
        if name is None:
            return {}
        attributes = self.context(1).attributes
        known = [n for n, v in attributes.items() if v.dim() == 1 and not v.is_floating_point()]
        if name not in known:
            raise unknown("item column of the calibrator", name, known)
        return {"field": attributes[name][ids]}

    def remember(self, log: Log) -> None:
        """Take users' attributes, histories and seen items from a raw log, those of users not in the vocabulary too."""
        self.profiles = Profiles.build(log, self.encoder)
        for retriever in self.retrievers:
            retriever.profiles = self.profiles

    def _train(self, name: str, data: CandidateLists, options: Mapping[str, Any], seed: int, status: Callable) -> None:
        model = getattr(self, name)
        given, options = options, {"batch_size": 64, "epochs": 1, "seed": seed, "progress": False, **options}
        with status(f"Training the {name.replace('_', '-')} on {data.n_rows:,} candidates of {len(data):,} requests"):
            from recstack.training import Trainer

            if not model.gradients:
                model.fit(Loader(data, BLOCK, times=True), **given)  # type: ignore[arg-type]
                return
            batch_size = options.pop("batch_size")
            loader = Loader(data, batch_size, shuffle=True, seed=seed)  # type: ignore[arg-type]
            Trainer(model, **options).fit(loader)
            model.fitted = True
            model.eval()
            if hasattr(model, "observe"):  # a regression on what it has just learned to see
                model.forget()
                for batch in Loader(data, batch_size):  # type: ignore[arg-type]
                    model.observe(batch)

    def training_lists(
        self, columns: Columns, past: Columns, stage: str, *, negatives: int, seed: int = 0
    ) -> CandidateLists:
        """One list per positive row of `columns`: its own item, then `negatives` of what earlier stages let through for it.

        In a log of impressions a third of them are what the same user was shown around then and did not click. Labels
        of the own item are the row's; all others have label 0 for binary tasks and weighted_logistic ones, and none for
        the rest.
        """
        model = getattr(self, stage)
        rng = np.random.default_rng(seed)
        rows = np.flatnonzero((columns.item_ids >= 2) & columns.positives())
        shown = None if columns.implicit else _unclicked(columns, rows, max(1, negatives // 3))
        if shown is not None:
            negatives -= shown.shape[1]
        blocks, at = [], 0
        for part in np.array_split(rows, max(1, len(rows) // BLOCK)):
            requests = self.requests_of(columns, part, past)
            found, _ = self._until(stage, requests)
            own = torch.from_numpy(columns.item_ids[part].astype(np.int64))
            # A positive that would not have come this far teaches that low scores are good: such rows are no lists.
            came = (found.mask & (found.ids == own[:, None])).any(1)
            there = np.flatnonzero(came.numpy())
            if not len(there):
                at += len(part)
                continue
            rest = None if shown is None else torch.from_numpy(shown[at : at + len(part)])[came]
            at += len(part)
            part, own, found = part[there], own[came], _rows_of(found, came)
            requests = self.requests_of(columns, part, past)
            other = found.mask & (found.ids != own[:, None])
            draw = torch.from_numpy(rng.random(found.ids.shape, dtype=np.float32)).masked_fill(~other, 2.0)
            index = draw.argsort(1)[:, :negatives]
            drawn = found.ids.gather(1, index).masked_fill(~other.gather(1, index), 0)
            ids = torch.cat([own[:, None], drawn], 1)
            if rest is not None:
                ids = torch.cat([ids, rest], 1)
            known = self.known_of(ids, requests, stage)
            blocks.append((ids, known, part))
        if not blocks:
            raise DataError(
                f"No positive of the set-aside events reaches the {stage}; give the stages before more room."
            )
        ids = torch.cat([b[0] for b in blocks])
        part = np.concatenate([b[2] for b in blocks])
        known = {n: torch.cat([b[1][n] for b in blocks]) for n in blocks[0][1]}
        for name, value in known.items():
            self.scales.setdefault(name, _scale(value[ids > 0]))
        known = self.scaled(known)
        labels = {}
        for task in model.schema.tasks:
            if task.derived:
                continue
            label = torch.full(ids.shape, task.unseen)
            own_label = columns.labels.get(task.column)
            label[:, 0] = 1.0 if own_label is None else torch.from_numpy(own_label[part])
            labels[task.column] = label
        return CandidateLists(columns, part, Candidates(ids, torch.zeros(ids.shape)), labels, known, model.schema)

    def page_lists(self, columns: Columns, past: Columns) -> tuple[CandidateLists, Tensor, Tensor]:
        """Each user's ranked list before their first row of `columns`, labelled with what they did next.

        Returns the lists in the ranker's order, the ranker's logits ``[n, L]``, and which items were met next ``[n, L]``.
        """
        rows, truth = next_events(columns)
        if len(rows) > PAGES:
            chosen = np.linspace(0, len(rows) - 1, PAGES).astype(np.int64)
            rows, truth = rows[chosen], truth.select(chosen)
        model = self.reranker or self.ranker
        assert model is not None
        parts = []
        for start in range(0, len(rows), BLOCK):
            found, known = self._until("reranker", self.requests_of(columns, rows[start : start + BLOCK], past))
            logit = found.source.get(
                "ranker", found.scores
            ).nan_to_num()  # its scores are those of a fusion or of exploration, if there is one
            ids, scores, mask = (_wide(x, self.keep_ranked) for x in (found.ids, logit, found.mask))
            wide = Candidates(ids, scores, mask)
            parts.append((wide, {n: _wide(v, self.keep_ranked) for n, v in known.items()}, truth.hits(wide.ids, start)))
        ids, scores, mask = (torch.cat([getattr(p[0], n) for p in parts]) for n in ("ids", "scores", "mask"))
        found = Candidates(ids, scores, mask)
        known = {n: torch.cat([p[1][n] for p in parts]) for n in parts[0][1]}
        hit = torch.cat([p[2] for p in parts])
        for name, value in known.items():
            if name.startswith("score_"):
                self.scales.setdefault(name, _scale(value[found.mask]))
        # What a page is judged by is known of every item; other tasks only of what was shown.
        judged = self.task or next(t.name for t in model.schema.tasks if t.kind == "binary" and not t.derived)
        labels = {
            t.column: hit.float() if t.name == judged else torch.full(hit.shape, torch.nan)
            for t in model.schema.tasks
            if not t.derived
        }
        return CandidateLists(columns, rows, found, labels, self.scaled(known), model.schema), found.scores, hit

    def requests_of(self, columns: Columns, rows: np.ndarray, past: Columns) -> Requests:
        """The requests at these rows of `columns`; what `past` holds of each user counts as seen."""
        return Requests.of(columns, rows, seen=past)

    # -- running ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def known_of(self, ids: Tensor, requests: Requests, stage: str) -> dict[str, Tensor]:
        """What retrievers, and the pre-ranker for a ranker, say of given items; unscaled."""
        known = {f"score_{r.name}": r.pair_scores(requests, ids) for r in self._asked()}
        wanted = {f.name for f in getattr(self, stage).schema.by_role("pair")}
        if stage == "ranker" and self.pre_ranker is not None and "score_pre_ranker" in wanted:
            found = Candidates(ids, torch.zeros(ids.shape))
            model = self.pre_ranker
            batch = stage_batch(model.schema, requests.batch, found, self.encoder.catalog, self.scaled(known))
            known["score_pre_ranker"] = self.logits(model, batch, "pre_ranker")[0]
        return known

    def _asked(self) -> list[Any]:
        """The retrievers whose score some later model reads."""
        models = [m for m in (self.pre_ranker, self.ranker, self.reranker) if m is not None]
        wanted = {f.name for m in models for f in m.schema.by_role("pair")}
        return [r for r in self.retrievers if f"score_{r.name}" in wanted]

    def scaled(self, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of earlier stages as later models read them: logarithmic, of mean 0 and deviation 1 in training."""
        out = {}
        for name, value in known.items():
            if name in self.scales:
                unit, mean, deviation = self.scales[name]
                value = ((value.sign() * (value.abs() / unit).log1p()) - mean) / deviation
            out[name] = value
        return out

    def retrieve(self, requests: Requests, trace: Trace | None = None) -> Candidates:
        """What the retrievers propose, merged."""
        if self.merge.get("weights") == "learned":
            raise ConfigError(
                "The weights of the retrievers are not learned yet; call Cascade.fit, or give the weights."
            )
        parts = []
        for retriever in self.retrievers:
            with _timed(trace, retriever.name):
                parts.append(retriever.recommend(requests, self.candidates))
            if trace is not None:
                trace["stages"].append((retriever.name, parts[-1]))
        with _timed(trace, "merge"):
            found = Candidates.merge(parts, **self.merge) if len(parts) > 1 else parts[0]
        if trace is not None:
            trace["stages"].append(("merged", found))
        return found

    @torch.no_grad()
    def _until(
        self, stage: str, requests: Requests, trace: Trace | None = None, found: Candidates | None = None
    ) -> tuple[Candidates, dict[str, Tensor]]:
        """What of `found`, or of what is retrieved, reaches `stage` (best first), and what earlier stages know of it, unscaled."""
        found = self.retrieve(requests, trace) if found is None else found
        with _timed(trace, "features"):
            known = {f"score_{r.name}": r.pair_scores(requests, found.ids) for r in self._asked()}
        for name, keep in (("pre_ranker", self.keep_pre_ranked), ("ranker", self.keep_ranked)):
            model: Any = getattr(self, name)
            if stage == name:
                break
            if model is None:
                continue
            with _timed(trace, name):
                batch = stage_batch(model.schema, requests.batch, found, self.encoder.catalog, self.scaled(known))
                scores, hidden = self.scores(model, batch, name)
                known[f"score_{name}"] = scores[name]
                if hidden is not None:
                    known["hidden_ranker"] = hidden
                for scored, score in scores.items():
                    found = found.rescore(score, scored)
                order = found.order()[:, :keep]
                found = found.select(order)
                known = {
                    n: v.take_along_dim(order.view(*order.shape, *[1] * (v.dim() - 2)), 1) for n, v in known.items()
                }
            if trace is not None:
                trace["stages"].append((name, found))
        return found, known

    def stage_scores(self, requests: Requests, merged: Candidates) -> Candidates:
        """All merged candidates in the ranker's order, none cut off; `source` holds what pre-ranker and ranker say of each."""
        wide = copy(self)
        wide.keep_pre_ranked = wide.keep_ranked = merged.width
        return wide._until("reranker", requests, found=merged)[0]

    def logits(self, model: Model, batch: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor | None]:
        """The ranking task's score ``[R, L]`` (of a binary task the logit) of stage `name`, and what the re-ranker may read.

        That is the ranker's hidden layer, if the re-ranker reads it.
        """
        scores, hidden = self.scores(model, batch, name)
        return scores[name], hidden

    def scores(self, model: Model, batch: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], Tensor | None]:
        """As `logits`, ``{name: score}``; with what orders in its place, if anything: "fusion", "explored", "final"."""
        wants = name == "ranker" and self.reranker is not None
        wants = wants and any(f.name == "hidden_ranker" for f in self.reranker.schema.by_role("pair"))  # type: ignore[union-attr]
        task = model.schema.task(self.task) if self.task else model.schema.tasks[0]
        hidden = model.hidden(batch) if wants else None  # type: ignore[operator]
        logits = model.heads(hidden) if wants else model(batch)  # type: ignore[operator]
        scores, fusion = {name: tasks.score(logits[task.name], task)}, self.fusion
        if fusion is not None and name == "ranker":
            scores["fusion"] = fusion(tasks.predictions(logits, model.schema))
        if self.final is not None and name == "reranker":
            scores["final"] = self.final(tasks.predictions(logits, model.schema))
        if self.explore is not None and name == "ranker":
            scores["explored"] = getattr(model, self.explore)(batch)[task.name]
        return scores, hidden

    @torch.no_grad()
    def pages(self, requests: Requests, k: int = 10, trace: Trace | None = None) -> Candidates:
        """The page of each request: Candidates ``[R, k]`` whose `source` holds every stage's score."""
        found, known = self._until("reranker", requests, trace)
        if self.calibrator is not None:
            with _timed(trace, "calibrator"):
                chance = self.calibrator.probability(found.source["ranker"], **self.field_ids(found.ids))
                found = Candidates(found.ids, found.scores, found.mask, {**found.source, "probability": chance})
        if self.reranker is not None:
            with _timed(trace, "reranker"):
                model = self.reranker
                batch = stage_batch(model.schema, requests.batch, found, self.encoder.catalog, self.scaled(known))
                for scored, score in self.scores(model, batch, "reranker")[0].items():
                    found = found.rescore(score, scored)
                found = found.top()
            if trace is not None:
                trace["stages"].append(("reranker", found))
        context = self.context(k, requests)
        for rule in self.rules:
            name = type(rule).__name__
            with _timed(trace, name):
                before, found = found, rule(found, context)
            if trace is not None:
                trace.setdefault("rules", {})[len(trace["stages"])] = Step(
                    rule, moved(before, found), cost(before, found, k)
                )
                trace["stages"].append((name, found))
        page = found.select(torch.arange(min(k, found.width)).expand(len(found), -1))
        if trace is not None:
            trace["stages"].append(("page", page))
        return page

    def context(self, k: int, requests: Requests | None = None) -> PageContext:
        """What rules may know: item columns by id, item vectors, and the items that the requests' users have met.

        The vectors are those of the first retriever that has some, else the item embeddings of the first ranking stage.
        """
        catalog = self.encoder.catalog
        if self._attributes is None:
            columns = catalog.batch(np.arange(catalog.size)).items()
            self._attributes = {
                n: v for n, v in columns if v.dim() == 1 or (v.dim() == 2 and not v.is_floating_point())
            }
        learned = next((r for r in self.retrievers if hasattr(r, "catalog_vectors")), None)
        vectors = self._embeddings() if learned is None else learned.catalog_vectors()
        history = None
        if requests is not None and self.rules:
            offsets, items = requests.seen
            history = torch.from_numpy(pad(items, offsets)).long()
        return PageContext(k, vectors, self._attributes, history)

    def _embeddings(self) -> Tensor | None:
        """``[N, D]`` by item id, of the first of ranker, pre-ranker and re-ranker that embeds the item key."""
        key = self.encoder.schema.feature(self.encoder.schema.item).table_name
        for model in (self.ranker, self.pre_ranker, self.reranker):
            tables = getattr(getattr(model, "inputs", None), "tables", None)
            if tables is not None and key in tables.home:
                return tables.by_id(key).detach()
        return None

    def requests(self, users: Any, time: int | None = None) -> Requests:
        """Raw user ids as requests of this moment; of `time`, in the unit of the log's, histories are those before it."""
        if self.profiles is None:
            raise DataError("This cascade knows no users yet; call cascade.fit(train).")
        return self.profiles.requests(users, time=time)

    def recommend(self, users: Any, k: int = 10, *, time: int | None = None) -> list[Any]:
        """The page of a user (raw id): ``[{"item", "score", "probability", "sources"}, ...]``; of several, a list of pages.

        `time` is the moment, in the unit of the log's times; models that look back in time need it.
        """
        several = isinstance(users, list | tuple | np.ndarray)
        page = self.pages(self.requests(list(users) if several else [users], time), k)
        rows = self.rows(page)
        return rows if several else rows[0]

    def rows(self, found: Candidates) -> list[list[dict[str, Any]]]:
        """Candidates as plain rows, raw item ids and each stage's score."""
        key = self.encoder.schema.item
        raw = self.encoder.decode(key, found.ids.reshape(-1).numpy())
        values = {n: v.tolist() for n, v in found.source.items()}
        out = []
        for r, (live, scores) in enumerate(zip(found.mask.tolist(), found.scores.tolist(), strict=True)):
            page = []
            for c, there in enumerate(live):
                if not there:
                    continue
                item = raw[r * found.width + c]
                sources = {n: v[r][c] for n, v in values.items() if v[r][c] == v[r][c]}
                row = {"item": item.item() if isinstance(item, np.generic) else item, "score": scores[c]}
                if "probability" in sources:
                    row["probability"] = sources.pop("probability")
                page.append({**row, "sources": sources})
            out.append(page)
        return out

    def explain(self, user: Any, k: int = 10, *, time: int | None = None) -> dict[str, Any]:
        """What every stage saw, scored and dropped for one user, and how long it took; `time` as in `recommend`.

        Returns ``{"user", "page": [...], "stages": [{"name", "seconds", "kept", "dropped", "items": [...]}]}``; stages that
        are rules also have "moved", the place before of each item, and "cost", the relevance they gave up (`rs.rules.cost`).
        """
        trace: Trace = {"stages": [], "seconds": {}}
        page = self.pages(self.requests([user], time), k, trace)
        stages, before = [], None
        for place, (name, found) in enumerate(trace["stages"]):
            rows = self.rows(found)[0]
            here = {row["item"] for row in rows}
            parallel = name in self.names
            dropped = 0 if before is None or parallel or name == "merged" else len(before - here)
            seconds = trace["seconds"].get("merge" if name == "merged" else name, 0.0)
            orders = {"ranker": ("fusion", "explored", name), "reranker": ("final", name)}.get(name, (name,))
            items = [
                {
                    "item": row["item"],
                    "score": next((row["sources"][n] for n in orders if n in row["sources"]), row["score"]),
                }
                for row in rows
            ]
            stages.append({"name": name, "seconds": seconds, "kept": len(rows), "dropped": dropped, "items": items})
            if place in trace.get("rules", {}):
                step: Step = trace["rules"][place]
                stages[-1] |= {"moved": step.moved[0, : len(rows)].tolist(), "cost": float(step.cost[0])}
            if not parallel:
                before = here
        return {"user": user, "page": self.rows(page)[0], "stages": stages}

    def evaluate(self, test: Log | Columns, past: Log | Columns | None = None, **options: Any) -> Any:
        """The funnel on held-out events: see `recstack.cascade.evaluation.evaluate`."""
        from recstack.cascade.evaluation import evaluate

        return evaluate(self, test, past, **options)

    # -- files --------------------------------------------------------------------------------------------------------
    def save(self, path: str | Path, files: Mapping[str, str] | None = None) -> Path:
        """One bundle with every stage, the encoder, users' state, calibration and rules, written atomically.

        `files` are texts kept beside: "metrics.json" (`Report.to_dict()`) and "items.json" (``{item: {"title": ...}}``) are
        shown by the service's page.
        """
        if self.profiles is None:
            raise ConfigError("This cascade was not fitted; call fit(train) before save.")
        pieces = {"encoder": self.encoder.to_piece(), "profiles": self.profiles.to_piece()}
        for i, retriever in enumerate(self.retrievers):
            pieces |= retriever.pieces(f"retriever{i}_")
        for name in LEARNED:
            if getattr(self, name) is not None:
                pieces |= getattr(self, name).pieces(f"{name}_")
        if self.calibrator is not None:
            pieces["calibrator"] = self.calibrator.to_piece()
        for i, rule in enumerate(self.rules):
            pieces[f"rule{i}"] = rule.to_piece()
        config = {
            "retrievers": self.names,
            "rules": len(self.rules),
            "candidates": self.candidates,
            "keep_pre_ranked": self.keep_pre_ranked,
            "keep_ranked": self.keep_ranked,
            "task": self.task,
            "fusion": None if self.fusion is None else str(self.fusion),
            "explore": self.explore,
            "final": None if self.final is None else str(self.final),
            "merge": self.merge,
            "scales": {n: list(s) for n, s in self.scales.items()},
        }
        pieces["cascade"] = bundle.Piece(bundle.class_path(type(self)), config)
        return bundle.write(path, pieces, {"kind": "cascade"}, files)

    @classmethod
    def from_bundle(cls, saved: bundle.Bundle, trust: Sequence[str] = ()) -> Self:
        """The cascade that `save` wrote; `rs.load(path)` calls it."""
        config = saved.piece("cascade").config

        def part(name: str) -> Any:
            piece = saved.piece(name)
            return bundle.resolve(piece.class_path, trust).from_piece(piece)

        encoder = part("encoder")
        retrievers = []
        for i, name in enumerate(config["retrievers"]):
            retriever = load_model(saved, f"retriever{i}_", trust, encoder)
            retriever.name = name
            retrievers.append(retriever)
        models = {
            n: load_model(saved, f"{n}_", trust, encoder) if f"{n}_model" in saved.pieces else None for n in LEARNED
        }
        new = cls(
            retrievers,
            **models,
            calibrator=part("calibrator") if "calibrator" in saved.pieces else None,
            rules=[part(f"rule{i}") for i in range(config["rules"])],
            candidates=config["candidates"],
            keep_pre_ranked=config["keep_pre_ranked"],
            keep_ranked=config["keep_ranked"],
            task=config["task"],
            fusion=config.get("fusion"),
            explore=config.get("explore"),
            final=config.get("final"),
            merge=config.get("merge"),
        )
        new.encoder = encoder
        new.scales = {n: (s[0], s[1], s[2]) for n, s in config["scales"].items()}
        piece = saved.piece("profiles")
        new.profiles = bundle.resolve(piece.class_path, trust).from_piece(piece, encoder)
        for retriever in retrievers:
            retriever.profiles = new.profiles
        return new


def _of_tasks(expression: str | Fusion | None, model: Model | None) -> Fusion | None:
    """A fusion of those tasks of a model that predict one number."""
    if expression is None or model is None:
        return None
    return Fusion(str(expression), tasks=[t.name for t in model.schema.tasks if t.kind != "multiclass"])


def _count_again(retrievers: Sequence[Any], columns: Columns, status: Callable) -> None:
    for retriever in retrievers:
        with status(f"Retrieval: {retriever.name}, with what was set aside"):
            retriever.fit(columns)


def _retriever_options(retriever: Any, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    given = options.get(retriever.name, {})
    return {"progress": False, **given} if isinstance(retriever, Model) else {}


def _by_row(log: Log) -> Log:
    """The log with each row a request of its own: stages learn from lists that the cascade makes."""
    if log.request is None:
        return log
    log = copy(log)
    log.request = None
    return log


def _unclicked(columns: Columns, rows: np.ndarray, n: int) -> np.ndarray:
    """int64 ``[len(rows), n]``: items that the user of each row was shown next to it in time without a click; 0 fills up."""
    users, good = columns.user_ids, columns.positives()
    order = np.lexsort((columns.times if columns.times is not None else np.arange(len(users)), users))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    steps = np.array([s for d in range(1, 2 * n + 1) for s in (d, -d)])
    near = place[rows][:, None] + steps
    there = (near >= 0) & (near < len(order))
    other = order[near.clip(0, len(order) - 1)]
    item = columns.item_ids[other].astype(np.int64)
    own = columns.item_ids[rows][:, None]
    fits = there & (users[other] == users[rows][:, None]) & ~good[other] & (item >= 2) & (item != own)
    first = np.argsort(~fits, axis=1, kind="stable")[:, :n]  # the nearest that fit
    return np.take_along_axis(np.where(fits, item, 0), first, 1)


def _rows_of(found: Candidates, kept: Tensor) -> Candidates:
    return Candidates(found.ids[kept], found.scores[kept], found.mask[kept])


def _wide(value: Tensor, width: int) -> Tensor:
    """``[n, L, ...]`` as ``[n, width, ...]``: blocks of requests may differ in how many candidates they have."""
    value = value[:, :width]
    missing = width - value.shape[1]
    return torch.cat([value, value.new_zeros(len(value), missing, *value.shape[2:])], 1) if missing else value


def _scale(value: Tensor) -> tuple[float, float, float]:
    unit = float(value.abs().mean().clamp(min=1e-12))
    logged = value.sign() * (value.abs() / unit).log1p()
    return unit, float(logged.mean()), float(logged.std().clamp(min=1e-6))


class _timed:
    """Adds the seconds of its block to a trace, where there is one."""

    def __init__(self, trace: Trace | None, name: str):
        self.trace, self.name = trace, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        if self.trace is not None:
            seconds = self.trace["seconds"]
            seconds[self.name] = seconds.get(self.name, 0.0) + time.perf_counter() - self.start
