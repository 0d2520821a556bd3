"""The command line: parses, calls the library, prints, and turns errors into exit codes. No logic of its own."""

from graphopt.cli.entry import main

__all__ = ["main"]
