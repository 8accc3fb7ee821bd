"""Losses against a catalog too large to score, or just small enough.

`sampled_softmax`, `gbce` and `bpr_max` take the usual ``[..., L]`` lists of one positive and its drawn negatives, which
`drawn_scores` makes of vectors. `in_batch_softmax` and `full_softmax` take vectors, so that the scores of all pairs are one
matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recstack.errors import ConfigError
from recstack.losses.listwise import softmax
from recstack.losses.rows import clean, full_precision, weighted_mean


@full_precision
def sampled_softmax(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    log_q: Tensor | None = None,
) -> Tensor:
    r"""Listwise softmax over drawn candidates, corrected for how likely each was to be drawn.

    .. math:: s'_i = s_i - \log q_i

    `log_q` [..., L] belongs to positives and negatives alike; None means that all were drawn with equal chance.
    The correction is for training only: at serving the score is s.

    >>> score, label = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    >>> sampled_softmax(score, label), sampled_softmax(score, label, log_q=torch.tensor([[0.5, 0.25]]).log())
    (tensor(0.6931), tensor(1.0986))
    """
    return softmax(score if log_q is None else score - log_q, label, where=where, weight=weight)


@full_precision
def gbce(
    score: Tensor,
    label: Tensor,
    *,
    n_items: int,
    t: float = 0.75,
    where: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    r"""gSASRec's generalised BCE (Petrov & Macdonald, RecSys 2023): undoes the overconfidence of few negatives.

    .. math:: -\beta \log \sigma(s^+) - \sum_{j=1}^{k} \log(1 - \sigma(s^-_j)), \qquad
              \beta = 1 - t\,(1 - \alpha), \quad \alpha = \frac{k}{n - 1}

    https://arxiv.org/abs/2308.07192. Lists [..., L] of binary labels; k is the number of live negatives of each list,
    drawn uniformly from a catalog of `n_items`. The mean runs over live cells. t=0 is `bce`.

    >>> score, label = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    >>> gbce(score, label, n_items=101, t=0.0), gbce(score, label, n_items=101, t=1.0)  # beta 1 and 1/100
    (tensor(0.6931), tensor(0.3500))
    """
    score, label, weight = clean(score, label, where, weight)
    negative = label == 0 if where is None else (label == 0) & where
    beta = 1 - t * (1 - negative.sum(-1, keepdim=True) / (n_items - 1))
    return weighted_mean(beta * label * F.softplus(-score) + (1 - label) * F.softplus(score), weight)


@full_precision
def in_batch_softmax(
    user: Tensor,
    item: Tensor,
    item_ids: Tensor,
    *,
    log_q: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    extra_item: Tensor | None = None,
    extra_ids: Tensor | None = None,
    extra_log_q: Tensor | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
    where: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Each user's item against the items of the other rows (Yi et al., RecSys 2019), and against extra ones.

    .. math:: -\log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}, \qquad
              s_{ij} = \langle u_i, v_j \rangle / \tau - \log q_j

    https://research.google/pubs/pub48840. A column leaves the sum of row i if it holds the same item as row i
    (an accidental hit) or one that `seen` gives to row i; the row's own column always stays.

    Args:
        user: [B, D], or [B, K, D] for K interests, of which the one nearest to the row's own item is trained.
        item: [B, D], the positive of each row; item_ids: [B].
        log_q: [B], log probability that the item is drawn; without it popular items are punished for being popular.
        temperature: divides the inner products; may be a learned tensor.
        extra_item: [M, D] more negatives for every row (mixed negative sampling), with extra_ids [M], 0 where there is
            none, and, beside log_q, extra_log_q [M]. With B drawn by popularity p and M uniformly from N items, q of either kind is
            (B·p + M/N) / (B + M).
        seen: (offsets [B + 1], ids [n]), the known positives of each row.
        where: [B]; a dead row is neither a row nor a column. weight: [B].

    Raises ConfigError if an extra part is given without its companion.

    >>> user = item = torch.eye(3)
    >>> in_batch_softmax(user, item, torch.tensor([7, 8, 9]))  # log(1 + 2/e)
    tensor(0.5514)
    >>> in_batch_softmax(user, item, torch.tensor([7, 7, 7]))  # the other rows are the same item: nothing to win
    tensor(0.)
    """
    score, kept = in_batch_scores(
        user,
        item,
        item_ids,
        log_q=log_q,
        temperature=temperature,
        extra_item=extra_item,
        extra_ids=extra_ids,
        extra_log_q=extra_log_q,
        seen=seen,
        where=where,
    )
    weight = score.new_ones(score.shape[0]) if weight is None else weight  # a batch without a positive has no columns
    weight = weight if where is None else torch.where(where, weight, 0)
    logit = score.masked_fill(~kept, torch.finfo(score.dtype).min)
    return weighted_mean(logit.logsumexp(-1) - logit.diagonal(), weight)


@full_precision
def in_batch_scores(
    user: Tensor,
    item: Tensor,
    item_ids: Tensor,
    *,
    log_q: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    extra_item: Tensor | None = None,
    extra_ids: Tensor | None = None,
    extra_log_q: Tensor | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The scores of `in_batch_softmax`, as lists for other losses; the arguments are the same.

    Returns:
        score [B, B + M], the row's own item in column i of row i; where [B, B + M], False for what leaves the list.

    >>> score, where = in_batch_scores(torch.eye(3), torch.eye(3), torch.tensor([7, 8, 7]))
    >>> where
    tensor([[ True,  True, False],
            [ True,  True,  True],
            [False,  True,  True]])
    """
    if (extra_item is None) != (extra_ids is None):
        raise ConfigError("In-batch softmax needs extra_item and extra_ids together. Give both or neither.")
    if (extra_log_q is None) != (log_q is None or extra_item is None):
        raise ConfigError(
            "In-batch softmax corrects all columns or none. Give extra_log_q beside log_q and extra_item."
        )
    rows = item.shape[0]
    live = torch.ones_like(item_ids, dtype=torch.bool) if where is None else where
    user = torch.where(live.reshape(-1, *[1] * (user.dim() - 1)), user, 0)
    item = torch.where(live.unsqueeze(-1), item, 0)
    if user.dim() == 3:
        nearest = (user @ item.unsqueeze(-1)).argmax(-2, keepdim=True)  # [B, 1, 1]
        user = user.take_along_dim(nearest, -2).squeeze(-2)

    columns, ids = item, item_ids
    if extra_item is not None and extra_ids is not None:
        columns, ids = torch.cat([item, extra_item]), torch.cat([item_ids, extra_ids])
    score = user @ columns.T / temperature  # [B, B + M]
    if log_q is not None:
        log_q = torch.where(live, log_q, 0)
        score = score - (log_q if extra_log_q is None else torch.cat([log_q, extra_log_q]))

    out = ids == item_ids.unsqueeze(-1)
    if seen is not None:
        out |= _columns_seen(seen, ids, rows)
    out[:, :rows] |= ~live
    out[:, rows:] |= ids[rows:] == 0
    out[:, :rows].fill_diagonal_(False)
    return score, ~out


def full_softmax(
    user: Tensor,
    item: Tensor,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    r"""Softmax over the whole catalog: user [..., D], item [N, D], target [...] of row numbers of `item`.

    .. math:: -\log \frac{e^{\langle u, v_y \rangle / \tau}}{\sum_{n=1}^{N} e^{\langle u, v_n \rangle / \tau}}

    Dead rows (`where`, like the target) are not computed at all. `chunk` rows are scored at a time, and their gradients
    taken on the spot, so that memory is chunk × N and not rows × N; None keeps all. A catalog with padding and
    OOV in rows 0 and 1 is given as ``full_softmax(user, item[2:], target - 2)``. Under autocast the products of chunks
    are in its type, as a linear layer's; the softmax and all sums over chunks are float32.

    >>> full_softmax(torch.zeros(2, 3), torch.randn(5, 3), torch.tensor([0, 4]))  # log 5
    tensor(1.6094)
    """
    device = user.device.type
    products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return _full_softmax(user, item, target, temperature, where, weight, chunk, products)


@full_precision
def _full_softmax(
    user: Tensor,
    item: Tensor,
    target: Tensor,
    temperature: float | Tensor,
    where: Tensor | None,
    weight: Tensor | None,
    chunk: int | None,
    products: torch.dtype | None,
) -> Tensor:
    live = torch.ones_like(target, dtype=torch.bool) if where is None else where.expand(target.shape)
    user, index = user[live], target[live].long()
    weight = torch.ones_like(user[:, 0]) if weight is None else weight.to(user.dtype).expand(target.shape)[live]

    user = user / temperature
    if chunk is None or torch.compiler.is_compiling():  # a compiler finds its own way, and would unroll the chunks
        return weighted_mean(F.cross_entropy(user @ item.T, index, reduction="none"), weight)
    total = weight.sum()
    share = weight / torch.where(total > 0, total, 1)
    return _ChunkedSoftmax.apply(user, item, index, share, chunk, products or user.dtype)  # type: ignore[no-any-return]


class _ChunkedSoftmax(torch.autograd.Function):
    """The weighted sum of cross entropies, `chunk` rows at a time; what is kept for the backward pass are the gradients."""

    @staticmethod
    def forward(
        ctx: Any, user: Tensor, item: Tensor, index: Tensor, weight: Tensor, chunk: int, products: torch.dtype
    ) -> Tensor:
        value = user.new_zeros(())
        of_user, of_item, items = torch.empty_like(user), torch.zeros_like(item), item.to(products)
        for start in range(0, user.shape[0], chunk):
            part = slice(start, start + chunk)
            rows, own, share = user[part], index[part].unsqueeze(-1), weight[part].unsqueeze(-1)
            log_share = (rows.to(products) @ items.T).to(user.dtype).log_softmax(-1)
            value -= (log_share.gather(-1, own) * share).sum()
            slope = log_share.exp_().scatter_add_(-1, own, torch.full_like(share, -1)).to(products)
            of_user[part] = (slope @ items) * share
            of_item += slope.T @ (rows * share).to(products)
        ctx.save_for_backward(of_user, of_item)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:  # type: ignore[override]
        of_user, of_item = ctx.saved_tensors
        return of_user * slope, of_item * slope, None, None, None, None


@full_precision
def drawn_scores(
    user: Tensor, item: Tensor, target: Tensor, drawn: Tensor, log_q: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scores of each row's own item and of drawn ones that neighbouring rows share: lists for the losses of this module.

    Args:
        user: [n, D]; item: [N, D], the catalog.
        target: [n], row numbers of `item`.
        drawn: [G, M] row numbers; the first n / G users share the first M, and so on (G = 1: all of them).
        log_q: [N], log of how likely each is to be drawn, which is taken off the scores.

    Returns:
        score [n, 1 + M], the row's own item first; where [n, 1 + M], False for a drawn item that is the row's own.

    >>> score, where = drawn_scores(
    ...     torch.ones(2, 1), torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1]), torch.tensor([[1]])
    ... )
    >>> score, where
    (tensor([[1., 2.],
            [2., 2.]]), tensor([[ True,  True],
            [ True, False]]))
    """
    n, groups = target.shape[0], drawn.shape[0]
    size = max(-(-n // groups), 1)
    more = groups * size - n
    of_drawn = item[drawn] if log_q is None else torch.cat([item[drawn], -log_q[drawn].unsqueeze(-1)], -1)
    rows = user if log_q is None else F.pad(user, (0, 1), value=1.0)
    negative = F.pad(rows, (0, 0, 0, more)).view(groups, size, -1) @ of_drawn.transpose(1, 2)
    other = drawn.unsqueeze(1) != F.pad(target, (0, more)).view(groups, size, 1)
    positive = (user * item[target]).sum(-1, keepdim=True)
    if log_q is not None:
        positive = positive - log_q[target].unsqueeze(-1)
    score = torch.cat([positive, negative.flatten(0, 1)[:n]], -1)
    return score, F.pad(other.flatten(0, 1)[:n], (1, 0), value=True)


@full_precision
def bpr_max(
    score: Tensor,
    label: Tensor,
    *,
    penalty: float = 1.0,
    where: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    r"""GRU4Rec's BPR-max (Hidasi & Karatzoglou, CIKM 2018): the positive above the highest of its drawn negatives.

    .. math:: -\log \sum_j s_j\, \sigma(r_i - r_j) + \lambda \sum_j s_j r_j^2, \qquad s = \mathrm{softmax}_j(r_j)

    https://arxiv.org/abs/1706.03847. Lists [..., L] of one positive i and its negatives j; λ is `penalty`. A list without
    the one or the others counts nothing; the weight of a list is that of its positive.

    >>> score, label = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> bpr_max(score, label)  # log 2
    tensor(0.6931)
    """
    score, label, weight = clean(score, label, where, weight)
    positive = label > 0
    negative = ~positive if where is None else ~positive & where
    own = (score * positive).sum(-1, keepdim=True)
    share = score.masked_fill(~negative, torch.finfo(score.dtype).min).log_softmax(-1)
    above = (share + F.logsigmoid(own - score)).masked_fill(~negative, torch.finfo(score.dtype).min).logsumexp(-1)
    value = penalty * (share.exp() * score.square() * negative).sum(-1) - above
    whole = positive.any(-1) & negative.any(-1)
    return weighted_mean(torch.where(whole, value, 0), (weight * positive).sum(-1) * whole)


def _columns_seen(seen: tuple[Tensor, Tensor], ids: Tensor, rows: int) -> Tensor:
    """[rows, len(ids)] bool: is the column's item among the row's own; linear in the matrix and in the history."""
    offsets, items = (x.to(ids.device) for x in seen)
    known, column = ids.unique(return_inverse=True)
    row = torch.repeat_interleave(torch.arange(rows, device=ids.device), offsets.diff())
    items = items.to(known.dtype)
    place = torch.searchsorted(known, items).clamp(max=known.shape[0] - 1)
    place = torch.where(known[place] == items, place, known.shape[0])  # the last column takes those not in the batch
    hit = torch.zeros(rows, known.shape[0] + 1, dtype=torch.bool, device=ids.device)
    hit[row, place] = True
    return hit[:, column]
