"""Several approximate passes under one accuracy budget: how far each goes, and which of them take part."""

from graphopt.composition.compose import composable, compose

__all__ = ["composable", "compose"]
