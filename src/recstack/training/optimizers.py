"""Optimisers that step on the rows of the batch, clipping, and the choice of an optimiser for each parameter.

Ours take a sparse `.grad` (an embedding's touched rows) or a dense one (every row is touched) and are exact: duplicate ids
are summed before the step. They are *not* torch's dense Adam or Adagrad with less work: Adam's moments of a row that the
batch does not hold stay as they are, whereas dense Adam moves every row at every step. Published CTR benchmarks used
dense Adam over whole tables; ``optimizer="adam"`` reproduces them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.kernels import rows as kernel


class RowOptimizer(torch.optim.Optimizer):
    """The base of ours: looks at the rows that have a gradient, leaves the rest of the table alone.

    A parameter of one axis has one weight per row; further axes are flattened. The state is float32 at least. A bf16 table
    is rounded stochastically (`kernels.rows.narrow_`), for which its steps are counted.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                table = p.detach().view(p.shape[0] if p.dim() else 1, -1)
                if p not in self.state:
                    self.state[p] = self.begin(table, group)
                rows, grad = touched(p, table)
                state = self.state[p]
                if table.dtype.itemsize >= 4:
                    self.update(table, None, state, rows, grad, group)
                    continue
                state["step"] = state.get("step", 0) + 1
                wide = kernel.widened(table, rows)
                self.update(wide, torch.arange(len(rows), device=rows.device), state, rows, grad, group)
                kernel.narrow_(table, rows, wide, state["step"])
        return loss

    def begin(self, table: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a table [N, D] before its first step."""
        raise NotImplementedError

    def update(
        self,
        weight: Tensor,
        at: Tensor | None,
        state: dict[str, Any],
        rows: Tensor,
        grad: Tensor,
        group: dict[str, Any],
    ) -> None:
        """One step on `rows` [n] of a table [N, D], whose weights are `weight[at]`, with `grad` float32 [n, D]."""
        raise NotImplementedError


def touched(p: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with a gradient, int64 [n], and their gradient [n, D] in at least float32.

    Each row once; on a GPU a row may come several times, with the same sum each time.
    """
    grad = p.grad
    assert grad is not None
    if grad.is_sparse:
        grad = kernel.coalesced(grad)
        rows, values = grad._indices()[0], grad._values()
        if not grad.is_coalesced():
            values = values[torch.searchsorted(rows, rows)]  # from the first of its kind, which has the sum
        grad = values
    else:
        rows = torch.arange(len(table), device=table.device)
    grad = grad.reshape(len(rows), table.shape[1])
    return rows, grad if grad.dtype.itemsize >= 4 else grad.float()


def _zeros(table: Tensor, *shape: int) -> Tensor:
    dtype = table.dtype if table.dtype.itemsize >= 4 else torch.float32
    return kernel.huge_pages(torch.empty(shape or table.shape, dtype=dtype, device=table.device)).zero_()


class RowwiseAdagrad(RowOptimizer):
    r"""Adagrad with one accumulator per row: an embedding of width D needs 1/D of Adagrad's memory.

    .. math:: s_r \leftarrow s_r + \tfrac1D \sum_d g_{rd}^2, \qquad w_r \leftarrow w_r - \eta\, g_r / (\sqrt{s_r} + \epsilon)

    The usual optimiser of large tables (Naumov et al., 2019, https://arxiv.org/abs/1906.00091). `initial` fills the
    accumulators, which shortens the first steps.
    """

    def __init__(self, params: Any, lr: float = 0.02, eps: float = 1e-8, initial: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "initial": initial})

    def begin(self, table: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {"sum": _zeros(table, len(table)) + group["initial"]}

    def update(
        self,
        weight: Tensor,
        at: Tensor | None,
        state: dict[str, Any],
        rows: Tensor,
        grad: Tensor,
        group: dict[str, Any],
    ) -> None:
        kernel.rowwise_adagrad_(weight, state["sum"], rows, grad, group["lr"], group["eps"], at)


class Adagrad(RowOptimizer):
    """Adagrad (Duchi et al., 2011, https://jmlr.org/papers/v12/duchi11a.html); equals torch's, on sparse gradients too."""

    def __init__(self, params: Any, lr: float = 0.01, eps: float = 1e-10, initial: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "initial": initial})

    def begin(self, table: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {"sum": _zeros(table) + group["initial"]}

    def update(
        self,
        weight: Tensor,
        at: Tensor | None,
        state: dict[str, Any],
        rows: Tensor,
        grad: Tensor,
        group: dict[str, Any],
    ) -> None:
        kernel.adagrad_(weight, state["sum"], rows, grad, group["lr"], group["eps"], at)


class LazyAdam(RowOptimizer):
    """Adam whose moments of a row move only when the batch holds it (Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980).

    Each row counts its own steps, and bias is corrected by that count: with the global one, as in torch's SparseAdam, the
    first steps of a rare id would be a tenth of what they should be. With every row in every batch it equals Adam.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps})

    def begin(self, table: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        steps = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        return {"mean": _zeros(table), "square": _zeros(table), "steps": steps}

    def update(
        self,
        weight: Tensor,
        at: Tensor | None,
        state: dict[str, Any],
        rows: Tensor,
        grad: Tensor,
        group: dict[str, Any],
    ) -> None:
        moments = state["mean"], state["square"], state["steps"]
        kernel.lazy_adam_(weight, *moments, rows, grad, group["lr"], group["betas"], group["eps"], at)


class PartialRowwiseAdam(LazyAdam):
    r"""Lazy Adam with one second moment per row: half of its memory, D + 2 numbers a row.

    .. math:: m_r \leftarrow \beta_1 m_r + (1 - \beta_1) g_r, \quad
        v_r \leftarrow \beta_2 v_r + (1 - \beta_2) \tfrac1D \sum_d g_{rd}^2, \quad
        w_r \leftarrow w_r - \eta\, \hat m_r / (\sqrt{\hat v_r} + \epsilon)

    As TorchRec's PartialRowWiseAdam, but the bias is corrected by each row's own count of steps.
    """

    def begin(self, table: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {**super().begin(table, group), "square": _zeros(table, len(table))}


class FTRL(RowOptimizer):
    r"""FTRL-proximal, which sets weights to exact zeros (McMahan et al., 2013, https://doi.org/10.1145/2487575.2488200).

    .. math:: z \leftarrow z + g - \frac{\sqrt{n + g^2} - \sqrt n}{\alpha} w, \quad n \leftarrow n + g^2, \quad
        w \leftarrow \begin{cases} 0 & |z| \le \lambda_1 \\
        -\dfrac{z - \mathrm{sign}(z) \lambda_1}{(\beta + \sqrt n) / \alpha + \lambda_2} & \text{else} \end{cases}

    For wide and linear parts: a weight stays zero until its gradients agree on more than `l1`, which is held against
    their *sum* over the steps (of a mean loss, they are small). α is `lr`. The first step of a row forgets its initial
    value, and all steps so far are weighed by the current rate: keep `lr` constant.
    """

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "l1": l1, "l2": l2})

    def begin(self, table: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {"z": _zeros(table), "n": _zeros(table)}

    def update(
        self,
        weight: Tensor,
        at: Tensor | None,
        state: dict[str, Any],
        rows: Tensor,
        grad: Tensor,
        group: dict[str, Any],
    ) -> None:
        if group["lr"] > 0:  # at a rate of zero the equation would set all weights to zero
            lr, beta, l1, l2 = (group[k] for k in ("lr", "beta", "l1", "l2"))
            kernel.ftrl_(weight, state["z"], state["n"], rows, grad, lr, beta, l1, l2, at)


class GRDA(RowOptimizer):
    r"""Generalised regularised dual averaging, which sets weights to exact zeros (Chao and Cheng, 2019,
    https://arxiv.org/abs/1909.13311).

    .. math:: z \leftarrow z - \gamma g, \qquad w \leftarrow \mathrm{sign}(z) \max(|z| - \lambda_t, 0), \qquad
        \lambda_t = c\, \gamma^{1/2 + \mu}\, t^\mu

    z begins at the initial weights; the threshold grows with the steps, so that a weight dies unless its gradients go on
    agreeing. AutoFIS' gates learn by it. γ is `lr`; where it changes, each step adds its own share of the threshold.
    """

    def __init__(self, params: Any, lr: float = 1.0, c: float = 5e-4, mu: float = 0.8) -> None:
        super().__init__(params, {"lr": lr, "c": c, "mu": mu})

    def begin(self, table: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {"z": table.clone().float(), "steps": 0, "threshold": 0.0}

    def update(
        self,
        weight: Tensor,
        at: Tensor | None,
        state: dict[str, Any],
        rows: Tensor,
        grad: Tensor,
        group: dict[str, Any],
    ) -> None:
        lr, mu, t, z = group["lr"], group["mu"], state["steps"], state["z"]
        state["steps"] = t + 1
        state["threshold"] += group["c"] * lr ** (0.5 + mu) * ((t + 1) ** mu - t**mu)
        z.index_add_(0, rows, grad.to(z.dtype), alpha=-lr)
        new = z.sign() * (z.abs() - state["threshold"]).clamp(min=0)
        weight.copy_(new if at is None else new[rows])


class SparseSGD(RowOptimizer):
    """Plain gradient descent on the touched rows."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def begin(self, table: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {}

    def update(
        self,
        weight: Tensor,
        at: Tensor | None,
        state: dict[str, Any],
        rows: Tensor,
        grad: Tensor,
        group: dict[str, Any],
    ) -> None:
        kernel.sgd_(weight, rows, grad, group["lr"], at)


OPTIMIZERS: dict[str, Any] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
    "lazy_adam": LazyAdam,
    "partial_rowwise_adam": PartialRowwiseAdam,
    "ftrl": FTRL,
    "grda": GRDA,
    "sparse_sgd": SparseSGD,
}


@dataclass(frozen=True)
class Group:
    """The parameters that one key of ``optimizer={...}`` chose, by name, and their optimiser."""

    key: str
    params: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    base: tuple[float, ...]  # the learning rates before any schedule

    @property
    def ours(self) -> bool:
        """Whether a sparse gradient is welcome."""
        return isinstance(self.optimizer, RowOptimizer)

    def scale(self, lr: Callable[[float], float]) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = lr(base)


def route(model: nn.Module, optimizer: Any, lr: float | Mapping[str, float] | None = None) -> list[Group]:
    """One optimiser per key, each trainable parameter in exactly one.

    Args:
        optimizer: a choice for all parameters, or {key: choice}. A key is "embedding" (weights of nn.Embedding modules),
            "default" (what no other key takes), a module's path, or a pattern over parameter names ("towers.*").
            A choice is a name, (name, options), or an optimiser class or a partial of one.
        lr: for every group, or {key: lr}; None takes each optimiser's own.

    Raises:
        ConfigError: an unknown key or name (with a guess), a parameter that two keys take or none does.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 1))
    >>> [(g.key, *g.params) for g in route(model, {"embedding": "rowwise_adagrad", "default": ("adam", {"lr": 0.01})})]
    [('embedding', '0.weight'), ('default', '1.weight', '1.bias')]
    """
    choices = dict(optimizer) if isinstance(optimizer, Mapping) else {"default": optimizer}
    rates = dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(choices, lr)
    for key in rates:
        if key not in choices:
            raise unknown("key in lr=", key, choices)
    chosen = assign(model, choices, "optimizer=")
    for name, p in model.named_parameters():
        if p.requires_grad and not any(name in params for params in chosen.values()):
            raise ConfigError(f'Parameter {name!r} has no optimiser. Add a key for it, or "default".')
    return [
        _group(key, params, choices[key], rates.get(key), f"optimizer[{key!r}]")
        for key, params in chosen.items()
        if params
    ]


def assign(model: nn.Module, keys: Iterable[str], what: str) -> dict[str, dict[str, nn.Parameter]]:
    """{key: {name: trainable parameter}}; a path or pattern goes before "embedding", and that before "default"."""
    keys = list(keys)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    out: dict[str, dict[str, nn.Parameter]] = {key: {} for key in keys}
    for name, p in params.items():
        mine = [key for key in keys if name == key or name.startswith(f"{key}.") or fnmatchcase(name, key)]
        if len(mine) > 1:
            raise ConfigError(f"Parameter {name!r} is taken by {mine[0]!r} and by {mine[1]!r} in {what}. Narrow one.")
        kind = "embedding" if id(p) in tables and "embedding" in keys else "default"
        if mine or kind in keys:
            out[mine[0] if mine else kind][name] = p
    for key in keys:
        if not out[key] and key not in ("embedding", "default"):
            raise _no_such_key(model, key, what)
    return out


def _no_such_key(model: nn.Module, key: str, what: str) -> Exception:
    for path, module in model.named_modules():
        for table in getattr(module, "sizes", ()) if isinstance(module, nn.Embedding) else ():
            if key in (table, f"{path}.{table}"):
                return ConfigError(
                    f"Key {key!r} in {what} names a table that shares the arena {path!r} with others. Give it its own: "
                    f'Categorical({table!r}, ..., arena="own").'
                )
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and (n == key or n.startswith(f"{key}."))]
    if frozen:
        return ConfigError(f"Key {key!r} in {what} takes only frozen parameters, such as {frozen[0]!r}. Remove it.")
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    paths = {n for n, m in model.named_modules() if n and any(True for _ in m.parameters())}
    return unknown(f"key in {what}", key, {"embedding", "default", *paths, *names})


def _group(key: str, params: dict[str, nn.Parameter], choice: Any, lr: float | None, what: str) -> Group:
    options: dict[str, Any] = {}
    if isinstance(choice, tuple | list):
        if len(choice) != 2 or not isinstance(choice[1], Mapping):
            raise ConfigError(f'{what} is a name or (name, options), as in ("adam", {{"lr": 0.01}}); got {choice!r}.')
        choice, options = choice[0], dict(choice[1])
    if isinstance(choice, str):
        if choice not in OPTIMIZERS:
            raise unknown(f"optimiser in {what}", choice, OPTIMIZERS)
        choice = OPTIMIZERS[choice]
    if not callable(choice):
        raise ConfigError(f"{what} is a name, (name, options), or an optimiser class; got {choice!r}.")
    if lr is not None and "lr" not in options and "lr" not in getattr(choice, "keywords", {}):
        options["lr"] = lr
    try:
        optimizer: torch.optim.Optimizer = choice(params.values(), **options)  # type: ignore[assignment]
    except TypeError as e:
        raise ConfigError(f"{what} does not take these options: {e}.") from e
    base = tuple(float(group["lr"]) for group in optimizer.param_groups)
    return Group(key, params, optimizer, base)


@torch.no_grad()
def reset_rows(optimizer: torch.optim.Optimizer, p: Tensor, rows: Tensor) -> None:
    """The state of `rows` (int64) of the parameter `p` as before their first step: another id lives there now.

    Of ours, and of torch's SGD, Adam, AdamW, RMSprop and Adagrad, whose state has the shape of `p`; their step counts
    are common to the whole table and stay. Nothing happens before the first step.
    """
    state = optimizer.state.get(p, {})
    group = next(g for g in optimizer.param_groups if any(q is p for q in g["params"]))
    fresh: dict[str, Any] = {"sum": group.get("initial_accumulator_value", 0.0)}
    if isinstance(optimizer, RowOptimizer):
        fresh = optimizer.begin(p.detach().view(len(p), -1)[rows], group)
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() and len(value) == len(p):
            value[rows] = fresh.get(key, 0)


@torch.no_grad()
def clip(params: Iterable[Tensor], limit: float) -> Tensor:
    """Scale all gradients, dense and sparse together, to a norm of at most `limit`; returns the norm before.

    torch's own clipping refuses sparse gradients. No device is waited for.
    """
    values = []
    for p in params:
        if p.grad is None:
            continue
        if p.grad.is_sparse:
            p.grad = kernel.coalesced(p.grad)  # a row that is there twice would count wrongly
            values.append(p.grad._values())
        else:
            values.append(p.grad)
    norm = torch.nn.utils.get_total_norm(values)
    scale = (limit / (norm + 1e-6)).clamp(max=1)
    for v in values:
        v.mul_(scale.to(v.device))
    return norm
