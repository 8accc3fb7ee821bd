from .dcnv2 import DCNv2 as DCNv2
from .deepfm import DeepFM as DeepFM
from .din import DIN as DIN
from .fm import FM as FM
from .lr import LR as LR
