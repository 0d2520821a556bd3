"""Recovery: give a changed net weights with which it answers like the original, in closed form, without labels."""

from graphopt.recovery.options import RefitOptions
from graphopt.recovery.record import Recorded, record
from graphopt.recovery.refitting import LayerFit, Refitted, refit

__all__ = ["LayerFit", "Recorded", "RefitOptions", "Refitted", "record", "refit"]
