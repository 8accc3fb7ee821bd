"""The streaming estimate of how often an item is in a batch, and the softmax that it corrects."""

import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack import losses, testing
from recstack.errors import ConfigError
from recstack.nn.frequency import StreamingFrequency


def test_the_estimate_is_the_slow_loop():
    g = torch.Generator().manual_seed(0)
    block, rate = StreamingFrequency(16, hashes=2, rate=0.25), 0.25
    last, gap, hits = ([[0.0] * 16 for _ in range(2)] for _ in range(3))
    bucket = lambda i, y: int((int(block.keys[i, 0]) * y + int(block.keys[i, 1])) % (2**31 - 1) % 16)  # noqa: E731
    for step in range(1, 40):
        ids = torch.randint(2, 30, (5,), generator=g)
        block.update(ids)
        for i in range(2):
            for b in {bucket(i, y) for y in ids.tolist()}:
                hits[i][b] += 1
                a = max(rate, 1 / hits[i][b])
                gap[i][b] = (1 - a) * gap[i][b] + a * (step - last[i][b])
                last[i][b] = step
    ids = torch.arange(2, 34)
    wanted = [max(gap[i][bucket(i, y)] if hits[i][bucket(i, y)] else 39 for i in range(2)) for y in ids.tolist()]
    assert_close(block(ids), -torch.tensor(wanted).log())


def stream(block, chance, steps, seed=0):
    """Batches that hold id i + 2 with the given chance."""
    for drawn in torch.rand(steps, len(chance), generator=torch.Generator().manual_seed(seed)) < chance:
        block.update(drawn.nonzero().squeeze(1) + 2)


def test_the_estimate_converges_to_the_true_chance_and_follows_it_when_it_changes():
    chance, ids = torch.tensor([0.9, 0.5, 0.2, 0.05, 0.02]), torch.arange(2, 7)
    block = StreamingFrequency(1 << 12, rate=0.05)
    stream(block, chance, 3000)
    assert ((block(ids) - chance.log()).abs() < 0.5).all()
    stream(block, chance.flip(0), 3000, seed=1)
    assert ((block(ids) - chance.flip(0).log()).abs() < 0.5).all()


def test_more_hash_functions_keep_rare_ids_rare():
    """256 ids in 64 buckets: a rare id shares its bucket with frequent ones; the longest of four gaps is nearer."""
    chance, ids = torch.full((256,), 0.01), torch.arange(2, 258)
    chance[::16] = 0.5
    errors = []
    for hashes in (1, 4):
        block = StreamingFrequency(64, hashes=hashes)
        stream(block, chance, 500)
        errors.append((block(ids).exp() - chance).clamp(min=0)[chance < 0.1].mean())
    assert errors[1] < 0.5 * errors[0]


def model(**options):
    torch.manual_seed(0)
    return testing.wake(rs.retrieval.YouTubeSBC(testing.schema(), dim=4, hidden=(8, 4), **options)).eval()


def test_the_loss_is_the_corrected_softmax_of_the_chosen_and_serving_knows_no_correction():
    tower, batch = model(temperature=0.5), testing.batch(testing.schema(), 6, 1, seed=4, weight=True)
    before = tower(batch)["click"]
    tower.train()
    tower.losses(batch)
    tower.eval()
    assert tower.frequency.step == 1
    assert_close(tower(batch)["click"], before)

    tower.frequency.gap.uniform_(1, 50)
    tower.losses(batch)
    assert tower.frequency.step == 1  # counted in training only
    chosen = (batch["click@label"] > 0).squeeze(1) & (batch["item_id"][:, 0] > 1)
    ids = batch["item_id"][chosen, 0].long()
    assert len(ids) > 2
    wanted = losses.in_batch_softmax(
        tower.user_vectors(batch)[chosen].squeeze(1),
        tower.item_vectors({f.name: batch[f.name].flatten(0, 1) for f in testing.schema().by_role("item")})[chosen],
        ids,
        log_q=tower.frequency(ids),
        weight=batch["@weight"][chosen, 0],
    )
    assert_close(tower.losses(batch)["softmax"], wanted)


def test_the_reward_of_a_watched_item_is_how_much_of_it_was_watched():
    schema = testing.schema(tasks=[rs.Task("click"), rs.Task("watched_share", kind="regression")])
    torch.manual_seed(0)
    tower = rs.retrieval.YouTubeSBC(schema, dim=4, hidden=(8, 4), task="watched_share").eval()
    batch = testing.batch(schema, 6, 1, seed=4)
    reward = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 1.0]).unsqueeze(1)
    weighted = dict(batch) | {"watched_share@label": (reward > 0).float(), "@weight": reward}
    assert_close(tower.losses(batch | {"watched_share@label": reward}), tower.losses(weighted))


def test_an_estimate_without_buckets_is_refused():
    with pytest.raises(ConfigError, match=r"buckets and hashes are at least 1.*got 0, 2"):
        model(buckets=0)
