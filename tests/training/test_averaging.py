"""Averages equal a plain loop that averages every weight at every step."""

import pytest
import torch
from torch import nn
from worlds import Net, equal, trainer, weights, world

from recstack.training import Callback, Trainer, averaging


class Steps(nn.Module):
    """The weights after each step, by listening to `losses`; the rows that a batch lacks do not move."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = Net(dropout=0.0), []

    def losses(self, batch):
        if self.training:
            self.seen.append(weights(self.net))
        return self.net.losses(batch)


def history(optimizer="rowwise_adagrad", epochs=3, **options):
    """Raw weights after every step, the averages that the Trainer kept, and what validation saw."""
    model, measured = Steps(), []
    model.validate = lambda data: measured.append(weights(model.net)) or {"auc": 0.5}
    settings = {"optimizer": {"embedding": optimizer, "default": "adam"}, "lr": 0.05, "progress": False}

    class Last(Callback):
        def on_epoch(self, record):
            last.append(weights(model.net))

    last = []
    Trainer(model, epochs=epochs, callbacks=[Last()], **settings | options).fit(world(5), [0])
    return [*model.seen[1:], last[-1]], weights(model.net), measured, last


def averaged(raw, decay):
    """sum of decay^(t-s) w_s over their sum, in float64."""
    share = torch.tensor([decay ** (len(raw) - 1 - s) for s in range(len(raw))], dtype=torch.float64)
    return {
        k: (torch.stack([w[k].double() for w in raw]) * share.view(-1, *[1] * raw[0][k].dim())).sum(0) / share.sum()
        for k in raw[0]
        if raw[0][k].is_floating_point()
    }


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "lazy_adam", "adam"])
def test_ema_is_the_average_over_all_steps_of_all_rows_also_where_gradients_are_sparse(optimizer):
    raw, kept, measured, last = history(optimizer, average=("ema", {"decay": 0.8}))
    assert len(raw) == 15
    for got, upto in ((measured[0], 5), (measured[2], 15), (kept, 15)):
        want = averaged(raw[:upto], 0.8)
        for name, value in want.items():
            torch.testing.assert_close(got[name].double(), value, rtol=1e-5, atol=1e-6, msg=name)
    assert equal(last[1], raw[9])  # measuring leaves the raw weights to the training, to the bit
    assert not equal(kept, last[-1])


def test_swa_is_the_mean_of_the_ends_of_epochs():
    _, kept, measured, last = history(average=("swa", {"start": 2}), epochs=4)
    mean = {k: torch.stack([w[k].double() for w in last[1:]]).mean(0) for k in last[0]}
    for name, value in mean.items():
        if last[0][name].is_floating_point():
            torch.testing.assert_close(kept[name].double(), value, rtol=1e-5, atol=1e-6)
    assert equal(measured[0], last[0])  # before `start` the raw weights are measured
    assert equal(measured[1], last[1])


def test_the_best_epoch_keeps_averaged_weights():
    model = Net(dropout=0.0)
    t = trainer(model, "lazy_adam", average="ema", monitor="loss", lr=0.05)
    result = t.fit(world(), world(2, seed=4))
    assert t.evaluate(world(2, seed=4))["loss"] == result.best["value"]


def test_a_bf16_table_is_averaged_in_float32():
    model = Net()
    model.table.weight = nn.Parameter(model.table.weight.detach().bfloat16())
    average = averaging.EMA(model, decay=0.999)
    assert average.sums["table.weight"].dtype == torch.float32
    average.after_step()
    with average.applied():
        assert model.table.weight.dtype == torch.bfloat16


def test_renewed_rows_count_as_if_they_had_always_been_as_they_are():
    model = Net()
    model.table.sparse = True
    average = averaging.EMA(model, decay=0.9)
    p = model.table.weight
    for row in (3, 4, 3):
        p.grad = torch.sparse_coo_tensor([[row]], torch.ones(1, 4), p.shape, check_invariants=True)
        average.before_step()
        with torch.no_grad():
            p[row] += 1
        average.after_step()
    with torch.no_grad():
        p[3] = 7.0
    average.renew(p, torch.tensor([3]))
    with average.applied():
        torch.testing.assert_close(p[3].detach(), torch.full((4,), 7.0))
        assert not torch.allclose(p[4].detach(), torch.full((4,), 7.0))
