"""Merge chains of operators that only move or view data.

1. *Shape only*: Reshape, Flatten, Squeeze and Unsqueeze in a row become one or none, also across elementwise
   operators; a reduction keeps or drops its axes itself. See ``reshape_chains``, ``reduced_axes``.
2. *Pieces*: Slice of Slice, one Slice before a Split instead of many behind it, Slice or Gather of what Concat, Split
   or Gather made; Concat of Concat and of what was split. See ``slice_chains``, ``gather_chains``,
   ``concat_chains``.
3. *Broadcast*: Expand whose reader broadcasts anyway, Expand of Expand, Tile of Tile. See ``expand_chains``.
4. *Shape values*: a vector of sizes is computed from the earliest tensor that has them, with as few nodes as
   possible, once. See ``shape_values``.

A 0 in the target of a Reshape copies a size of *its own* input: when that input changes, the 0 stays only where the
sizes are proven equal. 0 and -1 never come together where they did not before: a runtime refuses that on an empty
batch. Left alone: whatever rests on a size, a rank or a constant that is not proven; values that are outputs keep
their names; nodes of different graphs (bodies of If, Loop, Scan) are never merged with each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.graph import Index, is_op, walk
from graphopt.passes.base import Context, PassReport
from graphopt.passes.movement.cast_chains import merge_casts
from graphopt.passes.movement.concat_chains import simplify_concat
from graphopt.passes.movement.editor import Editor, Rule
from graphopt.passes.movement.expand_chains import drop_expand, merge_expands, merge_tiles
from graphopt.passes.movement.gather_chains import part_of_shape, select_by_mask, simplify_gather, unsqueezed_gather
from graphopt.passes.movement.reduced_axes import keep_reduced_axes, squeeze_before_transpose
from graphopt.passes.movement.reshape_chains import merge_reshapes, move_over_elementwise
from graphopt.passes.movement.shape_values import simplify_shape_values
from graphopt.passes.movement.slice_chains import merge_slices, slice_before_split, slice_of_concat

_RESHAPING: tuple[Rule, ...] = (merge_reshapes, unsqueezed_gather, keep_reduced_axes, move_over_elementwise)
RULES: Mapping[str, tuple[Rule, ...]] = {
    "Cast": (merge_casts,),
    "Concat": (simplify_concat,),
    "Expand": (merge_expands, drop_expand),
    "Flatten": _RESHAPING,
    "Gather": (part_of_shape, simplify_gather),
    "GatherND": (select_by_mask,),
    "Reshape": _RESHAPING,
    "Slice": (merge_slices, part_of_shape, slice_of_concat),
    "Split": (slice_before_split,),
    "Squeeze": (*_RESHAPING, squeeze_before_transpose),
    "Tile": (merge_tiles,),
    "Unsqueeze": _RESHAPING,
}
# Below this, operators broadcast and slice in other ways.
_OLDEST = 7


@dataclass(frozen=True)
class SimplifyReshapes:
    """Merge chains of reshapes, slices and other movements of data."""

    name: ClassVar[str] = "simplify_reshapes"
    summary: ClassVar[str] = "merge chains of reshapes, slices and other movements of data"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        counts: Counter[str] = Counter()
        if graph.opset < _OLDEST or not any(
            node.op in RULES or node.op == "Shape" for home in walk(graph) for node in home.nodes
        ):
            return PassReport(changes=0)
        # What was merged may let inference see further: the next round starts from there.
        while found := _round(graph):
            counts.update(found)
        return PassReport(changes=sum(counts.values()), details=dict(sorted(counts.items())))


def _round(graph: gs.Graph) -> Counter[str]:
    """Apply all rules until none finds anything more, with the types as they are now."""
    editor = Editor(Index(graph), graph.opset)
    simplify_shape_values(editor)
    done = -1
    while done != editor.counts.total():
        done = editor.counts.total()
        for home in editor.index.graphs:
            for node in list(home.nodes):
                rules = RULES.get(node.op)
                if rules is None or editor.is_dead(node) or not is_op(node, node.op):
                    continue
                for rule in rules:
                    if rule(editor, node):
                        break
        editor.finish()
    return editor.counts
