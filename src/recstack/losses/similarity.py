"""Losses of two towers: lists of similarities, and unit vectors whose place among each other is what is trained.

`triplet`, `cosine_contrastive` and `nce` take the usual ``[..., L]`` lists of one positive and its negatives, such as
`in_batch_scores` makes of vectors; a list has the weight of its positive. `direct_au` and `category_alignment` take vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.losses.rows import check, clean, full_precision, weighted_mean


@full_precision
def triplet(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None, margin: float = 0.2
) -> Tensor:
    r"""Facebook's triplet loss (Huang et al., KDD 2020): the positive is nearer than each negative, by a margin.

    .. math:: \frac{1}{k} \sum_{j=1}^{k} \max(0, D^+ - D_j + m), \qquad D = 1 - s

    https://arxiv.org/abs/2006.11632. Of cosines s; `pairwise_hinge` for lists of one positive, in memory linear in them.

    >>> triplet(torch.tensor([[0.5, 0.4, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]), margin=0.2)  # 0.1 and 0
    tensor(0.0500)
    """
    own, score, negative, weight = _one_against_many(score, label, where, weight)
    hinge = (F.relu(margin - own.unsqueeze(-1) + score) * negative).sum(-1)
    k = negative.sum(-1)
    return weighted_mean(hinge / k.clamp(min=1), weight * (k > 0))


@full_precision
def cosine_contrastive(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    margin: float = 0.8,
    negative_weight: float = 150.0,
) -> Tensor:
    r"""SimpleX's loss (Mao et al., CIKM 2021): many negatives, of which only those above a margin count.

    .. math:: 1 - s^+ + \frac{w}{k} \sum_{j=1}^{k} \max(0, s_j - m)

    https://arxiv.org/abs/2109.12613. Of cosines s, with k from 100 up; m is `margin` (0.4 to 0.9), w `negative_weight`.

    >>> cosine_contrastive(torch.tensor([[0.7, 0.9, 0.1]]), torch.tensor([[1.0, 0.0, 0.0]]), negative_weight=10.0)
    tensor(0.8000)
    """
    check("cosine_contrastive", "negative_weight", negative_weight, 0)
    own, score, negative, weight = _one_against_many(score, label, where, weight)
    above = (F.relu(score - margin) * negative).sum(-1) / negative.sum(-1).clamp(min=1)
    return weighted_mean(1 - own + negative_weight * above, weight)


@full_precision
def nce(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    log_q: Tensor | None = None,
) -> Tensor:
    r"""Noise-contrastive estimation (Gutmann and Hyvärinen, AISTATS 2010): which item is data, which k were drawn?

    .. math:: -\log \sigma(s^+ - \log k q^+) - \sum_{j=1}^{k} \log \sigma(-(s_j - \log k q_j))

    https://proceedings.mlr.press/v9/gutmann10a.html. `log_q` ``[..., L]`` says how likely each is to be drawn: then s learns
    log-probabilities. Without it there is no correction (negative sampling, as in word2vec): s learns log-ratios.

    >>> score, label = torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]])
    >>> nce(score, label), nce(score, label, log_q=torch.full((1, 3), 0.5).log())  # 3 log 2, as k q = 1
    (tensor(2.0794), tensor(2.0794))
    """
    if log_q is not None:
        score = score - log_q
    own, score, negative, weight = _one_against_many(score, label, where, weight)
    if log_q is not None:
        log_k = negative.sum(-1).clamp(min=1).to(score.dtype).log()
        own, score = own - log_k, score - log_k.unsqueeze(-1)
    return weighted_mean(F.softplus(-own) + (F.softplus(score) * negative).sum(-1), weight)


def _one_against_many(
    score: Tensor, label: Tensor, where: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The positive's score ``[...]``, all scores and which are live negatives ``[..., L]``, the positive's weight ``[...]``."""
    score, label, weight = clean(score, label, where, weight)
    positive = label > 0
    negative = ~positive if where is None else ~positive & where
    return (score * positive).sum(-1), score, negative, (weight * positive).sum(-1)


@full_precision
def direct_au(
    user: Tensor,
    item: Tensor,
    *,
    user_ids: Tensor | None = None,
    item_ids: Tensor | None = None,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    gamma: float = 1.0,
) -> Tensor:
    r"""DirectAU (Wang et al., KDD 2022): what belongs together lies together, and all spreads over the sphere.

    .. math:: \|u - v\|^2 + \frac{\gamma}{2} \big( U(u) + U(v) \big), \qquad
        U(x) = \log \operatorname{mean}_{a < b} e^{-2 \|x_a - x_b\|^2}

    https://arxiv.org/abs/2206.12811. The first term is the mean over pairs of unit vectors ``user, item: [B, D]``, weighted by
    `weight` ``[B]``; there are no negatives. What has the same id counts once in U: user_ids, item_ids ``[B]``. γ from 0.2 to 5,
    larger for denser data.

    >>> direct_au(torch.eye(2), torch.eye(2))  # both pairs meet; two vectors at a right angle: log e^-4
    tensor(-4.)
    """
    check("direct_au", "gamma", gamma, 0)
    live = torch.ones_like(user[:, 0], dtype=torch.bool) if where is None else where
    user, item = (torch.where(live.unsqueeze(-1), x, 0) for x in (user, item))
    weight = torch.where(live, torch.ones_like(user[:, 0]) if weight is None else weight, 0)
    together = weighted_mean((user - item).square().sum(-1), weight)
    return together + gamma / 2 * (_uniformity(user, user_ids, live) + _uniformity(item, item_ids, live))


def _uniformity(x: Tensor, ids: Tensor | None, live: Tensor) -> Tensor:
    """Of the live vectors, each id once; 0 where there are no two."""
    kept = live if ids is None else live & first_of_each(ids, live)
    if x.shape[0] == 0:
        return x.sum()
    pair = (kept.unsqueeze(1) & kept).triu(1)
    norm = x.square().sum(-1)
    apart = (norm.unsqueeze(1) + norm - 2 * x @ x.T).clamp(min=0)
    near = (-2 * apart).masked_fill(~pair, torch.finfo(x.dtype).min).flatten()
    n = pair.sum()
    return torch.where(n > 0, near.logsumexp(0) - n.clamp(min=1).to(x.dtype).log(), 0)


def first_of_each(ids: Tensor, where: Tensor | None = None) -> Tensor:
    """bool ``[B]``: whether a row is the first (live) one with its id.

    >>> first_of_each(torch.tensor([7, 8, 7, 9]))
    tensor([ True,  True, False,  True])
    """
    ids, place = ids.long(), torch.arange(ids.shape[0], device=ids.device)
    ids = ids if where is None else torch.where(where, ids, -1 - place)  # dead rows are alike to nobody
    _, group = ids.unique(return_inverse=True)
    first = torch.full_like(place, ids.shape[0]).scatter_reduce(0, group, place, "amin")
    return first[group] == place


@full_precision
def hardest_others(user: Tensor, item: Tensor, ids: Tensor, k: int, row: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of the other rows' items the k most similar to each user: the online hard negatives of Facebook's retrieval.

    Args:
        user, item: [B, D], the positive pairs of a batch; ids: [B] of the items.
        k: at most 2, says the paper.
        row: [B], what the user asked for: items of one's own row are no negatives; None is each its own.

    Returns:
        score [B, k], inner products, and where [B, k]: False where there are fewer. Each item is taken once.
    """
    with torch.no_grad():
        out = (ids == ids.unsqueeze(1)) | ~first_of_each(ids)
        if row is not None:
            out |= row == row.unsqueeze(1)
        near = (user @ item.T).masked_fill(out, -torch.inf)
        best = near.topk(min(k, near.shape[1]), -1)
    score = (user.unsqueeze(1) * item[best.indices]).sum(-1)
    return score, best.values.isfinite()


@full_precision
def category_alignment(vectors: Tensor, category: Tensor, *, where: Tensor | None = None) -> Tensor:
    r"""DAT's category alignment (Yu et al., DLP-KDD 2021): each category's items spread as the largest one's do.

    .. math:: \sum_{c \neq m} \| C(S_m) - C(S_c) \|_F^2

    C is the covariance matrix of the vectors of a category among ``vectors [B, D]``, m the category of ``category [B]`` with
    most rows. Categories below 2 (nothing, unknown) and those with fewer than two rows are passed over.

    https://dlp-kdd.github.io/assets/pdf/DLP-KDD_2021_paper_4.pdf

    >>> one, wide = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [0.0], [4.0], [4.0]])
    >>> category_alignment(torch.cat([one, wide]), torch.tensor([2, 2, 3, 3, 3, 3]))  # variances 2 and 16/3
    tensor(11.1111)
    """
    if vectors.shape[0] == 0:
        return vectors.sum()
    live = category > 1 if where is None else (category > 1) & where
    x = torch.where(live.unsqueeze(-1), vectors, 0)
    _, group = torch.where(live, category.long(), 0).unique(return_inverse=True)
    member = F.one_hot(group, group.shape[0]).to(x.dtype) * live.unsqueeze(-1)  # [B, C]
    n = member.sum(0)
    x = (x - (member / n.clamp(min=1)) @ (member.T @ x)) * live.unsqueeze(-1)
    share = member * torch.where(n > 1, 1 / (n - 1).clamp(min=1), 0)
    inner = share.T @ (x @ x.T).square() @ share  # ⟨C(S_a), C(S_b)⟩ without a covariance matrix for each
    major = n.argmax()
    apart = inner.diagonal() + inner[major, major] - 2 * inner[major]
    return (apart * (n > 1)).sum() * (n[major] > 1)
