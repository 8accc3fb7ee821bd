"""Logits in, honest logits out: maps fitted on held-out rows, and how far off a model is."""

from recstack.calibration.base import Calibrator
from recstack.calibration.bbq import BBQ
from recstack.calibration.beta import Beta
from recstack.calibration.by_field import ByField
from recstack.calibration.down_sampling import DownSampling
from recstack.calibration.histogram import Histogram
from recstack.calibration.isotonic import Isotonic
from recstack.calibration.odds import reweighted, true_from_stream
from recstack.calibration.pictures import reliability_diagram
from recstack.calibration.platt import Platt
from recstack.calibration.reliability import (
    Brier,
    brier,
    calibration_ratio_error,
    debiased_calibration_error,
    expected_calibration_error,
    field_calibration_error,
    field_relative_error,
    field_table,
    maximum_calibration_error,
    reliability_table,
)
from recstack.calibration.temperature import Temperature

__all__ = [
    "BBQ",
    "Beta",
    "Brier",
    "ByField",
    "Calibrator",
    "DownSampling",
    "Histogram",
    "Isotonic",
    "Platt",
    "Temperature",
    "brier",
    "calibration_ratio_error",
    "debiased_calibration_error",
    "expected_calibration_error",
    "field_calibration_error",
    "field_relative_error",
    "field_table",
    "maximum_calibration_error",
    "reliability_diagram",
    "reliability_table",
    "reweighted",
    "true_from_stream",
]
