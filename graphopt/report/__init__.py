"""The report of a run: values that mirror the JSON schema, and the forms in which a person reads it."""

from graphopt.report.schema import SCHEMA, AccuracyFacts, LatencyFacts, ModelFacts, Report, Stage, Status
from graphopt.report.write import check_report_path, write_report

__all__ = [
    "SCHEMA",
    "AccuracyFacts",
    "LatencyFacts",
    "ModelFacts",
    "Report",
    "Stage",
    "Status",
    "check_report_path",
    "write_report",
]
