"""Worker: one model through ONNX Runtime's `quantize_static` in many ways, calibrated once for each way to calibrate.

Arguments (JSON): model, folder, data (.npz), samples, configurations (see `Static`). Writes `folder/NAME.onnx` for
each; the details have the error of each that failed. Ranges depend on the model, the method and the operators alone,
so configurations that differ in anything else share them.
"""

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.costs import measured

METHODS = ("minmax", "entropy", "percentile")


@dataclass(frozen=True)
class Static:
    """One way to call `quantize_static`.

    Attributes:
        method: how ranges are found: minmax, entropy or percentile.
        form: qdq or qoperator.
        activation, weight: u8 or s8.
        per_channel: a scale for each output channel.
        reduce_range: weights of 7 bits.
        operators: all that the quantizer knows, or heavy: convolutions and matrix products.
        prepared: after `quant_pre_process`, else the model as exported.
    """

    method: str
    form: str
    activation: str
    weight: str
    per_channel: bool
    reduce_range: bool
    operators: str
    prepared: bool

    @property
    def name(self) -> str:
        """Such as `minmax-qdq-u8s8-channel-all-prepared`."""
        parts = [self.method, self.form, self.activation + self.weight, "channel" if self.per_channel else "tensor"]
        parts += ["7bit"] if self.reduce_range else []
        return "-".join([*parts, self.operators, "prepared" if self.prepared else "exported"])

    @property
    def kernels(self) -> "Static":
        """One of the configurations that run the same kernels: ranges and bits change numbers only."""
        return replace(self, method=METHODS[0], reduce_range=False)


def grid() -> tuple[Static, ...]:
    """Every combination but s8 activations with u8 weights, which the quantizer refuses."""
    types, flags = ("u8", "s8"), (True, False)
    forms, operators = ("qdq", "qoperator"), ("all", "heavy")
    every = (Static(*one) for one in product(METHODS, forms, types, types, flags, (False, True), operators, flags))
    return tuple(way for way in every if (way.activation, way.weight) != ("s8", "u8"))


def quantize(arguments: dict[str, Any]) -> dict[str, Any]:
    """Every configuration whose file is not there yet; name to error, or to null."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    from benchmarks.run_quantize_static import HEAVY, Reader, npz_feeds, prepare
    from benchmarks.run_quantize_static import METHODS as RUNTIME_METHODS

    folder, data, samples = Path(arguments["folder"]), arguments["data"], arguments["samples"]
    exported, prepared = Path(arguments["model"]), folder / "prepared.onnx"
    ways = [Static(**one) for one in arguments["configurations"]]
    if any(way.prepared for way in ways) and not prepared.is_file():
        prepare(str(exported), prepared)
    types = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}

    def feeds() -> Iterator[dict[str, Any]]:
        return npz_feeds(data, samples)

    outcome: dict[str, str | None] = {}
    for way in ways:
        output = folder / f"{way.name}.onnx"
        outcome[way.name] = None
        if output.is_file():
            continue
        start = "prepared" if way.prepared else "exported"
        partial_output = folder / "partial.onnx"
        try:
            quantize_static(
                prepared if way.prepared else exported,
                partial_output,
                Reader(feeds()),
                calibration_cache_path=folder / f"ranges-{way.method}-{way.operators}-{start}.json",
                quant_format=QuantFormat.QDQ if way.form == "qdq" else QuantFormat.QOperator,
                op_types_to_quantize=HEAVY if way.operators == "heavy" else None,
                per_channel=way.per_channel,
                reduce_range=way.reduce_range,
                activation_type=types[way.activation],
                weight_type=types[way.weight],
                calibrate_method=RUNTIME_METHODS[way.method],
            )
            onnx.load(partial_output)
            partial_output.replace(output)
        except Exception as error:  # a configuration that does not work is a result
            lines = str(error).strip().splitlines() or [""]
            outcome[way.name] = f"{type(error).__name__}: {lines[0]}"[:200]
    return {"errors": {name: error for name, error in outcome.items() if error}}


def arguments_of(model: Path, folder: Path, data: Path, samples: int, ways: tuple[Static, ...]) -> dict[str, Any]:
    """The worker's arguments."""
    return {
        "model": str(model),
        "folder": str(folder),
        "data": str(data),
        "samples": samples,
        "configurations": [asdict(way) for way in ways],
    }


def main() -> None:
    """Run what the command line says."""
    logging.disable(logging.WARNING)
    from benchmarks.run_quantize_static import one_thread_sessions

    one_thread_sessions()
    measured(partial(quantize, json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
