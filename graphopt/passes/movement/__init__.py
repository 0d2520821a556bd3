"""Operators that only move data, and what a run of them comes to."""
