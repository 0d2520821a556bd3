"""Several approximate passes under one accuracy budget: how far each goes, and which of them take part."""

from graphopt.composition.compose import composable, compose
from graphopt.composition.finishing import LEFT_OUT, WORTH, in_the_way

__all__ = ["LEFT_OUT", "WORTH", "composable", "compose", "in_the_way"]
