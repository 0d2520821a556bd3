"""Lies here so that pytest puts this folder on the import path: tests in every room share ``support``."""
