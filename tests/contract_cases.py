"""One row per model, in which no argument equals its default."""

from functools import partial

import torch

from recstack import testing
from recstack.models import multidomain, multitask, pre_ranking, ranking, reranking, retrieval
from recstack.nn.sequence.target_attention import TargetAttention
from recstack.schema import Task
from recstack.testing import Case

FUNNEL = (
    Task("click"),
    Task("order", given="click", weight=0),
    Task("ordered", product=("click", "order"), weight=0.5),
    Task("stay", kind="regression", given="click", transform="log1p", weight=0.1),
)
MANY = (*FUNNEL, Task("shelf", kind="multiclass", classes=3, weight=0.1))

SECOND = {"arguments": "a second row, for what the first cannot reach"}
IDS = testing.keys_only(testing.schema(), ("history",))


def edges(model):
    """LightGCN's graph: every third item of each user."""
    users, items = model.propagation.users, model.propagation.items
    met = [[i for i in range(2, items) if (u + i) % 3 == 0] if u > 1 else [] for u in range(users)]
    offsets = torch.tensor([0, *(len(m) for m in met)]).cumsum(0)
    model.propagation.connect(offsets, torch.tensor([i for m in met for i in m]))


CASES = [
    Case(ranking.LR, {}, testing.schema(tasks=FUNNEL), band=0.2),
    Case(ranking.FM, {"dim": 6}, testing.schema(tasks=FUNNEL), band=0.9),
    Case(ranking.DeepFM, {"dim": 6, "hidden": (16, 8), "norm": "layer", "dropout": 0.1}, band=0.9),
    Case(
        ranking.DCNv2,
        {
            "dim": 6,
            "layers": 2,
            "rank": 4,
            "structure": "stacked",
            "hidden": (16, 8),
            "norm": "layer",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.DCNv2, {"dim": 6, "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="parallel"),
    Case(
        ranking.DIN,
        {
            "dim": 6,
            "hidden": (16, 8),
            "activation": "prelu",
            "attention": (8, 4),
            "history": partial(TargetAttention, hidden=(8,), softmax=True),
            "dropout": 0.1,
        },
        band=0.9,
    ),
    Case(ranking.DIN, {"dim": 6, "hidden": (16, 8), "attention": (8,)}, band=0.9, exempt=SECOND, label="paper"),
    Case(
        ranking.MaskNet,
        {
            "dim": 6,
            "structure": "serial",
            "blocks": (16, 8),
            "reduction": 1.5,
            "embedding_norm": False,
            "hidden": (8,),
            "dropout": 0.1,
        },
        band=0.9,
    ),
    Case(ranking.MaskNet, {"dim": 6, "blocks": (8, 8), "hidden": (16,)}, band=0.9, exempt=SECOND, label="parallel"),
    Case(
        ranking.ContextNet,
        {
            "dim": 6,
            "layers": 2,
            "block": "sffn",
            "aggregation": 8,
            "shared_aggregation": False,
            "shared_feed_forward": False,
            "dropout": 0.1,
        },
        band=0.9,
    ),
    Case(ranking.ContextNet, {"dim": 6, "aggregation": 8}, band=0.9, exempt=SECOND, label="pffn"),
    Case(
        ranking.FinalMLP,
        {
            "dim": 6,
            "first": (16,),
            "second": (12, 8),
            "first_context": ("user_id",),
            "second_context": ("item_id",),
            "gate": (8,),
            "heads": 2,
            "norm": "layer",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.FinalMLP, {"dim": 6, "first": (16,), "second": (8,)}, band=0.9, exempt=SECOND, label="batch norm"),
    Case(
        ranking.FinalNet,
        {
            "dim": 6,
            "first": (16, 8),
            "second": (8,),
            "residual": "sum",
            "field_gate": False,
            "norm": "layer",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.FinalNet, {"dim": 6, "first": (16, 8), "second": (8,)}, band=0.9, exempt=SECOND, label="batch norm"),
    Case(
        ranking.EulerNet,
        {"dim": 6, "layers": 2, "products": 5, "norm": True, "explicit_dropout": 0.1, "implicit_dropout": 0.2},
        band=0.9,
    ),
    Case(ranking.EulerNet, {"dim": 6}, band=0.9, exempt=SECOND, label="one layer"),
    Case(
        ranking.DHEN,
        {
            "dim": 6,
            "layers": 2,
            "interactions": ("dot", "attention", "cross", "convolution"),
            "tokens": 4,
            "ensemble": "weighted",
            "attention_heads": 2,
            "inner": (8,),
            "hidden": (16, 8),
            "dropout": 0.1,
        },
        band=0.9,
    ),
    Case(
        ranking.DHEN,
        {"dim": 6, "layers": 2, "tokens": 4, "inner": (8,), "hidden": (16,)},
        band=0.9,
        exempt=SECOND,
        label="concatenated",
    ),
    Case(
        ranking.Wukong,
        {
            "dim": 6,
            "layers": 3,
            "products": 4,
            "compressed": 3,
            "rank": 5,
            "inner": (8,),
            "hidden": (16, 8),
            "dropout": 0.1,
        },
        band=0.9,
    ),
    Case(
        ranking.RankMixer,
        {"dim": 6, "tokens": 4, "width": 16, "layers": 1, "expansion": 2, "dropout": 0.1},
        band=0.9,
    ),
    Case(
        pre_ranking.COLD,
        {
            "dim": 6,
            "hidden": (16, 8),
            "keep": ("user_id", "likes", "age", "item_id", "genre", "price", "image", "hits", "watched"),
            "gates": False,
            "norm": None,
            "dropout": 0.1,
        },
        band=0.9,
        unread=("favourite", "hour", "title"),
    ),
    Case(pre_ranking.COLD, {"dim": 6, "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="gates"),
    Case(
        multitask.MMoE,
        {"dim": 6, "experts": 3, "hidden": (12, 8), "towers": (8, 4), "norm": "batch", "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.7,
    ),
    Case(
        multitask.ESMM,
        {"dim": 6, "hidden": (16, 8), "norm": "batch", "dropout": 0.1},
        testing.schema(tasks=FUNNEL),
        band=0.9,
    ),
    Case(
        multidomain.STAR,
        {"dim": 6, "hidden": (16, 8), "auxiliary": (6,), "dropout": 0.1},
        testing.schema(tasks=MANY, domain=True),
        band=0.9,
    ),
    Case(
        reranking.PRM,
        {"dim": 6, "width": 8, "layers": 1, "heads": 2, "hidden": 12, "max_list": 9, "history": "sum", "dropout": 0.2},
    ),
    Case(
        retrieval.DSSM,
        {"dim": 6, "hidden": (12, 8), "temperature": 0.2, "history": "sum", "dropout": 0.1, "examples_per_user": 3},
    ),
    Case(
        retrieval.SASRec,
        {"dim": 8, "layers": 1, "heads": 2, "dropout": 0.1, "loss": "bce", "negatives": 8},
        IDS,
        band=0.5,
        unread=("user_id",),
    ),
    Case(
        retrieval.SASRec,
        {"dim": 8, "dropout": 0.0},
        IDS,
        band=0.5,
        unread=("user_id",),
        exempt=SECOND,
        label="softmax",
    ),
    Case(
        retrieval.LightGCN,
        {"dim": 8, "layers": 2, "weight_decay": 1e-3},
        testing.keys_only(testing.schema()),
        lists=5,
        prepare=edges,
    ),
    Case(retrieval.Popularity, {"half_life": 3.0, "task": "click"}, band=0),
    Case(
        retrieval.ItemCF,
        {
            "similarity": "jaccard",
            "exponent": 0.5,
            "user_weight": "log",
            "neighbours": 9,
            "normalise": "max",
            "min_items": 1,
            "max_items": 50,
            "task": "click",
            "history": "watched",
            "last": 4,
            "decay": 0.9,
        },
    ),
    Case(
        retrieval.Swing,
        {
            "alpha": 0.5,
            "user_alpha": 1.0,
            "user_beta": 0.3,
            "neighbours": 9,
            "normalise": "max",
            "max_users": 30,
            "min_items": 1,
            "max_items": 50,
            "task": "click",
            "history": "watched",
            "last": 4,
            "decay": 0.9,
            "seed": 3,
        },
    ),
]
