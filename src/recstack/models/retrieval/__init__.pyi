from .dssm import DSSM as DSSM
from .item_cf import ItemCF as ItemCF
from .lightgcn import LightGCN as LightGCN
from .popularity import Popularity as Popularity
from .sasrec import SASRec as SASRec
from .swing import Swing as Swing
