"""The stages of a recommender behind each other: fitted, asked, explained, measured and saved as one."""

from recstack.cascade.cascade import Cascade
from recstack.cascade.evaluation import Report
from recstack.cascade.lists import CandidateLists, scored_features

__all__ = ["CandidateLists", "Cascade", "Report", "scored_features"]
