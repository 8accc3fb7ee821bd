"""From RankNet to LambdaRank to LambdaMART: An Overview (Burges, Microsoft Research 2010).

https://www.microsoft.com/en-us/research/publication/from-ranknet-to-lambdarank-to-lambdamart-an-overview/
"""

from __future__ import annotations

from recstack.models.boosted import Boosted, tree_options
from recstack.schema import Schema


class LambdaMART(Boosted):
    r"""Boosted trees of LambdaRank's gradients, by LightGBM, a booster per task.

    .. math:: \lambda_i = \sum_{j:\, y_i \ne y_j} \pm \frac{|\Delta \mathrm{NDCG}_{ij}|}{1 + e^{|s_i - s_j|_{\pm}}}, \qquad
        s \leftarrow s + \eta\, T(x), \quad T_{\mathrm{leaf}} = \frac{\sum_{i \in \mathrm{leaf}} \lambda_i}{\sum_{i \in \mathrm{leaf}} w_i}

    Logits ``[R, L]``, which order the candidates of a request and are no log-odds. |s_i - s_j|± is the lead of the better
    candidate, w the second derivative. Labels are grades, whole numbers from 0 to 30, of gain :math:`2^y - 1`. What the trees
    read of ids, lists and histories, and what `fit` takes, is as in `rs.ranking.GBDT`, whose objective="lambdarank" this is,
    with the options of the ranker. Needs LightGBM: ``pip install recstack[gbdt]``.

    Args:
        schema: a fitted schema, its tasks binary, or regressions on grades.
        trees: at most.
        lr: shrinkage of each tree, :math:`\eta`.
        leaves: of a tree, at most.
        min_rows: in a leaf, at least.
        l2: on the leaves' values.
        share: of the columns, drawn for each tree.
        truncation: a pair counts if one of the two is among that many first candidates by the present scores.
        normalise: divide each list's gradients by their sum, S, and multiply by log2(1 + S): long lists weigh less.
        at: the cut of the NDCG that `patience` looks at.
        smoothing: rows that the mean of all labels counts for in an id's mean.
        patience: stop after that many trees without a better NDCG on `valid`.
        seed: of LightGBM, and of the negatives of an implicit log.

    Burges, MSR-TR-2010-82,
    https://www.microsoft.com/en-us/research/publication/from-ranknet-to-lambdarank-to-lambdamart-an-overview/

    >>> import recstack as rs
    >>> world = rs.testing.World(rs.testing.schema())
    >>> rows = [world.batch(100, 5, seed) for seed in range(3)]
    >>> model = rs.reranking.LambdaMART(world.schema, trees=10).fit(rows[:2], valid=rows[2:])
    >>> model(rows[2])["click"].shape
    torch.Size([100, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        trees: int = 500,
        lr: float = 0.05,
        leaves: int = 31,
        min_rows: int = 20,
        l2: float = 0.0,
        share: float = 1.0,
        truncation: int = 30,
        normalise: bool = True,
        at: int = 10,
        smoothing: float = 20.0,
        patience: int = 30,
        seed: int = 0,
    ):
        ranker = {"lambdarank_truncation_level": truncation, "lambdarank_norm": normalise}
        super().__init__(
            schema,
            objective="lambdarank",
            trees=trees,
            patience=patience,
            smoothing=smoothing,
            seed=seed,
            at=at,
            asked="LambdaMART",
            options={**tree_options(lr, leaves, min_rows, l2, share), **ranker},
        )
