"""An MLP that each request changes for itself, by gradient steps on examples of its own (MAML's inner loop)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.nn.mlp import linear


class LocalMLP(nn.Module):
    r"""Layers to one logit, ReLU between them, and the weights of each request after its own gradient steps.

    .. math:: \theta_r \leftarrow \theta_r - \frac{\eta}{n_r} \nabla_{\theta_r} \sum_t
        \mathrm{BCE}\big(f_{\theta_r}(x_{rt}), y_{rt}\big), \qquad \text{from } \theta_r = \theta

    (Finn et al., ICML 2017, https://arxiv.org/abs/1703.03400.) The steps of all requests are a few batched products: their
    gradient is written out, so that they need no autograd at serving. In float32.

    Args:
        width: of what goes in.
        hidden: widths of the layers between.
        steps: how many.
        lr: η.
        second_order: whether the gradient with respect to θ passes through the steps; else they count as constants.
    """

    def __init__(
        self, width: int, hidden: Sequence[int], *, steps: int = 1, lr: float = 0.1, second_order: bool = True
    ):
        super().__init__()
        widths = (width, *hidden, 1)
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(widths))
        self.steps, self.lr, self.second_order = steps, lr, second_order
        self.sizes = [n for a, b in pairwise(widths) for n in (a * b, b)]

    def forward(self, weights: Tensor, x: Tensor) -> Tensor:
        """``weights [R, size], x [R, L, W] → [R, L]``."""
        with torch.autocast(x.device.type, enabled=False):
            return self._through(self._split(weights.float()), x.float())[-1].squeeze(-1)

    def adapt(self, x: Tensor, label: Tensor, mask: Tensor) -> Tensor:
        """All weights of each request ``[R, size]``, after its steps on ``x [R, T, W], label [R, T]`` where `mask` is."""
        with torch.autocast(x.device.type, enabled=False):
            x, label = x.float(), label.float().unsqueeze(-1)
            share = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)
            weights = [(w.weight.expand(x.shape[0], -1, -1), w.bias.expand(x.shape[0], -1)) for w in self.layers]  # type: ignore[union-attr, operator]
            for _ in range(self.steps):
                weights = self._step(weights, x, label, share)
            return torch.cat([part.flatten(1) for pair in weights for part in pair], 1)

    def _step(self, weights: list[tuple[Tensor, Tensor]], x: Tensor, label: Tensor, share: Tensor) -> list:
        states = self._through(weights, x)
        slope = (states[-1].sigmoid() - label) * share  # of the loss, by what each layer gives
        after = []
        for (w, b), state in zip(reversed(weights), reversed(states[:-1]), strict=True):
            of_w, of_b = slope.transpose(1, 2) @ state, slope.sum(1)
            if not self.second_order:
                of_w, of_b = of_w.detach(), of_b.detach()
            after.append((w - self.lr * of_w, b - self.lr * of_b))
            slope = (slope @ w) * (state > 0)
        return after[::-1]

    @staticmethod
    def _through(weights: list[tuple[Tensor, Tensor]], x: Tensor) -> list[Tensor]:
        """What goes into each layer, and what comes out of the last."""
        states = [x]
        for i, (w, b) in enumerate(weights, 1):
            y = torch.baddbmm(b.unsqueeze(1), states[-1], w.transpose(1, 2))
            states.append(y.relu() if i < len(weights) else y)
        return states

    def _split(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        parts = weights.split(self.sizes, 1)
        return [(w.unflatten(1, (b.shape[1], -1)), b) for w, b in zip(parts[::2], parts[1::2], strict=True)]
