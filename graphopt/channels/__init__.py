"""Which channels of a network depend on each other, and how to cut them out.

``dependency_groups`` finds what can be cut and why the rest cannot; ``cut`` cuts, and ``mask`` makes the original with
the same channels zeroed, which must answer the same. ``select`` chooses channels by scores so that grouped convolutions
stay whole.
"""

from graphopt.channels.cut import cut
from graphopt.channels.finding import dependency_groups
from graphopt.channels.groups import Balance, Cut, Dependencies, Fixed, Group, Member, Selection, TensorAxis
from graphopt.channels.mask import mask
from graphopt.channels.select import random_selection, select

__all__ = [
    "Balance",
    "Cut",
    "Dependencies",
    "Fixed",
    "Group",
    "Member",
    "Selection",
    "TensorAxis",
    "cut",
    "dependency_groups",
    "mask",
    "random_selection",
    "select",
]
