from .cold import COLD as COLD
from .cross_towers import CrossTowers as CrossTowers
from .fscd import FSCD as FSCD
from .inttower import IntTower as IntTower
