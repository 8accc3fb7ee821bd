"""What DSSM may be given: squeeze and excitation, other losses over the same lists, items of earlier batches."""

import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack import losses, testing
from recstack.errors import ConfigError
from recstack.models.in_batch import InBatchSoftmax
from recstack.nn.interaction.importance import FieldImportance

SMALL = {"dim": 4, "hidden": (8, 4)}
ALL = (
    "sampled_softmax",
    "nce",
    ("triplet", {"margin": 0.3}),
    ("cosine_contrastive", {"margin": 0.0, "negative_weight": 2.0}),
    "direct_au",
)


def batch():
    some = testing.batch(testing.schema(), 10, 2, seed=1)
    some["click@label"] = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
    some["item_id"] = (2 + torch.arange(20) % 11).view(10, 2).int()
    return some


def test_importance_is_squeeze_and_excitation():
    torch.manual_seed(0)
    block, means = FieldImportance(6, 3), torch.randn(2, 5, 6)
    w1, w2 = block.squeeze.weight.detach(), block.excite.weight.detach()
    assert w1.shape == (2, 6)
    for a in range(2):
        for b in range(5):
            hidden = [max(0.0, float(w1[h] @ means[a, b])) for h in range(2)]
            wanted = [max(0.0, sum(float(w2[f, h]) * hidden[h] for h in range(2))) for f in range(6)]
            assert_close(block(means)[a, b], torch.tensor(wanted))


def test_senet_weighs_each_feature_by_one_more_than_its_importance():
    torch.manual_seed(0)
    tower = testing.wake(rs.retrieval.DSSM(testing.schema(), senet=True, **SMALL)).eval()
    some = batch()
    slots = tower.inputs(some, "item")
    names = ["item_id", "genre", "title", "price", "image"]
    e = [slots[name] for name in names]
    a = tower.towers.item_fields(torch.stack([x.mean(-1) for x in e], -1))
    assert (a > 0).any()
    x = torch.cat([(1 + a[..., i : i + 1]) * e[i] for i in range(5)], -1)
    wanted = torch.nn.functional.normalize(tower.towers.item_out(tower.towers.item_tower(x)), dim=-1)
    assert_close(tower.towers.item(some), wanted)


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_each_loss_is_that_of_its_name_over_the_batch(loss):
    torch.manual_seed(0)
    tower = testing.wake(rs.retrieval.DSSM(testing.schema(), loss=loss, **SMALL)).eval()
    some = batch()
    users, items = tower.user_vectors(some).squeeze(1), tower.towers.item(some)
    own, extra, ids, other = items[:, 0], items[:, 1], some["item_id"][:, 0], some["item_id"][:, 1]
    name, options = (loss, {}) if isinstance(loss, str) else loss
    if name == "direct_au":
        assert_close(users.norm(dim=-1), torch.ones(10))
        wanted = losses.direct_au(users, own, user_ids=some["user_id"], item_ids=ids)
    else:
        size = len(tower.softmax.drawn) - 2
        log_q = torch.full((20,), 1 / size if name == "sampled_softmax" else 1.0).log()  # all alike; nce's are times N
        score, label = users @ torch.cat([own, extra]).T, torch.eye(10, 20)
        where = (torch.cat([ids, other]) != ids.unsqueeze(1)) | (label > 0)
        q = {"log_q": log_q.expand(10, 20)} if name in ("nce", "sampled_softmax") else {}
        wanted = getattr(losses, name)(score, label, where=where, **options, **q)
    assert_close(tower.losses(some)["softmax"], wanted)


def test_a_memory_holds_the_items_of_earlier_batches_as_they_were():
    torch.manual_seed(0)
    block = InBatchSoftmax(30, memory=8, dim=3).train()
    users, items, weight = torch.randn(5, 1, 3), torch.randn(5, 1, 3), torch.rand(5, 1)
    ids, chosen = torch.tensor([[2], [3], [4], [5], [6]]), torch.ones(5, 1, dtype=torch.bool)
    block(users, items, ids, chosen, weight=weight)
    assert block.memory.ids.tolist() == [2, 3, 4, 5, 6, 0, 0, 0]
    found = block(users, -items, 1 + ids, chosen, weight=weight)
    assert block.memory.ids.tolist() == [6, 7, 4, 5, 6, 3, 4, 5]
    met = torch.bincount(torch.cat([ids, 1 + ids]).flatten(), minlength=30)
    log_q = ((met + 1) / (met.sum() + 28)).log()
    wanted = losses.in_batch_softmax(
        users.squeeze(1),
        -items.squeeze(1),
        1 + ids.squeeze(1),
        log_q=log_q[1 + ids.squeeze(1)],
        extra_item=items.squeeze(1),
        extra_ids=ids.squeeze(1),
        extra_log_q=log_q[ids.squeeze(1)],
        weight=weight.squeeze(1),
    )
    assert_close(found, wanted)
    assert_close(block.memory.vectors[5:], -items[:3, 0])  # the newest stand behind the oldest, then round
    block.eval()
    before = block.memory.ids.clone()
    block(users, items, ids, chosen)
    assert torch.equal(block.memory.ids, before)


def test_what_the_memory_holds_has_no_gradient():
    block = InBatchSoftmax(30, memory=4, dim=3).train()
    old = torch.randn(2, 1, 3, requires_grad=True)
    ids, chosen = torch.tensor([[2], [3]]), torch.ones(2, 1, dtype=torch.bool)
    block(torch.randn(2, 1, 3), old, ids, chosen)
    block(torch.randn(2, 1, 3), torch.randn(2, 1, 3, requires_grad=True), ids + 2, chosen).backward()
    assert old.grad is None


@pytest.mark.slow
@pytest.mark.parametrize("loss", ALL[1:], ids=str)
def test_a_tower_learns_by_each_loss(loss):
    options = {"dim": 6, "hidden": (12, 8), "temperature": 0.2, "loss": loss}
    testing.LAWS["learns"](testing.Case(rs.retrieval.DSSM, options, band=0.6))


def test_a_loss_with_options_is_saved(tmp_path):
    torch.manual_seed(0)
    tower, some = rs.retrieval.DSSM(testing.schema(), loss=ALL[2], memory=4, **SMALL), batch()
    tower.losses(some)
    again = rs.load(tower.save(tmp_path / "tower"))
    assert again.config["loss"] == ("triplet", {"margin": 0.3})
    assert_close(again.losses(some), tower.eval().losses(some))


def test_what_is_no_loss_of_towers_is_refused():
    with pytest.raises(ConfigError, match="Unknown loss 'nse'"):
        rs.retrieval.DSSM(testing.schema(), loss="nse")
    with pytest.raises(ConfigError, match="memory= keeps that many negatives, and direct_au has none; got 5"):
        rs.retrieval.DSSM(testing.schema(), loss="direct_au", memory=5)
