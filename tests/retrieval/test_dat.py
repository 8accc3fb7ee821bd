"""DAT's augmented vectors: what they mimic, what they leave alone, and who has none."""

import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack import losses, testing
from recstack.errors import SchemaError

SMALL = {"dim": 4, "hidden": (8, 4)}


def model(**options):
    torch.manual_seed(0)
    return testing.wake(rs.retrieval.DAT(testing.schema(), **SMALL, **options)).eval()


def test_the_losses_are_the_slow_loop():
    dat, batch = (
        model(mimic=0.3, aligned=("item_id",), alignment=2.0),
        testing.batch(testing.schema(), 8, 3, weight=True),
    )
    batch["item_id"] = (2 + torch.arange(24) % 4).view(8, 3).int()
    flat = {f.name: batch[f.name].flatten(0, 1) for f in testing.schema().by_role("item")}
    p_u, p_v = dat.user_vectors(batch).squeeze(1) * dat.temperature, dat.item_vectors(flat).view(8, 3, 4)
    a_u = dat.of_user.tables.weight("user_id")
    a_v = dat.of_item.tables.weight("item_id")
    total = dict.fromkeys(("cell", "user", "item"), 0.0) | {"w": 0.0, "w+": 0.0}
    kept, category = [], []
    for r in range(8):
        for j in range(3):
            y, w = float(batch["click@label"][r, j]), float(batch["@weight"][r, j])
            z = p_u[r] @ p_v[r, j] / 0.1
            total["cell"] += -w * (torch.sigmoid(z).log() if y else torch.sigmoid(-z).log())
            total["w"] += w
            if y:
                total["user"] += w * (a_u[int(batch["user_id"][r]) - 1] - p_v[r, j]).square().sum()
                total["item"] += w * (a_v[int(batch["item_id"][r, j]) - 1] - p_u[r]).square().sum()
                total["w+"] += w
                kept.append(p_v[r, j])
                category.append(int(batch["item_id"][r, j]))
    found = dat.losses(batch)
    assert_close(found["click"], total["cell"] / total["w"])
    assert_close(found["user mimics"], 0.3 * total["user"] / total["w+"])
    assert_close(found["item mimics"], 0.3 * total["item"] / total["w+"])
    aligned = losses.category_alignment(torch.stack(kept), torch.tensor(category))
    assert aligned > 0
    assert_close(found["item_id aligned"], 2 * aligned)


def test_who_mimics_learns_and_who_is_mimicked_does_not():
    dat, batch = model(), testing.batch(testing.schema(), 6, 2)
    dat.losses(batch)["user mimics"].backward()
    learned = {name for name, p in dat.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {n for n, _ in dat.named_parameters() if n.startswith("of_user.")}


def test_whom_training_has_not_met_has_zeros():
    schema = testing.schema()
    torch.manual_seed(0)
    dat = rs.retrieval.DAT(schema, **SMALL)
    batch = testing.batch(schema, 6, 2)
    batch["user_id"], batch["item_id"] = torch.full((6,), 5), torch.full((6, 2), 7)
    optimizer = torch.optim.Adam(dat.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(dat.losses(batch).values()).backward()
        optimizer.step()
    for table, met in ((dat.of_user.tables.weight("user_id"), 5), (dat.of_item.tables.weight("item_id"), 7)):
        assert table.any(-1).nonzero().flatten().tolist() == [met - 1]  # row 0 is id 1


@pytest.mark.parametrize("name", ["genre", "price", "likes"])
def test_what_has_no_single_category_cannot_be_aligned(name):
    with pytest.raises(SchemaError, match=f"Categorical features of items; '{name}' is none"):
        model(aligned=(name,))
