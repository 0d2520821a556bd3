"""The version of graphopt, read by the build and written into every result's provenance."""

__version__ = "0.1.0"
