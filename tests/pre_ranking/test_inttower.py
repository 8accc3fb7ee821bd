"""IntTower against loops over layers and parts."""

import torch
from torch.testing import assert_close

from recstack import testing
from recstack.models.pre_ranking import IntTower
from recstack.models.pre_ranking.inttower import _LightSE


def test_a_part_of_a_user_looks_for_its_best_part_of_an_item():
    schema = testing.schema()
    model = testing.wake(IntTower(schema, dim=3, hidden=(6, 4), parts=2, width=5)).eval()
    batch = testing.batch(schema, 3, 2)
    layers, items = model._towers(batch)
    match = torch.zeros(3, 2, 4)
    for r in range(3):
        for c in range(2):
            of_item = model.item_parts(items[r, c]).view(2, 5)
            for i, h in enumerate(layers):
                for m, part in enumerate(model.user_parts[i](h[r]).view(2, 5)):
                    match[r, c, 2 * i + m] = max(part @ other for other in of_item)
    assert_close(model(batch)["click"], model.heads.layers["click"](match).squeeze(-1))
    assert_close(layers[1], model.user_layers[1](layers[0]))


def test_light_squeeze_and_excitation_by_hand():
    block = _LightSE(2)
    torch.nn.init.normal_(block.score.bias)
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0]])
    k = (block.score.weight @ torch.tensor([2.0, 4.0]) + block.score.bias).softmax(0)
    assert_close(block([a, b]), torch.cat([a * (1 + k[0]), b * (1 + k[1])], -1))


def test_the_contrast_is_of_positives_against_other_items_of_the_batch():
    schema = testing.schema()
    model = testing.wake(IntTower(schema, dim=3, hidden=(6, 4), parts=2, width=5, contrast=0.7, temperature=0.5)).eval()
    batch = testing.batch(schema, 4, 1)
    batch["item_id"] = torch.tensor([[3], [4], [3], [5]])
    batch["click@label"] = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    layers, items = model._towers(batch)
    cosine = torch.nn.functional.cosine_similarity(layers[-1].unsqueeze(1), items.squeeze(1).unsqueeze(0), dim=-1) / 0.5
    total = 0.0
    for row, others in ((0, (0, 1)), (1, (0, 1, 2)), (2, (1, 2))):  # rows 0 and 2 hold one item
        total = total - cosine[row, row] + cosine[row, list(others)].logsumexp(0)
    assert_close(model.losses(batch)["contrast"], 0.7 * total / 3)
    batch["click@label"].zero_()
    assert model.losses(batch)["contrast"].item() == 0
