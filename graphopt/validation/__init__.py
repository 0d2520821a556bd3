"""Judge a candidate against the original: accuracy with a confidence interval, interleaved latency, gates."""

from graphopt.validation.accuracy import Accuracy, Reference, evaluate
from graphopt.validation.gates import Gates, Verdict, verdict
from graphopt.validation.latency import Latency, Rounds, Timing, bench, measure, measure_rounds
from graphopt.validation.metrics import Metric, check_metric, resolve_metric
from graphopt.validation.sqnr import Sqnr

__all__ = [
    "Accuracy",
    "Gates",
    "Latency",
    "Metric",
    "Reference",
    "Rounds",
    "Sqnr",
    "Timing",
    "Verdict",
    "bench",
    "check_metric",
    "evaluate",
    "measure",
    "measure_rounds",
    "resolve_metric",
    "verdict",
]
