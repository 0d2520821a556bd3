"""Worker: `graphopt optimize MODEL --target cpu` on one model, through the Python API.

Arguments (JSON): model, output, calibration and evaluation (.npz with labels), keywords (for `graphopt.optimize`).
The report comes back as the details of the cost. A model that no candidate of graphopt's holds the gates for is
written as it was.
"""

import json
import sys
from functools import partial
from typing import Any

from benchmarks.costs import measured


def optimize(arguments: dict[str, Any]) -> dict[str, Any]:
    """Optimize and save."""
    import graphopt

    result = graphopt.optimize(
        arguments["model"],
        target="cpu",
        calibration_data=arguments["calibration"],
        eval_data=arguments["evaluation"],
        **arguments["keywords"],
    )
    report: dict[str, Any] = json.loads(result.report.to_json())
    if report["result"] == "ok":
        result.save(arguments["output"])
    return {"report": report}


def main() -> None:
    """Run what the command line says."""
    import graphopt  # noqa: F401  imports are not part of the cost, as for the other tools

    measured(partial(optimize, json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
