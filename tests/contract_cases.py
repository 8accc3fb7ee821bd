"""One row per model, in which no argument equals its default."""

from functools import partial

from recstack import testing
from recstack.models import multidomain, multitask, pre_ranking, ranking
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
]
