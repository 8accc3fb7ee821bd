"""Models of explicit crosses against published parameter counts and the papers' equations written out as loops."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from recstack import testing
from recstack.errors import ConfigError
from recstack.models.ranking.dcn import DCN
from recstack.models.ranking.dcnv2 import DCNv2
from recstack.models.ranking.dcnv3 import DCNv3
from recstack.models.ranking.edcn import EDCN
from recstack.models.ranking.fibinet import FiBiNET
from recstack.models.ranking.fibinetplusplus import FiBiNetPlusPlus
from recstack.models.ranking.gdcn import GDCN
from recstack.models.ranking.xdeepfm import xDeepFM
from recstack.nn.interaction.cin import CIN
from recstack.nn.interaction.cross import Cross, VectorCross
from recstack.schema import Categorical, Schema, Task

# The published counts are of Frappe: ten fields, 5,389 ids with one extra row a field. An arena has one padding row more:
# ten weights of the vectors, one of the linear part.
SIZES = (958, 4083, 8, 8, 3, 3, 10, 81, 234, 11)
FRAPPE = Schema([Categorical(f"f{i}", size=n) for i, n in enumerate(SIZES)], [Task("click")])
V, I = 5_389, 100
DEEP = I * 400 + 2 * 400 * 400 + 3 * 400 + 2 * 3 * 400  # three layers of 400 with batch normalisation, without a head
ALONE = {"structure": "stacked", "hidden": (), "norm": None}


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def world():
    schema = testing.schema()
    return schema, testing.batch(schema, 3, 2)


def head(model, hidden, heads="heads"):
    return getattr(model, heads).layers["click"](hidden).squeeze(-1)


# -- parameter counts -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "published", "padding"),
    [
        (DCN(FRAPPE), 418_591, 10),
        (DCN(FRAPPE, layers=6, **ALONE), 55_191, 10),
        (DCNv2(FRAPPE, layers=4, **ALONE), 94_391, 10),
        (xDeepFM(FRAPPE, maps=(64,), hidden=(400, 400, 400)), 429_809, 11),
        (xDeepFM(FRAPPE, maps=(64, 64, 64), hidden=()), 147_984, 11),
        (FiBiNET(FRAPPE, reduction=2), 743_480, 11),
        (EDCN(FRAPPE, temperature=5.0), 86_351, 10),
    ],
    ids=["DCN", "CrossNet", "CrossNetV2", "xDeepFM", "CIN", "FiBiNET", "EDCN"],
)
def test_parameters_are_as_many_as_published(model, published, padding):
    assert parameters(model) == published + padding


def test_parameters_of_what_has_no_published_count_follow_the_equations():
    tables = (V + 1) * 10
    gated = tables + 4 * (2 * I * I + I)
    assert parameters(GDCN(FRAPPE, layers=4)) == gated + DEEP + (I + 400) + 1
    assert parameters(GDCN(FRAPPE, layers=4, **ALONE)) == gated + I + 1
    mixture = 3 * (4 * (2 * I * 8 + 8 * 8) + I) + 4 * I  # experts and bias of each layer; the gate is shared
    assert parameters(DCNv2(FRAPPE, layers=3, rank=8, experts=4, **ALONE)) == tables + mixture + I + 1
    masked = 4 * (I * I // 2 + I // 2 + 2 * (I // 2)) + I + 1
    assert parameters(DCNv3(FRAPPE, dim=10)) == tables + 2 * masked
    pairs, squeezed = 100 + 45 * 50 + 50, 40 * (40 // 3) + (40 // 3) * I + 20
    deep = (150 * 400 + 400) + 2 * (400 * 400 + 400) + 401
    assert parameters(FiBiNetPlusPlus(FRAPPE)) == tables + 2 * I + pairs + squeezed + deep
    each, interaction = (parameters(FiBiNET(FRAPPE, reduction=2, bilinear=b)) for b in ("each", "interaction"))
    assert (each - 743_480 - 11, interaction - 743_480 - 11) == (8 * 100, 44 * 100)


# -- DCN --------------------------------------------------------------------------------------------------------------
def test_vector_cross_is_the_papers_recursion_layer_by_layer_and_at_once():
    cross = VectorCross(5, 4)
    cross.bias.data.normal_()
    start = torch.randn(3, 2, 5)
    x = y = start
    for l in range(4):
        x = start * (x * cross.weight[l]).sum(-1, keepdim=True) + cross.bias[l] + x
        y = cross.step(l, start, y)
    torch.testing.assert_close(cross(start), x)
    torch.testing.assert_close(y, x)


def test_no_vector_cross_is_the_identity():
    x = torch.randn(2, 5)
    assert torch.equal(VectorCross(5, 0)(x), x)


def test_dcn_parallel_and_stacked_by_the_equation():
    schema, batch = world()
    for structure in ("parallel", "stacked"):
        model = testing.wake(DCN(schema, dim=3, layers=2, structure=structure, hidden=(4,)))
        start = x = model.inputs(batch).flat()
        for w, b in zip(model.cross.weight, model.cross.bias, strict=True):
            x = start * (x @ w).unsqueeze(-1) + b + x
        hidden = torch.cat([x, model.mlp(start)], -1) if structure == "parallel" else model.mlp(x)
        torch.testing.assert_close(model(batch)["click"], head(model, hidden))


def test_dcn_without_layers_is_linear_in_the_embeddings():
    schema, batch = world()
    model = testing.wake(DCN(schema, dim=3, layers=0, **ALONE))
    torch.testing.assert_close(model(batch)["click"], head(model, model.inputs(batch).flat()))


@pytest.mark.parametrize("model", [DCN, GDCN])
def test_structures_are_guessed(model):
    with pytest.raises(ConfigError, match="Did you mean 'stacked'"):
        model(testing.schema(), structure="stackd")


# -- DCN V2 -----------------------------------------------------------------------------------------------------------
def test_dcnv2_of_full_rank_is_dcnv2():
    schema, batch = world()
    full = testing.wake(DCNv2(schema, dim=3, layers=2, hidden=(4,)))
    width = full.cross.width
    low = testing.wake(DCNv2(schema, dim=3, layers=2, rank=width, hidden=(4,)))
    low.load_state_dict({**low.state_dict(), **{k: v for k, v in full.state_dict().items() if "cross" not in k}})
    for layer, pair in zip(full.cross.layers, low.cross.layers, strict=True):
        u, s, v = torch.linalg.svd(layer.weight.data)
        pair[0].weight.data, pair[1].weight.data = v, u * s  # x → V x → U S V x
        pair[1].bias.data = layer.bias.data
    torch.testing.assert_close(low(batch)["click"], full(batch)["click"], rtol=1e-5, atol=1e-5)


def test_mixture_of_experts_by_the_equation():
    cross = Cross(5, 2, rank=2, experts=3)
    start = x = torch.randn(4, 5)
    for layer in cross.layers:
        layer.up.bias.data.normal_()
        gate = (x @ cross.gate.score.weight.T).softmax(-1)
        total = torch.zeros(4, 5)
        for i in range(3):
            v, c, u = layer.down.weight[2 * i : 2 * i + 2], layer.core[i], layer.up.weight[:, 2 * i : 2 * i + 2]
            h = torch.tanh(torch.tanh(x @ v.T) @ c)
            total += gate[:, i : i + 1] * (start * (h @ u.T + layer.up.bias))
        x = total + x
    torch.testing.assert_close(cross(start), x)
    torch.testing.assert_close(cross(start[:1]), x[:1])  # one row is one row


def test_equal_experts_are_one_expert():
    cross = Cross(5, 1, rank=2, experts=3)
    layer, x = cross.layers[0], torch.randn(4, 5)
    layer.down.weight.data = layer.down.weight.data[:2].repeat(3, 1)
    layer.up.weight.data = layer.up.weight.data[:, :2].repeat(1, 3)
    layer.core.data[:] = layer.core.data[:1].clone()
    h = torch.tanh(torch.tanh(x @ layer.down.weight[:2].T) @ layer.core[0])
    torch.testing.assert_close(cross(x), x * (h @ layer.up.weight[:, :2].T) + x)


def test_experts_need_a_rank():
    with pytest.raises(ConfigError, match="needs rank="):
        DCNv2(testing.schema(), experts=4)


# -- DCN V3 -----------------------------------------------------------------------------------------------------------
def masked_cross(network, x, exponential):
    start = x
    for layer, norm in zip(network.layers, network.norms, strict=True):
        c = x @ layer.weight.T + layer.bias
        n = (c - c.mean(-1, keepdim=True)) / (c.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        mask = (n * norm.weight + norm.bias).clamp(min=0)
        x = (x if exponential else start) * torch.cat([c, c * mask], -1) + x
    return x


@pytest.mark.parametrize("heads", [1, 2])
def test_dcnv3_by_the_equation(heads):
    schema, batch = world()
    model = testing.wake(DCNv3(schema, dim=8, exponential_layers=2, linear_layers=2, heads=heads))
    fields, size = model.inputs(batch).stack(), 8 // heads
    logits = []
    for h in range(heads):
        part = fields[..., h * size : (h + 1) * size]
        x = torch.cat([part[..., : size // 2].flatten(-2), part[..., size // 2 :].flatten(-2)], -1)
        deep = head(model, masked_cross(model.exponential, x, True), "exponential_heads")
        shallow = head(model, masked_cross(model.linear, x, False), "linear_heads")
        logits.append((deep + shallow) / 2)
    torch.testing.assert_close(model(batch)["click"], torch.stack(logits).mean(0), rtol=1e-4, atol=1e-4)


def test_dcnv3_weighs_the_loss_of_each_network_by_how_much_worse_it_is():
    schema = testing.schema(tasks=[Task("click", weight=2.0), Task("like", weight=0.5), Task("unused", weight=0)])
    model, batch = (
        testing.wake(DCNv3(schema, dim=4, exponential_layers=2, linear_layers=2)),
        testing.batch(schema, 8, 2),
    )
    found, both = model.losses(batch), dict(zip(("exponential", "linear"), model.both(batch), strict=True))
    assert set(found) == {f"{t}{part}" for t in ("click", "like") for part in ("", "/exponential", "/linear")}
    seen = 0
    for task, weight in (("click", 2.0), ("like", 0.5)):
        label = batch[f"{task}@label"]
        common = F.binary_cross_entropy_with_logits(model(batch)[task], label)
        torch.testing.assert_close(found[task], weight * common)
        for name, logits in both.items():
            own = F.binary_cross_entropy_with_logits(logits[task], label)
            worse = max(0.0, float((own - common).detach()))
            torch.testing.assert_close(found[f"{task}/{name}"], weight * worse * own)
            seen += worse > 0
            if worse > 0:  # the weight is a number: no gradient through it
                of = model.exponential_heads if name == "exponential" else model.linear_heads
                bias = of.layers[task].bias
                (grad,) = torch.autograd.grad(found[f"{task}/{name}"], bias, retain_graph=True)
                (plain,) = torch.autograd.grad(own, bias, retain_graph=True)
                torch.testing.assert_close(grad, weight * worse * plain)
    assert seen


def test_dcnv3_says_which_widths_can_be_cut():
    with pytest.raises(ConfigError, match="dim=6 cannot be cut into two halves of heads=2"):
        DCNv3(testing.schema(), dim=6, heads=2)


# -- xDeepFM ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split_half", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_cin_is_loops_over_pairs_of_fields(split_half, activation):
    cin, fields = CIN(3, (4, 6, 5), activation, split_half), torch.randn(2, 2, 3, 7)
    for layer in cin.layers:
        layer.bias.data.normal_()
    out, x = [], fields
    for k, layer in enumerate(cin.layers):
        maps = []
        for h in range(layer.out_features):
            total = torch.zeros(2, 2, 7) + layer.bias[h]
            for i, j in itertools.product(range(x.shape[-2]), range(3)):
                total = total + layer.weight[h, 3 * i + j] * x[..., i, :] * fields[..., j, :]
            maps.append(total.relu() if activation == "relu" else total)
        half = layer.out_features // 2 if split_half and k < 2 else 0
        out += [m.sum(-1) for m in maps[half:]]
        x = torch.stack(maps[:half] if half else maps, -2)
    assert cin.width == len(out) == (2 + 3 + 5 if split_half else 15)
    torch.testing.assert_close(cin(fields), torch.stack(out, -1), rtol=1e-5, atol=1e-5)


def test_cin_of_one_even_map_of_ones_holds_all_products_of_two_fields():
    cin, fields = CIN(4, (1,)), torch.randn(3, 4, 5)
    cin.layers[0].weight.data.fill_(1.0)
    pairs = sum((fields[:, i] * fields[:, j]).sum(-1) for i, j in itertools.product(range(4), range(4)))
    torch.testing.assert_close(cin(fields).squeeze(-1), pairs)


def test_xdeepfm_is_a_line_maps_and_an_mlp():
    schema, batch = world()
    model = testing.wake(xDeepFM(schema, dim=3, maps=(4, 2), hidden=(5,)))
    fields = model.inputs(batch).stack()
    line, maps = model.first_order(batch), head(model, model.cin(fields))
    deep = head(model, model.mlp(fields.flatten(-2)), "deep_heads")
    torch.testing.assert_close(model(batch)["click"], line + maps + deep)
    alone = testing.wake(xDeepFM(schema, dim=3, maps=(4, 2), hidden=()))
    wanted = alone.first_order(batch) + head(alone, alone.cin(alone.inputs(batch).stack()))
    torch.testing.assert_close(alone(batch)["click"], wanted)


def test_cin_says_what_it_cannot_do():
    with pytest.raises(ConfigError, match="even maps"):
        CIN(3, (5, 4), split_half=True)
    with pytest.raises(ConfigError, match="at least one layer"):
        CIN(3, ())


# -- GDCN -------------------------------------------------------------------------------------------------------------
def test_gdcn_parallel_and_stacked_by_the_equation():
    schema, batch = world()
    for structure, hidden in itertools.product(("parallel", "stacked"), ((4,), ())):
        model = testing.wake(GDCN(schema, dim=3, layers=2, structure=structure, hidden=hidden))
        start = x = model.inputs(batch).flat()
        for layer, gate in zip(model.cross.layers, model.cross.gates, strict=True):
            x = start * (x @ layer.weight.T + layer.bias) / (1 + (-x @ gate.weight.T).exp()) + x
        h = torch.cat([x, model.mlp(start)], -1) if structure == "parallel" else model.mlp(x)
        torch.testing.assert_close(model(batch)["click"], head(model, h), rtol=1e-4, atol=1e-4)


def test_gdcn_with_gates_half_open_is_dcnv2_with_half_the_weights():
    schema, batch = world()
    gated, plain = (testing.wake(m(schema, dim=3, layers=2, hidden=(4,))) for m in (GDCN, DCNv2))
    for layer, gate, other in zip(gated.cross.layers, gated.cross.gates, plain.cross.layers, strict=True):
        gate.weight.data.zero_()
        layer.weight.data, layer.bias.data = 2 * other.weight.data, 2 * other.bias.data
    others = {k: v for k, v in plain.state_dict().items() if not k.startswith("cross.")}
    gated.load_state_dict({**gated.state_dict(), **others})
    torch.testing.assert_close(gated(batch)["click"], plain(batch)["click"], rtol=1e-5, atol=1e-5)


# -- EDCN -------------------------------------------------------------------------------------------------------------
def test_edcn_by_the_equation():
    schema, batch = world()
    for bridge in ("product", "sum", "concat", "attention"):
        model = testing.wake(EDCN(schema, dim=3, layers=2, bridge=bridge, temperature=2.0))
        rows = []
        for row in model.inputs(batch).stack().flatten(0, 1):  # [F, D]
            f, start = row, None
            for l in range(2):
                regulation, gated = model.regulations[l], []
                for theta, norm in zip(regulation.theta, regulation.norms, strict=True):
                    g = (theta / 2).exp() / (theta / 2).exp().sum()
                    y = torch.cat([g[i] * f[i] for i in range(len(f))])
                    scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
                    gated.append((y - norm.running_mean) * scale + norm.bias)
                c, h = gated
                start = c if start is None else start
                c = start * (model.cross.weight[l] @ c) + model.cross.bias[l] + c
                h = (model.deep[l][0].weight @ h + model.deep[l][0].bias).relu()
                block = model.bridges[l]
                if bridge == "product":
                    f = c * h
                elif bridge == "sum":
                    f = c + h
                elif bridge == "concat":
                    f = (block.concat[0].weight @ torch.cat([c, h]) + block.concat[0].bias).relu()
                else:
                    a, b = (float(s(x)) for s, x in zip(block.scores, (c, h), strict=True))
                    f = (math.exp(a) * c + math.exp(b) * h) / (math.exp(a) + math.exp(b))
                f = f.view(row.shape)
            rows.append(head(model, torch.cat([c, h, f.flatten()])))
        torch.testing.assert_close(model(batch)["click"].flatten(), torch.stack(rows), rtol=1e-4, atol=1e-4)


def test_edcn_says_what_it_cannot_do():
    with pytest.raises(ConfigError, match="Did you mean 'product'"):
        EDCN(testing.schema(), bridge="prodct")
    with pytest.raises(ConfigError, match="at least one layer"):
        EDCN(testing.schema(), layers=0)


# -- FiBiNET ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["all", "each", "interaction"])
def test_fibinet_by_the_equation(kind):
    schema, batch = world()
    model = testing.wake(FiBiNET(schema, dim=3, bilinear=kind, reduction=4, hidden=(5,)))
    fields = model.inputs(batch).stack()
    gate = model.importance
    a = (fields.mean(-1) @ gate.squeeze.weight.T).relu() @ gate.excite.weight.T
    pairs = []
    for v in (fields, fields * a.relu().unsqueeze(-1)):
        for n, (i, j) in enumerate(itertools.combinations(range(fields.shape[-2]), 2)):
            w = model.bilinear.weight[{"all": 0, "each": i, "interaction": n}[kind]]
            pairs.append((v[..., i, :] @ w) * v[..., j, :])
    wanted = model.first_order(batch) + head(model, model.mlp(torch.cat(pairs, -1)))
    torch.testing.assert_close(model(batch)["click"], wanted)


def test_fibinet_guesses_the_kind():
    with pytest.raises(ConfigError, match="Did you mean 'interaction'"):
        FiBiNET(testing.schema(), bilinear="interactions")


def test_fibinetplusplus_by_the_equation():
    schema, batch = world()
    model = testing.wake(FiBiNetPlusPlus(schema, dim=4, compressed=3, groups=2, reduction=4.0, hidden=(5,)))
    fields, names = model.inputs(batch).stack(), list(model.inputs.widths)
    numbers = [names.index(n) for n in ("age", "price", "image", "hits")]
    ids = [i for i in range(len(names)) if i not in numbers]
    norm = model.norm.batch
    scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
    counted = (torch.cat([fields[..., i, :] for i in ids], -1) - norm.running_mean) * scale + norm.bias
    v = [*counted.split(4, -1), *(model.norm.layer(fields[..., i, :]) for i in numbers)]
    matrix = model.pairs.bilinear.weight.T
    p = torch.stack([((a @ matrix) * b).sum(-1) for a, b in itertools.combinations(v, 2)], -1)
    parts = [(half.mean(-1), half.amax(-1)) for x in v for half in (x[..., :2], x[..., 2:])]
    gate = model.importance
    # the means of a field's parts, then their greatest elements
    u = [parts[2 * f + g][k] for f in range(len(v)) for k in (0, 1) for g in (0, 1)]
    a = (torch.stack(u, -1) @ gate.squeeze.weight.T).relu() @ gate.excite.weight.T
    s = [gate.norm(x * w + x) for x, w in zip(v, a.split(4, -1), strict=True)]
    hidden = torch.cat([model.pairs.compress(p), *s], -1)
    torch.testing.assert_close(model(batch)["click"], head(model, model.mlp(hidden)), rtol=1e-4, atol=1e-4)


def test_fibinetplusplus_says_which_widths_can_be_cut():
    with pytest.raises(ConfigError, match="dim=5 cannot be cut into groups=2"):
        FiBiNetPlusPlus(testing.schema(), dim=5)
