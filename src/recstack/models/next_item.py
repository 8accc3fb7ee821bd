"""What retrievers that read a history share: each of its steps is trained to predict the next, in one pass over all of them.

Memory is that of the sequences, whatever the number of their prefixes, and no loss is computed where a sequence is padded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recstack import losses
from recstack.errors import unknown
from recstack.features import Inputs
from recstack.features.columns import column, padded, rows_of
from recstack.features.tables import Ask
from recstack.features.tasks import target
from recstack.models.base import Retriever
from recstack.nn.sequence.lengths import of_like_length
from recstack.schema import History, Schema

LOSSES = ("softmax", "sampled_softmax", "bpr_max", "bce", "gbce")
SHARING = 128  # steps that share the items drawn for them
CALIBRATION = 0.75  # t of gBCE
LOGITS = {"cpu": 1 << 21, "cuda": 1 << 27}  # of a full softmax, held at a time


class NextItem(Retriever):
    """A retriever whose state after each step of a history is trained to find the next step.

    A subclass gives `states`. `fit` picks the requests that cover each event once, as a step or as the target.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        loss: "softmax" over the whole catalogue, or one of drawn items: "sampled_softmax" (with logQ correction),
            "bpr_max", "bce" and "gbce", these two of scores beside `balance`. SHARING neighbouring steps share what is
            drawn.
        negatives: items drawn for a step.
        alpha: they are drawn by (times they were met in training) ** alpha; 0 is uniformly.
        out: width of an output table, where items that are looked for are not the items that were met; None shares one.
        features: item features that are read of each step; None is the item's id alone.
        std: deviation of the initial embeddings.
    """

    needs: ClassVar[tuple[str, ...]] = ("history", "item")
    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "batch_size": 128, "negatives": 0}

    log_share: Tensor  # of each item from id 2 on: how likely it is to be drawn

    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        loss: str = "softmax",
        negatives: int = 256,
        alpha: float = 0.0,
        out: int | None = None,
        features: tuple[str, ...] | None = None,
        std: float = 0.02,
    ):
        super().__init__(schema)
        if loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        self.history, self.loss, self.negatives, self.alpha = schema.histories[0], loss, negatives, alpha
        item = schema.feature(schema.item)  # type: ignore[arg-type]  # a History cannot be declared without
        read = (item.name,) if features is None else features
        steps = type(self.history)(self.history.name, of=read, max_len=self.history.max_len)
        own = Schema([*(schema.feature(name) for name in read), steps], item=item.name)
        self.inputs = Inputs(own, dim, history=None, uniform=True, std=std)
        self.outputs = None if out is None else Inputs(Schema([item], item=item.name), out, uniform=True, std=std)
        size = item.size - 2  # type: ignore[attr-defined]
        self.register_buffer("log_share", torch.full((size,), -float(np.log(max(size, 1)))), persistent=False)

    # -- what a model says ---------------------------------------------------------------------------------------------
    def states(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The state after each step ``[R, T, D]``, or several of them ``[R, T, K, D]``, and which steps are live ``[R, T]``."""
        raise NotImplementedError

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        x, mask = self.states(batch)
        last = (mask.sum(-1) - 1).clamp(min=0)
        return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[-1])) * mask.any(-1)[:, None, None]

    def item_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        item = self.schema.feature(self.schema.item)  # type: ignore[arg-type]
        ask = Ask(item.table_name, column(batch, item.name), column=item.name)  # type: ignore[attr-defined]
        return self.compared(self.looked_for.tables.gather([ask])[0])

    def compared(self, vectors: Tensor) -> Tensor:
        """Vectors of items ``[..., D]`` as states are compared with them: as they are."""
        return vectors

    @property
    def looked_for(self) -> Inputs:
        """Where the items that are looked for lie."""
        return self.inputs if self.outputs is None else self.outputs

    def times(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """When the steps of the history were ``[R, T]``; None where the batch does not say (see `History.timed`)."""
        times, offsets = (batch.get(key) for key in (f"@time@{self.history.name}", f"{self.history.name}@offsets"))
        return times if times is None or offsets is None else padded(times, offsets)

    # -- training ------------------------------------------------------------------------------------------------------
    def training_columns(self, train: Any) -> Any:
        return covering(train, self.history)

    def prepare(self, train: Any) -> None:
        """How often each item was met, for what is drawn by popularity."""
        size = self.log_share.shape[0] + 2
        met = np.bincount(train.item_ids[train.positives()], minlength=size)[2:]
        weight = torch.from_numpy(np.maximum(met, 1) ** self.alpha).to(self.log_share)
        self.log_share = (weight / weight.sum()).log()

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next item at every step. The target of the last step is the first candidate, if its label is positive."""
        return {"next": self.item_loss(*self.learned(batch))}

    def learned(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The states of the steps that something follows ``[n, D]`` or ``[n, K, D]``, and the ids of what does ``[n]``."""
        states, mask = self.states(batch)
        ids = self.inputs.history_ids(batch, self.history.name)
        following = torch.cat([ids[:, 1:], ids.new_zeros(ids.shape[0], 1)], 1)
        last = (mask.sum(-1, keepdim=True) - 1).clamp(min=0)
        following = following.scatter(1, last, self.sought(batch).unsqueeze(-1).to(following.dtype))
        where = mask & (following > 1)  # neither padding nor out-of-vocabulary can be learned as a target
        return states[where], following[where]

    def sought(self, batch: Mapping[str, Tensor]) -> Tensor:
        return sought(batch, self.schema)

    def item_loss(self, state: Tensor, ids: Tensor) -> Tensor:
        """The loss of states ``[n, D]``, or the best of each state's interests ``[n, K, D]``, that look for items ``[n]``."""
        name = self.schema.feature(self.schema.item).table_name  # type: ignore[arg-type, attr-defined]
        table = self.compared(self.looked_for.tables.weight(name)[1:])  # id 2 first
        wanted = ids.long() - 2
        if state.dim() == 3:  # a hard choice: attention by the label, to the power of infinity
            best = (state @ table[wanted].unsqueeze(-1).to(state.dtype)).argmax(-2, keepdim=True)
            state = state.take_along_dim(best, -2).squeeze(-2)
        if self.loss == "softmax":
            chunk = max(LOGITS.get(state.device.type, 1 << 21) // max(len(table), 1), 16)
            return losses.full_softmax(state, table, wanted, chunk=chunk)
        groups = max(-(-len(wanted) // SHARING), 1)
        log_q = self.log_share.to(state.device)
        if self.alpha:
            drawn = torch.multinomial(log_q.exp(), groups * self.negatives, replacement=True)
        else:
            drawn = torch.randint(len(table), (groups * self.negatives,), device=state.device)
        drawn = drawn.view(groups, self.negatives)
        score, where = losses.drawn_scores(
            state, table, wanted, drawn, log_q if self.loss == "sampled_softmax" else None
        )
        if self.loss in ("bce", "gbce"):
            score = score + balance(self.negatives, len(table), CALIBRATION if self.loss == "gbce" else 0.0)
        label = torch.zeros_like(score)
        label[:, 0] = 1
        loss = {
            "sampled_softmax": losses.sampled_softmax,
            "bpr_max": losses.bpr_max,
            "bce": losses.bce,
            "gbce": partial(losses.gbce, n_items=len(table), t=CALIBRATION),
        }[self.loss]
        return loss(score, label, where=where)


def balance(negatives: int, items: int, t: float) -> float:
    r"""The log-odds at which k negatives pull as hard as their positive in gBCE: :math:`\log(\beta / k)`; t = 0 is BCE.

    What a score of 0 stands for where items are judged one by one; no ranking sees it. Without it the embeddings have to
    say that nearly everything is a negative, all in one direction, which drowns what tells them apart: gSASRec stood where
    popularity stands for its first 1,600 steps of MovieLens-1M.
    """
    return math.log((1 - t * (1 - negatives / max(items - 1, negatives))) / negatives)


def covering(train: Any, history: History) -> Any:
    """Of each user the newest request, and one for every `max_len` steps before it: each step is a target once.

    Where a history holds clicks only, what was shown between them costs nothing.
    """
    users, newer, at = train.user_ids, train.newer(), train.history_pointers(history.name)
    if at.times is None:  # lists that came with the rows, not pointers into one timeline
        back = newer
    else:
        newest = np.zeros(int(users.max(initial=0)) + 1, np.int64)
        np.maximum.at(newest, users, at.end)
        back = newest[users] - at.end
    window = back // history.max_len
    order = np.lexsort((newer, back, window, users))
    first = np.diff(users[order], prepend=-1).astype(bool) | np.diff(window[order], prepend=-1).astype(bool)
    return positives_only(train.select(np.sort(order[first])))


def sought(batch: Mapping[str, Tensor], schema: Schema) -> Tensor:
    """The first candidate of each request, int ``[R]``; 0 where its label is not positive."""
    first = column(batch, schema.item)[:, 0]  # type: ignore[arg-type]
    if schema.tasks:
        label, where, _ = target(batch, schema, schema.tasks[0])
        first = torch.where((label[:, 0] > 0) & where[:, 0], first, 0)
    return first


def positives_only(chosen: Any) -> Any:
    """These columns as an implicit log's: what is learned is what came next, so labels need not differ."""
    chosen.implicit = True
    return chosen


class Profile(nn.Module):
    """Features of some roles, the user's id aside: what is known of users who were never met.

    Args:
        schema: a fitted schema; `width` is 0 where it has none of these.
        roles: of the features.
        dim: embedding width.
    """

    def __init__(self, schema: Schema, *roles: str, dim: int):
        super().__init__()
        found = [f for f in schema.by_role(*roles) if f.name != schema.user]
        self.inputs = Inputs(Schema(found), dim, std=0.02) if found else None
        self.width = 0 if self.inputs is None else self.inputs.width()

    def forward(self, batch: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """``[R, width]``, of the kind of `like` ``[R, ...]``."""
        if self.inputs is None:
            return like.new_zeros(like.shape[0], 0)
        return self.inputs(batch).flat().squeeze(1).to(like.dtype)


class ReadsPrefixes(NextItem):
    """One whose vectors are made of a set of steps and not step by step: it is asked for all prefixes at once."""

    def interests(self, batch: Mapping[str, Tensor], prefix: Tensor) -> Tensor:
        """K vectors of each prefix ``[R, P, K, D]``, of steps ``prefix [R, P, T]``; zeros where a prefix has none."""
        raise NotImplementedError

    def states(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        mask = self.inputs.history_ids(batch, self.history.name) > 0
        step = torch.arange(mask.shape[1], device=mask.device)
        return self.interests(batch, mask.unsqueeze(1) & (step <= step.unsqueeze(-1))), mask

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        mask = self.inputs.history_ids(batch, self.history.name) > 0
        return self.interests(batch, mask.unsqueeze(1)).squeeze(1)

    def learned(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As of any, histories of like length together where they are not padded: each costs the square of the longest."""
        if f"{self.history.name}@offsets" not in batch:
            return super().learned(batch)
        mask = self.inputs.history_ids(batch, self.history.name) > 0
        parts = [rows_of(batch, rows, len(mask)) for rows in of_like_length(mask)]
        states, ids = zip(*map(super().learned, parts), strict=True)
        return torch.cat(states), torch.cat(ids)
