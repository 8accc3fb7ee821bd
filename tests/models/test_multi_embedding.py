"""HMoE and AdaF2M2 by their equations, and the faults that other implementations have."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.models.ranking import AdaF2M2, GwPFM, HMoE, RankMixer
from recstack.models.ranking.adaf2m2 import copied
from recstack.models.ranking.hmoe import EXPERTS
from recstack.schema import Categorical, Numeric, Schema, Task

CLICK = (Task("click"),)


def small(tasks=CLICK) -> Schema:
    return Schema(
        [
            Categorical("user", "user", size=5),
            Categorical("item", "item", size=7),
            Numeric("price", "item"),
            Numeric("age", "user"),
        ],
        tasks,
    )


# -- HMoE -------------------------------------------------------------------------------------------------------------
def interaction(name, block, x):
    """What an expert reads of the fields ``[F, D]`` of one row."""
    flat, pairs = x.flatten(), [(i, j) for i in range(len(x)) for j in range(i + 1, len(x))]
    if name == "dnn":
        return flat
    if name == "fm":
        return sum(x[i] * x[j] for i, j in pairs)
    if name == "inner":
        return torch.cat([flat, torch.stack([x[i] @ x[j] for i, j in pairs])])
    if name == "cross":
        y = flat
        for layer in block.layers:
            y = flat * layer(y) + y
        return y
    maps, out = x, []
    for layer in block.layers:
        kernel = layer.weight.view(-1, len(maps), len(x))
        maps = torch.einsum("hij,id,jd->hd", kernel, maps, x) + layer.bias.unsqueeze(-1)
        out.append(maps.sum(-1))
    return torch.cat(out)


@pytest.mark.parametrize("fusion", ["gate", "sum", "weighted"])
def test_hmoe_by_the_equations(fusion):
    names = ("dnn", "fm", "inner", "cross", "cin")
    model = testing.wake(
        HMoE(small(), dim=3, experts=(names[:2], *names[2:]), expert_hidden=(5, 4), fusion=fusion, hidden=(6,))
    )
    assert set(names) == set(EXPERTS)
    assert model.group == [0, 0, 1, 2, 3]
    batch = testing.batch(small(), 3, 2)
    fields = [inputs(batch).stack() for inputs in model.inputs]
    for r in range(3):
        for l in range(2):
            rows = [x[r, l] for x in fields]
            hidden = []
            for name, g, block, expert in zip(names, model.group, model.interactions, model.experts, strict=True):
                hidden.append(expert(interaction(name, block, rows[g])[None])[0])
            weight = torch.ones(5)
            if fusion == "gate":
                weight = (model.gate.score.weight @ torch.cat([x.flatten() for x in rows])).softmax(0)
            if fusion == "weighted":
                weight = model.weight.softmax(0)
            together = sum(w * h for w, h in zip(weight, hidden, strict=True))
            torch.testing.assert_close(
                model(batch)["click"][r, l], model.heads(model.mlp(together[None]))["click"][0], rtol=1e-4, atol=1e-5
            )


def test_groups_have_tables_of_their_own_and_experts_of_a_group_share_them():
    model = HMoE(small(), dim=3, experts=(("dnn", "fm"), "dnn"), expert_hidden=(4,))
    tables = [inputs.tables.weight("user") for inputs in model.inputs]
    assert len(tables) == 2
    assert not torch.equal(*tables)
    assert tables[0].shape == (4, 3)


def test_one_expert_alone_is_that_expert():
    """A gate of one weight is 1, so that what is left is an MLP over one set of embeddings."""
    model = testing.wake(HMoE(small(), dim=3, experts=("dnn",), expert_hidden=(4,), hidden=()))
    batch = testing.batch(small(), 3, 2)
    x = model.inputs[0](batch).stack().flatten(-2)
    torch.testing.assert_close(model(batch)["click"], model.heads(model.experts[0](x))["click"])


class Largest(nn.Module):
    def __init__(self, fields, dim):
        super().__init__()
        self.width = dim

    def forward(self, x):
        return x.amax(-2)


def test_an_expert_may_be_a_class():
    model = testing.wake(HMoE(small(), dim=3, experts=(Largest, "fm"), expert_hidden=(4,)))
    assert model(testing.batch(small(), 3, 2))["click"].shape == (3, 2)
    assert model.experts[0].first.in_features == 3


def test_information_abundance_is_one_on_a_line_and_the_width_on_a_ball():
    schema = Schema([Categorical("user", "user", size=5), Categorical("item", "item", size=7)], CLICK)
    model = HMoE(schema, dim=3, experts=("dnn", "fm"), expert_hidden=(4,))
    with torch.no_grad():
        for inputs, rows in zip(model.inputs, (torch.ones(6, 3), torch.eye(3).repeat(2, 1)), strict=True):
            inputs.tables.load("item", torch.arange(1, 7), rows)
    line, ball = model.abundance("item")
    assert math.isclose(line, 1, rel_tol=1e-5)
    assert math.isclose(ball, 3, rel_tol=1e-5)


def test_hmoe_names_what_it_does_not_know():
    with pytest.raises(ConfigError, match="Did you mean 'cross'"):
        HMoE(small(), experts=("dnn", ("cros",)))
    with pytest.raises(ConfigError, match="Did you mean 'gate'"):
        HMoE(small(), fusion="gated")
    with pytest.raises(ConfigError, match="an expert in each group"):
        HMoE(small(), experts=("dnn", ()))


# -- AdaF2M2 ----------------------------------------------------------------------------------------------------------
def adapted(**options) -> AdaF2M2:
    tasks = options.pop("tasks", CLICK)
    return testing.wake(AdaF2M2(small(tasks), dim=3, cross_layers=1, hidden=(5,), adapter=(4,), **options))


def test_the_adapter_by_the_equation_and_its_signals_have_no_gradient():
    model = adapted(state=("item", "age"))
    batch = testing.batch(small(), 3, 2)
    fields = model.inputs(batch).stack()
    names = list(model.inputs.widths)
    for r in range(3):
        for l in range(2):
            x = fields[r, l]
            signals = torch.cat([x[names.index("item")], x[names.index("age")], x.square().sum(-1).sqrt()])
            weight = model.weigh(model.adapter(signals[None]))[0].sigmoid()
            torch.testing.assert_close(model.weights(fields)[r, l], weight)
            torch.testing.assert_close(model.weighed(fields)[r, l], x * weight.unsqueeze(-1))
    grads = torch.autograd.grad(model.weights(fields).sum(), list(model.inputs.parameters()), allow_unused=True)
    assert all(g is None for g in grads)


def test_labels_stay_with_their_rows():
    """Where nothing is masked, the copies' loss is that of the rows themselves; tiled labels would belong to other rows."""
    model = adapted(share=(0.0, 0.0), copies=3, alpha=0.5, tasks=(Task("click"), Task("buy", given="click"))).train()
    batch = testing.batch(model.schema, 6, 2, mask=True, weight=True)
    found = model.losses(batch)
    assert list(found) == ["click", "buy", "click@masked", "buy@masked"]
    logits = model._logits(model.inputs(batch).stack())
    for task in ("click", "buy"):
        where = batch["@mask"] if task == "click" else batch["@mask"] & (batch["click@label"] == 1)
        loss = F.binary_cross_entropy_with_logits(logits[task], batch[f"{task}@label"], reduction="none")
        wanted = (loss * batch["@weight"])[where].sum() / batch["@weight"][where].sum()
        torch.testing.assert_close(found[f"{task}@masked"], 0.5 * wanted)
    tiled = batch["click@label"].repeat(3, 1)
    assert not torch.equal(tiled, copied(batch["click@label"], 3)), "the batch should tell them apart"


def test_copies_stand_beside_their_row():
    assert copied(torch.tensor([[1, 2], [3, 4]]), 2).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]


def test_each_row_is_masked_for_itself_and_as_often_as_it_should_be():
    torch.manual_seed(0)
    model = adapted(share=(0.1, 0.5))
    with torch.no_grad():
        model.blank.fill_(7.0)
    fields = torch.zeros(4000, 2, 4, 3)
    masked = model.masked(fields)
    assert ((masked == 7) | (masked == 0)).all()
    hidden = masked[..., 0] == 7
    assert torch.equal(hidden, masked[..., 2] == 7), "a field is masked as a whole"
    share = hidden.float().mean(-1)
    torch.testing.assert_close(hidden.float().mean((0, 1)), torch.full((4,), 0.3), rtol=0, atol=0.02)
    # four draws with a probability that is itself drawn: p(1 - p)/4 on average, and the variance of U(.1, .5)
    variance = (0.3 - (0.3**2 + 0.4**2 / 12)) / 4 + 0.4**2 / 12
    assert math.isclose(float(share.var()), variance, rel_tol=0.08)
    together = torch.corrcoef(share.T)[0, 1]
    assert abs(together) < 0.06, "candidates of one request are rows of their own"  # .22 if they had one probability


def test_copies_are_for_training_only():
    model, batch = adapted(), testing.batch(small(), 4, 2)
    assert list(model.eval().losses(batch)) == ["click"]
    assert list(model.train().losses(batch)) == ["click", "click@masked"]
    for none in (adapted(copies=0), adapted(alpha=0.0)):
        assert none.blank is None
        assert list(none.train().losses(batch)) == ["click"]
    model.eval()
    before = model(batch)["click"]
    with torch.no_grad():
        model.blank.fill_(9.0)
    assert torch.equal(model(batch)["click"], before)


def test_adaf2m2_names_what_is_wrong():
    with pytest.raises(ConfigError, match="share is"):
        adapted(share=(0.5, 0.1))
    with pytest.raises(SchemaError, match="Did you mean 'user'"):
        adapted(state=("usr",))


# -- experts of RankMixer, the MLP of GwPFM ---------------------------------------------------------------------------
def test_rankmixers_experts_by_the_equation():
    model = testing.wake(RankMixer(small(), dim=3, tokens=3, width=6, layers=1, expansion=2, experts=2))
    routed, x = model.blocks[0].feed, torch.randn(5, 3, 6)
    fast, gate = routed(x)
    assert (gate == 0).any()
    assert (gate > 0).any()
    for r in range(5):
        for t in range(3):
            wanted = (x[r, t] @ routed.route.weight[t] + routed.route.bias[t]).clamp(min=0)
            torch.testing.assert_close(gate[r, t], wanted)
            slow = torch.zeros(6)
            for e in range(2):
                k = 2 * t + e
                hidden = F.gelu(x[r, t] @ routed.first.weight[k] + routed.first.bias[k])
                slow += wanted[e] * (hidden @ routed.second.weight[k] + routed.second.bias[k])
            torch.testing.assert_close(fast[r, t], slow)


def test_rankmixers_routing_loss_is_the_mean_gate_of_the_live_rows_and_closes_gates():
    model = testing.wake(RankMixer(small(), dim=3, tokens=3, width=6, layers=2, experts=2, sparsity=0.5))
    batch = testing.batch(small(), 6, 3, mask=True)
    gates = model._logits(batch)[1]
    live = [gate[r, l].sum() for gate in gates for r in range(6) for l in range(3) if batch["@mask"][r, l]]
    torch.testing.assert_close(model.losses(batch)["routing"], 0.5 * torch.stack(live).mean())
    assert list(RankMixer(small(), tokens=3, width=6).losses(batch)) == ["click"]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model.losses(batch)["routing"].backward()
        optimizer.step()
    left = sum(float((gate > 0).sum()) for gate in model._logits(batch)[1])
    assert left < 0.5 * sum(float((gate > 0).sum()) for gate in gates)


@pytest.mark.parametrize("groups", ["field", "role"])
def test_gwpfms_mlp_reads_the_products_that_the_sum_adds_up(groups):
    schema = small([Task("click"), Task("shelf", kind="multiclass", classes=3)])
    model = testing.wake(GwPFM(schema, dim=3, groups=groups, hidden=(5,)))
    batch = testing.batch(schema, 3, 2)
    fields = model.inputs(batch).stack()
    names, found = list(model.inputs.widths), model.products(fields)
    of = {n: model.groups.index(schema.feature(n).role if groups == "role" else n) for n in names}
    each = fields.unflatten(-1, (len(model.groups), 3))
    slow = torch.zeros_like(found)
    place = {pair: p for p, pair in enumerate(zip(*torch.triu_indices(*[len(model.groups)] * 2).tolist(), strict=True))}
    for i, a in enumerate(names):
        for j in range(i + 1, len(names)):
            g, h = of[a], of[names[j]]
            slow[..., place[min(g, h), max(g, h)], :] += each[..., i, h, :] * each[..., j, g, :]
    torch.testing.assert_close(found, slow)
    hidden = model.mlp((slow * model.weight.unsqueeze(-1)).flatten(-2))
    shallow = model.heads.layers["click"](hidden).squeeze(-1) + model.first_order["click"](batch)
    torch.testing.assert_close(model(batch)["click"], shallow)
    torch.testing.assert_close(model(batch)["shelf"], model.heads.layers["shelf"](hidden))
