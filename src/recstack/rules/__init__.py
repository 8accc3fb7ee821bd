"""List rules: what a page must look like beyond its scores. No gradients, no state.

A rule is called as ``rule(candidates, context)`` and returns the same candidates in the order of the page: the first
``context.k`` places are the page, what is left over follows, so that the next rule can still fill up from it. Scores stay
those of the ranker; take the page with ``candidates.head(k)``, not by sorting again. :func:`moved` tells what a rule did.
"""

from recstack.rules.base import PageContext, Rule, moved
from recstack.rules.caps import CategoryCap
from recstack.rules.diversity import Diversity
from recstack.rules.fixed import Filter, Pins
from recstack.rules.mmr import MMR

__all__ = ["MMR", "CategoryCap", "Diversity", "Filter", "PageContext", "Pins", "Rule", "moved"]
