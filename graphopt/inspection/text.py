"""An inspection as plain text: the tables that a person reads in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING

from graphopt.inspection.groups import fixed_rows, group_rows
from graphopt.inspection.latency_text import findings_lines, latency_lines, latency_tables
from graphopt.inspection.separable import RANKS, SeparableLayer, SeparatedModel
from graphopt.inspection.tables import table_of
from graphopt.report.figures import readable_bytes, readable_count
from graphopt.runtime import TensorSpec

if TYPE_CHECKING:
    from graphopt.inspection import Inspection

WIDTH = 110
TOP_LAYERS = 15


def as_text(inspection: Inspection, top: int = TOP_LAYERS, width: int = WIDTH) -> str:
    """Render the totals, the table by kind of work, the ``top`` layers with most work, and what passes could do."""
    from rich.console import Console

    buffer = StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False, highlight=False)
    for line in _summary(inspection):
        console.print(line, markup=False)
    console.print()
    console.print(
        table_of(["work by kind", "nodes", "MACs", "share", "parameters", "share of weights"], _kinds(inspection))
    )
    if inspection.latency is not None:
        for table in latency_tables(inspection, top):
            console.print()
            console.print(table)
    layers = sorted(inspection.cost.layers, key=lambda layer: -(layer.macs or 0))[:top]
    working = [layer for layer in layers if layer.macs]
    if working:
        rows = [
            (layer.name, layer.operator, layer.kind, readable_count(layer.macs or 0), readable_count(layer.parameters),
             _bytes(layer.bytes))
            for layer in working
        ]  # fmt: skip
        title = f"most work ({len(working)} of {inspection.model.nodes} nodes)"
        console.print()
        console.print(table_of([title, "operator", "kind", "MACs", "parameters", "moved"], rows))
    if inspection.separable:
        shown = sorted(inspection.separable, key=lambda layer: -(layer.macs or layer.parameters))[:top]
        title = f"separable ({len(shown)} of {len(inspection.separable)})"
        ranks = [name for rank in RANKS for name in (f"rank {rank}", "weights")]
        header = [title, "kernel", "channels", "MACs", "weights", *ranks, "saves to"]
        console.print()
        console.print(table_of(header, [_separable(layer) for layer in shown], texts=(1, 2)))
        if any(layer.reads_input for layer in shown):
            console.print("* reads an input of the model and stays in the totals below", markup=False)
        for model in inspection.separated:
            console.print(_whole(inspection, model), markup=False)
    if inspection.opportunities:
        rows_passes = [(o.name, str(o.places or "-"), o.description) for o in inspection.opportunities]
        console.print()
        console.print(table_of(["pass", "places", "what it would find"], rows_passes, texts=(2,)))
    if inspection.dependencies is not None:
        found = inspection.dependencies
        header = ["written together by", "channels", "parameters each", "read by", ""]
        console.print()
        console.print(table_of(header, group_rows(found), texts=(3, 4)))
        console.print(f"in these groups: {100 * found.share['convolution']:.1f} % of the convolutions' parameters")
        if found.fixed:
            console.print()
            console.print(table_of(["cannot be cut", "channels", "why"], fixed_rows(found), texts=(2,)))
    if inspection.findings:
        console.print()
        for line in findings_lines(inspection.findings):
            console.print(line, markup=False)
    for warning in inspection.warnings:
        console.print()
        console.print(f"warning: {warning}", markup=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _summary(inspection: Inspection) -> Iterator[str]:
    model, cost = inspection.model, inspection.cost
    yield f"{inspection.name}: {readable_bytes(model.bytes)}, opset {model.opset}, {model.nodes} nodes"
    yield f"  inputs      {', '.join(_tensor(spec) for spec in inspection.inputs) or 'none'}"
    yield f"  outputs     {', '.join(_tensor(spec) for spec in inspection.outputs) or 'none'}"
    yield f"  parameters  {model.parameters:,}"
    known = f"{cost.known_macs:,}"
    total = known if model.macs is not None else f"at least {known}; {len(cost.unknown)} layers could not be counted"
    yield f"  MACs        {total} (batch {inspection.batch})"
    peak = cost.peak_activation_bytes
    activations = f"{readable_bytes(peak)} activations at their peak" if peak is not None else "activations unknown"
    yield f"  memory      {readable_bytes(cost.weight_bytes)} weights, {activations}"
    if inspection.latency is not None:
        yield from latency_lines(inspection.latency)


def _tensor(spec: TensorSpec) -> str:
    shape = "?" if spec.shape is None else ", ".join("?" if size is None else str(size) for size in spec.shape)
    return f"{spec.name} {spec.dtype}[{shape}]"


def _kinds(inspection: Inspection) -> list[tuple[str, ...]]:
    return [
        (
            kind.kind,
            str(kind.nodes),
            "unknown" if kind.macs is None else readable_count(kind.macs) if kind.macs else "-",
            _share(kind.macs_share),
            readable_count(kind.parameters) if kind.parameters else "-",
            _share(kind.weights_share),
        )
        for kind in inspection.cost.by_kind()
    ]


def _separable(layer: SeparableLayer) -> tuple[str, ...]:
    name = f"{layer.name} *" if layer.reads_input else layer.name
    cells = [name, "x".join(map(str, layer.kernel)), f"{layer.channels} to {layer.filters}"]
    if layer.groups > 1:
        cells[2] += f" in {layer.groups} groups"
    cells += [_count(layer.macs), readable_count(layer.parameters)]
    found = {at.rank: at for at in layer.ranks}
    for rank in RANKS:
        cells += [_count(found[rank].macs), readable_count(found[rank].parameters)] if rank in found else ["-", "-"]
    return (*cells, f"rank {layer.saves_up_to}" if layer.saves_up_to else "-")


def _whole(inspection: Inspection, model: SeparatedModel) -> str:
    """The counting line of one rank: the whole model now and then."""
    told = []
    if inspection.cost.macs is not None and model.macs is not None:
        told.append(f"{_millions(inspection.cost.macs)} -> {_millions(model.macs)} MACs")
    told.append(f"{readable_count(inspection.cost.parameters)} -> {readable_count(model.parameters)} parameters")
    return f"whole model at rank {model.rank}: {', '.join(told)} ({model.layers} separated)"


def _millions(count: int) -> str:
    """Write multiply-adds as papers do, such as ``4,866 M``."""
    return f"{count / 1e6:,.0f} M" if count >= 10**7 else readable_count(count)


def _count(count: int | None) -> str:
    return "unknown" if count is None else readable_count(count)


def _share(share: float | None) -> str:
    return f"{100 * share:.2f} %" if share else "-"


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else readable_bytes(count)
