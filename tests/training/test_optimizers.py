"""Optimisers on dense and sparse gradients, clipping, and the choice of an optimiser by name."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from worlds import Net, Table

from recstack.errors import ConfigError
from recstack.kernels.rows import Rows, dense_gather, sparse_gather
from recstack.training import Adagrad, LazyAdam, RowwiseAdagrad, SparseSGD, Trainer, clip
from recstack.training.optimizers import FTRL, OPTIMIZERS, PartialRowwiseAdam, reset_rows, route

OURS = [RowwiseAdagrad, Adagrad, LazyAdam, PartialRowwiseAdam, FTRL, SparseSGD]


# -- the optimisers, weight by weight, in float64 -----------------------------------------------------------------------
class Naive:
    """A table as a list of rows, each stepped by the equations; `g` is the row's whole gradient."""

    def __init__(self, w):
        self.w = w.double().numpy().copy()
        self.state = [{} for _ in self.w]

    def step(self, grads):
        for r, g in grads.items():
            self.row(self.w[r], self.state[r], np.atleast_1d(g))


class NaiveSGD(Naive):
    def row(self, w, s, g):
        w -= 0.1 * g


class NaiveAdagrad(Naive):
    def row(self, w, s, g):
        s["sum"] = s.get("sum", 0) + g**2
        w -= 0.1 * g / (np.sqrt(s["sum"]) + 1e-10)


class NaiveRowwiseAdagrad(Naive):
    def row(self, w, s, g):
        s["sum"] = s.get("sum", 0) + (g**2).mean()
        w -= 0.1 * g / (np.sqrt(s["sum"]) + 1e-8)


class NaiveAdam(Naive):
    def second(self, g):
        return g**2

    def row(self, w, s, g):
        s["t"] = s.get("t", 0) + 1
        s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
        s["v"] = 0.999 * s.get("v", 0) + 0.001 * self.second(g)
        w -= 0.1 * s["m"] / (1 - 0.9 ** s["t"]) / (np.sqrt(s["v"] / (1 - 0.999 ** s["t"])) + 1e-8)


class NaivePartialAdam(NaiveAdam):
    def second(self, g):
        return (g**2).mean()


class NaiveFTRL(Naive):
    def row(self, w, s, g):
        n = s.get("n", 0 * g)
        sigma = (np.sqrt(n + g**2) - np.sqrt(n)) / 0.1
        s["z"], s["n"] = s.get("z", 0) + g - sigma * w, n + g**2
        for d, z in enumerate(s["z"]):
            slope = (0.5 + np.sqrt(s["n"][d])) / 0.1 + 0.02
            w[d] = 0 if abs(z) <= 0.4 else -(z - np.sign(z) * 0.4) / slope


ORACLES = {
    "sparse_sgd": (NaiveSGD, {}),
    "adagrad": (NaiveAdagrad, {}),
    "rowwise_adagrad": (NaiveRowwiseAdagrad, {}),
    "lazy_adam": (NaiveAdam, {}),
    "partial_rowwise_adam": (NaivePartialAdam, {}),
    "ftrl": (NaiveFTRL, {"beta": 0.5, "l1": 0.4, "l2": 0.02}),
}


@pytest.mark.parametrize("kind", ["sparse", "dense", "one axis"])
@pytest.mark.parametrize("name", ORACLES)
def test_each_optimiser_is_its_equation_weight_by_weight(name, kind):
    """Six steps; in a sparse one some rows come several times and some not at all."""
    naive, options = ORACLES[name]
    torch.manual_seed(1)
    w = nn.Parameter(torch.randn(12) if kind == "one axis" else torch.randn(12, 3))
    o, oracle = OPTIMIZERS[name]([w], lr=0.1, **options), naive(w.detach().view(12, -1))
    for _ in range(6):
        g = torch.randn(20 if kind == "sparse" else 12, *w.shape[1:])
        rows = torch.randint(0, 9, (20,)) if kind == "sparse" else torch.arange(12)
        w.grad = torch.sparse_coo_tensor(rows[None], g, w.shape) if kind == "sparse" else g
        o.step()
        oracle.step({int(r): g[rows == r].double().sum(0).numpy() for r in rows.unique()})
        torch.testing.assert_close(w.detach().double().view(12, -1), torch.from_numpy(oracle.w), rtol=1e-4, atol=2e-6)
    if name == "ftrl" and w.dim() == 2:
        assert (w == 0).any()
        assert (w != 0).any()


@pytest.mark.parametrize("name", ORACLES)
def test_tiny_steps_on_a_bf16_table_are_not_lost(name):
    """A thousand steps far below half the last bit: rounded to the nearest, the weights would never have moved."""
    start = torch.ones(2000, 1)
    rate = {"sparse_sgd": 1e-4, "adagrad": 2e-3, "rowwise_adagrad": 2e-3, "ftrl": 1.0}.get(name, 1e-4)
    tables = {}
    for dtype in (torch.float32, torch.bfloat16):
        w = nn.Parameter(start.to(dtype, copy=True))
        o = OPTIMIZERS[name]([w], lr=rate)
        if name == "ftrl":  # it forgets the initial value
            o.state[w] = {"z": torch.full((2000, 1), -2000.0), "n": torch.full((2000, 1), 1999.0**2)}
        for _ in range(300):
            w.grad = torch.ones_like(w)
            o.step()
        tables[dtype] = w.detach().float()
    moved, want = ((tables[d] - 1).mean().item() for d in (torch.bfloat16, torch.float32))
    assert abs(want) > 0.01
    assert moved == pytest.approx(want, rel=0.05)
    smallest = 2.0**-8  # of a bf16 number just below 1
    assert abs(want) / 300 < smallest / 2


def test_rounding_goes_on_where_a_checkpoint_left_it():
    """The chance of a step hangs on the count of steps, which the state holds."""

    def steps(w, o, n):
        for i in range(n):
            w.grad = torch.full_like(w, 0.01 * (i + 1))
            o.step()

    whole = nn.Parameter(torch.ones(40, 4, dtype=torch.bfloat16))
    steps(whole, o := SparseSGD([whole], lr=0.1), 4)
    part = nn.Parameter(torch.ones(40, 4, dtype=torch.bfloat16))
    steps(part, first := SparseSGD([part], lr=0.1), 4)
    steps(whole, o, 4)
    again = SparseSGD([part], lr=0.1)
    again.state[part] = dict(first.state[part])
    assert again.state[part] == {"step": 4}
    steps(part, again, 4)
    assert torch.equal(whole, part)


@pytest.mark.parametrize("name", [*ORACLES, "adam", "adamw", "rmsprop", "torch adagrad"])
def test_reset_rows_are_as_before_their_first_step(name):
    make = OPTIMIZERS.get(name, partial(torch.optim.Adagrad, initial_accumulator_value=0.5))
    if name in ("adagrad", "rowwise_adagrad"):
        make = partial(make, initial=0.5)
    w = nn.Parameter(torch.randn(10, 3))
    fresh = nn.Parameter(w.detach().clone())
    o, new = make([w]), make([fresh])
    reset_rows(o, w, torch.tensor([2]))  # nothing there yet
    w.grad = torch.randn(10, 3)
    o.step()
    kept = {k: v.clone() for k, v in o.state[w].items() if v.dim()}
    reset_rows(o, w, torch.tensor([2, 7]))
    fresh.grad = torch.zeros(10, 3)
    new.state[fresh] = new.begin(fresh.detach(), new.param_groups[0]) if hasattr(new, "begin") else new.state[fresh]
    others = [r for r in range(10) if r not in (2, 7)]
    for key, before in kept.items():
        now = o.state[w][key]
        assert torch.equal(now[others], before[others])
        want = new.state[fresh].get(key, torch.full((10, 3), 0.5 if key == "sum" else 0.0))
        assert torch.equal(now[[2, 7]], want[[2, 7]])


def trained(optimizer, gather, steps=5, shape=(30, 4), dtype=torch.float32, touched=range(1, 30)):
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(*shape).to(dtype))
    with torch.no_grad():
        w[0] = 0
    o = optimizer([w], lr=0.1)
    ids = torch.tensor(list(touched))
    for _ in range(steps):
        index = torch.cat([ids, ids[torch.randint(len(ids), (40,))]])
        gather(w, Rows(index)).float().sin().square().sum().backward()
        o.step()
        o.zero_grad()
    return w.detach()


@pytest.mark.parametrize("optimizer", OURS)
def test_sparse_and_dense_gradients_lead_to_the_same_weights(optimizer):
    torch.testing.assert_close(trained(optimizer, sparse_gather), trained(optimizer, dense_gather))


@pytest.mark.parametrize("optimizer", OURS)
def test_padding_and_absent_rows_never_move(optimizer):
    start, end = trained(optimizer, sparse_gather, 0), trained(optimizer, sparse_gather, touched=range(5, 9))
    moved = (start != end).any(1)
    assert moved.nonzero().squeeze(1).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [(Adagrad, torch.optim.Adagrad), (LazyAdam, torch.optim.Adam), (SparseSGD, torch.optim.SGD)],
)
def test_with_every_row_in_every_batch_ours_is_torchs(ours, torchs):
    a, b = trained(ours, sparse_gather), trained(torchs, dense_gather)
    torch.testing.assert_close(a[1:], b[1:], rtol=1e-5, atol=1e-6)


def test_lazy_adam_counts_the_steps_of_each_row():
    w = nn.Parameter(torch.zeros(3, 2))
    o = LazyAdam([w], lr=0.1)
    for _ in range(50):
        w.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (3, 2))
        o.step()
    w.grad = torch.sparse_coo_tensor([[2]], torch.full((1, 2), 7.0), (3, 2))
    o.step()
    assert o.state[w]["steps"].tolist() == [0, 50, 1]
    torch.testing.assert_close(w[2], torch.full((2,), -0.1))  # a first step of Adam is lr, whatever the gradient


def test_uncoalesced_gradients_are_summed_before_the_step():
    """Row-wise Adagrad by hand: one step of gradient 1 + 2, not two steps."""
    w = nn.Parameter(torch.zeros(2, 1))
    w.grad = torch.sparse_coo_tensor([[1, 1]], [[1.0], [2.0]], (2, 1))
    o = RowwiseAdagrad([w], lr=1.0, eps=0.0)
    o.step()
    assert o.state[w]["sum"].tolist() == [0, 9]
    assert w[1].item() == -1


@pytest.mark.parametrize("optimizer", OURS)
def test_any_number_of_axes(optimizer):
    for shape in ((), (5,), (5, 2, 3)):
        w = nn.Parameter(torch.ones(shape))
        w.grad = torch.ones(shape)
        optimizer([w], lr=0.5).step()
        assert (w < 1).all()


def test_state_of_a_bf16_table_is_float32():
    w = nn.Parameter(torch.ones(4, 2, dtype=torch.bfloat16))
    w.grad = torch.ones_like(w)
    o = LazyAdam([w])
    o.step()
    assert o.state[w]["mean"].dtype == torch.float32


def test_clip_measures_dense_and_sparse_together():
    dense, table, copy = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(20, 4)), None
    copy = nn.Parameter(table.detach().clone())
    index = torch.randint(1, 20, (50,))
    for w, gather in ((table, sparse_gather), (copy, dense_gather)):
        (gather(w, Rows(index)).square().sum() + gather(w, Rows(index[:9])).sum()).backward()
    dense.grad = torch.randn(3, 3)
    other = nn.Parameter(dense.detach().clone())
    other.grad = dense.grad.clone()
    norm = clip([dense, table], 2.0)
    want = nn.utils.clip_grad_norm_([other, copy], 2.0)
    torch.testing.assert_close(norm, want)
    torch.testing.assert_close(table.grad.to_dense(), copy.grad)
    torch.testing.assert_close(dense.grad, other.grad)


def test_clip_leaves_small_gradients_alone():
    w = nn.Parameter(torch.zeros(2))
    w.grad = torch.tensor([0.3, 0.4])
    assert clip([w, nn.Parameter(torch.ones(1))], 1.0).item() == pytest.approx(0.5)
    assert w.grad.tolist() == pytest.approx([0.3, 0.4])


# -- the choice -------------------------------------------------------------------------------------------------------
def chosen(optimizer, lr=None, model=None):
    return {g.key: (type(g.optimizer), list(g.params), g.base[0]) for g in route(model or Net(), optimizer, lr)}


def test_every_parameter_lands_in_exactly_one_group():
    groups = chosen({"mlp.0": "sgd", "mlp.4.*": "adamw", "embedding": "lazy_adam", "default": "adam"})
    names = [n for _, params, _ in groups.values() for n in params]
    assert sorted(names) == sorted(n for n, _ in Net().named_parameters())
    assert groups["mlp.0"][1] == ["mlp.0.weight"]
    assert groups["mlp.4.*"][1] == ["mlp.4.weight", "mlp.4.bias"]
    assert groups["embedding"][:2] == (LazyAdam, ["table.weight"])
    assert groups["default"][1] == ["mlp.1.weight", "mlp.1.bias"]


def test_one_name_takes_all():
    assert len(chosen("adam")["default"][1]) == 6


def test_learning_rates_by_number_by_key_and_by_option():
    assert [lr for *_, lr in chosen({"embedding": "adagrad", "default": "adam"}, 0.5).values()] == [0.5, 0.5]
    keyed = chosen({"embedding": "adagrad", "default": "adam"}, {"default": 0.5})
    assert [lr for *_, lr in keyed.values()] == [0.01, 0.5]
    assert chosen({"default": ("adam", {"lr": 0.25})}, 0.5)["default"][2] == 0.25
    assert chosen(partial(torch.optim.SGD, lr=0.125), 0.5)["default"][2] == 0.125


def test_frozen_parameters_have_no_optimiser():
    model = Net()
    model.table.weight.requires_grad_(False)
    assert chosen({"embedding": "lazy_adam", "default": "adam"}, model=model).keys() == {"default"}


def test_an_explicit_path_goes_before_the_kind():
    groups = chosen({"table": "sparse_sgd", "embedding": "lazy_adam", "default": "adam"})
    assert groups.keys() == {"table", "default"}


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        ("adamm", "Unknown optimiser in optimizer\\['default'\\] 'adamm'. Did you mean 'adam'"),
        ({"embeding": "adam", "default": "adam"}, "Unknown key in optimizer= 'embeding'. Did you mean 'embedding'"),
        ({"embedding": "adagrad"}, "Parameter 'mlp.0.weight' has no optimiser"),
        ({"mlp": "adam", "mlp.0": "sgd", "default": "adam"}, "'mlp.0.weight' is taken by 'mlp' and by 'mlp.0'"),
        (("adam", {"momentum": 1}), "does not take these options"),
        (("adam",), "is a name or \\(name, options\\)"),
        (3, "or an optimiser class; got 3"),
    ],
)
def test_a_wrong_choice_is_one_sentence(optimizer, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Trainer(Net(), optimizer=optimizer)


def test_a_key_of_lr_that_is_no_key_of_optimizer_guesses():
    with pytest.raises(ConfigError, match=r"Unknown key in lr= 'defaut'\. Did you mean 'default'"):
        Trainer(Net(), optimizer={"default": "adam"}, lr={"defaut": 1.0})


def test_a_table_inside_a_shared_arena_cannot_be_chosen():
    class Arena(Table):
        sizes = {"item_id": 20, "user_id": 21}  # noqa: RUF012

    model = Net()
    model.table = Arena(40, 4)
    with pytest.raises(ConfigError, match=r'shares the arena \'table\'.*Categorical\(\'item_id\', ..., arena="own"\)'):
        Trainer(model, optimizer={"table.item_id": "adam", "default": "adam"})


def test_tables_are_sparse_only_while_they_train():
    seen = []

    class Watched(Net):
        def losses(self, batch):
            seen.append(self.table.sparse)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return super().losses(batch)

    from worlds import world

    model = Watched()
    with pytest.raises(KeyboardInterrupt):
        Trainer(model, progress=False).fit(world())
    assert seen == [True] * 3
    assert not model.table.sparse


@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"regularization": {"embedding": 0.1}}])
def test_tables_stay_dense_for_torchs_optimisers_and_for_whole_table_penalties(options):
    from worlds import world

    seen = []

    class Watched(Net):
        def losses(self, batch):
            seen.append(self.table.sparse)
            return super().losses(batch)

    Trainer(Watched(), epochs=1, progress=False, **options).fit(world(2))
    assert not any(seen)
