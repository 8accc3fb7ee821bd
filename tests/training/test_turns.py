"""Losses in turn, each with its own optimiser, equal the loop written by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from worlds import Table, equal, weights, world

from recstack.errors import ConfigError
from recstack.training import RowwiseAdagrad, Trainer


class Three(nn.Module):
    """A shared table and body, a head per loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = Table(40, 4, padding_idx=0)
        self.body = nn.Linear(8, 6)
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in ("click", "like", "follow")})

    def losses(self, batch):
        h = self.body(self.table(batch["ids"]).flatten(1)).relu()
        y = {
            "click": batch["click@label"],
            "like": 1 - batch["click@label"],
            "follow": (batch["ids"][:, 0] % 2).float(),
        }
        return {n: F.binary_cross_entropy_with_logits(m(h).squeeze(-1), y[n]) for n, m in self.heads.items()}


GROUPS = (("click",), ("like", "follow"))
OPTIMIZER = {"embedding": ("rowwise_adagrad", {"lr": 0.1}), "default": ("adam", {"lr": 0.01})}


def by_hand(batches):
    """Two optimisers per turn; a parameter without a gradient in a turn is left alone, as torch does."""
    model = Three()
    mine = {"tables": [model.table.weight], "dense": [p for n, p in model.named_parameters() if n != "table.weight"]}
    sets = [(RowwiseAdagrad(mine["tables"], lr=0.1), torch.optim.Adam(mine["dense"], lr=0.01)) for _ in GROUPS]
    for step, batch in enumerate(batches):
        model.zero_grad()
        names = GROUPS[step % 2]
        losses = model.losses(batch)
        sum(losses[n] for n in names).backward()
        for o in sets[step % 2]:
            o.step()
    return model


def test_turns_are_the_loop_written_by_hand():
    model = Three()
    result = Trainer(model, optimizer=OPTIMIZER, alternate=GROUPS, epochs=3, progress=False).fit(world(5))
    assert result.steps == 15
    for (name, a), b in zip(model.named_parameters(), by_hand(world(5) * 3).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
    assert set(result.epochs[0]["lr"]) == {f"{t}/{k}" for t in ("click", "like+follow") for k in OPTIMIZER}
    assert set(result.epochs[0]["losses"]) == {"click", "like", "follow"}


def test_each_turn_has_its_own_state():
    one, two = Three(), Three()
    options = {"optimizer": OPTIMIZER, "epochs": 2, "progress": False}
    Trainer(one, alternate=GROUPS, **options).fit(world(4))
    Trainer(two, alternate=GROUPS[::-1], **options).fit(world(4))
    assert not equal(weights(one), weights(two))


@pytest.mark.filterwarnings("ignore:Parameter .* did not move")
def test_what_a_turns_optimisers_leave_out_stands_still_in_it():
    """As between a teacher and a student, or two adversaries: each learns from its own loss only."""
    still, moved = weights(Three()), Three()
    alternate = {
        "click": {"heads.click": "sgd", "embedding": "rowwise_adagrad"},
        ("like", "follow"): {"heads.like": "adam", "heads.follow": "adam", "body": "adam"},
    }
    Trainer(moved, alternate=alternate, lr=0.1, epochs=1, progress=False).fit(world(1))  # one step: of the first turn
    changed = {k for k, v in weights(moved).items() if not torch.equal(v, still[k])}
    assert changed == {"table.weight", "heads.click.weight", "heads.click.bias"}
    Trainer(moved := Three(), alternate=alternate, epochs=1, progress=False).fit(world(2))
    assert all(not torch.equal(v, still[k]) for k, v in weights(moved).items())


@pytest.mark.parametrize("average", [None, "ema"])
def test_resumed_in_the_middle_of_turns_nothing_changes(average, tmp_path):
    options = {"optimizer": OPTIMIZER, "alternate": GROUPS, "average": average, "progress": False}
    whole, pieces = Three(), Three()
    Trainer(whole, epochs=3, **options).fit(world(5))
    Trainer(Three(), epochs=1, checkpoint=tmp_path, **options).fit(world(5))
    Trainer(pieces, epochs=3, checkpoint=tmp_path, **options).fit(world(5), resume=True)
    assert equal(weights(whole), weights(pieces))


@pytest.mark.parametrize(
    ("alternate", "sentence"),
    [
        ((("click",), ("like",)), "Loss 'follow' has no turn in alternate="),
        ((("click", "follow"), ("like", "share")), "names the loss 'share'; the model has click, like, follow"),
        ({"click": {"heads.click": "sgd"}}, "Parameter 'table.weight' has no optimiser in any turn"),
    ],
)
def test_wrong_turns_are_one_sentence(alternate, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Trainer(Three(), alternate=alternate, progress=False).fit(world(1))
