from .cold import COLD as COLD
