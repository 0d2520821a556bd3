"""Worker: graphopt on one model through its Python API, in its own process.

Arguments (JSON): model, output, calibration (.npz), samples, keywords (passed to `graphopt.optimize`). graphopt sees
the calibration samples only; the evaluation samples judge the result later, as they judge every other tool's.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.corpus import load
from benchmarks.costs import measured


def optimize(arguments: dict[str, Any]) -> dict[str, Any]:
    """Optimize and save; what graphopt reports comes back as the details of the cost."""
    import graphopt

    data = load(Path(arguments["calibration"]), arguments["samples"])
    result = graphopt.optimize(arguments["model"], target="cpu", data=data, **arguments["keywords"])
    result.save(arguments["output"])
    return {"report": summary(result)}


def summary(result: Any) -> dict[str, Any]:
    """The report in its JSON form (schema graphopt.report/1), as a dictionary."""
    report: dict[str, Any] = json.loads(result.report.to_json())
    return report


def main() -> None:
    """Run what the command line says."""
    import graphopt  # noqa: F401  imports are not part of the cost, as for the other tools

    measured(partial(optimize, json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
