from .prm import PRM as PRM
