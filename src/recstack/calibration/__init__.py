"""Logits in, honest logits out: monotone maps fitted on held-out rows, and how far off a model is."""

from recstack.calibration.base import Calibrator
from recstack.calibration.isotonic import Isotonic
from recstack.calibration.odds import reweighted, true_from_stream
from recstack.calibration.platt import Platt
from recstack.calibration.reliability import expected_calibration_error, reliability_table
from recstack.calibration.temperature import Temperature

__all__ = [
    "Calibrator",
    "Isotonic",
    "Platt",
    "Temperature",
    "expected_calibration_error",
    "reliability_table",
    "reweighted",
    "true_from_stream",
]
