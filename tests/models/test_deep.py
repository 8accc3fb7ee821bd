"""Deep ranking models against published parameter counts and their papers' equations written out."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.features.derived import crossed
from recstack.models.ranking import (
    AFN,
    DLRM,
    FM,
    FNN,
    IPNN,
    KPNN,
    LR,
    NFM,
    OPNN,
    PIN,
    AutoInt,
    DeepCrossing,
    TextMLP,
    WideDeep,
)
from recstack.nn.interaction.attention import FieldAttention
from recstack.nn.interaction.products import KERNELS, KernelProducts, PairNetworks, inner_products, outer_product
from recstack.schema import Categorical, History, Numeric, Schema, Task, Text
from recstack.training.optimizers import route

# The published counts are of Frappe: ten fields, 5,389 ids with one extra row a field. An arena has one padding row more.
SIZES = (958, 4083, 8, 8, 3, 3, 10, 81, 234, 11)
FRAPPE = Schema([Categorical(f"f{i}", size=n) for i, n in enumerate(SIZES)], [Task("click")])
CLICK = (Task("click"),)
V, D, PAIRS, WIDE = 5_389, 10, 45, (400, 400, 400)
SMALL = {
    AFN: {"neurons": 5, "hidden": (6,), "deep": (4,)},
    AutoInt: {"width": 6, "hidden": (4,)},
    DLRM: {"bottom": (4,), "hidden": (4,)},
    DeepCrossing: {"hidden": (4, 3)},
    FNN: {"hidden": (4,)},
    IPNN: {"hidden": (4,)},
    KPNN: {"hidden": (4,)},
    NFM: {"hidden": (4,), "dim": 10},
    OPNN: {"hidden": (4,)},
    PIN: {"hidden": (8,), "pair_hidden": (16, 8)},  # narrower ones may be dead at random
    TextMLP: {"hidden": (4,)},
    WideDeep: {"hidden": (4,)},
}


def mlp(width: int, *hidden: int, norm: bool = False) -> int:
    """Parameters of an MLP and its head, written out."""
    layers = sum(i * o + o + 2 * o * norm for i, o in itertools.pairwise((width, *hidden)))
    return layers + hidden[-1] + 1


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("build", "published", "padding"),
    [
        (lambda: NFM(FRAPPE, dim=10, hidden=WIDE, norm=None), 384_880, 11),
        (lambda: TextMLP(FRAPPE, dim=10, hidden=WIDE), 417_891, 10),
        (lambda: DLRM(FRAPPE, dim=10, interaction="cat", hidden=WIDE, norm="batch"), 417_891, 10),
        (lambda: WideDeep(FRAPPE, dim=10, hidden=WIDE, norm="batch"), 423_280, 11),
        (lambda: IPNN(FRAPPE), 433_491, 10),
        (lambda: AutoInt(FRAPPE, dim=10, layers=6, width=128, heads=4), 306_051, 10),
        (
            lambda: AutoInt(
                FRAPPE, dim=10, layers=5, width=128, heads=4, scale=True, layer_norm=True, hidden=WIDE, norm="batch"
            ),
            622_180,
            10,
        ),
        (lambda: AFN(FRAPPE, neurons=1000, hidden=(400,)), 4_066_711, 10),
        (lambda: AFN(FRAPPE, neurons=1000, hidden=(400,), deep=WIDE), 4_482_205, 20),
    ],
    ids=["NFM", "DNN", "DLRM-cat", "Wide&Deep", "IPNN", "AutoInt", "AutoInt+", "AFN", "AFN+"],
)
def test_parameters_are_as_many_as_published(build, published, padding):
    assert sum(n - 1 for n in SIZES) == V
    assert count(build()) == published + padding


@pytest.mark.parametrize(
    ("build", "formula"),
    [
        (lambda: FNN(FRAPPE), (V + 1) * (D + 1) + mlp(10 * (D + 1), 200, 300, 100)),
        (lambda: OPNN(FRAPPE), (V + 1) * D + mlp(10 * D + D * (D + 1) // 2, *WIDE)),
        (lambda: KPNN(FRAPPE), (V + 1) * D + PAIRS * D * D + mlp(10 * D + PAIRS, *WIDE)),
        (lambda: KPNN(FRAPPE, kernel="vector"), (V + 1) * D + PAIRS * D + mlp(10 * D + PAIRS, *WIDE)),
        (lambda: KPNN(FRAPPE, kernel="number"), (V + 1) * D + PAIRS + mlp(10 * D + PAIRS, *WIDE)),
        (lambda: PIN(FRAPPE), (V + 1) * D + PAIRS * (30 * 40 + 40 + 40 * 5 + 5) + mlp(PAIRS * 5, *WIDE)),
        (lambda: DLRM(FRAPPE, dim=10), (V + 1) * D + mlp(PAIRS, 512, 256)),
        (lambda: DeepCrossing(FRAPPE, dim=10, hidden=(9, 5)), (V + 1) * D + 2 * 100 * 14 + 14 + 2 * 100 + 101),
        (
            lambda: WideDeep(FRAPPE, dim=10, crosses=(("f0", "f1"), ("f0", "f2", "f3")), buckets=7),
            (V + 1) * (D + 1) + 2 * 7 + 1 + mlp(100, 1024, 512, 256),
        ),
    ],
    ids=["FNN", "OPNN", "KPNN", "KPNN-vector", "KPNN-number", "PIN", "DLRM-dot", "DeepCrossing", "Wide&Deep-crosses"],
)
def test_parameters_are_as_many_as_the_equation_has(build, formula):
    assert count(build()) == formula


# -- schemas ----------------------------------------------------------------------------------------------------------
def mixed(tasks=CLICK) -> tuple[Schema, dict[str, torch.Tensor]]:
    schema = Schema(
        [
            Categorical("user", "user", size=5),
            Categorical("item", "item", size=7),
            Numeric("price", "item"),
            Numeric("age", "user"),
        ],
        tasks,
    )
    return schema, testing.batch(schema, 3, 2)


def logit(model, hidden: torch.Tensor) -> torch.Tensor:
    return model.heads.layers["click"](hidden).squeeze(-1)


@pytest.mark.parametrize("model", SMALL, ids=lambda m: m.__name__)
@pytest.mark.parametrize(
    "kind", ["numbers", "numbers of requests", "ids", "ids of items, numbers of users", "requests"]
)
def test_schemas_of_one_kind_of_feature_work(model, kind):
    features = {
        "numbers": [Numeric("price", "item"), Numeric("age", "user")],
        "numbers of requests": [Numeric("age", "user"), Numeric("rain", "context")],
        "ids": [Categorical("user", "user", size=5), Categorical("item", "item", size=7)],
        "ids of items, numbers of users": [Categorical("item", "item", size=7), Numeric("age", "user")],
        "requests": [Categorical("user", "user", size=5), Numeric("price", "item")],
    }[kind]
    schema = Schema(features, [Task("click")])
    torch.manual_seed(0)
    built, batch = testing.wake(model(schema, **SMALL[model])), testing.batch(schema, 3, 2)
    wanted = (3, 1) if kind == "numbers of requests" else (3, 2)
    logits = built(batch)["click"]
    assert logits.shape == wanted
    assert logits.isfinite().all()
    assert logits.std() > 1e-5


@pytest.mark.parametrize("model", SMALL, ids=lambda m: m.__name__)
def test_tasks_of_every_kind_are_answered(model):
    tasks = (
        Task("click"),
        Task("order", given="click"),
        Task("ordered", product=("click", "order")),
        Task("stay", kind="regression"),
        Task("shelf", kind="multiclass", classes=3),
    )
    schema, batch = mixed(tasks)
    logits = testing.wake(model(schema, **SMALL[model]))(batch)
    assert {n: tuple(v.shape) for n, v in logits.items()} == {
        "click": (3, 2),
        "order": (3, 2),
        "ordered": (3, 2),
        "stay": (3, 2),
        "shelf": (3, 2, 3),
    }
    torch.testing.assert_close(
        logits["ordered"].sigmoid(), logits["click"].sigmoid() * logits["order"].sigmoid(), rtol=1e-4, atol=1e-5
    )


# -- products ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("diagonal", [False, True])
def test_inner_products_are_those_of_all_pairs_in_order(diagonal):
    v = torch.randn(2, 3, 5, 4)
    pairs = [(i, j) for i in range(5) for j in range(i, 5) if diagonal or i < j]
    slow = torch.stack([(v[..., i, :] * v[..., j, :]).sum(-1) for i, j in pairs], -1)
    torch.testing.assert_close(inner_products(v, diagonal), slow)
    assert inner_products(v.bfloat16()).dtype == torch.float32
    assert inner_products(v[..., :1, :]).shape == (2, 3, 0)


def test_the_outer_product_is_the_sum_over_all_pairs():
    v = torch.randn(2, 5, 4)
    slow = sum(v[:, i, :, None] * v[:, j, None, :] for i in range(5) for j in range(5))
    torch.testing.assert_close(
        outer_product(v), torch.stack([slow[:, i, j] for i in range(4) for j in range(i, 4)], -1)
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_products_by_a_loop_and_inner_products_before_training(kernel):
    block, v = KernelProducts(4, 3, kernel), torch.randn(2, 5, 4, 3)
    torch.testing.assert_close(block(v), inner_products(v))
    block.weight.data.normal_()
    slow = []
    for p, (i, j) in enumerate(itertools.combinations(range(4), 2)):
        w = block.weight[p]
        w = w if kernel == "matrix" else torch.diag(w) if kernel == "vector" else w * torch.eye(3)
        slow.append(torch.einsum("rld,de,rle->rl", v[:, :, i], w, v[:, :, j]))
    torch.testing.assert_close(block(v), torch.stack(slow, -1))


def test_pair_networks_are_one_network_a_pair():
    block, v = PairNetworks(4, 3, (5, 2)), torch.randn(2, 6, 4, 3)
    block.biases[0].data.normal_()
    slow = []
    for p, (i, j) in enumerate(itertools.combinations(range(4), 2)):
        x = torch.cat([v[:, :, i], v[:, :, j], v[:, :, i] * v[:, :, j]], -1)
        for weight, bias in zip(block.weights, block.biases, strict=True):
            x = (x @ weight[p] + bias[p]).relu()
        slow.append(x)
    torch.testing.assert_close(block(v), torch.cat(slow, -1))
    assert block.width == 12


@pytest.mark.parametrize("model", [IPNN, OPNN, KPNN, PIN], ids=lambda m: m.__name__)
def test_product_networks_read_embeddings_and_products(model):
    schema, batch = mixed()
    built = testing.wake(model(schema, dim=3, **SMALL[model]))
    v = built.inputs(batch).stack()
    products = {IPNN: inner_products, OPNN: outer_product}.get(model) or built.products
    x = products(v) if model is PIN else torch.cat([v.flatten(-2), products(v)], -1)
    torch.testing.assert_close(built(batch)["click"], logit(built, built.mlp(x)))


def test_kpnn_begins_at_ipnn():
    schema, batch = mixed()
    kpnn = KPNN(schema, dim=3, hidden=(4,)).eval()
    ipnn = IPNN(schema, dim=3, hidden=(4,)).eval()
    ipnn.load_state_dict({k: v for k, v in kpnn.state_dict().items() if k != "products.weight"})
    torch.testing.assert_close(kpnn(batch)["click"], ipnn(batch)["click"])


def test_pin_says_that_it_reads_pairs():
    with pytest.raises(SchemaError, match="fewer than two"):
        PIN(Schema([Categorical("item", "item", size=7)], [Task("click")]))


def test_a_kernel_is_guessed():
    with pytest.raises(ConfigError, match="Did you mean 'matrix'"):
        KPNN(mixed()[0], kernel="matrx")


# -- attention --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("width", [4, 6])
def test_field_attention_by_a_loop(scale, width):
    block, x = FieldAttention(4, width, 2, scale=scale, norm=True).eval(), torch.randn(2, 3, 5, 4)
    q, k, v = (F.linear(x, w) for w in block.project.weight.chunk(3))
    slow = torch.zeros(2, 3, 5, width)
    each = width // 2
    for h in range(2):
        part = slice(h * each, (h + 1) * each)
        for f in range(5):
            score = torch.stack([(q[..., f, part] * k[..., g, part]).sum(-1) for g in range(5)], -1)
            weight = (score / each**0.5 if scale else score).softmax(-1)
            slow[..., f, part] = sum(weight[..., g, None] * v[..., g, part] for g in range(5))
    residual = x if width == 4 else F.linear(x, block.residual.weight)
    torch.testing.assert_close(block(x), F.layer_norm(slow + residual, (width,)).relu(), atol=1e-5, rtol=1e-4)


def test_field_attention_without_a_residual_forgets_the_field_itself():
    block, x = FieldAttention(4, 4, residual=False), torch.randn(2, 5, 4)
    block.project.weight.data[:4] = 0  # no query: all fields attend alike
    torch.testing.assert_close(block(x), block(x)[:, :1].expand(2, 5, 4))
    assert [n for n, _ in block.named_parameters()] == ["project.weight"]


def test_field_attention_refuses_heads_that_do_not_divide():
    with pytest.raises(ConfigError, match="3 heads for a width of 8"):
        AutoInt(mixed()[0], width=8, heads=3)


def test_autoint_plus_is_autoint_and_an_mlp_over_the_same_embeddings():
    schema, batch = mixed()
    plus = testing.wake(AutoInt(schema, dim=3, layers=2, width=4, hidden=(5,)))
    fields = x = plus.inputs(batch).stack()
    for layer in plus.layers:
        x = layer(x)
    alone = AutoInt(schema, dim=3, layers=2, width=4).eval()
    alone.load_state_dict({k: v for k, v in plus.state_dict().items() if k in alone.state_dict()})
    torch.testing.assert_close(alone(batch)["click"], logit(plus, x.flatten(-2)))
    deep = plus.deep_heads.layers["click"](plus.mlp(fields.flatten(-2))).squeeze(-1)
    torch.testing.assert_close(plus(batch)["click"], alone(batch)["click"] + deep)


# -- logarithms -------------------------------------------------------------------------------------------------------
def test_afn_multiplies_powers_of_fields():
    schema, batch = mixed()
    model = AFN(schema, dim=3, neurons=4, hidden=(5,)).eval()
    for tables in model.inputs.tables.items():
        torch.nn.init.normal_(tables[1].weight.data[1:])
    v = model.inputs(batch).stack().abs()  # [R, L, F, D]
    v = v ** (1 / (1 + 1e-5) ** 0.5)  # the first norm, with its fresh statistics
    a = model.crosses.powers.weight
    crosses = torch.stack([(v ** a[n][:, None]).prod(-2) for n in range(4)], -1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(model(batch)["click"], logit(model, model.mlp(crosses.flatten(-2))))


def test_afn_of_zeros_is_finite():
    schema, batch = mixed()
    model = AFN(schema, dim=3, neurons=4, hidden=(5,))
    for p in model.inputs.parameters():
        p.data.zero_()
    model.losses(batch)["click"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_afn_plus_weighs_afn_and_an_mlp_with_tables_of_its_own():
    schema, batch = mixed()
    plus = testing.wake(AFN(schema, dim=3, neurons=4, hidden=(5,), deep=(6,)))
    alone = AFN(schema, dim=3, neurons=4, hidden=(5,)).eval()
    alone.load_state_dict({k: v for k, v in plus.state_dict().items() if k in alone.state_dict()})
    deep = plus.deep_mlp(plus.deep_inputs(batch).stack().flatten(-2))
    other = plus.deep_heads.layers["click"](deep).squeeze(-1)
    (w, u), b = plus.join["click"].weight[0], plus.join["click"].bias
    torch.testing.assert_close(plus(batch)["click"], w * alone(batch)["click"] + u * other + b)


# -- machines and their networks --------------------------------------------------------------------------------------
def test_nfm_by_the_equation():
    schema, batch = mixed()
    model = testing.wake(NFM(schema, dim=3, hidden=(4,)))
    v = model.inputs(batch).stack()
    pairs = sum(v[..., i, :] * v[..., j, :] for i, j in itertools.combinations(range(4), 2))
    deep = logit(model, model.mlp(model.norm(pairs)))
    torch.testing.assert_close(model(batch)["click"], model.first_order(batch) + deep)


def test_nfm_without_an_mlp_is_fm():
    schema, batch = mixed()
    fm, nfm = testing.wake(FM(schema, dim=3)), NFM(schema, dim=3, hidden=(), norm=None).eval()
    nfm.inputs.load_state_dict(fm.inputs.state_dict())
    nfm.first_order.load_state_dict(fm.first_order["click"].state_dict())
    torch.nn.init.ones_(nfm.heads.layers["click"].weight)
    nfm.heads.layers["click"].bias.data.copy_(fm.heads.layers["click"].bias)
    torch.testing.assert_close(nfm(batch)["click"], fm(batch)["click"])


@pytest.mark.parametrize("schema", [mixed()[0], testing.schema()], ids=["small", "every kind"])
def test_fnn_starts_from_the_weights_and_vectors_of_fm(schema):
    batch = testing.batch(schema, 3, 2)
    fm, fnn = testing.wake(FM(schema, dim=3)), FNN(schema, dim=3, hidden=(4,)).eval()
    assert fnn.start_from_fm(fm) is fnn
    torch.testing.assert_close(fnn.inputs(batch).stack(), fm.inputs(batch).stack())
    weights = fnn._weights(batch)
    assert weights.shape == (3, 2, len(schema.features))
    torch.testing.assert_close(weights.sum(-1), fm.first_order["click"](batch))
    x = torch.cat([weights, fm.inputs(batch).stack().flatten(-2)], -1)
    torch.testing.assert_close(fnn(batch)["click"], logit(fnn, fnn.mlp(x)))


def test_fnn_starts_with_the_weights_of_the_task_that_is_named():
    schema, batch = mixed((Task("click"), Task("like")))
    fm, fnn = testing.wake(FM(schema, dim=3)), FNN(schema, dim=3, hidden=(4,)).eval()
    for task in ("like", "click"):
        weights = fnn.start_from_fm(fm, task)._weights(batch)
        torch.testing.assert_close(weights.sum(-1), fm.first_order[task](batch))


def test_fnn_says_why_it_cannot_start():
    schema = mixed()[0]
    fnn = FNN(schema, dim=3, hidden=(4,))
    with pytest.raises(ConfigError, match="got LR"):
        fnn.start_from_fm(LR(schema))
    with pytest.raises(ConfigError, match="have length 4"):
        fnn.start_from_fm(FM(schema, dim=4))
    with pytest.raises(SchemaError, match="other features"):
        fnn.start_from_fm(FM(schema.without("price"), dim=3))
    with pytest.raises(ConfigError, match="Did you mean 'click'"):
        fnn.start_from_fm(FM(schema, dim=3), "clik")


def test_deep_crossing_by_the_equation():
    schema, batch = mixed()
    model = testing.wake(DeepCrossing(schema, dim=3, hidden=(5, 4)))
    x = model.inputs(batch).flat()
    for unit in model.units:
        first, last = unit[0], unit[-1]
        x = (x + (x @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias).relu()
    torch.testing.assert_close(model(batch)["click"], logit(model, x))


@pytest.mark.parametrize("self_interaction", [False, True])
def test_dlrm_by_the_equation(self_interaction):
    schema, batch = mixed()
    model = testing.wake(DLRM(schema, dim=3, bottom=(5,), hidden=(4,), self_interaction=self_interaction))
    numbers = torch.stack([batch["age"].unsqueeze(1).expand(3, 2), batch["price"]], -1)  # the request's come first
    first, second = model.bottom.first, model.bottom.rest[1]
    number = ((numbers @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias).relu()
    ids = model.inputs(batch).stack()
    vectors = [number, ids[:, :, 0], ids[:, :, 1]]
    pairs = [(i, j) for i in range(3) for j in range(i, 3) if self_interaction or i < j]
    x = torch.cat([number, *((vectors[i] * vectors[j]).sum(-1, keepdim=True) for i, j in pairs)], -1)
    torch.testing.assert_close(model(batch)["click"], logit(model, model.mlp(x)))


def test_dlrm_cat_is_an_mlp_over_all_vectors():
    schema, batch = mixed()
    model = testing.wake(DLRM(schema, dim=3, bottom=(5,), interaction="cat", hidden=(4,)))
    numbers = torch.stack([batch["age"].unsqueeze(1).expand(3, 2), batch["price"]], -1)
    x = torch.cat([model.bottom(numbers), model.inputs(batch).stack().flatten(-2)], -1)
    torch.testing.assert_close(model(batch)["click"], logit(model, model.mlp(x)))


def test_dlrm_says_what_it_cannot_do():
    with pytest.raises(ConfigError, match="Did you mean 'cat'"):
        DLRM(mixed()[0], interaction="cut")
    with pytest.raises(SchemaError, match="no pair"):
        DLRM(Schema([Categorical("item", "item", size=7)], [Task("click")]))


# -- text -------------------------------------------------------------------------------------------------------------
def test_text_is_the_mean_of_its_words_in_any_order_and_empty_text_is_zeros():
    schema = Schema([Categorical("item", "item", size=7), Text("title", "item", buckets=10, size=12)], [Task("click")])
    model = testing.wake(TextMLP(schema, dim=3, hidden=(4,)))
    batch = {"item": torch.tensor([[1, 2]]), "title": torch.tensor([[[3, 5, 5], [0, 0, 0]]])}
    words = model.inputs.tables.weight("title")
    mean = torch.stack([(words[2] + 2 * words[4]) / 3, torch.zeros(3)])
    x = torch.cat([model.inputs.tables.weight("item")[:2], mean], -1)
    torch.testing.assert_close(model(batch)["click"][0], logit(model, model.mlp(x)))
    turned = {**batch, "title": torch.tensor([[[5, 3, 5], [0, 0, 0]]])}
    torch.testing.assert_close(model(turned)["click"], model(batch)["click"])


# -- crosses ----------------------------------------------------------------------------------------------------------
CROSSED = Schema(
    [
        Categorical("user", "user", size=50),
        Categorical("likes", "user", multi=True, size=9),
        Categorical("item", "item", size=40),
        Categorical("genre", "item", multi=True, size=9),
        History("seen", of=("item",)),
    ],
    [Task("click"), Task("like")],
)


def test_crosses_tell_combinations_apart_and_leave_out_what_is_missing():
    a, b = torch.arange(0, 50).unsqueeze(-1), torch.arange(0, 40).unsqueeze(-1)
    grid = crossed([a.repeat_interleave(40, 0), b.repeat(50, 1)], 1 << 30).view(50, 40)
    assert not grid[0].any()
    assert not grid[:, 0].any()
    live = grid[1:, 1:].flatten()
    assert live.unique().numel() == live.numel()
    assert 1 <= int(live.min()) <= int(live.max()) <= 1 << 30
    few = crossed([a.repeat_interleave(40, 0), b.repeat(50, 1)], 7).view(50, 40)[1:, 1:]
    assert few.unique().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert few.flatten().bincount()[1:].float().std() < 30  # of 273 each
    both = crossed([torch.tensor([[1, 2, 0]]), torch.tensor([[3, 0]])], 1 << 30)
    alone = [int(crossed([torch.tensor([[i]]), torch.tensor([[3]])], 1 << 30)) for i in (1, 2)]
    assert both.tolist() == [[alone[0], 0, alone[1], 0, 0, 0]]


def test_wide_and_deep_adds_a_weight_for_each_cross_that_is_there():
    crosses = (("item", "user"), ("genre", "likes"), ("seen", "item"), ("user", "likes"))
    model = testing.wake(WideDeep(CROSSED, dim=3, crosses=crosses, buckets=1000, hidden=(4,)))
    batch = testing.batch(CROSSED, 3, 2)
    plain = WideDeep(CROSSED, dim=3, hidden=(4,)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    for task in ("click", "like"):
        block = model.wide[task].crosses
        assert list(block.crosses) == ["user@item", "likes@genre", "item@seen", "user@likes"]
        slow = plain(batch)[task].clone()
        for r, l in itertools.product(range(3), range(2)):
            values = {
                "user": [batch["user"][r]],
                "likes": list(batch["likes"][r]),
                "item": [batch["item"][r, l]],
                "genre": list(batch["genre"][r, l]),
                "seen": list(batch["item@seen"][r]),
            }
            for name in block.crosses:
                first, second = name.split("@")
                for a, b in itertools.product(values[first], values[second]):
                    row = int(crossed([a.view(1, 1), b.view(1, 1)], 1000))
                    if row:
                        slow[r, l] += block.tables.weight(name)[row - 1, 0]
        torch.testing.assert_close(model(batch)[task], slow)


def test_crosses_do_not_know_how_lists_are_spelled():
    crosses = (("genre", "likes"), ("seen", "item"), ("seen", "genre", "user"))
    model = testing.wake(WideDeep(CROSSED, dim=3, crosses=crosses, buckets=100, hidden=(4,)))
    batch = testing.batch(CROSSED, 4, 3)
    for other in (testing.batches.to_jagged(batch, CROSSED), testing.batches.pad_histories(batch, CROSSED, 3)):
        torch.testing.assert_close(model(other)["click"], model(batch)["click"])


def test_crosses_do_not_care_what_columns_are_called():
    names = {"user": "type", "item": "a.b", "genre": "items", "likes": "keys", "seen": "weight"}
    other = testing.batches.rename(CROSSED, names)
    models = []
    for schema, crosses in (
        (CROSSED, (("user", "item"), ("genre", "seen"))),
        (other, (("type", "a.b"), ("items", "weight"))),
    ):
        torch.manual_seed(0)
        models.append(testing.wake(WideDeep(schema, dim=3, crosses=crosses, buckets=50, hidden=(4,))))
    wanted, found = (m(testing.batch(m.schema, 3, 2)) for m in models)
    torch.testing.assert_close(found["click"], wanted["click"])
    models[1].load_state_dict(models[1].state_dict())


def test_long_lists_in_a_cross_are_cut_to_64_combinations():
    model = testing.wake(WideDeep(CROSSED, dim=3, crosses=(("genre", "likes"),), buckets=100, hidden=(4,)))
    block = model.wide["click"].crosses
    batch = {"genre": torch.arange(1, 10).expand(3, 2, 9), "likes": torch.arange(1, 10).expand(3, 9)}
    cut = {name: ids[..., :8] for name, ids in batch.items()}
    torch.testing.assert_close(block(batch, (3, 2)), block(cut, (3, 2)))


def test_the_wide_part_has_an_optimiser_of_its_own():
    model = WideDeep(CROSSED, dim=3, crosses=(("user", "item"),), buckets=10, hidden=(4,))
    groups = {g.key: g for g in route(model, model.trainer["optimizer"])}
    assert set(groups["wide"].params) == {n for n, _ in model.named_parameters() if n.startswith("wide.")}
    assert type(groups["wide"].optimizer).__name__ == "FTRL"
    assert type(groups["default"].optimizer).__name__ == "Adagrad"


def test_wide_and_deep_says_what_a_cross_is():
    schema = mixed()[0]
    for crosses, words in (
        (("user", "item"), "tuple of several features"),
        ((("user",),), "tuple of several features"),
        ((("user", "price"),), "'price', which has no ids"),
        ((("user", "itm"),), "Did you mean 'item'"),
    ):
        with pytest.raises((ConfigError, SchemaError), match=words):
            WideDeep(schema, crosses=crosses)
