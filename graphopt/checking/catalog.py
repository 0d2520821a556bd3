"""The rules that hold for every file, whatever the target, and how any rule is looked up (docs/check.md).

GO1xx: the file and its graph. GO9xx: budgets. The codes between are the targets' (``graphopt.rules``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from graphopt.rules import RULES, Finding

_IR = "https://github.com/onnx/onnx/blob/main/docs/IR.md"
_OPERATORS = "https://github.com/onnx/onnx/blob/main/docs/Operators.md"


class Described(Protocol):
    """What ``check --explain`` shows of a rule, of this room or of a target."""

    @property
    def code(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def level(self) -> str: ...  # noqa: D102
    @property
    def summary(self) -> str: ...  # noqa: D102
    @property
    def explanation(self) -> str: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def fix(self) -> tuple[str, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class FileRule:
    """A rule of the file, its graph or its budget; the fields are those of ``graphopt.rules.Rule``, and the level."""

    code: str
    name: str
    level: str
    summary: str
    explanation: str
    source: str
    fix: tuple[str, ...] = ()

    def finding(self, where: str, message: str) -> Finding:
        """A place that breaks the rule."""
        return Finding(self.code, self.name, where, message, self.level)


UNREADABLE = FileRule(
    "GO101",
    "unreadable",
    "error",
    "the file is not an ONNX model, or cannot be read",
    "It is empty, cut short, of another format, or the system does not let it be read. The message says what it is. "
    "Where the system does not let a file be read at all, the exit code is 3.",
    "docs/models.md",
)
LFS_POINTER = FileRule(
    "GO102",
    "lfs_pointer",
    "error",
    "a Git LFS pointer stands in the place of the model or of its data",
    "The checkout was made without Git LFS. `git lfs install` and `git lfs pull` fetch the file; in GitHub Actions, "
    "actions/checkout takes `lfs: true`.",
    "https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md",
)
UNSAFE = FileRule(
    "GO103",
    "unsafe",
    "error",
    "the model points outside its folder, or its data does not fit what it declares",
    "External data is read only from a regular file in the model's folder, reached without '..' and without links; "
    "every tensor must have exactly the bytes that its shape and type need. Anything else can be made to read or "
    "overwrite what is none of the model's business (CVE-2024-5187, CVE-2022-25882 of the onnx package).",
    "docs/models.md",
)
UNSUPPORTED = FileRule(
    "GO104",
    "unsupported",
    "error",
    "the model needs versions or operators that are not known here",
    "An IR version or opset newer than the installed onnx, or an operator that is neither ONNX's nor ONNX Runtime's "
    "nor a function of the model. Nothing else can be checked then.",
    "docs/models.md",
)
INVALID = FileRule(
    "GO105",
    "invalid",
    "error",
    "the model breaks the ONNX specification",
    "What onnx's checker and its shape inference refuse: missing attributes, values that nothing computes, types or "
    "shapes that do not fit, cycles. Declared shapes of intermediate results that contradict inference are not held "
    "against a model: runtimes only warn.",
    _IR,
)
MISSING_DATA = FileRule(
    "GO106",
    "missing_data",
    "error",
    "a file with the model's external data is missing",
    "The model names it relative to its own folder. Commit or copy both.",
    "https://github.com/onnx/onnx/blob/main/docs/ExternalData.md",
)
NOT_CANONICAL = FileRule(
    "GO107",
    "not_canonical",
    "error",
    "onnx's checker refuses the file, though runtimes may mend it as they load",
    "Nodes must be in topological order, and below IR version 4 every initializer must be listed among the inputs. "
    "graphopt writes such a model in order: `graphopt.save(graphopt.load(path), path)`.",
    _IR,
)
OLD_OPSET = FileRule(
    "GO108",
    "old_opset",
    "warning",
    "the opset is older than 7, the oldest that ONNX Runtime guarantees to run",
    "Kernels of older opsets are no longer tested. The pass raises it.",
    "https://onnxruntime.ai/docs/reference/compatibility.html",
    ("raise_opset",),
)
UNUSED_NODES = FileRule(
    "GO110",
    "unused_nodes",
    "warning",
    "nodes that no output depends on",
    "They cost space, and time in runtimes that do not drop them.",
    _IR,
    ("eliminate_dead",),
)
UNUSED_WEIGHTS = FileRule(
    "GO111",
    "unused_weights",
    "warning",
    "weights that no node reads",
    "They are only shipped and loaded.",
    _IR,
    ("eliminate_dead",),
)
DUPLICATE_WEIGHTS = FileRule(
    "GO112",
    "duplicate_weights",
    "warning",
    "weights of equal values are stored several times",
    "One copy serves all readers. Told from 1 KiB on; smaller ones are not worth a line.",
    _IR,
    ("eliminate_dead",),
)
UNFOLDED_BATCHNORM = FileRule(
    "GO113",
    "unfolded_batchnorm",
    "warning",
    "a BatchNormalization that could be part of the convolution before it",
    "In inference it is a factor and a shift for each channel, which the weights of the layer before can take over "
    "exactly. Runtimes that fold it do so at each start; quantization, where it stands between a layer and its "
    "activation, becomes slower and less accurate.",
    f"{_OPERATORS}#BatchNormalization",
    ("fold_batchnorm",),
)
TRAINING_MODE = FileRule(
    "GO114",
    "training_mode",
    "error",
    "an operator that is still in training mode, or belongs to training",
    "Dropout in training mode answers differently each time; BatchNormalization in training mode normalizes with the "
    "batch at hand, so that an answer depends on what else is in the batch. Export again with model.eval() "
    "(PyTorch: training=TrainingMode.EVAL).",
    f"{_OPERATORS}#BatchNormalization",
)
MAX_BYTES = FileRule(
    "GO901",
    "max_bytes",
    "error",
    "the model has more bytes than its budget",
    "The model file and its external data together, against `max-bytes`.",
    "docs/check.md",
    ("prune_filters", "separate_convolutions", "quantize_int8", "convert_float16"),
)
MAX_PARAMETERS = FileRule(
    "GO902",
    "max_parameters",
    "error",
    "the model has more parameters than its budget",
    "Counted as `graphopt inspect` does, against `max-parameters`.",
    "docs/cli.md",
    ("prune_filters", "separate_convolutions"),
)
MAX_MACS = FileRule(
    "GO903",
    "max_macs",
    "error",
    "the model needs more multiply-adds than its budget",
    "Counted as `graphopt inspect` does, for the whole batch, against `max-macs`.",
    "docs/cli.md",
    ("prune_filters", "separate_convolutions"),
)
MAX_LATENCY = FileRule(
    "GO904",
    "max_latency",
    "error",
    "the estimated latency on the target is over its budget",
    "The latency model's estimate against `max-latency-ms`; an estimate, not a measurement. It fails where the "
    "estimate itself lies above the budget, and the line gives its interval.",
    "docs/latency.md",
    ("prune_filters", "separate_convolutions", "quantize_int8", "convert_float16"),
)
BUDGET_UNKNOWN = FileRule(
    "GO905",
    "budget_unknown",
    "error",
    "a budget that cannot be judged",
    "A size is not known, so that a count would be a guess: give `input-shapes`. Or the target has no latency model.",
    "docs/check.md",
)

FILE_RULES: tuple[FileRule, ...] = (
    UNREADABLE, LFS_POINTER, UNSAFE, UNSUPPORTED, INVALID, MISSING_DATA, NOT_CANONICAL, OLD_OPSET, UNUSED_NODES,
    UNUSED_WEIGHTS, DUPLICATE_WEIGHTS, UNFOLDED_BATCHNORM, TRAINING_MODE, MAX_BYTES, MAX_PARAMETERS, MAX_MACS,
    MAX_LATENCY, BUDGET_UNKNOWN,
)  # fmt: skip


def catalog() -> Mapping[str, Described]:
    """Every rule by its code: those of all files and those of the targets."""
    described: tuple[Described, ...] = (*FILE_RULES, *RULES.values())
    return {rule.code: rule for rule in sorted(described, key=lambda rule: rule.code)}


def selected(selector: str) -> frozenset[str]:
    """The codes that ``selector`` means: a code (GO113), the beginning of codes (GO1) or a rule's name.

    Empty where there is no such rule.
    """
    return frozenset(code for code, rule in catalog().items() if code.startswith(selector) or rule.name == selector)
