"""Recovery: give a changed net weights with which it answers like the original, in closed form, without labels."""

from graphopt.recovery.normals import normals
from graphopt.recovery.options import DATA_FREE, RefitOptions
from graphopt.recovery.record import Recorded, record
from graphopt.recovery.refitting import LayerFit, Refitted, refit
from graphopt.recovery.restrictions import Fitted, Normal, Restriction
from graphopt.recovery.synthetic import synthetic_feeds

__all__ = [
    "DATA_FREE",
    "Fitted",
    "LayerFit",
    "Normal",
    "Recorded",
    "RefitOptions",
    "Refitted",
    "Restriction",
    "normals",
    "record",
    "refit",
    "synthetic_feeds",
]
