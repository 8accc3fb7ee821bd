"""One row per model, in which no argument equals its default."""

from functools import partial

import torch

from recstack import testing
from recstack.models import multidomain, multitask, pre_ranking, ranking, reranking, retrieval
from recstack.models.ranking.xdeepfm import xDeepFM
from recstack.nn.sequence.target_attention import TargetAttention
from recstack.schema import History, Task
from recstack.testing import Case

FUNNEL = (
    Task("click"),
    Task("order", given="click", weight=0),
    Task("ordered", product=("click", "order"), weight=0.5),
    Task("stay", kind="regression", given="click", transform="log1p", weight=0.1),
)
MANY = (*FUNNEL, Task("shelf", kind="multiclass", classes=3, weight=0.1))

SECOND = {
    "arguments": "a second row, for what the first cannot reach",
    **dict.fromkeys(("compiled", "exported"), "the first row's operators, in another order"),
}
IDS = testing.keys_only(testing.schema(), ("history",))


def edges(model):
    """LightGCN's graph: every third item of each user."""
    users, items = model.propagation.users, model.propagation.items
    met = [[i for i in range(2, items) if (u + i) % 3 == 0] if u > 1 else [] for u in range(users)]
    offsets = torch.tensor([0, *(len(m) for m in met)]).cumsum(0)
    model.propagation.connect(offsets, torch.tensor([i for m in met for i in m]))


def constraints(model):
    """UltraGCN's weights, as if everybody had met three items, and items were alike that have neighbouring ids."""
    model.of_user.fill_(0.7)
    model.of_item.fill_(0.5)
    ids = torch.arange(len(model.neighbours)).unsqueeze(1) + torch.arange(1, model.neighbours.shape[1] + 1)
    model.neighbours.copy_(ids.clamp(max=len(ids) - 1))
    model.omega.fill_(0.1)


def surroundings(model):
    """PinSage's neighbours, ids that lie beside each other, and what its items are made of."""
    size, most = model.neighbours.shape
    ids = torch.arange(size).unsqueeze(1)
    model.neighbours.copy_((ids + torch.arange(1, most + 1)).clamp(max=size - 1))
    model.importance.fill_(1 / most)
    model.met.copy_(ids % 5 > 0)
    if model.of_values is not None:
        model.value_ids = 1 + (ids + torch.arange(3)) % (model.of_values.num_embeddings - 1)
    model.given.copy_((ids + torch.arange(model.given.shape[1])).sin())


def paths(model):
    """PDN's edges: each item leads to all others, and shares every clue to some degree."""
    source, target = torch.cartesian_prod(torch.arange(2, model.size), torch.arange(2, model.size)).T
    keys = (source * model.size + target)[source != target]
    model.edges = torch.cat([keys, model.edges[-1:]])
    model.clues = torch.arange(len(model.edges)).unsqueeze(1).add(torch.arange(model.clues.shape[1])).sin()


def neighbourhoods(model):
    """CMN's users of each item: ids that lie beside each other."""
    size, most = model.near.shape
    ids = torch.arange(size).unsqueeze(1) + torch.arange(most)
    model.near.copy_(2 + ids % (model.users.num_embeddings - 2))
    model.near[0] = 0


def preferences(model):
    """DropoutNet's given vectors: the planted world's own."""
    world, more = testing.World(model.schema), model.items.shape[1] - 2
    one = torch.ones(len(model.users))
    for own, parts in (
        (model.users, [one, 2 * world.side[world.user]]),
        (model.items, [world.quality, world.side[world.item]]),
    ):
        own.copy_(torch.nn.functional.pad(torch.stack(parts, 1).float(), (0, more)))
        own[0] = 0


def relations(model):
    """RCF's attributes: two values of each type, by remainders of the id."""
    ids, first = torch.arange(model.size), 1
    values = torch.zeros(model.size, len(model.types), 2, dtype=torch.int64)
    for t, f in enumerate(model.types):
        values[2:, t] = first + torch.stack([ids % 3, 3 + ids % 2], 1)[2:]
        first += f.size
    item, value = values.nonzero()[:, 0], values[values > 0]
    model.values, model.members = values, item[value.argsort(stable=True)]
    model.starts[1:] = torch.bincount(value, minlength=len(model.starts) - 1).cumsum(0)


def digits(model):
    """TIGER's codes: the digits of the id, and nothing to number."""
    ids = torch.arange(2, model.size)
    codes = [ids // model.codes ** (model.levels - 1 - l) % model.codes for l in range(model.levels)]
    model.item_codes[2:] = torch.stack([*codes, 0 * ids], 1) + 1


# PinSage takes what items are from the catalogue, and of users it reads the history alone.
_KEPT = {IDS.item, *(h.name for h in IDS.histories)}
UNREAD_ITEMS = tuple(f.name for f in testing.schema().features if f.name not in _KEPT)
UNREAD = tuple(name for name in UNREAD_ITEMS if name != IDS.user)  # of a model that knows users by their ids

# What was clicked, what was shown and not clicked, what was disliked.
FEEDBACK = IDS.replace(
    features=[*IDS.features, *(History(name, of=(IDS.item,), max_len=6) for name in ("passed", "disliked"))]
)

WALKS = {
    "dim": 8,
    "gap": 500.0,
    "walks": 4,
    "length": 6,
    "p": 2.0,
    "q": 0.5,
    "window": 3,
    "negatives": 4,
    "lr": 0.1,
    "task": "click",
    "history": "watched",
    "last": 4,
    "decay": 0.9,
    "seed": 3,
}
SIDE = {"features": ("genre",)}

CASES = [
    Case(ranking.LR, {}, testing.schema(tasks=FUNNEL), band=0.2),
    Case(
        ranking.GBDT,
        {
            "objective": "rank_xendcg",
            "trees": 40,
            "lr": 0.2,
            "leaves": 8,
            "min_rows": 10,
            "l2": 0.1,
            "smoothing": 5.0,
            "patience": 5,
            "seed": 3,
        },
        lists=5,
        band=0.8,
        exempt={"requests_only": "it ranks the candidates of a request, and there each has one"},
        label="ranker",
    ),
    Case(
        ranking.GBDT,
        {"trees": 30, "lr": 0.3},
        testing.schema(tasks=MANY),
        band=0.9,
        exempt=SECOND,
        label="classifier",
    ),
    Case(ranking.FM, {"dim": 6}, testing.schema(tasks=FUNNEL), band=0.9),
    Case(ranking.FFM, {"dim": 4}, testing.schema(tasks=FUNNEL), band=0.9),
    Case(ranking.FwFM, {"dim": 6, "linear": "LW"}, testing.schema(tasks=FUNNEL), band=0.9),
    Case(ranking.FwFM, {"dim": 6, "linear": "FeLV"}, band=0.9, exempt=SECOND, label="FeLV"),
    Case(ranking.FwFM, {"dim": 6, "linear": "FiLV"}, band=0.9, exempt=SECOND, label="FiLV"),
    Case(
        ranking.FEFM,
        {"dim": 6, "hidden": (16, 8), "norm": "batch", "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.FEFM, {"dim": 6}, testing.schema(tasks=FUNNEL), band=0.9, exempt=SECOND, label="shallow"),
    Case(ranking.FmFM, {"dim": 6, "interaction": "vectorized"}, testing.schema(tasks=FUNNEL), band=0.9),
    Case(ranking.FmFM, {"dim": 6}, band=0.9, exempt=SECOND, label="matrixed"),
    Case(ranking.HOFM, {"dim": 6, "order": 4, "shared": True}, testing.schema(tasks=FUNNEL), band=0.9),
    Case(ranking.HOFM, {"dim": 6}, band=0.9, exempt=SECOND, label="separate"),
    Case(
        ranking.GwPFM,
        {"dim": 6, "groups": "field", "hidden": (16, 8), "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.GwPFM,
        {"dim": 6, "groups": "field"},
        testing.schema(tasks=FUNNEL),
        band=0.9,
        exempt=SECOND,
        label="fields",
    ),
    Case(ranking.GwPFM, {"dim": 6}, band=0.9, exempt=SECOND, label="roles"),
    Case(
        ranking.AFM,
        {"dim": 6, "attention": 8, "attention_dropout": 0.1, "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.AFM, {"dim": 6, "attention": None}, band=0.9, exempt=SECOND, label="sum"),
    Case(
        ranking.AutoFIS,
        {"dim": 6, "pairs": (("user_id", "item_id"),), "hidden": (16, 8), "norm": "layer", "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
        exempt=dict.fromkeys(
            ("names", "requests_only"), "pairs name their columns; see tests/models/test_importance.py"
        ),
    ),
    Case(
        ranking.AutoFIS, {"dim": 6, "hidden": ()}, testing.schema(tasks=FUNNEL), band=0.9, exempt=SECOND, label="search"
    ),
    Case(ranking.DeepFM, {"dim": 6, "hidden": (16, 8), "norm": "layer", "dropout": 0.1}, band=0.9),
    Case(
        ranking.TextMLP,
        {"dim": 6, "hidden": (16, 8), "norm": "layer", "dropout": 0.1, "history": "sum"},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.FNN, {"dim": 6, "hidden": (16, 8), "activation": "relu", "norm": "batch", "dropout": 0.1}, band=0.9),
    Case(ranking.IPNN, {"dim": 6, "hidden": (16, 8), "norm": "batch", "dropout": 0.1}, band=0.9),
    Case(ranking.OPNN, {"dim": 6, "hidden": (16, 8), "norm": "layer", "dropout": 0.1}, band=0.9),
    Case(ranking.KPNN, {"dim": 6, "kernel": "vector", "hidden": (16, 8), "norm": "batch", "dropout": 0.1}, band=0.9),
    Case(ranking.KPNN, {"dim": 6, "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="matrix"),
    Case(
        ranking.PIN, {"dim": 6, "pair_hidden": (16, 6), "hidden": (16, 8), "norm": "batch", "dropout": 0.1}, band=0.85
    ),
    Case(
        ranking.WideDeep,
        {
            "dim": 6,
            "crosses": (("user_id", "item_id"),),
            "buckets": 300,
            "hidden": (16, 8),
            "norm": "batch",
            "dropout": 0.1,
        },
        testing.schema(tasks=FUNNEL),
        band=0.9,
        exempt=dict.fromkeys(("names", "requests_only"), "a cross names its columns; see tests/models/test_deep.py"),
    ),
    Case(ranking.WideDeep, {"dim": 6, "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="uncrossed"),
    Case(ranking.DeepCrossing, {"dim": 6, "hidden": (16, 8), "dropout": 0.1}, band=0.9),
    Case(
        ranking.NFM,
        {"dim": 6, "hidden": (16, 8), "norm": "layer", "products_dropout": 0.1, "dropout": 0.1},
        band=0.9,
    ),
    Case(
        ranking.NFM,
        {"dim": 6, "hidden": (16,), "products_dropout": 0.0, "dropout": 0.0},
        band=0.9,
        exempt=SECOND,
        label="batch",
    ),
    Case(
        ranking.DLRM,
        {
            "dim": 6,
            "bottom": (8,),
            "interaction": "cat",
            "self_interaction": True,
            "hidden": (16, 8),
            "norm": "batch",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.DLRM, {"dim": 6, "bottom": (8,), "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="dot"),
    Case(
        ranking.AFN,
        {
            "dim": 6,
            "neurons": 8,
            "hidden": (16, 8),
            "norm": "layer",
            "dropout": 0.1,
            "deep": (16, 8),
            "deep_dropout": 0.2,
        },
        testing.schema(tasks=FUNNEL),
        band=0.9,
    ),
    Case(ranking.AFN, {"dim": 6, "neurons": 8, "hidden": (16,)}, band=0.9, exempt=SECOND, label="alone"),
    Case(
        ranking.AutoInt,
        {
            "dim": 6,
            "layers": 2,
            "width": 8,
            "heads": 4,
            "scale": True,
            "residual": False,
            "layer_norm": True,
            "hidden": (16, 8),
            "norm": "layer",
            "dropout": 0.1,
        },
        testing.schema(tasks=FUNNEL),
        band=0.9,
    ),
    Case(ranking.AutoInt, {"dim": 6, "width": 8}, band=0.9, exempt=SECOND, label="paper"),
    Case(
        ranking.DCNv2,
        {
            "dim": 6,
            "layers": 2,
            "rank": 4,
            "experts": 3,
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
        ranking.DCN,
        {"dim": 6, "layers": 2, "structure": "stacked", "hidden": (16, 8), "norm": "layer", "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.DCN, {"dim": 6, "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="parallel"),
    Case(
        ranking.DCNv3,
        {
            "dim": 8,
            "exponential_layers": 2,
            "linear_layers": 3,
            "heads": 2,
            "exponential_dropout": 0.2,
            "linear_dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        xDeepFM,
        {
            "dim": 6,
            "maps": (8, 4),
            "activation": "relu",
            "split_half": True,
            "hidden": (16, 8),
            "norm": "layer",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(xDeepFM, {"dim": 6, "maps": (8,), "hidden": (16,)}, band=0.9, exempt=SECOND, label="batch norm"),
    Case(xDeepFM, {"dim": 6, "maps": (8, 8), "hidden": ()}, band=0.9, exempt=SECOND, label="maps alone"),
    Case(
        ranking.GDCN,
        {"dim": 6, "layers": 2, "structure": "stacked", "hidden": (16, 8), "norm": "layer", "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.GDCN, {"dim": 6, "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="parallel"),
    Case(
        ranking.GDCN,
        {"dim": 6, "structure": "stacked", "hidden": ()},
        band=0.9,
        exempt=SECOND,
        label="crosses alone",
    ),
    Case(
        ranking.EDCN,
        {"dim": 6, "layers": 2, "bridge": "attention", "temperature": 2.0, "norm": "layer", "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.EDCN,
        {"dim": 6, "layers": 2},
        band=0.9,
        exempt={
            **SECOND,
            "reads_every_column": "two gates of 1/12 before statistics have settled: some changes are below the law's",
        },
        label="product",
    ),
    Case(
        ranking.FiBiNET,
        {"dim": 6, "bilinear": "each", "reduction": 2, "hidden": (16, 8), "norm": "layer", "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.FiBiNET, {"dim": 6, "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="one matrix"),
    Case(
        ranking.FiBiNetPlusPlus,
        {
            "dim": 6,
            "compressed": 8,
            "groups": 3,
            "reduction": 2.0,
            "hidden": (16, 8),
            "norm": "layer",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
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
        ranking.DINBase,
        {"dim": 6, "hidden": (16, 8), "activation": "dice", "history": "augru", "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.DINBase, {"dim": 6, "hidden": (16, 8), "history": "sru"}, band=0.9, exempt=SECOND, label="sru"),
    Case(ranking.DINBase, {"dim": 6, "hidden": (16, 8), "history": "gru"}, band=0.9, exempt=SECOND, label="gru"),
    Case(
        ranking.DIEN,
        {
            "dim": 6,
            "cell": "agru",
            "hidden": (16, 8),
            "activation": "prelu",
            "alpha": 0.5,
            "auxiliary": (8, 4),
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.DIEN, {"dim": 6, "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="augru"),
    Case(ranking.DIEN, {"dim": 6, "cell": "aigru", "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="aigru"),
    Case(
        ranking.BST,
        {"dim": 6, "layers": 2, "heads": 2, "reduction": "mean", "hidden": (16, 8), "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.BST, {"dim": 6, "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="concat"),
    Case(
        ranking.BST,
        {"dim": 6, "reduction": "target", "hidden": (16, 8)},
        band=0.9,
        exempt=SECOND,
        label="target",
    ),
    Case(
        ranking.TIN,
        {"dim": 6, "heads": 2, "hidden": (16, 8), "activation": "dice", "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.DSIN,
        {
            "dim": 6,
            "sessions": 3,
            "items": 2,
            "gap": 100.0,
            "heads": 2,
            "hidden": (16, 8),
            "activation": "dice",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.CAN,
        {
            "dim": 6,
            "layers": (6, 4, 3),
            "orders": 2,
            "pairs": ("user_id", "likes"),
            "hidden": (16, 8),
            "activation": "prelu",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.STAMP, {"dim": 6, "hidden": (16, 8), "dropout": 0.1}, testing.schema(tasks=MANY), band=0.9),
    Case(
        ranking.SIM,
        {
            "dim": 6,
            "search": "hard",
            "keep": 3,
            "heads": 3,
            "recent": 2,
            "alpha": 0.5,
            "hidden": (16, 8),
            "activation": "prelu",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.SIM,
        {"dim": 6, "keep": 3, "recent": 2, "hidden": (16, 8)},
        band=0.9,
        exempt=SECOND,
        label="soft",
    ),
    Case(
        ranking.ETA,
        {
            "dim": 6,
            "keep": 3,
            "heads": 3,
            "bits": 16,
            "recent": 2,
            "hidden": (16, 8),
            "activation": "prelu",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.SDIM,
        {
            "dim": 6,
            "hashes": 12,
            "bits": 2,
            "recent": 2,
            "hidden": (16, 8),
            "activation": "prelu",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.TWIN,
        {
            "dim": 6,
            "keep": 3,
            "heads": 2,
            "recent": 2,
            "hidden": (16, 8),
            "activation": "prelu",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.TransAct,
        {
            "dim": 6,
            "layers": 1,
            "heads": 2,
            "feed_forward": 12,
            "columns": 3,
            "window": 600.0,
            "cross_layers": 1,
            "hidden": (16, 8),
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.HSTU,
        {"dim": 6, "layers": 3, "heads": 2, "hidden": (16, 8), "activation": "dice", "dropout": 0.1},
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.LatentCross,
        {
            "dim": 6,
            "context": ("user_id", "hour"),
            "place": "before",
            "hidden": (16, 8),
            "activation": "dice",
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.LatentCross, {"dim": 6, "hidden": (16, 8)}, band=0.9, exempt=SECOND, label="both"),
    Case(
        ranking.HMoE,
        {
            "dim": 6,
            "experts": (("dnn", "fm"), "inner", ("cross", "cin")),
            "expert_hidden": (16, 8),
            "fusion": "weighted",
            "hidden": (16, 8),
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(
        ranking.HMoE,
        {"dim": 6, "expert_hidden": (16,), "hidden": (16,)},
        band=0.9,
        exempt=SECOND,
        label="gate",
    ),
    Case(
        ranking.AdaF2M2,
        {
            "dim": 6,
            "cross_layers": 1,
            "hidden": (16, 8),
            "state": ("user_id", "item_id", "hour"),
            "adapter": (8, 4),
            "copies": 3,
            "share": (0.2, 0.4),
            "alpha": 0.3,
            "dropout": 0.1,
        },
        testing.schema(tasks=MANY),
        band=0.9,
    ),
    Case(ranking.AdaF2M2, {"dim": 6, "hidden": (16, 8), "adapter": (8,)}, band=0.9, exempt=SECOND, label="keys"),
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
        {
            "dim": 6,
            "tokens": 4,
            "width": 16,
            "layers": 1,
            "expansion": 2,
            "experts": 3,
            "sparsity": 0.01,
            "dropout": 0.1,
        },
        band=0.9,
    ),
    Case(ranking.RankMixer, {"dim": 6, "tokens": 4, "width": 16}, band=0.9, exempt=SECOND, label="dense"),
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
        {
            "dim": 6,
            "experts": 3,
            "hidden": (12, 8),
            "towers": (8, 4),
            "gate_dropout": 0.1,
            "norm": "batch",
            "dropout": 0.1,
            "detach": ("stay",),
            "history": "attention",
            "trunk": partial(ranking.DCNv2, layers=1, hidden=(12,)),
        },
        testing.schema(tasks=MANY),
        band=0.7,
    ),
    Case(
        multitask.SharedBottom,
        {
            "dim": 6,
            "hidden": (12, 8),
            "towers": (8, 4),
            "norm": "batch",
            "dropout": 0.1,
            "detach": ("stay",),
            "history": "attention",
            "trunk": partial(ranking.WideDeep, hidden=(12,)),
        },
        testing.schema(tasks=MANY),
        band=0.7,
    ),
    Case(
        multitask.ESMM,
        {
            "dim": 6,
            "hidden": (16, 8),
            "norm": "batch",
            "dropout": 0.1,
            "history": "attention",
            "trunk": partial(multitask.SharedBottom, hidden=(12,), towers=(6,)),
        },
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
        {
            "dim": 6,
            "hidden": (12, 8),
            "temperature": 0.2,
            "history": "sum",
            "dropout": 0.1,
            "examples_per_user": 3,
            "senet": True,
            "loss": "nce",
            "memory": 16,
        },
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
        retrieval.GRU4Rec,
        {
            "dim": 8,
            "layers": 2,
            "dropout": 0.1,
            "loss": "bpr_max",
            "negatives": 8,
            "alpha": 0.25,
            "constrained": False,
        },
        IDS,
        band=0.5,
        unread=("user_id",),
    ),
    Case(
        retrieval.BERT4Rec,
        {"dim": 8, "layers": 1, "heads": 4, "dropout": 0.1, "hidden": 0.4, "loss": "sampled_softmax", "negatives": 8},
        IDS,
        band=0.5,
        unread=("user_id",),
    ),
    Case(
        retrieval.HSTU,
        {"dim": 8, "layers": 1, "heads": 2, "dropout": 0.1, "temperature": 0.2, "loss": "gbce", "negatives": 8},
        IDS,
        band=0.5,
        unread=("user_id",),
    ),
    Case(
        retrieval.LatentCross,
        {
            "dim": 8,
            "context": ("hour", "age"),
            "place": "after",
            "dropout": 0.1,
            "loss": "sampled_softmax",
            "negatives": 8,
        },
        band=0.5,
        unread=("user_id", "likes", "favourite", "genre", "title", "price", "image"),
    ),
    Case(
        retrieval.STAMP,
        {"dim": 8, "loss": "sampled_softmax", "negatives": 8},
        IDS,
        band=0.5,
        unread=("user_id",),
    ),
    Case(
        retrieval.MIND,
        {"dim": 8, "interests": 3, "iterations": 2, "hidden": (12,), "loss": "softmax", "negatives": 8},
        band=0.5,
        unread=("user_id", "hour", "genre", "title", "price", "image"),
    ),
    Case(
        retrieval.ComiRecDR,
        {"dim": 8, "interests": 3, "iterations": 2, "loss": "softmax", "negatives": 8},
        IDS,
        band=0.5,
        unread=("user_id",),
    ),
    Case(
        retrieval.ComiRecSA,
        {"dim": 8, "interests": 3, "loss": "softmax", "negatives": 8},
        IDS,
        band=0.5,
        unread=("user_id",),
    ),
    Case(
        retrieval.SDM,
        {
            "dim": 8,
            "heads": 3,
            "gap": 90.0,
            "session": 2,
            "dropout": 0.1,
            "loss": "softmax",
            "negatives": 8,
        },
        band=0.5,
        unread=("user_id", "hour", "genre", "title", "price", "image"),
    ),
    Case(
        retrieval.YouTubeDNN,
        {
            "dim": 8,
            "hidden": (16, 8),
            "dropout": 0.1,
            "examples": 3,
            "loss": "softmax",
            "negatives": 8,
            "alpha": 0.5,
        },
        band=0.5,
        unread=("user_id", "genre", "title", "price", "image"),
    ),
    Case(
        retrieval.DFN,
        {
            "feedback": ("watched", "passed", "disliked"),
            "dim": 6,
            "width": 8,
            "heads": 4,
            "hidden": (12, 8),
            "temperature": 0.2,
            "triplet": 0.5,
            "margin": 0.2,
            "dropout": 0.1,
        },
        FEEDBACK,
        lists=5,
    ),
    Case(
        retrieval.YouTubeSBC,
        {
            "dim": 6,
            "hidden": (12, 8),
            "temperature": 0.2,
            "history": "sum",
            "dropout": 0.1,
            "task": "click",
            "buckets": 512,
            "hashes": 3,
            "rate": 0.05,
        },
        band=0.7,
    ),
    Case(
        retrieval.TDM,
        {
            "dim": 8,
            "hidden": (16, 8),
            "windows": (1, 2, 4),
            "negatives": 4,
            "leaf_negatives": 8,
            "beam": 5,
            "tree": "genre",
            "rounds": 2,
            "sample": 0.5,
        },
        IDS,
        band=0.5,
        unread=("user_id",),
        exempt={"two_sides": "a network scores the pair"},
    ),
    Case(
        retrieval.HierarchicalTwoTower,
        {
            "dim": 6,
            "hidden": (12, 8),
            "width": 5,
            "aggregate": "attention",
            "temperature": 0.2,
            "history": "sum",
            "dropout": 0.1,
        },
    ),
    Case(
        retrieval.PolyEncoder,
        {"dim": 8, "codes": 3, "layers": 1, "heads": 2, "dropout": 0.1, "negatives": 16},
        IDS,
        band=0.5,
        unread=("user_id",),
        exempt={"two_sides": "a candidate attends to all of its vectors; an index searches the nearest"},
    ),
    Case(
        retrieval.EBR,
        {
            "dim": 6,
            "hidden": (12, 8),
            "margin": 0.4,
            "weights": (0.7, 0.4),
            "hard": (0, 1),
            "history": "sum",
            "dropout": 0.1,
        },
        lists=5,
    ),
    Case(
        retrieval.MOBIUS,
        {
            "dim": 6,
            "hidden": (12, 8),
            "width": 5,
            "temperature": 0.3,
            "bid": "price",
            "relevance": 0.3,
            "bad": 2.0,
            "history": "sum",
            "dropout": 0.1,
        },
        exempt=dict.fromkeys(
            ("names", "no_numbers", "keys_only", "learns"), "the bid names its column; the row without one"
        ),
    ),
    Case(
        retrieval.MOBIUS,
        {
            "dim": 6,
            "hidden": (12, 8),
            "width": 5,
            "temperature": 0.3,
            "bid": None,
            "relevance": 0.3,
            "bad": 2.0,
            "history": "max",
            "dropout": 0.0,
        },
        exempt=SECOND,
        label="free",
    ),
    Case(
        retrieval.DAT,
        {
            "dim": 6,
            "hidden": (12, 8),
            "temperature": 0.3,
            "mimic": 0.2,
            "aligned": ("item_id",),
            "alignment": 0.1,
            "history": "sum",
            "dropout": 0.1,
        },
    ),
    Case(
        retrieval.DeepRetrieval,
        {
            "dim": 8,
            "hidden": (16,),
            "windows": (1, 2, 4),
            "depth": 2,
            "nodes": 4,
            "paths": 2,
            "beam": 5,
            "penalty": 0.1,
            "decay": 0.9,
            "loss": "sampled_softmax",
            "negatives": 8,
        },
        IDS,
        band=0.5,
        unread=("user_id",),
    ),
    Case(
        retrieval.EntireSpaceTower,
        {
            "dim": 6,
            "hidden": (12, 8),
            "temperature": 0.2,
            "exposure": 0.5,
            "product": 0.5,
            "history": "sum",
            "dropout": 0.1,
        },
        lists=5,
    ),
    Case(
        retrieval.LightGCN,
        {"dim": 8, "layers": 2, "weight_decay": 1e-3},
        testing.keys_only(testing.schema()),
        lists=5,
        prepare=edges,
    ),
    Case(
        retrieval.SimGCL,
        {"dim": 8, "layers": 2, "contrast": 0.05, "noise": 0.05, "temperature": 0.3, "weight_decay": 1e-3},
        testing.keys_only(testing.schema()),
        lists=5,
        prepare=edges,
        exempt={
            "learns": "without a layer 0 nodes of equal neighbours are one; see tests/retrieval/test_graph_models.py"
        },
    ),
    Case(
        retrieval.NGCF,
        {"dim": 8, "hidden": (6, 4), "dropout": 0.2, "weight_decay": 1e-3},
        testing.keys_only(testing.schema()),
        lists=5,
        prepare=edges,
    ),
    Case(
        retrieval.PinSage,
        {"dim": 8, "layers": 1, "neighbours": 3, "steps": 50, "negatives": 40, "margin": 0.5, "seed": 3},
        band=0.2,
        prepare=surroundings,
        unread=UNREAD_ITEMS,
    ),
    Case(
        retrieval.RCF,
        {
            "dim": 8,
            "features": ("genre",),
            "attention": 6,
            "hidden": (12,),
            "dropout": 0.2,
            "smoothing": 0.7,
            "relation_weight": 0.1,
        },
        lists=5,
        prepare=relations,
        unread=UNREAD,
        exempt={"two_sides": "what is near depends on the target"},
    ),
    Case(
        retrieval.TIGER,
        {
            "dim": 8,
            "layers": 1,
            "heads": 2,
            "hidden": 12,
            "dropout": 0.2,
            "levels": 2,
            "codes": 6,
            "quantizer_steps": 5,
            "beam": 3,
            "seed": 3,
        },
        IDS,
        band=0.5,
        prepare=digits,
        unread=("user_id",),
        exempt={"two_sides": "codes are written one after the other"},
    ),
    Case(
        retrieval.PDN,
        {
            "dim": 6,
            "hidden": (12, 8),
            "path_hidden": (10, 6),
            "triggers": 4,
            "neighbours": 5,
            "bias": ("hour",),
        },
        prepare=paths,
        unread=("hour",),
        exempt={"two_sides": "paths are more than two sides"},
    ),
    Case(
        retrieval.DropoutNet,
        {"dim": 8, "width": 6, "hidden": (32, 16), "dropout": 0.2},
        prepare=preferences,
    ),
    Case(
        retrieval.MeLU,
        {"dim": 6, "hidden": (16, 8), "steps": 2, "local_lr": 0.5, "second_order": False, "queries": 3},
        band=0.5,
        unread=("user_id", "item_id", "title", "price", "image"),
        exempt={"two_sides": "a network scores the pair"},
    ),
    Case(
        retrieval.MetaEmbedding,
        {
            "base": partial(retrieval.DSSM, dim=6, hidden=(12, 8), temperature=0.2),
            "hidden": (8,),
            "alpha": 0.2,
            "warm_lr": 0.1,
            "epochs": 2,
        },
    ),
    Case(
        retrieval.CMN,
        {"dim": 8, "hops": 3, "neighbours": 4, "seed": 3},
        testing.keys_only(testing.schema()),
        lists=5,
        prepare=neighbourhoods,
        exempt={"two_sides": "a network scores the pair"},
    ),
    Case(
        retrieval.DUPN,
        {
            "dim": 8,
            "properties": ("genre",),
            "attention": 6,
            "dropout": 0.1,
            "loss": "softmax",
            "negatives": 8,
        },
        band=0.5,
        unread=("user_id", "genre", "title", "price", "image"),
    ),
    Case(
        retrieval.UltraGCN,
        {
            "dim": 8,
            "negatives": 50,
            "negative_weight": 3.0,
            "constraints": (1.0, 0.1, 0.5, 0.2),
            "neighbours": 4,
            "item_weight": 0.1,
            "l2": 0.01,
        },
        testing.keys_only(testing.schema()),
        lists=5,
        band=0.5,
        prepare=constraints,
    ),
    Case(
        retrieval.Popularity,
        {"half_life": 3.0, "segment": "user_id", "prior": 5.0, "task": "click"},
        band=0,
        exempt={"counted_arguments": "trending and a segment exclude each other"},
    ),
    Case(
        retrieval.Popularity,
        {"half_life": 30.0, "trending": 3.0},
        band=0,
        exempt={"counted_arguments": "a second row"},
        label="trending",
    ),
    Case(
        retrieval.ContentBased,
        {
            "features": ("genre",),
            "weighting": "bm25",
            "k1": 2.0,
            "b": 0.5,
            "history": "watched",
            "last": 4,
            "decay": 0.9,
        },
    ),
    Case(
        retrieval.TriggerExpansion,
        {"via": "genre", "neighbours": 9, "task": "click", "history": "watched", "last": 4, "decay": 0.9},
    ),
    Case(
        retrieval.UserCF,
        {
            "neighbours": 5,
            "item_weight": "one",
            "min_items": 1,
            "max_items": 50,
            "task": "click",
            "history": "watched",
            "last": 4,
            "decay": 0.9,
        },
    ),
    Case(
        retrieval.ETREC,
        {
            "similarity_type": "asymcosine",
            "top_n": 9,
            "min_user_behavior": 1,
            "max_user_behavior": 50,
            "alpha": 0.3,
            "weight": 2.0,
            "normalise": "max",
            "task": "click",
            "history": "watched",
            "last": 4,
            "decay": 0.9,
        },
    ),
    Case(
        retrieval.CoVisitation,
        {
            "gap": 50.0,
            "half_life": 20.0,
            "backward": 0.5,
            "window": 4,
            "neighbours": 9,
            "normalise": "max",
            "task": "click",
            "history": "watched",
            "last": 4,
            "decay": 0.9,
        },
    ),
    Case(
        retrieval.Pixie,
        {
            "steps": 500,
            "restart": 0.3,
            "enough_items": 10,
            "enough_visits": 3,
            "min_items": 1,
            "max_items": 50,
            "task": "click",
            "history": "watched",
            "last": 4,
            "decay": 0.9,
            "seed": 3,
        },
    ),
    Case(
        retrieval.MF,
        {
            "dim": 8,
            "solver": "als",
            "implicit": False,
            "epochs": 10,
            "lr": 0.02,
            "l2": 0.02,
            "task": "click",
            "seed": 3,
        },
        testing.keys_only(testing.schema()),
        band=0.5,
        exempt={"arguments": "SVD++, implicit=True, is trained by the other solver"},
    ),
    Case(
        retrieval.MF,
        {"dim": 8, "implicit": True, "epochs": 30, "lr": 0.02, "task": "click"},
        testing.keys_only(testing.schema()),
        band=0.5,
        exempt={"arguments": "a second row"},
        label="SVD++",
    ),
    Case(
        retrieval.BPR,
        {
            "dim": 8,
            "sampling": "user",
            "epochs": 3,
            "lr": 0.1,
            "l2": 0.001,
            "task": "click",
            "seed": 3,
        },
        testing.keys_only(testing.schema()),
        lists=5,
    ),
    Case(retrieval.GMF, {"dim": 6}, testing.keys_only(testing.schema())),
    Case(
        retrieval.NeuMF,
        {"dim": 6, "mlp_dim": 10, "hidden": (12, 6)},
        testing.keys_only(testing.schema()),
        exempt={"two_sides": "a network scores the pair"},
    ),
    Case(
        retrieval.iALS,
        {
            "dim": 6,
            "iterations": 9,
            "regularisation": 0.01,
            "unobserved": 0.3,
            "exponent": 0.5,
            "block": 4,
            "task": "click",
            "history": "watched",
            "seed": 3,
        },
    ),
    Case(retrieval.EASE, {"l2": 20.0, "task": "click", "history": "watched"}),
    Case(retrieval.SLIM, {"l1": 0.5, "l2": 2.0, "task": "click", "history": "watched"}),
    Case(retrieval.GFCF, {"rank": 8, "alpha": 0.5, "task": "click", "history": "watched", "seed": 3}),
    Case(
        retrieval.Item2Vec,
        {
            "dim": 8,
            "window": 9,
            "shuffle": False,
            "gap": 500.0,
            "negatives": 4,
            "subsample": 0.5,
            "epochs": 9,
            "lr": 0.1,
            "task": "click",
            "history": "watched",
            "last": 4,
            "decay": 0.9,
            "seed": 3,
        },
    ),
    Case(
        retrieval.AirbnbEmbeddings,
        {
            "booking": "click",
            "market": "item_id",
            "gap": 500.0,
            "copies": 2,
            "dim": 8,
            "window": 9,
            "negatives": 4,
            "market_negatives": 1,
            "epochs": 9,
            "lr": 0.1,
            "task": "click",
            "history": "watched",
            "last": 4,
            "decay": 0.9,
            "seed": 3,
        },
    ),
    *(
        Case(model, {**WALKS, **more})
        for model, more in ((retrieval.BGE, {}), (retrieval.GES, SIDE), (retrieval.EGES, SIDE))
    ),
    Case(
        retrieval.RPG,
        {
            "scorer": retrieval.ItemCF,
            "probes": 9,
            "links": 3,
            "effort": 6,
            "entries": 2,
            "step": 2,
            "task": "click",
            "seed": 3,
        },
    ),
    Case(
        retrieval.ItemCF,
        {
            "similarity": "jaccard",
            "exponent": 0.5,
            "user_weight": "log",
            "shrinkage": 0.5,
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
