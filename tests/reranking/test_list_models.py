"""What each re-ranker says of itself, beyond the contract."""

import torch

from recstack import losses, testing
from recstack.models.reranking.dlcm import DLCM
from recstack.models.reranking.gsf import GSF
from recstack.models.reranking.mir import MIR
from recstack.models.reranking.pear import PEAR
from recstack.models.reranking.prm import PRM
from recstack.models.reranking.seq2slate import Seq2Slate
from recstack.models.reranking.set_rank import SetRank
from recstack.nn.lists import InducedAttention
from recstack.testing import Case, batch, take

ORDER = torch.tensor([3, 0, 4, 2, 1])


def permuted(model, places=ORDER):
    """Scores of the list in another order, and the scores in that order."""
    some = batch(model.schema, 3, 5)
    return model(take(some, model.schema, candidates=places))["click"], model(some)["click"][:, places]


def test_set_rank_sees_a_set():
    for induced in (0, 3):
        model = Case(
            SetRank, {"dim": 6, "width": 8, "layers": 2, "heads": 2, "induced": induced, "dropout": 0.0}
        ).build()
        torch.testing.assert_close(*permuted(model))
    placed = Case(SetRank, {"dim": 6, "width": 8, "layers": 1, "heads": 2, "max_list": 5, "dropout": 0.0}).build()
    found, wanted = permuted(placed)
    assert (found - wanted).abs().max() > 1e-3


def test_induced_attention_of_one_query_gives_every_item_the_same_vector_to_read():
    block = InducedAttention(4, 2, queries=1)
    x, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]])
    gathered = block.gather(block.queries.expand(2, -1, -1), x, mask)
    attention = block.spread.attention
    assert torch.allclose(
        attention(x, gathered, torch.ones(2, 1, dtype=torch.bool))[:, 0],
        attention.out(attention.value(gathered))[:, 0],
        atol=1e-6,
    )


def test_groups_of_one_see_no_list_and_all_strides_of_two_see_every_pair():
    alone = Case(GSF, {"dim": 6, "group": 1, "strides": 1, "hidden": (8,)}).build()
    torch.testing.assert_close(*permuted(alone))
    model = Case(GSF, {"dim": 6, "group": 2, "strides": 4, "hidden": (8,)}).build()
    torch.testing.assert_close(*permuted(model))  # every ordered pair once: no order is left
    some = batch(model.schema, 1, 5)
    x = model.inputs(some).flat()[0]
    total = torch.zeros(5, model.network.width)
    for i in range(5):
        for j in set(range(5)) - {i}:
            first, second = model.slots(model.network(torch.cat([x[i], x[j]])[None]))[0].chunk(2)
            total[i] += first / 8
            total[j] += second / 8
    torch.testing.assert_close(model(some)["click"][0], model.heads(total)["click"])


def test_dlcm_is_its_equation():
    model = Case(DLCM, {"dim": 6, "hidden": (8,), "width": 5}).build()
    some = batch(model.schema, 1, 4)
    x = model.inputs(some).flat()[0]
    x = torch.cat([x, model.abstract(x)], -1)
    states = model.gru.cell(x.flip(0).unsqueeze(0))[0][0].flip(0)
    wanted = model.heads(states * model.light(states[0]).tanh())["click"]
    torch.testing.assert_close(model(some)["click"][0], wanted)


def test_the_list_loss_of_pear():
    model = Case(PEAR, {"dim": 6, "width": 8, "layers": 1, "list_weight": 0.5}).build()
    some = batch(model.schema, 4, 3)
    some["click@label"][0], some["click@label"][1], some["click@label"][2] = 0, torch.nan, torch.tensor([0.0, 1.0, 0.0])
    token = model._read(some)[0]
    live = [0, 2, 3]
    label = some["click@label"][live].amax(-1)
    found = model.losses(some)
    torch.testing.assert_close(found["list"], 0.5 * losses.bce(model.of_list(token[live]).squeeze(-1), label))
    assert set(found) == {"click", "list"}


def scores_of(model, items, chosen):
    """u of every item after these choices, one by one."""
    d = model.start[None]
    for i in chosen:
        d = model.cell(items[None, i], d)
    hidden = [(model.of_item(e) + model.of_state(d[0])).tanh() for e in items]
    return model.heads(torch.stack(hidden))["click"]


def pointer():
    return Case(Seq2Slate, {"dim": 6, "width": 8, "places": 3, "dropout": 0.0}).build()


@torch.no_grad()
def test_seq2slate_serves_what_it_would_choose_place_by_place():
    model = pointer()
    some = batch(model.schema, 8, 6)
    moved = False
    for items, found in zip(model._read(some)[0], model(some)["click"], strict=True):
        first, chosen = scores_of(model, items, []), []
        for _ in range(3):
            left = [i for i in range(6) if i not in chosen]
            u = scores_of(model, items, chosen)
            chosen.append(max(left, key=lambda i, u=u: u[i]))
        rest = sorted((i for i in range(6) if i not in chosen), key=lambda i, u=first: -u[i])
        assert found.argsort(descending=True).tolist() == [*chosen, *rest]
        torch.testing.assert_close(found.sort().values, first.sort().values)
        moved |= chosen != first.argsort(descending=True)[:3].tolist()
    assert moved, "no list needs more than the first place's scores"


def test_seq2slate_learns_each_place_from_the_right_choices_before_it():
    model = pointer()
    some = batch(model.schema, 1, 4)
    some["click@label"] = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    items = model._read(some)[0][0]
    first = -scores_of(model, items, []).log_softmax(0)[[1, 3]].mean()
    second = -scores_of(model, items, [1])[[0, 2, 3]].log_softmax(0)[2]
    weight = 1 / torch.log2(torch.tensor(3.0))
    torch.testing.assert_close(model.losses(some)["click"], (first + weight * second) / (1 + weight))


def test_prm_by_name_of_its_encoder():
    model = Case(PRM, {"encoder": "light_conv", "hidden": 0, "width": 8, "dropout": 0.0}, testing.schema()).build()
    some = batch(model.schema, 1, 9)
    one = {k: v.clone() for k, v in some.items()}
    item = model.schema.item
    one[item][0, 8] = 1 + one[item][0, 8] % 2
    changed = (model(one)["click"] - model(some)["click"])[0].abs() > 1e-6
    assert not changed[:6].any()  # two layers of three places look two places far
    assert changed[6:].any()


@torch.no_grad()
def test_mir_sees_a_set_and_is_its_equation():
    model = Case(MIR, {"dim": 6, "width": 4, "attention": 5, "hidden": (8,)}).build()
    torch.testing.assert_close(*permuted(model))
    some = batch(model.schema, 1, 3)
    slots = model.inputs(some)
    x = model.project(slots.flat())
    v = torch.cat([model.of_set(x, torch.ones(1, 3, dtype=torch.bool)), x], -1)[0]
    steps, live = model.steps({h.name: slots.sequence(h.name) for h in model.schema.histories})
    u = torch.cat([model.read(steps, live), steps], -1)[0, live[0]]
    far = torch.cat([torch.arange(int(slots.sequence(h.name)[1].sum()), 0, -1) for h in model.schema.histories])
    theta = torch.nn.functional.softplus(model.fading(slots.flat("user")))[0]
    c = torch.zeros(len(u), 3)
    for t in range(len(u)):
        for i in range(3):
            c[t, i] = (u[t] @ model.affinity.weight.T @ v[i] * (1 + far[t] ** -theta)).tanh()
    of_items = (model.of_items(v) + c.T @ model.of_steps(u)).tanh()
    of_steps = (model.of_steps(u) + c @ model.of_items(v)).tanh()
    rows = []
    for i in range(3):
        near = (of_items @ model.query(v[i])).softmax(0) @ v
        own = (of_steps @ model.query(v[i])).softmax(0) @ u
        rows.append(torch.cat([x[0, i], near, own]))
    torch.testing.assert_close(model(some)["click"][0], model.heads(model.mlp(torch.stack(rows)))["click"])
