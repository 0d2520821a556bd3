"""What the rules say of models that ONNX Runtime's own quantizer makes, and of clean exports.

``python -m benchmarks.rules`` quantizes the nets of ``models/`` with ``quantize_static`` in several configurations,
checks each for TensorRT (``jetson-orin-nano``) and for the CPU, and beside it counts in ONNX Runtime's optimized graph
how many heavy layers really run in integer kernels. ``--clean MODEL...`` adds a table of findings in float models. The
tables go to ``results/rules.md``.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

from benchmarks.run_quantize_static import Reader, npz_feeds
from graphopt import runtime
from graphopt.rules import NOTE, RULES, Finding, check_model
from graphopt.targets import load_target

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "rules.md"
NETS = ("plain", "mobilenet", "mobilenetv3", "resnet20", "densenet", "shufflenet")
SAMPLES = 32
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INTEGER = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger")
CPU_INTEGER = ("cpu_int8",)

HEAD = """# What the rules find

Written by `python -m benchmarks.rules`. Figures are numbers of places; codes are explained in
[docs/rules.md](../../docs/rules.md).

## Models that ONNX Runtime's `quantize_static` makes

Nets of `models/`, 32 calibration samples, minimum and maximum, after `quant_pre_process`. *u8*, *s8*: type of
activations; weights are s8, with one scale a channel where it says so. *In integers*: heavy layers (convolutions and
matrix products) that ONNX Runtime's optimized graph runs in integer kernels, of all. *Found*: heavy layers or tensors
that the rules of the CPU name.

"""


@dataclass(frozen=True)
class Setting:
    """One configuration of `quantize_static`."""

    name: str
    activations: QuantType = QuantType.QInt8
    form: QuantFormat = QuantFormat.QDQ
    per_channel: bool = False
    extra: Mapping[str, object] | None = None


SETTINGS = (
    Setting("its defaults (s8, Q/DQ)"),
    Setting("u8, Q/DQ, per channel", QuantType.QUInt8, per_channel=True),
    Setting(
        "s8 symmetric, Q/DQ, float bias",
        extra={"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True},
    ),
    Setting("u8, QOperator", QuantType.QUInt8, form=QuantFormat.QOperator),
)


def quantized(source: Path, setting: Setting, folder: Path) -> onnx.ModelProto:
    """A net quantized by ONNX Runtime."""
    prepared, result = folder / "prepared.onnx", folder / "result.onnx"
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(result),
        Reader(npz_feeds(str(ROOT / "models" / "fashion_mnist_calibration.npz"), SAMPLES)),
        quant_format=setting.form,
        activation_type=setting.activations,
        weight_type=QuantType.QInt8,
        per_channel=setting.per_channel,
        extra_options=dict(setting.extra or {}),
    )
    return onnx.load(str(result))


def told(findings: Iterable[Finding]) -> str:
    """Findings by code, notes left out."""
    counted = Counter(finding.code for finding in findings if finding.level != NOTE)
    return ", ".join(f"{code} {count}" for code, count in sorted(counted.items())) or "nothing"


def in_integers(model: onnx.ModelProto) -> str:
    """How many heavy layers ONNX Runtime runs in integer kernels, of all."""
    ran = Counter(node.op_type for node in runtime.optimized_graph(model, 1).graph.node)
    integer = sum(count for op, count in ran.items() if op.startswith(INTEGER))
    heavy = sum(count for op, count in ran.items() if op.startswith((*HEAVY, "Fused", "NhwcFused")))
    floats = heavy - sum(count for op, count in ran.items() if op.startswith("MatMulInteger"))
    return f"{integer} of {integer + floats}"


def rows(nets: Sequence[str]) -> Iterator[str]:
    """The table of quantized nets."""
    tensorrt, cpu = load_target("jetson-orin-nano").hardware, load_target("cpu-vnni").hardware
    yield "| net | quantize_static | found for TensorRT | found for the CPU | in integers |"
    yield "|---|---|---|---|---|"
    for net in nets:
        for setting in SETTINGS:
            with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
                model = quantized(ROOT / "models" / f"{net}.onnx", setting, Path(folder))
            rules = [name for name in tensorrt.rules if name != "channels"]
            yield (
                f"| {net} | {setting.name} | {told(check_model(model, tensorrt, rules))} | "
                f"{told(check_model(model, cpu, CPU_INTEGER))} | {in_integers(model)} |"
            )


def clean(paths: Sequence[Path], targets: Sequence[str]) -> Iterator[str]:
    """The table of float models."""
    yield ""
    yield "## Float models"
    yield ""
    yield f"{len(paths)} float models (`--clean`: architectures of torchvision and timm as both exporters of PyTorch"
    yield "write them, and public nets), none of them prepared for a target: in how many a code is found."
    yield ""
    yield "| target | models without a finding | found, in so many models |"
    yield "|---|---|---|"
    for name in targets:
        hardware = load_target(name).hardware
        found = [
            {finding.code for finding in check_model(onnx.load(str(path), load_external_data=False), hardware)}
            - {rule.code for rule in RULES.values() if rule.level == NOTE}
            for path in paths
        ]
        counted = Counter(code for codes in found for code in codes)
        shown = ", ".join(f"{code} {count}" for code, count in sorted(counted.items())) or "nothing"
        yield f"| {name} | {sum(not codes for codes in found)} of {len(paths)} | {shown} |"


def main() -> None:
    """Quantize, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=NETS)
    parser.add_argument("--clean", nargs="*", type=Path, default=[])
    parser.add_argument("--targets", nargs="*", default=["jetson-orin-nano", "jetson-agx-orin@5.1", "gpu", "cpu"])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    lines = list(rows(options.nets))
    if options.clean:
        lines += clean(options.clean, options.targets)
    RESULTS.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
