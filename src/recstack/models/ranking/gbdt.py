"""LightGBM: A Highly Efficient Gradient Boosting Decision Tree (Ke et al., NIPS 2017).

https://papers.nips.cc/paper/6907-lightgbm-a-highly-efficient-gradient-boosting-decision-tree
"""

from __future__ import annotations

from recstack.errors import unknown
from recstack.models.boosted import Boosted, tree_options
from recstack.schema import Schema

OBJECTIVES = ("pointwise", "lambdarank", "rank_xendcg")


class GBDT(Boosted):
    r"""Boosted trees by LightGBM, a booster per task: the classifier, or the ranker (LambdaMART).

    .. math:: z = \sum_m \eta\, T_m(x), \qquad x_{\mathrm{id}} = \Big[\, n_{\mathrm{id}}^{<t}, \;
        \frac{\sum_{j<t} y_j + s\, \bar y^{<t}}{n_{\mathrm{id}}^{<t} + s} \Big]

    Logits ``[R, L]``. Ids of a table below 256 are categories of the trees' own; of others the trees see how many rows they
    had and the smoothed mean of their labels (both by weight): in training those of earlier moments alone (of earlier requests, where the log
    has no time), afterwards those of all training rows, kept in the bundle. Lists, histories and vectors are read as
    `features.matrix.Matrix` says; histories by their length and whether the candidate was met in them.

    It has no gradients: `fit` grows the trees in one go, stops where `valid` gets no better, and takes nothing of a Trainer. A
    ranker's scores order and are no log-odds; give a cascade a calibrator where probabilities are read. Weights of tasks play no
    part, weights of rows do. Needs LightGBM: ``pip install recstack[gbdt]``.

    Departs from the paper: the coding of large tables, which is CatBoost's idea (https://arxiv.org/abs/1706.09516).

    Args:
        schema: a fitted schema, its tasks binary, regressions or multiclass.
        objective: "pointwise" (log loss, squared error, softmax, by the kind of task), or "lambdarank" or "rank_xendcg" over the
            candidates of each request; a regression's labels are then grades, whole numbers from 0 to 30.
        trees: at most.
        lr: shrinkage of each tree, :math:`\eta`.
        leaves: of a tree, at most.
        min_rows: in a leaf, at least.
        l2: on the leaves' values.
        share: of the columns, drawn for each tree.
        smoothing: rows that the mean of all labels counts for in an id's mean, s.
        patience: stop after that many trees without a better validation loss (NDCG@10 of a ranker).
        seed: of LightGBM, and of the negatives of an implicit log.

    Ke et al., NIPS 2017, https://papers.nips.cc/paper/6907-lightgbm-a-highly-efficient-gradient-boosting-decision-tree

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.GBDT(rs.Encoder(train.schema).fit(train).schema, trees=20).fit(train, valid=valid)
    >>> model.score(test)["click"].shape == (len(test),), len(model.importance()) == len(model.columns)
    (True, True)
    """

    def __init__(
        self,
        schema: Schema,
        *,
        objective: str = "pointwise",
        trees: int = 500,
        lr: float = 0.05,
        leaves: int = 31,
        min_rows: int = 20,
        l2: float = 0.0,
        share: float = 1.0,
        smoothing: float = 20.0,
        patience: int = 30,
        seed: int = 0,
    ):
        if objective not in OBJECTIVES:
            raise unknown("objective of GBDT", objective, OBJECTIVES)
        options = tree_options(lr, leaves, min_rows, l2, share)
        super().__init__(
            schema,
            objective=objective,
            trees=trees,
            patience=patience,
            smoothing=smoothing,
            seed=seed,
            options=options,
        )
