from .star import STAR as STAR
