"""How near a row is to where no task could gain without another's loss."""

from __future__ import annotations

import torch
from torch import Tensor


def pareto_reward(weights: Tensor, error: Tensor, h: Tensor, live: Tensor) -> Tensor:
    r""":math:`-\| \sum_k w_k e_k h_k \|^2` of each row ``[R, L]``, w summing to 1 over its live tasks.

    It is 0 where the tasks' gradients, weighted, cancel out: no task could gain there without another's loss. Of a task whose
    prediction is :math:`o = W h` the gradient by W is the error e, prediction less label, times h.

    Args:
        weights, error: ``[R, L, K]``.
        h: ``[R, L, K, H]``.
        live: which tasks a row asks, ``[R, L, K]``; weights are divided among these.

    Xie et al., WWW 2021, https://doi.org/10.1145/3442381.3450039

    >>> both = torch.ones(1, 1, 2, dtype=torch.bool)
    >>> pareto_reward(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.4, -0.4]]]), torch.ones(1, 1, 2, 3), both)
    tensor([[-0.]])
    """
    share = torch.where(live, weights, 0)
    # Or weight on what a row does not ask would be no weight.
    share = share / share.sum(-1, keepdim=True).clamp(min=1e-12)
    gradient = torch.where(live.unsqueeze(-1), (share * error).unsqueeze(-1) * h, 0).sum(-2)
    return -gradient.square().sum(-1)
