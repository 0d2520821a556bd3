"""Sizes that a graph computes, as numbers and as formulas."""
