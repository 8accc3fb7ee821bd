"""DFN: what was clicked, passed by and disliked, against slow loops; what each loss looks at."""

import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack import losses, testing
from recstack.errors import ConfigError
from recstack.metrics import auc
from recstack.nn.sequence.feedback import Feedback

IDS = testing.keys_only(testing.schema(), ("history",))
THREE = IDS.replace(
    features=[*IDS.features, *(rs.History(n, of=("item_id",), max_len=6) for n in ("passed", "disliked"))]
)


def dfn(seed=0, **options):
    torch.manual_seed(seed)
    return testing.wake(rs.retrieval.DFN(THREE, dim=6, width=8, hidden=(12, 8), **options)).eval()


def slow_layer(layer, rows):
    """One head: each row attends to all rows, then the position-wise network."""
    a, out = layer.attention, []
    for row in rows:
        score = torch.stack([a.query(row) @ a.key(other) for other in rows]) / a.size**0.5
        read = a.out(score.softmax(0) @ torch.stack([a.value(other) for other in rows]))
        x = layer.norms[0](row + read)
        out.append(layer.norms[1](x + layer.feed(x)))
    return torch.stack(out)


def test_the_feedback_encoder_is_a_loop_over_what_is_there():
    torch.manual_seed(0)
    block = Feedback(4, 3)
    query, steps = torch.randn(2, 4), [torch.randn(2, 5, 4) for _ in range(3)]
    lengths = torch.tensor([[5, 3, 0], [2, 4, 1]])  # the first row has no dislikes
    masks = [torch.arange(5) < lengths[:, i : i + 1] for i in range(3)]
    fast = block(query, *zip(steps, masks, strict=True))
    for r in range(2):
        parts, live = [], [s[r, : lengths[r, i]] for i, s in enumerate(steps)]
        for i, x in enumerate(live):
            place = block.positions[i].weight
            back = [min(len(x) - t, 3) for t in range(len(x))]  # what is older than three shares a vector
            rows = [query[r] + place[0], *(h + place[b] for h, b in zip(x, back, strict=True))]
            parts.append(slow_layer(block.inner[i], rows).mean(0))
        for outer, sure in zip(block.outer, (parts[0], parts[2]), strict=True):
            score = [
                outer.score(outer.first(torch.cat([sure, h, sure - h, sure * h])).unsqueeze(0)).squeeze()
                for h in live[1]
            ]
            parts.append(torch.stack(score).softmax(0) @ live[1])
        assert_close(fast[r], torch.cat(parts))


def test_what_was_passed_by_is_the_triplets_business_alone():
    one, batch = dfn(), testing.batch(THREE, 6, 3)
    batch["item_id"] = batch["item_id"].clamp(min=2)
    batch["click@label"] = torch.tensor([1.0, 0.0, 0.0]).expand(6, 3).clone()
    found = one.losses(batch)
    cosine = one(batch)["click"] * one.temperature
    slow = torch.stack([(0.1 - c[0] + c[j]).clamp(min=0) for c in cosine for j in (1, 2)])
    assert_close(found["triplet"], 0.3 * slow.mean())

    users, items = one.user_vectors(batch), one.item_vectors({"item_id": batch["item_id"][:, 0]})
    size = len(one.softmax.drawn) - 2
    share = torch.full((6,), 1 / size).log()  # nothing was counted yet: all alike
    wanted = losses.in_batch_softmax(users, items, batch["item_id"][:, 0], log_q=share)
    assert_close(found["softmax"], wanted)
    other = {**batch, "item_id": batch["item_id"].clone()}
    other["item_id"][:, 1:] = 21 - other["item_id"][:, 1:]
    assert_close(one.losses(other)["softmax"], found["softmax"])
    assert one.losses(other)["triplet"] != found["triplet"]


def test_a_history_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"Unknown history 'passd'\. Did you mean 'passed'"):
        dfn(feedback=("watched", "passd"))


@pytest.mark.slow
def test_a_taste_that_only_exposures_without_a_click_tell_is_learned():
    """Clicks are of the side that a user does not pass by; what they clicked before says nothing."""
    g = torch.Generator().manual_seed(0)

    def batch(seed, requests=128):
        some = testing.batch(THREE, requests, 5, seed)
        side = torch.randint(0, 2, (requests, 1), generator=g)
        ids = 2 * torch.randint(1, 10, (requests, 5), generator=g) + side  # passed by: all of one side
        some["item_id@passed"] = (ids * (some["item_id@passed"] > 0)).int()
        some["click@label"] = (some["item_id"] % 2 != side).float()
        return {k: v[1:] for k, v in some.items()}  # the first has no history

    def learned(feedback):
        torch.manual_seed(0)
        model = rs.retrieval.DFN(THREE, feedback=feedback, dim=8, width=8, hidden=(16, 8), temperature=0.2)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(80):
            optimizer.zero_grad()
            sum(model.losses(batch(step)).values()).backward()
            optimizer.step()
        test = batch(10_000, 500)
        return float(auc(model.eval()(test)["click"].detach(), test["click@label"]))

    assert learned(()) > 0.85
    assert learned(("watched",)) < 0.6
