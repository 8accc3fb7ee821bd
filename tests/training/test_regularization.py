"""Penalties and limits on the rows of a batch, against loops over rows."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from worlds import Net, equal, weights, world

from recstack.errors import ConfigError
from recstack.features.tables import Arena
from recstack.kernels.rows import Rows
from recstack.training import Trainer
from recstack.training.regularization import Asked, Limits, Penalties

IDS = torch.tensor([[1, 2], [1, 3], [1, 2], [0, 5]], dtype=torch.int32)  # row 4 and rows from 6 on are not there
COUNT = {1: 3, 2: 2, 3: 1, 5: 1}


class Small(nn.Module):
    def __init__(self, rows=9, sparse=True):
        super().__init__()
        self.table = Arena({"item": rows}, 3, 0.5)
        self.table.sparse = sparse
        self.line = nn.Linear(6, 1)

    def losses(self, batch):
        logit = self.line(self.table(Rows(batch["ids"])).flatten(1)).squeeze(-1)
        return {"click": F.binary_cross_entropy_with_logits(logit, batch["click@label"])}


def ready(model, choices=None, clip=None, ids=IDS):
    """Penalties, limits and what was asked, after one backward pass; and the gradient of the table then."""
    penalties, limits = Penalties(model, choices or {}, batches=4), Limits(model, clip)
    asked = Asked([model.table])
    asked.forget()
    model.losses({"ids": ids, "click@label": torch.ones(len(ids))})["click"].backward()
    grad = model.table.weight.grad.to_dense().clone()
    return penalties, limits, asked, grad


def added(model, before):
    return model.table.weight.grad.to_dense() - before


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    ("kind", "share"),
    [("lazy", lambda c: 1), ("batch", lambda c: c / 4), ("count", lambda c: 1 / (4 * c))],  # 4 requests; 4 batches
)
def test_a_penalty_is_its_share_of_each_row_of_the_batch(kind, share, sparse):
    model = Small(sparse=sparse)
    penalties, _, asked, before = ready(model, {"embedding": (kind, 0.1)})
    penalties.add(asked, requests=4)
    w, want = model.table.weight.detach(), torch.zeros(9, 3)
    for row, count in COUNT.items():
        want[row] = 0.1 * share(count) * w[row]
    torch.testing.assert_close(added(model, before), want)
    assert model.line.weight.grad is not None


def test_the_batch_penalty_is_the_gradient_of_a_mean_over_requests():
    model = Small()
    penalties, _, asked, before = ready(model, {"embedding": ("batch", 0.1)})
    penalties.add(asked, requests=4)
    w = model.table.weight.detach().clone().requires_grad_()
    (0.1 / 2 * w[IDS.long()].square().sum((1, 2)).mean()).backward()  # row 0 is zeros
    torch.testing.assert_close(added(model, before), w.grad)


def test_whole_moves_every_row_as_before():
    model = Small(sparse=False)
    penalties, _, asked, before = ready(model, {"embedding": 0.1})
    penalties.add(asked, 4)
    torch.testing.assert_close(added(model, before), 0.1 * model.table.weight.detach())


def test_counts_are_extrapolated_in_the_first_epoch_and_exact_after_it():
    """n is the count so far times batches of an epoch over batches seen; after four batches it stays."""
    model, g = Small(), torch.Generator().manual_seed(1)
    penalties = Penalties(model, {"embedding": ("count", 1.0)}, batches=4)
    asked = Asked([model.table])
    batches = [torch.randint(0, 9, (5, 2), generator=g, dtype=torch.int32) for _ in range(4)]
    so_far = np.zeros(9)
    for t, ids in enumerate([*batches, *batches], start=1):
        asked.forget()
        model.losses({"ids": ids, "click@label": torch.ones(5)})["click"].backward()
        before = model.table.weight.grad.to_dense().clone()
        penalties.add(asked, 5)
        if t <= 4:
            so_far += np.bincount(ids.flatten(), minlength=9)
        n = so_far * 4 / min(t, 4)
        for row in set(ids.flatten().tolist()) - {0}:
            torch.testing.assert_close(added(model, before)[row], model.table.weight.detach()[row] / float(n[row]))
        model.zero_grad()
    assert penalties.counts["table.weight"][1:].tolist() == so_far[1:].tolist()


def test_two_micro_batches_count_as_one_batch():
    whole, parts = Small(), Small()
    parts.load_state_dict(whole.state_dict())
    penalties, _, asked, before = ready(whole, {"embedding": ("batch", 0.1)})
    penalties.add(asked, 4)
    penalties, _, asked, _ = ready(parts, {"embedding": ("batch", 0.1)}, ids=IDS[:3])
    parts.losses({"ids": IDS[3:], "click@label": torch.ones(1)})["click"].backward()
    start = parts.table.weight.grad.to_dense().clone()
    penalties.add(asked, 4)
    torch.testing.assert_close(added(parts, start), added(whole, before))


# -- clipping -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("zeta", [1e-5, 0.02])
def test_cowclip_limits_each_row_by_its_count_and_its_norm(zeta, sparse):
    model = Small(sparse=sparse)
    with torch.no_grad():
        model.table.weight[1:] *= torch.tensor([1e-3, 1e-2, 1e-1, 1, 10, 1, 1, 1])[:, None]
    _, limits, asked, grad = ready(model, clip={"embedding": ("cowclip", {"r": 0.5, "zeta": zeta})})
    limits.before(asked, model.parameters())
    w, got, clipped = model.table.weight.detach(), model.table.weight.grad.to_dense(), 0
    for row in range(9):
        limit = COUNT.get(row, 0) * max(0.5 * w[row].norm().item(), zeta)
        size = grad[row].norm().item()
        want = grad[row] * (min(1.0, limit / size) if size else 1.0)
        clipped += size > limit
        torch.testing.assert_close(got[row], want)
    assert 0 < clipped < 4


def test_max_norm_rescales_touched_rows_after_the_step():
    model = Small()
    with torch.no_grad():
        model.table.weight[1:] = 3.0
        model.table.weight[3] = 0.1
    _, limits, asked, _ = ready(model, clip={"embedding": ("max_norm", 1.5)})
    limits.before(asked, model.parameters())
    limits.after()
    norms = model.table.weight.detach().norm(dim=1)
    long, short = 27**0.5, 0.03**0.5
    torch.testing.assert_close(norms, torch.tensor([0, 1.5, 1.5, short, long, 1.5, long, long, long]))


def test_a_norm_for_each_key():
    model = Small()
    _, limits, asked, grad = ready(model, clip={"embedding": 1e-3, "default": 1e-2})
    rest = torch.cat([p.grad.flatten() for p in model.line.parameters()]).norm()
    assert grad.norm() > 1e-3
    assert rest > 1e-2
    limits.before(asked, model.parameters())
    assert model.table.weight.grad.to_dense().norm().item() == pytest.approx(1e-3, rel=1e-2)
    clipped = torch.cat([p.grad.flatten() for p in model.line.parameters()]).norm()
    assert clipped.item() == pytest.approx(1e-2, rel=1e-2)


def test_parameters_that_do_not_step_now_are_left_alone():
    model = Small()
    _, limits, asked, grad = ready(model, clip=1e-3)
    limits.before(asked, model.line.parameters())
    assert torch.equal(model.table.weight.grad.to_dense(), grad)


# -- inside the Trainer -----------------------------------------------------------------------------------------------
def fit(model, epochs=3, resume=False, data=None, **options):
    settings = {"optimizer": {"embedding": "rowwise_adagrad", "default": "adam"}, "progress": False}
    trainer = Trainer(model, epochs=epochs, **(settings | options))
    return trainer.fit(world(rows=9) if data is None else data, resume=resume)


def small():
    torch.manual_seed(0)
    return Small(sparse=False)


@pytest.mark.parametrize("kind", ["lazy", "batch", "count"])
def test_the_trainer_steps_as_a_loop_over_rows_does(kind):
    """Plain descent, so that a step is lr times the gradient."""
    data, model, twin = world(4, rows=9), small(), small()
    fit(
        model,
        epochs=2,
        data=data,
        optimizer={"embedding": ("sparse_sgd", {"lr": 0.5}), "default": ("sgd", {"lr": 0.5})},
        regularization={"embedding": (kind, 0.1)},
    )
    so_far = torch.zeros(9)
    for epoch in range(2):
        for t, batch in enumerate(data, start=1):
            twin.losses(batch)["click"].backward()
            count = torch.bincount(batch["ids"].flatten(), minlength=9).float()
            so_far += count * (epoch == 0)
            n = so_far * (4 / t if epoch == 0 else 1)
            share = {"lazy": (count > 0).float(), "batch": count / 16, "count": (count > 0) / n.clamp(min=1e-9)}[kind]
            twin.table.weight.grad += 0.1 * share[:, None] * twin.table.weight.detach()
            with torch.no_grad():
                for p in twin.parameters():
                    p -= 0.5 * p.grad
                    p.grad = None
    for name, w in weights(twin).items():
        torch.testing.assert_close(weights(model)[name], w, rtol=1e-5, atol=1e-6)
    assert model.table.asked is None


@pytest.mark.parametrize(
    "options",
    [
        {"regularization": {"embedding": ("count", 0.1)}},
        {
            "regularization": {"embedding": ("batch", 0.1)},
            "clip": {"embedding": ("cowclip", {"zeta": 1e-3}), "default": 1},
        },
        {"regularization": {"embedding": ("lazy", 0.1), "line": 0.01}, "clip": {"embedding": ("max_norm", 0.4)}},
    ],
)
@pytest.mark.parametrize("every", [3, 10])
def test_resumed_in_any_epoch_it_is_the_same_run(tmp_path, options, every):
    class Stop(Exception):
        pass

    class Ends(Small):
        seen = 0

        def losses(self, batch):
            self.seen += 1
            if self.seen > every + 1:
                raise Stop
            return super().losses(batch)

    whole, pieces = small(), small()
    fit(whole, **options)
    torch.manual_seed(0)
    with pytest.raises(Stop):
        fit(Ends(sparse=False), checkpoint=tmp_path, checkpoint_every=every, **options)
    fit(pieces, resume=True, checkpoint=tmp_path, checkpoint_every=every, **options)
    assert equal(weights(whole), weights(pieces))
    plain = small()
    fit(plain)
    assert not equal(weights(whole), weights(plain))


def test_max_norm_holds_after_training():
    model = small()
    fit(model, clip={"embedding": ("max_norm", 0.3)})
    seen = torch.cat([b["ids"].flatten() for b in world(rows=9)]).unique().long()
    assert model.table.weight.detach()[seen].norm(dim=1).max().item() <= 0.3 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"regularization": {"embedding": ("lasy", 0.1)}},
            r"Unknown kind in regularization\['embedding'\] 'lasy'. Did you mean 'lazy'",
        ),
        ({"regularization": {"embedding": ("lazy",)}}, r"is a number or \(kind, value\)"),
        ({"regularization": {"embedding": -1.0}}, "is a number above zero; got -1.0"),
        ({"regularization": {"embedding": math.nan}}, "is a number above zero; got nan"),
        (
            {"regularization": {"line": ("batch", 0.1)}},
            r"'batch' is for embedding tables made by recstack.features.*'line.weight' is none",
        ),
        ({"regularization": {"embeding": 0.1}}, "Did you mean 'embedding'"),
        ({"clip": 0}, "clip is a number above zero; got 0"),
        ({"clip": {"embedding": ("cowclip", {"z": 1})}}, r"Unknown option in clip\['embedding'\] 'z'"),
        ({"clip": {"embedding": ("max_norm", "1")}}, "is a number above zero; got '1'"),
        ({"clip": {"embedding": ("cowclip", 1.0)}}, r"got 1.0 in the second place"),
        ({"clip": {"line": ("cowclip", {})}}, "'cowclip' is for embedding tables"),
    ],
)
def test_a_wrong_choice_is_one_sentence(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Trainer(small(), **options)


def test_counting_needs_the_length_of_an_epoch():
    class Endless:
        def __iter__(self):
            return iter(world(rows=9))

    with pytest.raises(ConfigError, match=r"needs the number of batches"):
        fit(small(), data=Endless(), regularization={"embedding": ("count", 0.1)})


def test_tables_that_count_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"'table.weight' is none"):
        Trainer(Net(), regularization={"embedding": ("lazy", 0.1)})
