"""The one bridge from names to tensors: inputs, tables and tasks."""

from recstack.features.inputs import FirstOrder, Inputs, Slots
from recstack.features.tables import Arena, Tables, carry, load_grown
from recstack.features.tasks import Heads

__all__ = ["Arena", "FirstOrder", "Heads", "Inputs", "Slots", "Tables", "carry", "load_grown"]
