"""One score from the predictions of several tasks, by an expression that people can read and change."""

from __future__ import annotations

from recstack.fusion.expression import Fusion as Fusion
from recstack.fusion.tuning import TunedFusion as TunedFusion
from recstack.fusion.tuning import tune_fusion as tune_fusion
