"""List rules: what a page must look like beyond its scores. No gradients; state only where a rule says that it remembers.

A rule is called as ``rule(candidates, context)`` and returns the same candidates in the order of the page: the first
``context.k`` places are the page, what is left over follows, so that the next rule can still fill up from it. Take the page
with ``candidates.head(k)``, not by sorting again: scores stay those of the ranker, unless a rule is there to change them
(`Boost`, `Freshness`, `Repeats`, `Personalised`, `Transform`), which then comes first. :func:`moved` and :func:`cost` tell
what a rule did, :func:`apply` does so for several.

`recstack.rules.bandits` holds bandits in closed form; `Explore` lets one of them fill places of the page.
"""

from recstack.rules import bandits
from recstack.rules.base import PageContext, Rule, Step, apply, cost, moved
from recstack.rules.calibrated import Calibrated
from recstack.rules.caps import CategoryCap
from recstack.rules.coverage import Coverage, XQuAD
from recstack.rules.diversity import Diversity
from recstack.rules.dpp import DPP
from recstack.rules.explore import Explore
from recstack.rules.exposure import FairExposure
from recstack.rules.fair_topk import FairTopK
from recstack.rules.fairco import FairCo
from recstack.rules.fixed import Filter, Limit, Pins, Reserve
from recstack.rules.mmr import MMR
from recstack.rules.scores import Boost, Freshness, Personalised, Repeats, Transform
from recstack.rules.spread import MinimumGap, RoundRobin

__all__ = [
    "DPP",
    "MMR",
    "Boost",
    "Calibrated",
    "CategoryCap",
    "Coverage",
    "Diversity",
    "Explore",
    "FairCo",
    "FairExposure",
    "FairTopK",
    "Filter",
    "Freshness",
    "Limit",
    "MinimumGap",
    "PageContext",
    "Personalised",
    "Pins",
    "Repeats",
    "Reserve",
    "RoundRobin",
    "Rule",
    "Step",
    "Transform",
    "XQuAD",
    "apply",
    "bandits",
    "cost",
    "moved",
]
