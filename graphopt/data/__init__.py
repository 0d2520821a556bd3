"""Calibration and evaluation data: open any source, check it against the model, split it into disjoint parts."""

from graphopt.data.open import Source, open_data
from graphopt.data.preprocess import Preprocess, preprocess_of, read_preprocess
from graphopt.data.sample import Array, DataSource, DataWarning, Feed, Feeds, Sample
from graphopt.data.split import Caps, Parts, assemble, split
from graphopt.data.synthetic import random_feeds

__all__ = [
    "Array",
    "Caps",
    "DataSource",
    "DataWarning",
    "Feed",
    "Feeds",
    "Parts",
    "Preprocess",
    "Sample",
    "Source",
    "assemble",
    "open_data",
    "preprocess_of",
    "random_feeds",
    "read_preprocess",
    "split",
]
