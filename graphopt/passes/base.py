"""What a pass is.

A pass is a frozen dataclass whose fields are its options. There are two kinds:

- an *exact* pass edits a graph in place; the result equals the original to float rounding. Run twice, it
  changes nothing the second time.
- an *approximate* pass proposes candidate models, the fastest first and each later one gentler. The pipeline judges
  each against the original and takes the first that holds the gates; what the pass learned on the way (calibration
  statistics, sensitivities) lives in its generator.

Passes know nothing of the pipeline, of target names or of the command line. Facts about the hardware reach them
through ``Context.hardware``; everything else that is not in the graph through the other fields of ``Context``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt.targets.schema import Hardware

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = Mapping[str, Array]
# Tensor -> axis -> which indices of the origin's tensor remain.
Kept: TypeAlias = Mapping[str, Mapping[int, npt.NDArray[np.int64]]]


@dataclass(frozen=True)
class Skip:
    """A place that a pass left alone, and why, in words a user can act on."""

    where: str
    reason: str


@dataclass(frozen=True)
class PassReport:
    """What one application of a pass did. The runner adds time, sizes and the outcome.

    Attributes:
        changes: how many edits were made; 0 means that the graph is as it was.
        skipped: places left alone with the reason.
        details: further figures of the pass, JSON-ready.
    """

    changes: int
    skipped: tuple[Skip, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Goals:
    """What the user asked for, for passes that choose how far to go.

    Attributes:
        max_drop: most that the metric may fall, absolute.
        max_macs: multiply-adds to reach, as a share of the original's; None: no such budget.
        min_speedup: speed-up over the original to reach; 1 asks for nothing.
        to_threshold: where no budget is set, go on until ``max_drop`` is reached. So when the user named the passes.
        int8_follows: whether a later pass may put layers in int8, so that times are those of the better precision.
        original_macs: multiply-adds of the original; None where they are not known.
        drop: by how much the metric of a model falls, on the selection samples, and a little more where these are few;
            None where there are none.
        speedup: how many times as fast as the original a model is, measured or estimated; None where neither can be.
        without_float16: the same for a model in which nothing may run in float16 although the original's layers may.
    """

    max_drop: float = 0.01
    max_macs: float | None = None
    min_speedup: float = 1.0
    to_threshold: bool = False
    int8_follows: bool = False
    original_macs: int | None = None
    drop: Callable[[onnx.ModelProto], float] | None = None
    speedup: Callable[[onnx.ModelProto], float] | None = None
    without_float16: Callable[[onnx.ModelProto], float] | None = None


@dataclass(frozen=True)
class Origin:
    """What an approximated model comes from, so that later recovery still aims at the right answers.

    Attributes:
        model: the model whose answers are right.
        kept: tensor -> axis -> which indices of it remain in the model at hand; what is not named is whole.
    """

    model: onnx.ModelProto
    kept: Kept = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a pass may use beside the graph.

    Attributes:
        hardware: facts about the target.
        calibration: samples for statistics and refits, re-iterable; each item feeds the model once (leading axis: the
            batch). None where no data was given.
        selection: samples for choices (sensitivity, back-off), disjoint from ``calibration``; None likewise.
        seed: seed of everything random.
        threads: intra-op threads that latency is judged at.
        jobs: intra-op threads for work that is not timed.
        goals: what the user asked for.
        origin: what the model at hand was approximated from; None: it is the original itself.
        shapes: shapes of the inputs, by name, where the model leaves them open and the user said which.
        progress: called with (what, done, total); total 0 when unknown.
    """

    hardware: Hardware
    calibration: Iterable[Feed] | None = None
    selection: Iterable[Feed] | None = None
    seed: int = 0
    threads: int = 1
    jobs: int = 1
    goals: Goals = field(default_factory=Goals)
    origin: Origin | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None


@dataclass(frozen=True)
class Candidate:
    """One model that an approximate pass proposes.

    Attributes:
        model: the whole model, valid on its own.
        report: what was done to reach it.
        label: a few words that tell this candidate from its siblings, e.g. ``'all int8'``.
        faster: whether it is meant to be faster; one that is smaller only must not be slower.
        kept: which indices of the origin's tensors remain (see ``Origin``); those of the model before where nothing
            was cut.
        files: what travels beside the model, by the ending that takes the place of ``.onnx`` in its path
            (``.calibration``: a TensorRT calibration cache). They speak of tensors by name: a later pass must keep the
            names, or the file goes with the pass.
        simulation: a model that answers as the candidate does on the target, where the runtime rounds by itself what
            the candidate's own graph leaves in float (implicit quantization); accuracy is judged on it. None: the
            candidate answers for itself.
    """

    model: onnx.ModelProto
    report: PassReport
    label: str = ""
    faster: bool = True
    kept: Kept = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    simulation: onnx.ModelProto | None = None


class Declined(Exception):  # noqa: N818 (not an error: the pass has nothing to offer here)
    """Raised by an approximate pass that has nothing to offer for this model on this target, and says why.

    Attributes:
        report: what was looked at and left alone.
    """

    def __init__(self, reason: str, report: PassReport | None = None) -> None:
        super().__init__(reason)
        self.report = report or PassReport(changes=0)


class ExactPass(Protocol):
    """Edits a graph in place without changing what it computes, beyond float rounding."""

    name: ClassVar[str]
    summary: ClassVar[str]
    exact: ClassVar[bool]

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place. May raise; the runner then rolls back."""


@runtime_checkable
class Preparing(Protocol):
    """An exact pass that has something to do before a model is opened, too."""

    def prepare(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model to open: ``model`` itself, which is not edited, or another that computes the same."""


class ApproximatePass(Protocol):
    """Proposes models that are faster and not quite equal."""

    name: ClassVar[str]
    summary: ClassVar[str]
    exact: ClassVar[bool]
    needs: ClassVar[frozenset[str]]

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        """Yield candidates, the preferred first; the caller stops at the first that holds the gates.

        Raises:
            Declined: the pass has nothing to offer here.
        """


class Dial(Protocol):
    """A pass opened on one model, to be told again and again what noise is worth."""

    def at(self, price: float, model: onnx.ModelProto, kept: Kept, *, recover: bool) -> Candidate | None:
        """Return the candidate for a price; None where nothing pays.

        Args:
            price: share of the model's time that must be saved for one unit of noise added, in noise-to-signal power
                at the outputs. The higher, the gentler.
            model: the model that the dial was opened on, or what earlier passes made of it: the same names.
            kept: what remains in it of the tensors of the model that the dial was opened on.
            recover: whether to recover accuracy; False where a later pass does so for both.
        """

    def close(self) -> None:
        """Give memory and files back."""


@runtime_checkable
class Priced(Protocol):
    """An approximate pass that can be told what noise is worth, so that a planner can weigh it against others."""

    def open_ended(self, goals: Goals) -> bool:
        """Whether neither the goals nor the pass's own options say how far it goes."""

    def dial(self, model: onnx.ModelProto, context: Context) -> Dial:
        """Measure a model.

        Raises:
            Declined: the pass has nothing to offer for this model.
        """


Pass: TypeAlias = ExactPass | ApproximatePass


def kernel_multiple(context: Context, default: int = 1) -> int:
    """Multiple of channels that the target's kernels want in the precision that most layers will run in.

    On this machine that of float32, whose kernels are the pickier ones there; on a device int8's where that follows,
    else float16's where the device computes in it.
    """
    multiples = context.hardware.channel_multiple
    wanted = ["float32"]
    if context.hardware.device is not None:
        int8 = ["int8"] if context.goals.int8_follows and context.hardware.int8 is not None else []
        wanted = [*int8, "float16", "float32"]
    return next((multiples[each] for each in wanted if each in multiples), default)


def quantizes(one: Pass) -> bool:
    """Whether a pass puts layers in integers; it says so in a class attribute ``quantizes``."""
    return bool(getattr(one, "quantizes", False))


def vouches_for_float16(one: Pass) -> bool:
    """Whether a pass finds out what may run in float16; it says so in a class attribute ``vouches_for_float16``."""
    return bool(getattr(one, "vouches_for_float16", False))


__all__ = [
    "ApproximatePass",
    "Array",
    "Candidate",
    "Context",
    "Declined",
    "Dial",
    "ExactPass",
    "Feed",
    "Goals",
    "Kept",
    "Origin",
    "Pass",
    "PassReport",
    "Preparing",
    "Priced",
    "Skip",
    "kernel_multiple",
    "quantizes",
    "vouches_for_float16",
]
