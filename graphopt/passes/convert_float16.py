"""Float16 where values and operators allow it, and where it pays.

::

    before   x ─> Conv(w) ─> Relu ─> Conv(v) ─> y                          float32
    after    x ─> Cast ─> Conv(w) ─> Relu ─> Conv(v) ─> Cast ─> y          float16 between the Casts, and w, v

What stays float32, each with its reason in the report:

- nodes whose values float16 does not hold, on calibration samples: too large, too small, or sums of too many of them;
- operators on positions and counts (NonMaxSuppression, TopK, Range), arithmetic on sizes, coordinates and scales;
- nodes around which Casts would take longer than float16 saves;
- inputs and outputs of the model, and what goes in and out of bodies of If, Loop and Scan.

A runtime that chooses types by itself (``Hardware.strongly_typed`` false) gets the float32 graph as it is: an option
tells it to use float16 (``trtexec --fp16``), and the pass finds out whether it may.

Accuracy is judged on a simulation: ONNX Runtime's CPU provider would leave out the rounding (``float16.simulation``).
Where the first candidate does not hold, gentler ones follow, each with those nodes left in float32 that add the most
noise in the one before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import onnx

from graphopt import runtime
from graphopt.calibration.collect import Statistics, collect
from graphopt.errors import UnsupportedModelError, UsageError
from graphopt.graph import Index, import_graph, is_constant, types_of
from graphopt.passes.base import Candidate, Context, Declined, PassReport, Skip
from graphopt.passes.float16.gentler import CLEARLY_LESS, STEPS, noisiest, worst
from graphopt.passes.float16.names import untold, with_names
from graphopt.passes.float16.plan import CASTS_COST_MORE, choose, heavy, prices
from graphopt.passes.float16.ranges import Ranges, constant_reason
from graphopt.passes.float16.simulation import simulate
from graphopt.passes.float16.sites import Site, find_sites
from graphopt.passes.float16.write import Written, write_half
from graphopt.passes.quality import Probe, decibel, make_probe, noise

GRAPHS = ("auto", "always", "never")
# Samples that the figure in the report rests on.
_PROBE_SAMPLES = 16
# Nodes that ONNX Runtime refuses in float16 before it is given up.
_MOST_REFUSALS = 50


@dataclass(frozen=True)
class ConvertFloat16:
    """Conversion of a float32 model to float16.

    Attributes:
        keep_io: whether inputs and outputs of the model stay float32.
        headroom: how many times as large values may get as they were on calibration samples.
        samples: the most calibration samples to use.
        write: whether the graph itself is written in float16: ``auto`` where the runtime computes in the types of the
            graph, ``always``, or ``never``.
        exclude: names of nodes, separated by spaces, that stay in float32.
    """

    name: ClassVar[str] = "convert_float16"
    summary: ClassVar[str] = "float16 where ranges and operators allow it, with the fewest casts"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    vouches_for_float16: ClassVar[bool] = True

    keep_io: bool = True
    headroom: float = 4.0
    samples: int = 64
    write: str = "auto"
    exclude: str = ""

    def __post_init__(self) -> None:
        if not self.headroom >= 1:
            raise UsageError(f"convert_float16.headroom is {self.headroom:g}; it must be at least 1")
        if self.samples < 1:
            raise UsageError(f"convert_float16.samples is {self.samples}; at least one sample is needed")
        if self.write not in GRAPHS:
            raise UsageError(f"convert_float16.write is '{self.write}'; it must be one of {', '.join(GRAPHS)}")

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        """Yield models in float16, the fastest first, each later one with more nodes left in float32.

        Raises:
            Declined: nothing can or should run in float16 here; says why.
            DataError: calibration data is empty or holds NaN.
            UsageError: an excluded node does not exist.
        """
        if "float16" not in context.hardware.precisions:
            raise Declined(f"the target {context.hardware.name} does not compute in float16")
        work = _Conversion(self, model, context)
        half = work.half()
        if not heavy(work.sites, half):
            raise Declined("no convolution or matrix product can or should run in float16", work.report(half))
        if untold := work.untold(half):
            raise Declined(untold, work.report(half))
        yield work.candidate(half)
        least = work.noise(half)
        for share in STEPS:
            before = half
            work.leave(worst(work.noisiest(half), share), "it adds much of the noise")
            half = work.half()
            if half == before or not heavy(work.sites, half) or work.untold(half):
                return
            found = work.noise(half)
            if found is None or least is None or found < CLEARLY_LESS * least:
                least = found
                yield work.candidate(half)


class _Conversion:
    """One model, and what is known of each of its nodes."""

    def __init__(self, options: ConvertFloat16, model: onnx.ModelProto, context: Context) -> None:
        self._options = options
        self._model = model
        self._context = context
        self._graph = import_graph(model).gs
        self._in_graph = options.write == "always" or (options.write == "auto" and context.hardware.strongly_typed)
        self.sites = find_sites(self._graph)
        self.reasons: dict[int, str] = {}
        self._noises: dict[frozenset[int], float] = {}
        self._simulated: tuple[frozenset[int], onnx.ModelProto] | None = None
        self._ranges = Ranges(self._statistics(), types_of(self._graph), options.headroom)
        excluded = set(options.exclude.split())
        unknown = sorted(excluded - {site.name for site in self.sites})
        if unknown:
            raise UsageError(f"convert_float16.exclude: there is no node '{unknown[0]}' that computes in float32")
        for site in self.sites:
            reason = site.blocked or constant_reason(site) or self._ranges.reason(site)
            if site.name in excluded:
                reason = "excluded by the option convert_float16.exclude"
            if reason:
                self.reasons[site.number] = reason

    def half(self) -> frozenset[int]:
        """The numbers of the sites that compute in float16, as things stand.

        A runtime that chooses types by itself is only told where it may, and knows best where it pays: all of these
        are taken to run in float16.
        """
        if not self._in_graph:
            return frozenset(site.number for site in self.sites if site.number not in self.reasons)
        return choose(
            self.sites,
            self.reasons,
            self._ranges,
            Index(self._graph),
            prices(self._context.hardware),
            keep_io=self._options.keep_io,
        )

    def leave(self, numbers: frozenset[int], reason: str) -> None:
        """Leave sites in float32."""
        for number in numbers:
            self.reasons.setdefault(number, reason)

    def candidate(self, half: frozenset[int]) -> Candidate:
        """The model with sites in float16, and what it answers."""
        model, details = self._model, dict[str, Any]()
        if self._in_graph:
            half, written = self._loadable(half)
            model, details = written.model, {"casts": written.casts}
        else:
            model, names = with_names(model, self._must_not(half))
            details = {"keep_float32": names}
        simulation = self._simulation(half)
        report = self.report(half, details)
        found = self.noise(half)
        label = f"{report.changes} nodes in float16, {len(report.skipped)} in float32"
        if not self._in_graph:
            label = f"{report.changes} nodes may run in float16, {len(report.skipped)} must not"
        if found is not None:
            report.details["sqnr_db"] = decibel(found)  # type: ignore[index]
            label += f", {decibel(found):.1f} dB"
        return Candidate(model, report, label, simulation=simulation)

    def report(self, half: frozenset[int], more: dict[str, Any] | None = None) -> PassReport:
        """What became of each node."""
        skipped = tuple(Skip(site.name, self.reasons.get(site.number, CASTS_COST_MORE)) for site in self._left(half))
        details = {
            "written": "graph" if self._in_graph else "runtime option",
            "float16_nodes": len(half),
            "keep_float32": [site.name for site in self._must_not(half)],
            **(more or {}),
        }
        return PassReport(len(half), skipped, details)

    def _left(self, half: frozenset[int]) -> list[Site]:
        """Sites in float32, first those that must be."""
        # That a quantizer reads float32 is nothing that anyone could mend; what a runtime that chooses types by itself
        # makes of quantizers is its own affair.
        quantizers = {"QuantizeLinear"} if self._in_graph else {"QuantizeLinear", "DequantizeLinear"}
        left = [site for site in self.sites if site.number not in half and site.node.op not in quantizers]
        return sorted(left, key=lambda site: site.number not in self.reasons)

    def _must_not(self, half: frozenset[int]) -> list[Site]:
        """What a runtime that chooses types by itself must be told to leave in float32."""
        return [site for site in self._left(half) if site.number in self.reasons and site.has_float16]

    def untold(self, half: frozenset[int]) -> str:
        """Why the runtime cannot be kept from what float16 spoils; empty where it can."""
        return "" if self._in_graph else untold(self._must_not(half), self.reasons, self._context.hardware)

    def noise(self, half: frozenset[int]) -> float | None:
        """Noise-to-signal power at the outputs, on samples not used for ranges; None where there are none."""
        if self._probe is None:
            return None
        if half not in self._noises:
            self._noises[half] = noise(self._simulation(half), self._probe, self._context.jobs)
        return self._noises[half]

    def _simulation(self, half: frozenset[int]) -> onnx.ModelProto:
        """A model that answers as one with these sites in float16; the last one asked for is kept."""
        if self._simulated is None or self._simulated[0] != half:
            self._simulated = half, simulate(self._model, half)
        return self._simulated[1]

    @cached_property
    def _probe(self) -> Probe | None:
        source = self._context.selection if self._context.selection is not None else self._context.calibration
        return None if source is None else make_probe(self._model, source, _PROBE_SAMPLES, self._context.jobs)

    def noisiest(self, half: frozenset[int]) -> list[tuple[int, float]]:
        """Sites by the noise that they add, the most first."""
        source = self._context.selection if self._context.selection is not None else self._context.calibration
        if source is None:
            return []
        return noisiest(self._model, self._simulation(half), self._graph, self.sites, half, source, self._context.jobs)

    def _statistics(self) -> Statistics:
        """Statistics of every float32 tensor outside subgraphs; none without calibration samples."""
        if self._context.calibration is None:
            return Statistics({}, 0)
        here = [site for site in self.sites if site.home is self._graph]
        read = (site.node.inputs[slot] for site in here for slot in site.reads)
        made = (site.node.outputs[slot] for site in here for slot in site.writes)
        names = dict.fromkeys(tensor.name for tensor in (*read, *made) if not is_constant(tensor))
        report = self._context.progress
        return collect(
            self._model,
            list(names),
            islice(iter(self._context.calibration), self._options.samples),
            threads=self._context.jobs,
            progress=lambda done: report("convert_float16: calibration", done, self._options.samples),
        )

    def _loadable(self, half: frozenset[int]) -> tuple[frozenset[int], Written]:
        """The model in float16 with those nodes left in float32 that ONNX Runtime has no kernel for otherwise."""
        for _ in range(_MOST_REFUSALS):
            written = write_half(self._model, half, keep_io=self._options.keep_io)
            try:
                runtime.session(written.model, optimize=False)
            except UnsupportedModelError as error:
                refused = _named(self.sites, half, str(error))
                if refused is None:
                    raise
                self.reasons[refused.number] = "ONNX Runtime has no float16 kernel for it"
                half = self.half()
                continue
            return half, written
        raise UnsupportedModelError(f"ONNX Runtime refuses more than {_MOST_REFUSALS} nodes in float16")


def _named(sites: list[Site], half: frozenset[int], message: str) -> Site | None:
    """The site that an error of ONNX Runtime names."""
    words = set(re.findall(r"[^\s'\"()]+", message))
    return next((site for site in sites if site.number in half and site.name in words), None)
