from .esmm import ESMM as ESMM
from .mmoe import MMoE as MMoE
from .shared_bottom import SharedBottom as SharedBottom
