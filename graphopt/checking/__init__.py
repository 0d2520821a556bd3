"""``graphopt check``: fast static checks and budgets over many files. Nothing is run (docs/check.md)."""

from graphopt.checking.catalog import Described, catalog
from graphopt.checking.check import check
from graphopt.checking.result import SCHEMA, CheckedFile, CheckResult

__all__ = ["SCHEMA", "CheckResult", "CheckedFile", "Described", "catalog", "check"]
