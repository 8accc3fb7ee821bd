from .adasparse import AdaSparse as AdaSparse
from .adl import ADL as ADL
from .domain_towers import DomainTowers as DomainTowers
from .hamur import HAMUR as HAMUR
from .m2m import M2M as M2M
from .pepnet import PEPNet as PEPNet
from .sarnet import SARNet as SARNet
from .star import STAR as STAR
