"""Each behaviour model finds what it claims to find, in worlds where its base cannot know the answer.

An item is a shelf and a quality, 0 or 1: item ``2 · shelf + quality``. A world labels a batch by one rule, and says in which
AUC the truth, the model and the base are expected. Every batch is new, so that nothing can be learned by heart.
"""

import pytest
import torch

from recstack import metrics
from recstack.models import ranking
from recstack.schema import Categorical, History, Schema, Task

SHELVES = 100
STRENGTH = 2.5  # the logit of the label, so that the truth's AUC is .92


def schema(max_len: int) -> Schema:
    features = [Categorical("item", "item", size=2 * SHELVES + 1), Categorical("shelf", "item", size=SHELVES + 1)]
    return Schema([*features, History("seen", of=("item", "shelf"), max_len=max_len)], [Task("click")])


def labelled(target, history, good, g):
    """A batch of one candidate a request; its label is mostly `good`. Items count from 0, ids from 1."""
    chance = (STRENGTH * (2.0 * good - 1)).sigmoid()
    return {
        "item": target.unsqueeze(1) + 1,
        "shelf": target.unsqueeze(1) // 2 + 1,
        "item@seen": history + 1,
        "shelf@seen": history // 2 + 1,
        "click@label": torch.bernoulli(chance, generator=g).unsqueeze(1),
    }, chance


def halves(rows, steps, g):
    """As many steps of quality 0 as of quality 1, in any order: what all steps have together says nothing."""
    return (torch.rand(rows, steps, generator=g).argsort(1) < steps // 2).long()


def any_items(rows, g):
    return torch.randint(2 * SHELVES, (rows,), generator=g)


def target_dependent(rows, g, steps=10):
    """The one step of the target's shelf tells: its quality is the label."""
    shelf = torch.rand(rows, SHELVES, generator=g).argsort(1)[:, :steps]
    quality, at = halves(rows, steps, g), torch.randint(steps, (rows, 1), generator=g)
    target = 2 * shelf.gather(1, at).squeeze(1) + torch.randint(2, (rows,), generator=g)
    return labelled(target, 2 * shelf + quality, quality.gather(1, at).squeeze(1), g)


def ordered(rows, g, steps=6):
    """The quality of the last step is the label; of all steps half are good, always."""
    history = 2 * torch.randint(SHELVES, (rows, steps), generator=g) + halves(rows, steps, g)
    return labelled(any_items(rows, g), history, history[:, -1] % 2, g)


def in_sessions(rows, g, steps=8):
    """The topic of the latest session is the label: of its 3 or 5 steps, what most are. Only their times tell where it began."""
    quality, length = halves(rows, steps, g), 3 + 2 * torch.randint(2, (rows, 1), generator=g)
    latest = torch.arange(steps) >= steps - length
    good = 2 * (quality * latest).sum(1) > length.squeeze(1)
    history = 2 * torch.randint(SHELVES, (rows, steps), generator=g) + quality
    batch, chance = labelled(any_items(rows, g), history, good, g)
    return batch | {"@time@seen": 60 * torch.arange(steps) + 7200 * latest}, chance


def learned(name, world, *, steps=300, lr=0.01, max_len=10, without=(), **options):
    """(the model's AUC, the truth's) after so many steps of 256 rows, or fewer where rows of their own say that is enough."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    model = getattr(ranking, name)(schema(max_len), dim=8, hidden=(32,), **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    held = torch.Generator().manual_seed(1)
    looks = [world(1024, held) for _ in range(2)]
    for step in range(steps):
        if step >= 60 and step % 20 == 0:
            auc, truth = measured(model.eval(), *looks, without=without)
            model.train()
            if auc > truth - 0.012:
                break
        batch = {k: v for k, v in world(256, g)[0].items() if k not in without}
        optimizer.zero_grad()
        sum(model.losses(batch).values()).backward()
        optimizer.step()
    return measured(model.eval(), *(world(2048, g) for _ in range(2)), without=without), model


def measured(model, *given, without=()):
    with torch.no_grad():
        score = torch.cat(
            [model({k: v for k, v in b.items() if k not in without})["click"].flatten() for b, _ in given]
        )
    label = torch.cat([b["click@label"].flatten() for b, _ in given])
    return metrics.auc(score, label).item(), metrics.auc(torch.cat([c for _, c in given]), label).item()


# model, options, learning rate: TIN multiplies small numbers with each other, and wakes late at a small one
TARGETED = [
    ("DIN", {}, 0.01),
    ("DIEN", {}, 0.01),
    ("TIN", {}, 0.02),
    ("CAN", {}, 0.01),
    ("SIM", {"recent": 1}, 0.01),
    ("ETA", {"recent": 1}, 0.01),
    ("TWIN", {"recent": 1}, 0.01),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "lr"), TARGETED, ids=[row[0] for row in TARGETED])
def test_the_step_that_the_target_asks_for_is_found(name, options, lr):
    """Truth .92, model .90 or more; the sum of all steps has to be taken apart again and stays below .80 in that time."""
    (auc, truth), _ = learned(name, target_dependent, lr=lr, **options)
    assert truth > 0.91
    assert auc > 0.89


@pytest.mark.slow
def test_a_sum_of_all_steps_does_not_find_it():
    (auc, _), _ = learned("DINBase", target_dependent)
    assert auc < 0.82


ORDERED = [  # DIEN and TIN wake late, and all stop as soon as they have learned it
    ("DIEN", {}, 0.01),
    ("BST", {"heads": 2}, 0.01),
    ("TIN", {}, 0.02),
    ("STAMP", {}, 0.01),
    ("DSIN", {"items": 2, "heads": 2}, 0.01),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "lr"), ORDERED, ids=[row[0] for row in ORDERED])
def test_order_is_seen(name, options, lr):
    """Truth .92, model .90 or more."""
    (auc, truth), _ = learned(name, ordered, lr=lr, steps={"DIEN": 400, "TIN": 800}.get(name, 200), **options)
    assert truth > 0.91
    assert auc > 0.89


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DINBase", "DIN", "CAN"])
def test_what_pools_cannot_see_order(name):
    """Chance, .50: whatever the order, the steps are the same."""
    (auc, _), _ = learned(name, ordered, steps=100)
    assert abs(auc - 0.5) < 0.04


@pytest.mark.slow
def test_sessions_are_told_by_their_times():
    """Truth .92, DSIN .90 or more; chance where nobody has the times, and for the sum of all steps."""
    options = {"sessions": 2, "items": 8, "heads": 2}
    (auc, truth), model = learned("DSIN", in_sessions, steps=200, max_len=8, **options)
    assert truth > 0.91
    assert auc > 0.89
    g = torch.Generator().manual_seed(1)
    untold, _ = measured(model, in_sessions(4096, g), without=("@time@seen",))
    assert untold < 0.6
    (base, _), _ = learned("DINBase", in_sessions, steps=100, max_len=8)
    assert abs(base - 0.5) < 0.04


# -- one hit among 2,000 events ---------------------------------------------------------------------------------------
LONG, FEW = 2000, 16  # events; shelves, so that every other one is met more than a hundred times
RECENT = 50  # events that hold no hit


def long_schema() -> Schema:
    item, shelf = Categorical("item", "item", size=2 * FEW + 1), Categorical("shelf", "item", size=FEW + 1, dim=16)
    return Schema([item, shelf, History("seen", of=("item", "shelf"), max_len=LONG)], [Task("click")])


def long_ago(rows, g, steps=LONG, hits=1, recent=RECENT):
    """Of the target's shelf are `hits` steps, none among the `recent`; their quality is the label."""
    target = torch.randint(2 * FEW, (rows,), generator=g)
    history = torch.randint(2 * FEW - 2, (rows, steps), generator=g)
    history += 2 * (history // 2 >= target.unsqueeze(1) // 2)  # every other shelf
    at = torch.rand(rows, steps - recent, generator=g).argsort(1)[:, :hits]
    good = torch.randint(2, (rows, 1), generator=g)
    history = history.scatter(1, at, (target.unsqueeze(1) // 2 * 2 + good).expand_as(at))
    return labelled(target, history, good.squeeze(1), g)


def brought_up(name, steps=300, **options):
    """Trained where histories are short.

    With hashes tables begin spread out: from tiny values on all shelves would soon lie in few directions, and no gradient
    goes through a hash, which reads angles.
    """
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    model = getattr(ranking, name)(long_schema(), dim=8, hidden=(16,), **options)
    with torch.no_grad():
        for table in model.inputs.tables.parameters() if name in ("ETA", "SDIM") else ():
            table.normal_(0, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model.losses(long_ago(256, g, steps=20, recent=5)[0]).values()).backward()
        optimizer.step()
    return model.eval(), g


# model, options, hits among the 2,000, what its AUC is above
FAR = [
    ("SIM", {"search": "hard", "keep": 20}, 1, 0.8),
    ("SIM", {"search": "soft", "keep": 20}, 1, 0.8),
    ("TWIN", {"keep": 20}, 1, 0.8),
    ("ETA", {"keep": 50, "bits": 64}, 1, 0.75),  # the hit is among the nearest 50 codes mostly, not always
    ("SDIM", {}, 20, 0.7),  # a bucket of 3 bits holds an eighth of what is unlike the target
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "hits", "above"), FAR, ids=["SIM-hard", "SIM", "TWIN", "ETA", "SDIM"])
def test_a_hit_long_ago_is_found(name, options, hits, above):
    """Truth .92 (.88 to .95 in 256 rows), the model above its row's; the last 50 events say nothing, .50: see below."""
    model, g = brought_up(name, recent=1, **options)
    auc, truth = measured(model, *(long_ago(64, g, hits=hits) for _ in range(4)))
    assert truth > 0.85
    assert auc > above


@pytest.mark.slow
def test_a_recent_history_does_not_hold_it():
    """Chance, .50, though the model knows what to look for: where a hit is near it finds it."""
    model, g = brought_up("DIN")
    near, _ = measured(model, long_ago(2048, g, steps=20, recent=5))
    assert near > 0.85

    def cut(batch, chance):
        return {k: v[:, -RECENT:] if k.endswith("@seen") else v for k, v in batch.items()}, chance

    auc, _ = measured(model, *(cut(*long_ago(256, g)) for _ in range(8)))
    assert abs(auc - 0.5) < 0.05
