"""What generate-and-evaluate re-rankers share: a list is worth what its evaluator expects of it, and the best is answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Inputs, tasks
from recstack.features.tasks import Logits
from recstack.models.base import Reranker
from recstack.nn.lists.orders import by_candidate, handed_out, page_value, placed
from recstack.nn.mlp import split_linear
from recstack.schema import Schema


class Generated(Reranker):
    """Orders by its first task; `evaluate` says what each item of an ordered list gets.

    Training rows are lists in the order in which they were shown, for that is what their labels depend on; the evaluator
    learns from them by each task's own loss. Orders are discrete choices: they are made in float32, whatever autocast says.

    Raises:
        ConfigError: where the first task is not binary, has several outputs, or is made of others.
    """

    inputs: Inputs
    project: nn.Linear

    def __init__(self, schema: Schema):
        super().__init__(schema)
        first = schema.tasks[0] if schema.tasks else None
        if first is None or first.kind != "binary" or first.derived or tasks.outputs(first) > 1:
            raise ConfigError(
                f"{type(self).__name__} orders by its first task, which must be binary, with one output, and no product."
            )
        self.task = first

    def evaluate(self, x: Tensor, mask: Tensor, *more: Any) -> Logits:
        """``{task: logits [..., L]}`` of items ``[..., L, width]`` in the order in which they are shown."""
        raise NotImplementedError

    def vectors(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Items ``[R, L, width]`` in float32, and which are live."""
        slots = self.inputs(batch)
        with torch.autocast(next(iter(batch.values())).device.type, enabled=False):
            x = split_linear(self.project, slots.sides())
        return x, batch.get("@mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))

    def chance(self, logits: Logits) -> Tensor:
        """The first task's probability at each place, of logits ``[..., L]`` by place."""
        return logits[self.task.name].sigmoid()

    def answer(self, logits: Logits, order: Tensor, mask: Tensor) -> Logits:
        """Logits ``[R, L]`` by candidate from those by place of the chosen `order`, mask by candidate.

        Each is what the evaluator expects in that list. The first task's are handed out along the order, the greatest to
        the first place, so that whoever sorts by them shows the list.
        """
        out = {name: by_candidate(value, order) for name, value in logits.items()}
        return {**out, self.task.name: handed_out(out[self.task.name], order, mask)}

    def arranged(self, x: Tensor, mask: Tensor, orders: Tensor) -> tuple[Tensor, Tensor]:
        """Items ``[R, L, W]`` and mask in each of K `orders` ``[R, K, L]``: ``[R, K, L, W]`` and ``[R, K, L]``."""
        many = orders.shape[1]
        return (
            placed(x.unsqueeze(1).expand(-1, many, -1, -1), orders),
            placed(mask.unsqueeze(1).expand(-1, many, -1), orders),
        )

    def best(self, x: Tensor, mask: Tensor, orders: Tensor, *more: Any) -> Logits:
        """The `answer` of the list that is worth most, of K `orders` ``[R, K, L]``; `more` is what `evaluate` reads beside."""
        x, there = self.arranged(x, mask, orders)
        logits = self.evaluate(x, there, *more)
        one = page_value(self.chance(logits), there).argmax(-1)
        row = torch.arange(one.shape[0], device=one.device)  # len() would fix it in an exported graph
        return self.answer({name: value[row, one] for name, value in logits.items()}, orders[row, one], mask)
