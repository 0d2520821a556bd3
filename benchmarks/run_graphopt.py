"""Worker: graphopt on one model through its Python API, in its own process.

Arguments (JSON): name, cache, output, samples, keywords (passed to `graphopt.optimize`). graphopt sees calibration
samples only, and their labels or texts where the case has them; the evaluation samples judge the result later, as
they judge every other tool's. The recogniser is judged by lines read right, through a metric of ours.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ocr
from benchmarks.corpus import Case, case, load
from benchmarks.costs import measured


def given(item: Case, samples: int) -> dict[str, Any]:
    """The keywords that tell graphopt about the data of `item`."""
    columns = load(item.calibration, samples)
    if item.accuracy != "lines":
        return {"data": columns}
    metric = ocr.line_metric(ocr.load_texts(item.texts(item.calibration)), ocr.characters(item.model))

    def lines() -> Iterator[tuple[dict[str, Any], int]]:
        for index in range(len(columns["x"])):
            yield {"x": columns["x"][index : index + 1]}, index

    return {"data": list(lines()), "metric": metric}


def optimize(arguments: dict[str, Any]) -> dict[str, Any]:
    """Optimize and save; what graphopt reports comes back as the details of the cost."""
    import graphopt

    item = case(arguments["name"], Path(arguments["cache"]))
    keywords = given(item, arguments["samples"]) | arguments["keywords"]
    result = graphopt.optimize(str(item.model), target="cpu", **keywords)
    result.save(arguments["output"])
    report: dict[str, Any] = json.loads(result.report.to_json())
    return {"report": report}


def main() -> None:
    """Run what the command line says."""
    import graphopt  # noqa: F401  imports are not part of the cost, as for the other tools

    measured(partial(optimize, json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
