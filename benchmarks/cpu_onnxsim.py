"""Worker: onnxsim's own ways from a trained float model to a fast one, without labels.

Arguments (JSON): model, folder, data (.npz), samples, static (ways to call ONNX Runtime's `quantize_static`, see
`benchmarks.cpu_grid`), quantize (names of float models). Writes `folder/NAME.onnx` for each; the details have the error
of each that failed.

- `pipeline-…`: `apply_optimization_pipeline`, which simplifies, prunes and refits where told to, equalizes and
  quantizes weights, each stage held to its own default budget;
- `float-…`: `simplify`, pruning, `apply_pruning_finetune`;
- `own-…`: the float models named by `quantize`, then onnxsim's own `quantize_static`;
- `runtime-…`: the same, then ONNX Runtime's `quantize_static`.

Pruning is `apply_structured_pruning` (by norms) or `apply_structured_wanda_pruning` (by norms and activations), with
the same ratio everywhere or one ranking for the whole net. Needs onnxsim and onnxruntime.
"""

import copy
import json
import logging
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import onnx

from benchmarks.costs import measured

RATIOS = (1 / 32, 1 / 8)
PIPELINE_RATIOS = (None, 1 / 32)
METHODS = ("minmax", "entropy", "percentile")
BATCHES = 8  # that calibration data are handed over in


def float_models(model: onnx.ModelProto, data: list[dict[str, Any]]) -> dict[str, Callable[[], onnx.ModelProto]]:
    """Simplified and pruned models by name, each made when it is called for."""
    import onnxsim

    simplified, _ = onnxsim.simplify(copy.deepcopy(model))

    def pruned(ratio: float, calibrated: bool, everywhere: bool) -> onnx.ModelProto:
        source = copy.deepcopy(simplified)
        if calibrated:
            cut = onnxsim.apply_structured_wanda_pruning(source, data, sparsity=ratio, global_sparsity=everywhere)
        else:
            cut = onnxsim.apply_structured_pruning(source, ratio, global_sparsity=everywhere)
        refitted: onnx.ModelProto = onnxsim.apply_pruning_finetune(copy.deepcopy(simplified), cut, data)
        return refitted

    made: dict[str, Callable[[], onnx.ModelProto]] = {"whole": lambda: copy.deepcopy(simplified)}
    for ratio, calibrated, everywhere in product(RATIOS, (False, True), (False, True)):
        ranking = f"{'wanda' if calibrated else 'norm'}-{'global' if everywhere else 'uniform'}"
        made[f"{ranking}-{ratio:g}"] = partial(pruned, ratio, calibrated, everywhere)
    return made


def pipelines(model: onnx.ModelProto, data: list[dict[str, Any]]) -> dict[str, Callable[[], onnx.ModelProto]]:
    """onnxsim's pipeline in its variants."""
    import onnxsim

    def run(ratio: float | None, method: str, bits: str) -> onnx.ModelProto:
        found = onnxsim.apply_optimization_pipeline(
            copy.deepcopy(model), calibration_data=data, sparsity=ratio, pruning_method=method, bit_selection=bits
        )
        optimized: onnx.ModelProto = found.optimized_model
        return optimized

    made: dict[str, Callable[[], onnx.ModelProto]] = {}
    for ratio, method, bits in product(PIPELINE_RATIOS, ("magnitude", "wanda"), ("uniform", "mixed_precision")):
        if ratio is not None or method == "magnitude":  # without pruning there is nothing to rank
            name = f"pipeline-{bits}" + ("" if ratio is None else f"-{method}-{ratio:g}")
            made[name] = partial(run, ratio, method, bits)
    return made


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Every candidate whose file is not there yet."""
    import onnxsim

    from benchmarks.cpu_grid import Static, arguments_of, quantize
    from benchmarks.run_quantize_static import npz_feeds

    folder, path = Path(arguments["folder"]), Path(arguments["data"])
    data = _batches(list(npz_feeds(str(path), arguments["samples"])))
    model = onnx.load(arguments["model"])
    errors: dict[str, str] = {}

    def keep(name: str, make: Callable[[], onnx.ModelProto]) -> onnx.ModelProto | None:
        output = folder / f"{name}.onnx"
        if output.is_file():
            return onnx.load(output)
        try:
            found = make()
        except Exception as error:  # what fails is a result, too
            lines = str(error).strip().splitlines() or [""]
            errors[name] = f"{type(error).__name__}: {lines[0]}"[:200]
            return None
        onnx.save(found, folder / "partial.onnx")
        (folder / "partial.onnx").replace(output)
        return found

    for name, make in pipelines(model, data).items():
        keep(name, make)
    for name, make in float_models(model, data).items():
        found = keep(f"float-{name}", make)
        if found is None or f"float-{name}" not in arguments["quantize"]:
            continue
        for method in METHODS:
            keep(f"own-{method}-{name}", partial(onnxsim.quantize_static, found, data, method=method))
        ways = tuple(Static(**{**way, "prepared": False}) for way in arguments["static"])
        inner = folder / name
        inner.mkdir(exist_ok=True)
        outcome = quantize(arguments_of(folder / f"float-{name}.onnx", inner, path, arguments["samples"], ways))
        errors |= {f"runtime-{way}-{name}": error for way, error in outcome["errors"].items()}
        for way in ways:
            if (inner / f"{way.name}.onnx").is_file():
                (inner / f"{way.name}.onnx").replace(folder / f"runtime-{way.name}-{name}.onnx")
    return {"errors": errors}


def _batches(feeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    import numpy as np

    size = -(-len(feeds) // BATCHES)
    groups = (feeds[start : start + size] for start in range(0, len(feeds), size))
    return [{name: np.concatenate([feed[name] for feed in group]) for name in group[0]} for group in groups]


def main() -> None:
    """Run what the command line says."""
    logging.disable(logging.WARNING)
    from benchmarks.run_quantize_static import one_thread_sessions

    one_thread_sessions()
    measured(partial(run, json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
