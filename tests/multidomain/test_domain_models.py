"""Multi-domain models: identities of the papers, and the slips of peers that must not come back."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.models.multidomain import ADL, HAMUR, M2M, STAR, AdaSparse, DomainTowers, PEPNet, SARNet
from recstack.models.multitask import ESMM, MMoE
from recstack.schema import Task

FUNNEL = (Task("click"), Task("order", given="click", weight=0), Task("ordered", product=("click", "order")))
SMALL = {
    STAR: {"hidden": (8, 6), "auxiliary": (5,)},
    PEPNet: {"hidden": (8, 6)},
    DomainTowers: {"hidden": (8,), "towers": (6,)},
    M2M: {"experts": 2, "hidden": (6,)},
    SARNet: {"shared": 2, "specific": 2, "hidden": (6,), "attention": (5,)},
    ADL: {"hidden": (8, 6)},
    HAMUR: {"hidden": (8, 6), "rank": 3, "bottleneck": 4, "hyper": (5,)},
    AdaSparse: {"hidden": (8, 6)},
}
EACH = pytest.mark.parametrize("cls", SMALL, ids=lambda c: c.__name__)
TWO = (Task("click"), Task("like"))
KNOWN = torch.tensor([2, 3, 4, 2, 3, 1], dtype=torch.int32)


def made(cls, **options):
    schema = testing.schema(tasks=TWO, domain=True)
    return testing.wake(cls(schema, dim=4, **{**SMALL[cls], **options})), schema


# -- all of them ------------------------------------------------------------------------------------------------------
@EACH
def test_a_prediction_does_not_depend_on_the_domains_of_others(cls):
    """Peers normalise with the batch when they serve, or attend across it."""
    model, schema = made(cls)
    batch = testing.batch(schema, 6, 2) | {"scene": KNOWN}
    alone = model(testing.take(batch, schema, slice(0, 1)))["like"]
    torch.testing.assert_close(model(batch)["like"][:1], alone)
    batch["scene"][1:] = 4
    torch.testing.assert_close(model(batch)["like"][:1], alone)


@EACH
def test_the_domain_reaches_the_logit_of_every_task(cls):
    model, schema = made(cls)
    batch = testing.batch(schema, 6, 2)
    found = [model({**batch, "scene": torch.full((6,), p, dtype=torch.int32)}) for p in (2, 3)]
    for task in ("click", "like"):
        assert (found[0][task] - found[1][task]).abs().max() > 1e-3


@EACH
def test_logits_are_negative_too(cls):
    """A peer ends in a ReLU, so that no chance is below one half."""
    model, schema = made(cls)
    torch.nn.init.constant_(model.heads.layers["click"].bias, -9.0)
    assert model.predict(testing.batch(schema, 9, 2))["click"].min() < 0.1


@EACH
def test_a_domain_that_training_has_not_met_has_an_answer(cls):
    model, schema = made(cls)
    batch = testing.batch(schema, 6, 2)
    batch["scene"][:] = 1
    assert all(v.isfinite().all() for v in model(batch).values())


@EACH
def test_task_graphs_stand_on_it(cls):
    schema = testing.schema(tasks=FUNNEL, domain=True)
    trunk = partial(cls, **SMALL[cls])
    model = testing.wake(ESMM(schema, dim=4, hidden=(5,), trunk=trunk))
    batch = testing.batch(schema, 6, 2)
    found = model.predict(batch)
    torch.testing.assert_close(found["ordered"], found["click"] * found["order"])
    other = model.predict({**batch, "scene": torch.full((6,), 4, dtype=torch.int32)})
    assert (found["order"] - other["order"]).abs().max() > 1e-4


@pytest.mark.parametrize("cls", [STAR, ADL, HAMUR, AdaSparse])
def test_experts_stand_on_those_with_one_vector(cls):
    schema = testing.schema(tasks=FUNNEL, domain=True)
    model = MMoE(schema, dim=4, experts=2, trunk=partial(cls, **SMALL[cls]))
    assert not model.trunk.each


# -- PEPNet -----------------------------------------------------------------------------------------------------------
def gate(module, x, k=0):
    """Gate NU of task k by the equation."""
    width = module.bias.shape[-1]
    first = module.hidden.first
    h = (x @ first.weight[k * width : (k + 1) * width].T + first.bias[k * width : (k + 1) * width]).relu()
    return 2 * (h @ module.weight[k] + module.bias[k]).sigmoid()


def test_pepnet_by_the_equation():
    model, schema = made(PEPNet)
    batch = testing.batch(schema, 5, 2)
    slots = model.trunk.inputs(batch)
    wide = lambda name: slots[name].unsqueeze(1).expand(-1, 2, -1) if slots[name].dim() == 2 else slots[name]  # noqa: E731
    x = slots.flat()
    o = gate(model.epnet, torch.cat([wide("scene"), x], -1)) * x
    prior = torch.cat([wide("user_id"), wide("item_id"), o], -1)
    for k, task in enumerate(("click", "like")):
        h = o
        for i, layer in enumerate(model.layers):
            weight = layer.first.weight[8 * k : 8 * k + 8].T if i == 0 else layer.weights[0][k]
            bias = layer.first.bias[8 * k : 8 * k + 8] if i == 0 else layer.biases[0][k]
            h = (h @ weight + bias).relu() * gate(model.ppnet[i], prior, k)
        torch.testing.assert_close(model(batch)[task], model.heads.layers[task](h).squeeze(-1))


def test_gates_begin_near_one():
    schema = testing.schema(domain=True)
    model = PEPNet(schema, dim=4, hidden=(8,))
    gates = [m(torch.zeros(1, m.hidden.first.in_features)) for m in (model.epnet, *model.ppnet)]
    assert all((g == 1).all() for g in gates)


def test_no_gradient_passes_through_what_a_gate_reads_of_the_embeddings():
    """With towers that ignore their inputs nothing would move the price's weights but the gates."""
    model, schema = made(PEPNet)
    batch = testing.batch(schema, 5, 2)
    x = torch.randn(5, 2, model.trunk.width, requires_grad=True)
    slots = model.trunk.inputs(batch)
    model.read = lambda batch: (x, slots, None)
    with torch.no_grad():
        model.layers[0].first.weight.zero_()
    model(batch)["click"].sum().backward()
    assert not x.grad.any()
    assert model.ppnet[0].weight.grad.any()


def test_either_half_of_pepnet_alone():
    with_both, schema = made(PEPNet)
    ep, _ = made(PEPNet, personal=())
    pp, _ = made(PEPNet, domain=())
    assert (len(ep.ppnet), len(pp.ppnet), len(with_both.ppnet)) == (0, 2, 2)
    assert pp.epnet is None
    assert ep.epnet is not None
    for model in (ep, pp):
        assert model(testing.batch(schema, 3, 2))["click"].shape == (3, 2)
    assert PEPNet(testing.schema()).epnet is None  # no domain is declared
    with pytest.raises(ConfigError, match="features that gate"):
        PEPNet(testing.schema(), personal=())
    with pytest.raises(SchemaError, match="author"):
        PEPNet(testing.schema(), personal=("author",))


# -- towers by domain -------------------------------------------------------------------------------------------------
def test_domain_towers_by_loops():
    model, schema = made(DomainTowers)
    batch = testing.batch(schema, 6, 2) | {"scene": KNOWN}
    found = model(batch)
    z = model.bottom(model.trunk.inputs(batch).flat())
    for r, p in enumerate((KNOWN - 2).tolist()):
        for k, task in enumerate(("click", "like")):
            of = lambda weight: weight[p, k] if p >= 0 else weight[:, k].mean(0)  # noqa: B023, E731
            h = (z[r] @ of(model.networks.weights[0]) + of(model.networks.biases[0])).relu() * of(model.scale)
            slow = model.heads.layers[task](h).squeeze(-1) + of(model.bias)
            torch.testing.assert_close(found[task][r], slow)


# -- M2M --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("knowledge", [None, ("scene", "user_id")])
def test_m2m_by_the_equation(knowledge):
    model, schema = made(M2M, knowledge=knowledge)
    batch = testing.batch(schema, 6, 2) | {"scene": KNOWN}
    slots = model.trunk.inputs(batch)
    s = model.scenario(torch.cat([slots[n] for n in knowledge or ("scene",)], -1))
    experts = model.experts(slots.flat())  # [R, L, E, H]

    def meta(layer, h, r):
        width = h.shape[-1]
        weight = (layer.weight.weight @ s[r] + layer.weight.bias).view(width, width)
        return F.leaky_relu(weight @ h + layer.bias.weight @ s[r] + layer.bias.bias)

    for r in range(6):
        for k, task in enumerate(("click", "like")):
            e = experts[r, 1]
            score = torch.stack(
                [model.vote(meta(model.attention, torch.cat([e[i], model.task[k]]), r)) for i in (0, 1)]
            )
            h = (score.softmax(0) * e).sum(0)
            for layer in model.layers:
                h = F.leaky_relu(meta(layer, h, r) + h)
            torch.testing.assert_close(model(batch)[task][r, 1], model.heads.layers[task](h)[0], atol=1e-5, rtol=1e-4)


def test_weights_are_written_once_for_a_domain():
    model, schema = made(M2M)
    seen = []
    model.scenario.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    model(testing.batch(schema, 60, 2))
    assert seen == [4]  # three domains, and what is out of vocabulary


def test_knowledge_is_of_the_request():
    with pytest.raises(SchemaError, match="'genre' differs between candidates"):
        M2M(testing.schema(domain=True), knowledge=("scene", "genre"))


# -- SAR-Net ----------------------------------------------------------------------------------------------------------
def test_sarnet_by_the_equation():
    model, schema = made(SARNet)
    batch = testing.batch(schema, 6, 2) | {"scene": KNOWN}
    slots = model.trunk.inputs(batch)
    steps, live = slots.sequence("watched")
    query = torch.cat([slots.candidate["item_id"], slots.candidate["genre"]], -1)
    scene = slots["scene"]
    for r, p in enumerate((KNOWN - 2).tolist()):
        here = model.queries["watched"](scene[r])
        v = torch.zeros(2, steps.shape[-1])
        for j in range(int(live[r].sum())):
            one = (steps[r : r + 1, j : j + 1], torch.ones(1, 1, dtype=torch.bool))
            by_item = model.by_item["watched"].weights(query[r : r + 1], *one)[0]
            by_scene = model.by_scene["watched"].weights(here.view(1, 1, -1), *one)[0]
            v = v + by_item * by_scene * steps[r, j]
        z = torch.cat([slots.flat()[r], v], -1)
        if p >= 0:
            z = z * model.scale[p] + model.shift[p]
        weight, bias = model.own.weights[0], model.own.biases[0]
        weight, bias = (weight[p], bias[p]) if p >= 0 else (weight.mean(0), bias.mean(0))
        theirs = torch.stack([(z @ weight[i] + bias[i]).relu() for i in range(2)], -2)
        experts = torch.cat([theirs, model.experts(z)], -2)
        for k, task in enumerate(("click", "like")):
            g = (torch.cat([scene[r].expand(2, -1), z], -1) @ model.gates.weight[k].T).softmax(-1)
            slow = model.heads.layers[task]((g.unsqueeze(-1) * experts).sum(-2)).squeeze(-1)
            torch.testing.assert_close(model(batch)[task][r], slow, atol=1e-5, rtol=1e-4)


def test_a_fairness_coefficient_is_the_rows_weight():
    model, schema = made(SARNet)
    batch = testing.batch(schema, 4, 1)
    batch["@weight"] = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    first = {k: v[:1] for k, v in batch.items()}
    torch.testing.assert_close(model.losses(batch)["click"], model.losses(first)["click"])


# -- ADL --------------------------------------------------------------------------------------------------------------
def test_centres_find_planted_clusters_and_stand_still_afterwards():
    torch.manual_seed(0)
    model, _ = made(ADL, clusters=2)
    width = model.trunk.width
    means = F.normalize(torch.randn(2, width), dim=-1)
    side = torch.randint(0, 2, (300, 2))
    x = means[side] + 0.05 * torch.randn(300, 2, width)
    model.train()
    for _ in range(10):
        model.cluster(x)
    model.eval()
    before = model.centres.clone()
    found = model.cluster(x)
    assert ((found == side).all() or (found != side).all()).item()
    assert torch.equal(model.centres, before)
    torch.testing.assert_close(model.centres.norm(dim=-1), torch.ones(2))


def test_adl_by_the_equation():
    model, schema = made(ADL)
    batch = testing.batch(schema, 6, 2)
    x = model.trunk.inputs(batch).flat()
    cluster = (F.normalize(x, dim=-1) @ model.centres.T).argmax(-1)
    h, own = x[2, 1], int(cluster[2, 1])
    for layer in model.network:
        h = ((layer.shared.weight * layer.weight[own]) @ h + layer.shared.bias + layer.bias[own]).relu()
    slow = model.heads.layers["like"](h * model.scale[own])[0] + model.bias[own, 1]
    torch.testing.assert_close(model(batch)["like"][2, 1], slow)


# -- HAMUR ------------------------------------------------------------------------------------------------------------
def test_hamur_by_the_equation():
    """The matrices of a row multiplied out."""
    model, schema = made(HAMUR)
    batch = testing.batch(schema, 6, 2) | {"scene": KNOWN}
    x = model.trunk.inputs(batch).flat()
    h = model.layers[1](model.layers[0](x))
    adapter, norm = model.adapters[0], model.adapters[0].norm
    for r, p in enumerate((KNOWN - 1).tolist()):
        k = model.matrix(model.hyper(x[r, 1:])).view(3, 3)
        down = adapter.down[1].weight @ k @ adapter.down[0].weight
        up = adapter.up[1].weight @ k @ adapter.up[0].weight
        out = up @ (down @ h[r, 1] + adapter.down[1].bias).sigmoid() + adapter.up[1].bias
        mean, var = norm.statistics(torch.tensor([p]))
        own = (norm.scale[p - 1], norm.shift[p - 1]) if p else (1.0, 0.0)
        out = (out - mean[0]) / (var[0] + norm.eps).sqrt() * (norm.shared_scale * own[0]) + norm.shared_shift + own[1]
        slow = model.heads.layers["like"](h[r, 1] + out)[0]
        torch.testing.assert_close(model(batch)["like"][r, 1], slow, atol=1e-5, rtol=1e-4)


# -- AdaSparse --------------------------------------------------------------------------------------------------------
def test_what_a_pruner_keeps():
    score = torch.tensor([-9.0, 0.0, 9.0])
    kept = {form: made(AdaSparse, form=form)[0].kept(score) for form in ("binary", "scaling", "fusion")}
    torch.testing.assert_close(kept["binary"], torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(kept["scaling"], 2 * score.sigmoid())
    torch.testing.assert_close(kept["fusion"], torch.tensor([0.0, 1.0, 2.0]), atol=1e-3, rtol=0)


def test_a_binary_pruner_learns():
    model, schema = made(AdaSparse, form="binary")
    sum(model.train().losses(testing.batch(schema, 8, 2)).values()).backward()
    assert all(p.weight.grad.any() for p in model.pruners)


@pytest.mark.parametrize("form", ["binary", "fusion"])
def test_the_share_of_units_that_are_cut_is_drawn_between_its_bounds(form):
    model, schema = made(AdaSparse, form=form, sparsity=(0.3, 0.5), strength=2.0)
    batch, model.alpha = testing.batch(schema, 40, 2), torch.tensor(5.0)
    scores = model._pruned(batch)[-1]
    cut = [float((model.kept(score) == 0).float().mean()) for score in scores]
    lost = sum((r - 0.4) ** 2 for r in cut if not 0.3 <= r <= 0.5) / 2
    assert lost > 0
    assert float(model.losses(batch)["sparsity"].detach()) == pytest.approx(2.0 * 5.0 * lost, rel=1e-4)
    optimizer = torch.optim.Adam(model.pruners.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.auxiliary_losses(batch)["sparsity"]
        if not loss:
            break
        loss.backward()
        optimizer.step()
    assert all(0.3 <= float((model.kept(s) == 0).float().mean()) <= 0.5 for s in model._pruned(batch)[-1])


def test_the_sparsity_of_a_trunk_is_learned_too():
    trunk = partial(AdaSparse, **SMALL[AdaSparse])
    schema = testing.schema(tasks=TWO, domain=True)
    model = MMoE(schema, dim=4, experts=2, trunk=trunk)
    batch = testing.batch(schema, 3, 2)
    assert "trunk/sparsity" in model.losses(batch)
    before = float(model.trunk.model.alpha)
    model.train().losses(batch)
    assert float(model.trunk.model.alpha) == pytest.approx(before + 1e-4)  # once a batch
    with pytest.raises(ConfigError, match="least and the greatest share"):
        AdaSparse(schema, sparsity=(0.3, 0.1))


def test_alpha_grows_while_training_only():
    model, schema = made(AdaSparse)
    before = float(model.alpha)
    model(testing.batch(schema, 3, 2))
    assert float(model.alpha) == before
    model.train()(testing.batch(schema, 3, 2))
    assert float(model.alpha) == pytest.approx(before + 1e-4)
