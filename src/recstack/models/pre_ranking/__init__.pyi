from .cold import COLD as COLD
from .fscd import FSCD as FSCD
from .inttower import IntTower as IntTower
