"""Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations (Yi et al., RecSys 2019).

https://research.google/pubs/pub48840
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from recstack import losses
from recstack.errors import ConfigError
from recstack.models.base import Retriever
from recstack.models.in_batch import shown
from recstack.models.scored import chosen_only
from recstack.models.two_towers import Towers, task_of
from recstack.nn.frequency import StreamingFrequency
from recstack.nn.sequence import Pooling
from recstack.schema import Schema


class YouTubeSBC(Retriever):
    r"""Two towers whose negatives are the items of the other rows, corrected for how often each item is in a batch.

    .. math:: s_{ij} = \frac{\langle u_i, v_j \rangle}{\tau} - \log \hat p_j, \qquad
        L = -\frac{1}{\sum_i r_i} \sum_i r_i \log \frac{e^{s_{ii}}}{\sum_{j \in \text{batch}} e^{s_{ij}}}

    ``u, v: [R, D], [N, D]`` of length 1. The reward r is the label: 1 of an item that was chosen or, where the task is a
    regression (how much of it was watched), that. :math:`\hat p` is estimated from the stream of batches by
    `StreamingFrequency`, in training only; the correction is no part of the score that is served. An accidental hit (the
    same item in another row) is no negative. Histories read the item tower's tables.

    A row without a positive label costs nothing: `fit` leaves it out, unless the log has lists.

    Departs from the paper: accidental hits; the weighted mean in place of the sum over the batch's size; the first gaps
    of the estimate, see there.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of both towers; the last is D.
        temperature: τ.
        history: pooling of histories, by name or class; not one that looks at the target.
        dropout: in the towers.
        task: whose label is the reward; None is the schema's first.
        buckets: of each hash function of the estimate.
        hashes: hash functions.
        rate: α of the estimate: how fast it follows a change.

    Yi et al., RecSys 2019, https://research.google/pubs/pub48840

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.YouTubeSBC(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")
    trainer: ClassVar[dict[str, Any]] = {"negatives": 0}  # those of a batch are its negatives

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (256, 128, 64),
        temperature: float = 0.05,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
        task: str | None = None,
        buckets: int = 1 << 16,
        hashes: int = 2,
        rate: float = 0.01,
    ):
        super().__init__(schema)
        if min(buckets, hashes) < 1 or not 0 < rate <= 1 or temperature <= 0:
            raise ConfigError(
                "buckets and hashes are at least 1, rate lies above 0 and up to 1, temperature above 0; "
                f"got {buckets}, {hashes}, {rate} and {temperature}."
            )
        self.task, self.temperature = task_of(schema, task), temperature
        self.towers = Towers(schema, dim, hidden, history=history, dropout=dropout)
        self.frequency = StreamingFrequency(buckets, hashes, rate)

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.towers.user(batch).unsqueeze(1) / self.temperature

    def item_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.towers.item(batch)

    def training_columns(self, train: Any) -> Any:
        return chosen_only(train, self.task)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = shown(batch, self.schema, self.task)
        row, place = (found.live & (found.label > 0)).nonzero(as_tuple=True)
        ids, reward = found.ids[row, place], found.label[row, place]
        if found.weight is not None:
            reward = reward * found.weight[row, place]
        if self.training:
            self.frequency.update(ids)
        items = self.towers.item(batch).view(*found.ids.shape, -1)
        users = self.user_vectors(batch)[row]
        log_q = self.frequency(ids)
        return {"softmax": losses.in_batch_softmax(users, items[row, place], ids, log_q=log_q, weight=reward)}
