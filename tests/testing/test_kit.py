"""The laws notice what they are there for: each of these models breaks one, and the kit says which."""

import itertools

import pytest
import torch
from torch import nn

from recstack import testing
from recstack.errors import ConfigError
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import BatchNorm
from recstack.schema import Task
from recstack.testing import LAWS, Case


class Sound(Model):
    """Keeps the laws; the others change one line."""

    def __init__(self, schema, *, dim=16):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim)
        self.hidden = nn.Linear(self.inputs.width(), 32)  # narrower, some seeds learn two thirds of it
        self.heads = Heads(schema, 32)

    def body(self, batch):
        return self.hidden(self.inputs(batch).flat()).relu()

    def forward(self, batch):
        return self.heads(self.body(batch))


class SeesTheBatch(Sound):
    """Normalises by whoever else is there, also when it serves."""

    def body(self, batch):
        x = super().body(batch)
        return x - x.mean((0, 1))


class SeesTheList(Sound):
    """A pointwise model that reads its neighbours."""

    def body(self, batch):
        x = super().body(batch)
        return x - x.mean(1, keepdim=True)


class CountsPadding(Sound):
    """Batch statistics over dead candidates."""

    def __init__(self, schema, *, dim=16):
        super().__init__(schema, dim=dim)
        self.norm = BatchNorm(32)

    def body(self, batch):
        return self.norm(super().body(batch))


class CountsSteps(Sound):
    """Divides a history by its padded length."""

    def body(self, batch):
        ids = batch["item_id@watched"]
        return super().body(batch) + (ids > 0).float().mean(-1)[:, None, None]


class PaddedOnly(Sound):
    """Forgets that a history may be jagged."""

    def body(self, batch):
        steps = batch["item_id@watched"]
        first = steps[: len(batch["user_id"])].float() if steps.dim() == 1 else steps[:, 0].float()
        return super().body(batch) + first[:, None, None]


class Squeezes(Sound):
    """The classic: a batch of one is no batch."""

    def forward(self, batch):
        return {n: v.squeeze() for n, v in super().forward(batch).items()}


class NeverTrained(Sound):
    """A parameter that nothing uses."""

    def __init__(self, schema, *, dim=16):
        super().__init__(schema, dim=dim)
        self.forgotten = nn.Parameter(torch.zeros(3))


class Remembers(Sound):
    """Scoring changes the state."""

    def __init__(self, schema, *, dim=16):
        super().__init__(schema, dim=dim)
        self.register_buffer("count", torch.zeros(()))

    def body(self, batch):
        self.count += 1
        return super().body(batch)


SHARED = nn.Linear(32, 32)


class Shares(Sound):
    """A module made once for all models."""

    def __init__(self, schema, *, dim=16):
        super().__init__(schema, dim=dim)
        self.shared = SHARED

    def body(self, batch):
        return self.shared(super().body(batch))


class Seeds(Sound):
    """Sets the world's seed."""

    def __init__(self, schema, *, dim=16):
        torch.manual_seed(2021)
        super().__init__(schema, dim=dim)


class LowPrecision(Sound):
    """Logits as autocast leaves them."""

    def forward(self, batch):
        return {t.name: self.body(batch).bfloat16().sum(-1) for t in self.schema.tasks}


class IgnoresTheHour(Sound):
    """Declared, and never read."""

    def body(self, batch):
        return super().body({**batch, "hour": torch.ones_like(batch["hour"])})


class DoesNotLearn(Sound):
    """Gradients in the wrong direction."""

    def losses(self, batch):
        return {n: -v for n, v in super().losses(batch).items()}


BROKEN = [
    (SeesTheBatch, "requests_alone"),
    (SeesTheList, "candidates_alone"),
    (CountsPadding, "list_padding"),
    (CountsSteps, "history_padding"),
    (PaddedOnly, "jagged"),
    (Squeezes, "shapes"),
    (NeverTrained, "gradients"),
    (Remembers, "evaluation_changes_nothing"),
    (Shares, "independent"),
    (Seeds, "same_seed"),
    (LowPrecision, "bfloat16"),
    (IgnoresTheHour, "reads_every_column"),
    (DoesNotLearn, "learns"),
    (Sound, "documented"),
]


@pytest.mark.parametrize(("model", "law"), BROKEN, ids=[m.__name__ for m, _ in BROKEN])
def test_a_broken_law_is_noticed(model, law):
    with pytest.raises(AssertionError):
        LAWS[law](Case(model, {"dim": 4}))


def test_a_sound_model_keeps_them_all():
    testing.check(Case(Sound, {"dim": 4}, exempt={"documented": "a helper of tests"}, band=0.8), slow=False)


def test_check_names_every_broken_law():
    with pytest.raises(AssertionError, match="SeesTheList breaks") as e:
        testing.check(Case(SeesTheList, {"dim": 4}), slow=False)
    assert "candidates_alone: AssertionError: candidate 0 alone" in str(e.value)
    assert "documented: " in str(e.value)


def test_an_argument_left_at_its_default_is_noticed():
    with pytest.raises(AssertionError, match="dim equals its default 16"):
        LAWS["arguments"](Case(Sound, {"dim": 16}))
    with pytest.raises(AssertionError, match=r"case options \{'dim'\}"):
        LAWS["arguments"](Case(Sound))


def test_exempting_an_unknown_law_is_an_error():
    with pytest.raises(ConfigError, match="Did you mean 'jagged'"):
        testing.laws(Case(Sound, exempt={"jaged": ""}))


# -- batches ----------------------------------------------------------------------------------------------------------
def test_batches_are_what_the_seed_says():
    schema = testing.schema(domain=True)
    one, two, other = (testing.batch(schema, 4, 3, seed, times=True) for seed in (1, 1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["item_id"], other["item_id"])
    assert one["@time@watched"].shape == one["item_id@watched"].shape


def test_ids_are_live_and_within_their_tables():
    schema = testing.schema(domain=True)
    batch = testing.batch(schema, 200, 3)
    for name in ("user_id", "item_id", "scene", "hour", "favourite"):
        assert batch[name].min() >= 1
        assert batch[name].max() < schema.feature(name).size
    assert not batch["item_id@watched"][0].any()  # the first has no past
    live = batch["item_id@watched"] > 0
    assert (live.int().diff(dim=1) <= 0).all()  # left aligned
    assert not batch["genre@watched"][~live].any()


def test_a_conversion_implies_a_click():
    schema = testing.schema(tasks=[Task("click"), Task("order", given="click")])
    batch = testing.batch(schema, 50, 3)
    assert (batch["order@label"] <= batch["click@label"]).all()


def test_taking_is_indexing_on_the_right_axis():
    schema = testing.schema()
    batch = testing.batch(schema, 4, 3, mask=True)
    some = testing.take(batch, schema, slice(1, 3), slice(0, 2))
    assert some["user_id"].tolist() == batch["user_id"][1:3].tolist()
    assert some["genre"].tolist() == batch["genre"][1:3, :2].tolist()
    assert some["genre@watched"].shape == batch["genre@watched"][1:3].shape
    assert some["@mask"].shape == (2, 2)


def test_jagged_holds_what_padded_held():
    schema = testing.schema()
    batch = testing.batch(schema, 5, 3)
    flat = testing.to_jagged(batch, schema)
    ends = flat["watched@offsets"].tolist()
    for r, (a, b) in enumerate(itertools.pairwise(ends)):
        assert flat["item_id@watched"][a:b].tolist() == [i for i in batch["item_id@watched"][r].tolist() if i]
    assert len(flat["genre@offsets"]) == 5 * 3 + 1
    assert flat["genre"].tolist() == [i for i in batch["genre"].flatten().tolist() if i]


# -- worlds -----------------------------------------------------------------------------------------------------------
def test_labels_of_the_world_have_the_chances_it_tells():
    schema = testing.keys_only(testing.schema(tasks=[Task("click"), Task("order", given="click")]), ("history",))
    world = testing.World(schema, seed=3)
    batch = world.batch(20_000, 1, seed=5)
    p = world.truth(batch)["click"]
    for low in (0.0, 0.25, 0.5, 0.75):
        some = (p >= low) & (p < low + 0.25)
        assert batch["click@label"][some].mean().item() == pytest.approx(p[some].mean().item(), abs=0.03)
    assert (batch["order@label"] <= batch["click@label"]).all()


def test_communities_do_not_mix():
    world = testing.communities()
    side = dict.fromkeys(world.items[0], 0) | dict.fromkeys(world.items[1], 1)
    for user, item in world.log.events.select("user_id", "item_id").iter_rows():
        assert user in world.users[side[item]]
    assert len(world.log) == 40 * 6
