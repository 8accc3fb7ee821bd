"""Penalties on weights, and limits on gradients and weights, that cost what the batch costs.

The benchmarks' L2 moves a whole table at every step. What is here for embeddings looks at the rows of the batch only, and
knows how often each of them was asked for (`features.tables.Arena.asked`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.kernels import rows as kernel
from recstack.training.optimizers import assign, clip

PENALTIES = ("whole", "lazy", "batch", "count")
LIMITS = ("norm", "cowclip", "max_norm")


class Asked:
    """Which rows of the watched arenas were asked for since the last step, and how often.

    Args:
        total: sums a tensor over processes whose gradients have the same rows.
    """

    def __init__(self, arenas: Iterable[Any], total: Callable[[Tensor], Tensor] = lambda count: count) -> None:
        self.arenas, self.total = {id(m.weight): m for m in arenas}, total

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.forget()
        try:
            yield
        finally:
            for arena in self.arenas.values():
                arena.asked = None

    def forget(self) -> None:
        for arena in self.arenas.values():
            arena.asked = []

    def of(self, p: Tensor, rows: Tensor) -> Tensor:
        """How often each of `rows` (ascending) was asked for, int64 [n]. No device is waited for."""
        arena = self.arenas[id(p)]
        if arena.remote is not None:
            raise ConfigError(
                "Penalties and CowClip on the rows of a batch need the table on each process; do not shard it, or choose "
                '"whole" and a norm.'
            )
        count = torch.zeros_like(rows)
        if p.device.type != "cpu" and arena.asked:
            # A row of the gradient may come twice there: each time with the whole count.
            every = torch.cat([a.index.detach().reshape(-1) for a in arena.asked]).to(rows.dtype).sort().values
            count = torch.searchsorted(every, rows, right=True) - torch.searchsorted(every, rows)
        elif len(rows):
            for a in arena.asked:
                unique = a.plan[0][0]
                at = torch.searchsorted(rows, unique).clamp_(max=len(rows) - 1)
                count.index_add_(0, at, a.counts * (rows[at] == unique))  # a row that reached no loss has no gradient
        return self.total(count)


class Penalties:
    r"""L2 penalties, added to the gradients before they are clipped.

    With :math:`c_j` the occurrences of row j in the step's batch, B its requests, and :math:`n_j` the occurrences of j in
    an epoch, the gradient of row j gets

    ========= ==================================== ==========================================================
    kind      gradient                             the penalty it comes from
    ========= ==================================== ==========================================================
    "whole"   λ w, of every row at every step      λ/2 ‖W‖²; such a table is trained densely
    "lazy"    λ w, of the rows of the batch        none: a frequent row is punished more. *Not* "whole" made fast
    "batch"   λ (c/B) w, of the rows of the batch  λ/2 · mean over the batch's requests of Σ ‖w‖² of their rows
    "count"   λ (1/n) w, of the rows of the batch  λ/2 · Σ α/n ‖w‖², DIN's equations 4 and 5 (arXiv 1706.06978)
    ========= ==================================== ==========================================================

    For "count" the occurrences are counted while the first epoch runs: until it ends, n is the count so far times the
    batches of an epoch over those seen; from then on it is exact and stays. The counts are part of a checkpoint.

    Args:
        choices: {key: λ} or {key: (kind, λ)}, keys as of `optimizers.assign`.
        batches: of an epoch; needed by "count".

    Raises:
        ConfigError: an unknown kind or key, a λ below zero, a kind for tables on what is none.
    """

    def __init__(self, model: nn.Module, choices: Mapping[str, Any], batches: int | None = None) -> None:
        self.whole: list[tuple[Tensor, float]] = []
        self.touched: dict[str, tuple[nn.Parameter, str, float]] = {}
        self.arenas: list[Any] = []
        for key, params in assign(model, choices, "regularization=").items():
            kind, value = _choice(choices[key], "whole", PENALTIES, f"regularization[{key!r}]")
            weight = _positive(value, f"regularization[{key!r}]", zero=True)
            if kind == "whole":
                self.whole += [(p, weight) for p in params.values()]
                continue
            self.arenas += _arenas(model, params, f"regularization[{key!r}] = {kind!r}")
            self.touched |= {name: (p, kind, weight) for name, p in params.items()}
        self.batches, self.seen = batches, 0
        self.counts: dict[str, Tensor] = {}  # int32 [rows], of tables with "count"

    def require_length(self) -> None:
        if self.batches is None and any(kind == "count" for _, kind, _ in self.touched.values()):
            raise ConfigError(
                'regularization "count" needs the number of batches, and they have no len(). Use a Loader or a list.'
            )

    @torch.no_grad()
    def add(self, asked: Asked, requests: int, batches: int = 1) -> None:
        """Add to the gradients of a step of that many `batches` with `requests` together."""
        for p, weight in self.whole:
            p.grad = p.detach() * weight if p.grad is None else p.grad.add_(p.detach(), alpha=weight)
        counting = self.seen < (self.batches or 0)
        self.seen += batches if counting else 0
        for name, (p, kind, weight) in self.touched.items():
            if p.grad is None:
                continue
            rows, grad, first = _rows(p)
            count = asked.of(p, rows) * first
            scale = (count > 0).to(torch.float32)
            if kind == "batch":
                scale = count / requests
            elif kind == "count":
                if name not in self.counts:
                    self.counts[name] = torch.zeros(len(p), dtype=torch.int32, device=p.device)
                if counting:
                    self.counts[name].index_add_(0, rows, count.int())
                times = (self.batches or 1) / self.seen
                scale = scale / (self.counts[name][rows].clamp(min=1) * times)
            grad += (scale.to(grad.dtype)[:, None] * weight * p.detach().reshape(len(p), -1)[rows]).view_as(grad)

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.counts, "@seen": torch.tensor(self.seen)} if self.counts else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.counts = {
            name: state[name].to(p.device, copy=True) for name, (p, *_) in self.touched.items() if name in state
        }
        self.seen = int(state.get("@seen", 0))


class Limits:
    r"""Clipping of gradients before a step, and of rows after it.

    ============================== =====================================================================================
    choice                         what
    ============================== =====================================================================================
    10.0 or ("norm", 10.0)         the norm of all gradients of the key together is at most 10
    ("cowclip", {"r": 1, ...})     row j's gradient to at most :math:`c_j \max(r \|w_j\|, \zeta)`: CowClip (Zheng et al.,
                                   2023, https://arxiv.org/abs/2204.06240), for very large batches; "zeta" is 1e-5
    ("max_norm", 1.0)              after the step, each touched row is scaled to a norm of at most 1
    ============================== =====================================================================================

    Args:
        choice: one number for all parameters together, or {key: choice} with keys as of `optimizers.assign`.

    Raises:
        ConfigError: an unknown choice or key, a limit that is not positive, CowClip on what is no table.
    """

    def __init__(self, model: nn.Module, choice: Any) -> None:
        self.arenas: list[Any] = []
        self.groups: list[tuple[str, dict[str, nn.Parameter], Any]] = []
        self.moved: list[tuple[Tensor, Tensor, float]] = []  # rows whose norms are to be looked at after the step
        if choice is None:
            return
        choices = dict(choice) if isinstance(choice, Mapping) else {"default": choice}
        for key, params in assign(model, choices, "clip=").items():
            what = f"clip[{key!r}]" if isinstance(choice, Mapping) else "clip"
            kind, value = _choice(choices[key], "norm", LIMITS, what)
            if kind == "cowclip":
                if not isinstance(value, Mapping):
                    raise ConfigError(
                        f'{what} is ("cowclip", {{"r": 1.0, "zeta": 1e-5}}); got {value!r} in the second place.'
                    )
                value = {"r": 1.0, "zeta": 1e-5} | dict(value)
                for option in value:
                    if option not in ("r", "zeta"):
                        raise unknown(f"option in {what}", option, ("r", "zeta"))
                value = {k: _positive(v, f"{what}[{k!r}]") for k, v in value.items()}
                self.arenas += _arenas(model, params, f"{what} = 'cowclip'")
            else:
                value = _positive(value, what)
            self.groups.append((kind, params, value))

    @torch.no_grad()
    def before(self, asked: Asked, params: Iterable[Tensor], norm: Callable[[Any, float], Any] = clip) -> None:
        """Clip the gradients of `params`, those that step now; `norm` clips the norm of several."""
        now = {id(p) for p in params}
        self.moved = []
        for kind, members, value in self.groups:
            mine = [p for p in members.values() if id(p) in now and p.grad is not None]
            if kind == "norm":
                norm(mine, value)
            for p in mine if kind != "norm" else ():
                rows, grad, _ = _rows(p)
                if kind == "max_norm":
                    self.moved.append((p, rows, value))
                    continue
                grad = grad.view(len(rows), -1)
                size = p.detach().view(len(p), -1)[rows].float().norm(dim=1)
                limit = asked.of(p, rows) * (value["r"] * size).clamp(min=value["zeta"])
                grad *= (limit / grad.float().norm(dim=1).clamp(min=1e-30)).clamp(max=1)[:, None].to(grad.dtype)

    @torch.no_grad()
    def after(self) -> None:
        """Rescale the rows that the step moved."""
        for p, rows, limit in self.moved:
            table = p.detach().view(len(p), -1)
            row = table[rows].float()
            table[rows] = (row * (limit / row.norm(dim=1).clamp(min=1e-30)).clamp(max=1)[:, None]).to(table.dtype)


def _rows(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a gradient, ascending; its values by row, to be changed in place; whether each is where its row's sum is."""
    assert p.grad is not None
    if not p.grad.is_sparse:
        rows = torch.arange(len(p), device=p.device)
        return rows, p.grad, torch.ones_like(rows, dtype=torch.bool)
    p.grad = kernel.coalesced(p.grad)
    rows = p.grad._indices()[0]
    return rows, p.grad._values(), kernel.is_first(rows)


def _arenas(model: nn.Module, params: Mapping[str, Tensor], what: str) -> list[Any]:
    """The arenas of parameters. Raises ConfigError where one has none."""
    found = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Embedding) and hasattr(m, "asked")}
    for name, p in params.items():
        if id(p) not in found:
            raise ConfigError(
                f"{what} is for embedding tables made by recstack.features, which count what is asked of them; "
                f'{name!r} is none. Take the key "embedding", or "whole" and a norm for it.'
            )
    return [found[id(p)] for p in params.values()]


def _choice(choice: Any, plain: str, kinds: tuple[str, ...], what: str) -> tuple[str, Any]:
    if not isinstance(choice, tuple | list):
        return plain, choice
    if len(choice) != 2 or not isinstance(choice[0], str):
        raise ConfigError(f"{what} is a number or (kind, value), as in ({kinds[-1]!r}, 1e-5); got {choice!r}.")
    if choice[0] not in kinds:
        raise unknown(f"kind in {what}", choice[0], kinds)
    return choice[0], choice[1]


def _positive(value: Any, what: str, zero: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 or (zero and value == 0)):
        raise ConfigError(f"{what} is a number above zero; got {value!r}.")
    return float(value)
