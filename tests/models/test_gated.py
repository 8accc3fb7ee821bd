"""Gated, masked and token models against published parameter counts and the papers' equations written out."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.models.ranking import DHEN, ContextNet, EulerNet, FinalMLP, FinalNet, MaskNet, RankMixer, Wukong
from recstack.models.ranking.rankmixer import mixed
from recstack.schema import Categorical, Numeric, Schema, Task

# Frappe has ten fields. Older published counts have one extra row a field (5,389 in all), newer ones two (5,399). Our
# arenas have one row of padding each; FinalMLP has three of them.
OLD = (958, 4083, 8, 8, 3, 3, 10, 81, 234, 11)
NEW = (957, 4085, *(46,) * 7, 45)


def frappe(sizes):
    names = ("user", "item", *(f"f{i}" for i in range(2, 10)))
    return Schema([Categorical(name, size=n) for name, n in zip(names, sizes, strict=True)], [Task("click")])


@pytest.mark.parametrize(
    ("build", "sizes", "published", "ours"),
    [
        (
            lambda schema: MaskNet(schema, blocks=(50, 50, 50), embedding_norm=False),
            OLD,
            571_691,
            10,
        ),
        (
            lambda schema: FinalMLP(
                schema, second=(100,), first_context=("user",), second_context=("item",), gate=(400,), heads=5
            ),
            NEW,
            253_392,
            30 - 1,  # the published code adds two biases to the logit, the paper and we one
        ),
        (FinalNet, NEW, 338_502, 10),
    ],
    ids=["MaskNet", "FinalMLP", "FinalNet"],
)
def test_parameters_are_as_many_as_published(build, sizes, published, ours):
    assert sum(n - 1 for n in sizes) == (5_389 if sizes is OLD else 5_399)
    model = build(frappe(sizes))
    assert sum(p.numel() for p in model.parameters()) == published + ours


CLICK = (Task("click"),)


def small(tasks=CLICK) -> tuple[Schema, dict[str, torch.Tensor]]:
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


def rows(model, batch):
    """The fields of each (r, l) ``[4, D]`` and its place."""
    fields = model.inputs(batch).stack()
    return [(fields[r, l], (r, l)) for r in range(3) for l in range(2)]


def norm(x, gain=1.0, bias=0.0):
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * gain + bias


def affine(layer, x):
    return layer.weight @ x + (layer.bias if layer.bias is not None else 0)


def perceptron(mlp, x):
    """An MLP without norms."""
    layers = [mlp.first, *(m for m in mlp.rest if isinstance(m, torch.nn.Linear))] if mlp.first is not None else []
    for layer in layers:
        x = affine(layer, x).relu()
    return x


def agrees(model, batch, place, hidden, task="click"):
    torch.testing.assert_close(
        model(batch)[task][place], affine(model.heads.layers[task], hidden).squeeze(-1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("structure", ["parallel", "serial"])
@pytest.mark.parametrize("embedding_norm", [True, False])
def test_masknet_by_the_equations(structure, embedding_norm):
    schema, batch = small()
    model = testing.wake(
        MaskNet(schema, dim=3, structure=structure, blocks=(5, 6), embedding_norm=embedding_norm, hidden=(4,))
    )
    assert model.blocks[0].mask[0].out_features == 2 * 12
    for fields, place in rows(model, batch):
        raw = fields.flatten()
        h = raw
        if embedding_norm:
            h = torch.cat([norm(fields[f], model.norm.gain[f], model.norm.bias[f]) for f in range(4)])
        found = []
        for block in model.blocks:
            mask = affine(block.mask[2], affine(block.mask[0], raw).relu())
            out = norm(block.layer[0].weight @ (mask * h), block.layer[1].weight, block.layer[1].bias).relu()
            found.append(out)
            if structure == "serial":
                h = out
        agrees(model, batch, place, perceptron(model.mlp, torch.cat(found) if structure == "parallel" else h))


def test_masknet_in_series_may_end_in_its_last_block():
    schema, batch = small()
    model = MaskNet(schema, dim=3, structure="serial", blocks=(5, 6), hidden=())
    assert model.heads.width == 6
    assert model(batch)["click"].shape == (3, 2)


@pytest.mark.parametrize("block", ["pffn", "sffn"])
@pytest.mark.parametrize("shared", [(True, True), (True, False), (False, True), (False, False)])
def test_contextnet_by_the_equations(block, shared):
    schema, batch = small()
    model = testing.wake(
        ContextNet(
            schema,
            dim=3,
            layers=2,
            block=block,
            aggregation=5,
            shared_aggregation=shared[0],
            shared_feed_forward=shared[1],
        )
    )

    def feed(layer, f, x):
        return layer.weight @ x if shared[1] else x @ layer.weight[f]

    for fields, place in rows(model, batch):
        raw, x = fields.flatten(), list(fields)
        for context, ffn in zip(model.contexts, model.blocks, strict=True):
            hidden = affine(context.aggregate, raw).relu()
            for f in range(4):
                if shared[0]:
                    part = slice(3 * f, 3 * f + 3)
                    c = context.project.weight[part] @ hidden + context.project.bias[part]
                else:
                    c = hidden[5 * f : 5 * f + 5] @ context.project.weight[f] + context.project.bias[f]
                m = x[f] * c
                if block == "pffn":
                    y = m + feed(ffn.layer[2], f, feed(ffn.layer[0], f, m).relu())
                else:
                    y = feed(ffn.layer, f, m)
                x[f] = norm(y, ffn.norm.weight, ffn.norm.bias)
        agrees(model, batch, place, torch.cat(x))


@pytest.mark.parametrize("contexts", [((), ()), (("user",), ("item", "price")), None])
def test_finalmlp_by_the_equations(contexts):
    schema, batch = small([Task("click"), Task("shelf", kind="multiclass", classes=3)])
    named = {} if contexts is None else {"first_context": contexts[0], "second_context": contexts[1]}
    model = testing.wake(
        FinalMLP(
            schema,
            dim=3,
            first=(8, 6),
            second=(4,),
            gate=None if contexts is None else (5,),
            heads=2,
            norm=None,
            **named,
        )
    )
    for fields, (r, l) in rows(model, batch):
        h = []
        for k in range(2):
            x = fields.flatten()
            if contexts is not None:
                gate = model.gates[k]
                context = gate.vector[0] if gate.vector is not None else None
                if contexts[k]:
                    slots = gate.inputs(batch)
                    context = slots.stack().expand(3, 2, len(contexts[k]), 3)[r, l].flatten()
                x = 2 * torch.sigmoid(affine(gate.last, perceptron(gate.mlp, context))) * x
            h.append(perceptron(model.streams[k], x))
        for task, outputs in (("click", 1), ("shelf", 3)):
            score = affine(model.heads.layers[task], torch.cat(h))
            weight = model.bilinear[task].weight
            for o, j, a, b in itertools.product(range(outputs), range(2), range(3), range(2)):
                score[o] += h[0][3 * j + a] * weight[o, j, a, b] * h[1][2 * j + b]
            torch.testing.assert_close(model(batch)[task][r, l], score.squeeze(-1), rtol=1e-4, atol=1e-5)


def test_finalmlp_gates_have_tables_of_their_own():
    model = FinalMLP(frappe(NEW), dim=2, first_context=("user",))
    assert model.gates[0].inputs.tables.sizes == {"user": 957}
    assert model.gates[0].inputs.tables.weight("user").data_ptr() != model.inputs.tables.weight("user").data_ptr()
    assert model.gates[1].inputs is None


def test_finalmlp_gates_read_histories_and_lists_of_items_alone():
    schema = testing.schema()
    batch = testing.batch(schema, 4, 3)
    for context in (("watched",), ("genre",), ("title",)):
        model = testing.wake(FinalMLP(schema, dim=4, first=(6,), second=(4,), first_context=context))
        for some in (batch, testing.batch(schema, 4, 3, jagged=True)):
            torch.testing.assert_close(model(some)["click"], model(batch)["click"], rtol=1e-4, atol=1e-5)


def test_finalmlp_names_what_it_cannot_read_or_divide():
    schema, _ = small()
    with pytest.raises(SchemaError, match="Did you mean 'user'"):
        FinalMLP(schema, first_context=("usr",))
    with pytest.raises(ConfigError, match="heads must divide"):
        FinalMLP(schema, first=(6,), second=(4,), heads=3)


@pytest.mark.parametrize("residual", ["concat", "sum"])
@pytest.mark.parametrize("gated", [True, False])
def test_finalnet_by_the_equations(residual, gated):
    schema, batch = small()
    model = testing.wake(
        FinalNet(schema, dim=3, first=(6, 4), second=(8,), residual=residual, field_gate=gated, norm=None)
    )
    for fields, place in rows(model, batch):
        read = list(fields)
        if gated:
            for g in range(4):
                gate = sum(model.gate.weight[g, f] * fields[f] for f in range(4)) + model.gate.bias[g]
                read.append(fields[g] * gate)
        score = 0.0
        for block, head, x in zip(model.blocks, model.heads, (torch.cat(read), fields.flatten()), strict=True):
            for layer in (m.linear for m in block.layers if hasattr(m, "linear")):
                out = affine(layer, x)
                a, b = out[: len(out) // 2], out[len(out) // 2 :]
                x = (torch.cat([a, a * b]) if residual == "concat" else a + a * b).relu()
            score = score + affine(head.layers["click"], x).squeeze() / 2
        torch.testing.assert_close(model(batch)["click"][place], score, rtol=1e-4, atol=1e-5)


def test_finalnet_blocks_learn_from_their_mean_which_learns_from_labels_alone():
    tasks = [
        Task("click"),
        Task("stay", kind="regression", weight=0.5),
        Task("shelf", kind="multiclass", classes=3),
        Task("seen", weight=0),
    ]
    schema, batch = small(tasks)
    batch["click@label"][0, 0] = torch.nan
    model = testing.wake(FinalNet(schema, dim=3, first=(4,), second=(4,)))
    each, mean = model._each(batch), model(batch)
    live = torch.ones(3, 2, dtype=torch.bool)
    live[0, 0] = False
    slow = 0.0
    for one in each:
        p = mean["click"][live].sigmoid()
        q = one["click"][live].sigmoid()
        slow = slow - (p * q.log() + (1 - p) * (1 - q).log()).mean()
        slow = slow + 0.5 * (one["stay"] - mean["stay"]).square().mean()
        slow = slow - (mean["shelf"].softmax(-1) * one["shelf"].softmax(-1).log()).sum(-1).mean()
    losses = model.losses(batch)
    assert set(losses) == {"click", "stay", "shelf", "@distillation"}
    torch.testing.assert_close(losses["@distillation"], slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean["stay"], (each[0]["stay"] + each[1]["stay"]) / 2)
    # with a teacher that is not detached, the heads' gradients would be others: they sum to what each block is off
    (grad,) = torch.autograd.grad(losses["@distillation"], model.heads[0].layers["click"].bias)
    off = (each[0]["click"].sigmoid() - mean["click"].sigmoid())[live].mean()
    torch.testing.assert_close(grad.squeeze(), off, rtol=1e-4, atol=1e-5)


def test_finalnet_of_one_block_has_no_teacher_and_its_gate_starts_open():
    schema, batch = small()
    model = FinalNet(schema, dim=3, first=(4,), second=None)
    assert set(model.losses(batch)) == {"click"}
    fields = model.inputs(batch).stack()
    torch.testing.assert_close(model.gate(fields), torch.ones_like(fields))


def test_finalnet_wants_even_halves():
    schema, _ = small()
    with pytest.raises(ConfigError, match="is even; got 5"):
        FinalNet(schema, first=(5,))
    assert FinalNet(schema, first=(5,), second=(3,), residual="sum").blocks[0].width == 5
    with pytest.raises(ConfigError, match="Did you mean 'concat'"):
        FinalNet(schema, residual="concatt")


@pytest.mark.parametrize("products", [None, 2])
@pytest.mark.parametrize("normed", [True, False])
def test_eulernet_multiplies_powers_of_complex_numbers(products, normed):
    schema, batch = small()
    model = testing.wake(EulerNet(schema, dim=3, layers=2, products=products, norm=normed))
    for fields, place in rows(model, batch):
        z = torch.polar(torch.ones(4, 3), fields) * model.modulus
        for layer in model.layers:
            shift = torch.complex(layer.log_shift, layer.phase_shift)
            implicit = torch.complex(
                affine(layer.implicit, z.real.flatten()).relu(), affine(layer.implicit, z.imag.flatten()).relu()
            )
            out = []
            for g in range(layer.orders.shape[0]):
                product = shift[g].exp()
                for f in range(z.shape[0]):
                    product = product * z[f] ** layer.orders[g, f]
                w = product + implicit[3 * g : 3 * g + 3]
                if normed:
                    r, p = (norm(x, n.weight, n.bias) for x, n in zip((w.real, w.imag), layer.norms, strict=True))
                    w = torch.complex(r, p)
                out.append(w)
            z = torch.stack(out)
        agrees(model, batch, place, (z.real + z.imag).flatten())


def test_eulernet_stays_finite_where_powers_explode():
    schema, batch = small()
    model = EulerNet(schema, dim=3, layers=3)
    for layer in model.layers:
        layer.orders.data.fill_(100.0)
        layer.log_shift.data.fill_(100.0)
    loss = model.losses(batch)["click"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_wukong_by_the_equations():
    schema, batch = small()
    model = testing.wake(Wukong(schema, dim=3, layers=2, products=2, compressed=3, rank=4, inner=(6,), hidden=(5,)))
    assert model.layers[0].residual is not None  # four fields become five tokens
    assert model.layers[1].residual is None
    for fields, place in rows(model, batch):
        x = fields
        for layer in model.layers:
            pairs = torch.stack([torch.stack([(a * b).sum() for b in x]) for a in x])  # X X'
            machine = norm((pairs @ layer.directions).flatten(), layer.norm_products.weight, layer.norm_products.bias)
            made = affine(layer.last, perceptron(layer.mlp, machine)).view(2, 3)
            out = torch.cat([made, layer.compress.weight @ x])
            out = out + (x if layer.residual is None else layer.residual.weight @ x)
            x = torch.stack([norm(row, layer.norm.weight, layer.norm.bias) for row in out])
        agrees(model, batch, place, perceptron(model.mlp, x.flatten()))


def test_rankmixer_by_the_equations():
    schema, batch = small()
    model = testing.wake(RankMixer(schema, dim=3, tokens=3, width=6, layers=2, expansion=2))
    slots = model.inputs(batch)
    assert model.inputs.width() == 8  # two ids of 3, two numbers: three tokens of 3, one zero
    for r, l in itertools.product(range(3), range(2)):
        flat = torch.cat([slots.flat()[r, l], torch.zeros(1)])
        x = [flat[3 * t : 3 * t + 3] @ model.project.weight[t] + model.project.bias[t] for t in range(3)]
        for block in model.blocks:
            swapped = [torch.cat([token[2 * h : 2 * h + 2] for token in x]) for h in range(3)]
            s = [norm(a + b, block.norms[0].weight, block.norms[0].bias) for a, b in zip(swapped, x, strict=True)]
            first, second = block.feed[0], block.feed[2]
            fed = [F.gelu(s[t] @ first.weight[t] + first.bias[t]) @ second.weight[t] + second.bias[t] for t in range(3)]
            x = [norm(a + b, block.norms[1].weight, block.norms[1].bias) for a, b in zip(fed, s, strict=True)]
        agrees(model, batch, (r, l), torch.stack(x).mean(0))


def test_rankmixer_mixing_twice_is_nothing():
    x = torch.randn(2, 5, 4, 8)
    assert not torch.equal(mixed(x), x)
    assert torch.equal(mixed(mixed(x)), x)


def test_rankmixer_cuts_tokens_into_equal_pieces():
    with pytest.raises(ConfigError, match="tokens must divide the width"):
        RankMixer(small()[0], tokens=3, width=8)


def interaction(name, module, x):
    """What one interaction of DHEN makes of tokens ``[N, D]``, by loops."""
    n, d = x.shape
    if name == "linear":
        return module.weight @ x
    if name == "dot":
        pairs = torch.stack([(x[i] * x[j]).sum() for i in range(n) for j in range(i, n)])
        return affine(module.last, perceptron(module.mlp, pairs)).view(module.shape)
    if name == "cross":
        flat = x.flatten()
        return module.out.weight @ (flat * affine(module.cross.layers[0], flat) + flat).view(n, d)
    if name == "convolution":
        kernel, out = module.convolution.weight[0, 0], torch.zeros(n, d) + module.convolution.bias
        for i, j, a, b in itertools.product(range(n), range(d), range(3), range(3)):
            if 0 <= i + a - 1 < n and 0 <= j + b - 1 < d:
                out[i, j] += kernel[a, b] * x[i + a - 1, j + b - 1]
        return module.out.weight @ out
    attention, (before, after), feed = module.layer.attention, module.layer.norms, module.layer.feed
    parts = [affine(attention.project, row).view(3, d) for row in x]
    out = []
    for i in range(n):
        weight = torch.stack([(parts[i][0] * parts[j][1]).sum() / d**0.5 for j in range(n)]).softmax(0)
        heard = affine(attention.out, sum(weight[j] * parts[j][2] for j in range(n)))
        y = norm(x[i] + heard, before.weight, before.bias)
        out.append(norm(y + affine(feed[3], affine(feed[0], y).relu()), after.weight, after.bias))
    return module.out.weight @ torch.stack(out)


@pytest.mark.parametrize("ensemble", ["concat", "sum", "weighted"])
def test_dhen_by_the_equations(ensemble):
    schema, batch = small()
    names = ("dot", "attention", "linear", "cross", "convolution")
    model = testing.wake(
        DHEN(schema, dim=3, layers=2, interactions=names, tokens=2, ensemble=ensemble, inner=(6,), hidden=(5,))
    )
    for fields, place in rows(model, batch):
        x = fields
        for layer in model.layers:
            made = [interaction(name, module, x) for name, module in zip(names, layer.interactions, strict=True)]
            if ensemble == "concat":
                out = torch.cat(made)
            else:
                weights = layer.weight if ensemble == "weighted" else torch.ones(5)
                out = sum(w * u for w, u in zip(weights, made, strict=True))
            out = out + (x if layer.shortcut is None else layer.shortcut.weight @ x)
            x = torch.stack([norm(row, layer.norm.weight, layer.norm.bias) for row in out])
        agrees(model, batch, place, perceptron(model.mlp, x.flatten()))


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (MaskNet, {"structure": "seriel"}, "Did you mean 'serial'"),
        (ContextNet, {"block": "pfn"}, "Did you mean 'pffn'"),
        (DHEN, {"interactions": ("dots",)}, "Did you mean 'dot'"),
        (DHEN, {"interactions": ()}, "at least one interaction"),
        (DHEN, {"ensemble": "conct"}, "Did you mean 'concat'"),
    ],
)
def test_what_is_not_known_is_named_with_a_guess(model, options, said):
    with pytest.raises(ConfigError, match=said):
        model(small()[0], **options)
