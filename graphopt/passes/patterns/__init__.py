"""Operators recognised in the pieces that exporters write them in."""
