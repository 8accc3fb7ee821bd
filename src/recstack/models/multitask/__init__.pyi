from .esmm import ESMM as ESMM
from .mmoe import MMoE as MMoE
