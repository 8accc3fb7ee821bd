"""Ways to balance the losses of several tasks, ``Trainer(balance=...)``; one a file.

Those that look at gradients are functions of the Gram matrix of these and of the losses; the step is then one backward of
the weighted sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recstack.errors import ConfigError, unknown
from recstack.training.balance.aligned import AlignedMTL
from recstack.training.balance.base import Balance, GradientBalance
from recstack.training.balance.cagrad import CAGrad
from recstack.training.balance.dwa import DWA
from recstack.training.balance.gradnorm import GradNorm
from recstack.training.balance.inverse_mean import InverseMean
from recstack.training.balance.mgda import MGDA
from recstack.training.balance.nash import NashMTL
from recstack.training.balance.pcgrad import PCGrad
from recstack.training.balance.pe_ltr import PELTR
from recstack.training.balance.random_weights import RandomWeights
from recstack.training.balance.run import Balancing
from recstack.training.balance.scheduled import Scheduled
from recstack.training.balance.search import Front, search_weights
from recstack.training.balance.static import Static
from recstack.training.balance.uncertainty import Uncertainty

__all__ = [
    "BALANCES",
    "DWA",
    "MGDA",
    "PELTR",
    "AlignedMTL",
    "Balance",
    "Balancing",
    "CAGrad",
    "Front",
    "GradNorm",
    "GradientBalance",
    "InverseMean",
    "NashMTL",
    "PCGrad",
    "RandomWeights",
    "Scheduled",
    "Static",
    "Uncertainty",
    "get",
    "search_weights",
]

BALANCES: dict[str, type[Balance]] = {
    "static": Static,
    "inverse_mean": InverseMean,
    "scheduled": Scheduled,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "random": RandomWeights,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "mgda": MGDA,
    "cagrad": CAGrad,
    "nash": NashMTL,
    "pe_ltr": PELTR,
    "aligned": AlignedMTL,
}


def get(choice: Any) -> Balance | None:
    """From None, a name, (name, options), {loss: weight}, or a Balance.

    Raises:
        ConfigError: an unknown name (with a guess) or option.

    >>> get(("uncertainty", {"form": "seed"})).form, get({"like": 0.3}).chosen
    ('seed', {'like': 0.3})
    """
    if choice is None or isinstance(choice, Balance):
        return choice
    if isinstance(choice, Mapping):
        return Static(choice)
    name, options = (choice[0], dict(choice[1])) if isinstance(choice, tuple | list) else (choice, {})
    if not isinstance(name, str):
        raise ConfigError(
            f"balance= is a name, (name, options), {{loss: weight}} or one of recstack.balance; got {choice!r}."
        )
    if name not in BALANCES:
        raise unknown("balance", name, BALANCES)
    try:
        return BALANCES[name](**options)
    except TypeError as e:
        raise ConfigError(f"balance={name!r} does not take these options: {e}.") from e
