"""Cast of Cast."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_graphsurgeon as gs

from graphopt.passes.movement.editor import Editor

_T = onnx.TensorProto
# Integer types by the bits of their values, sign included apart.
_BITS: dict[int, tuple[int, bool]] = {
    _T.BOOL: (1, False), _T.UINT8: (8, False), _T.INT8: (7, True), _T.UINT16: (16, False), _T.INT16: (15, True),
    _T.UINT32: (32, False), _T.INT32: (31, True), _T.UINT64: (64, False), _T.INT64: (63, True),
}  # fmt: skip
# Float types by the bits that they hold exactly.
_MANTISSA: dict[int, int] = {_T.FLOAT16: 11, _T.FLOAT: 24, _T.DOUBLE: 53}


def merge_casts(editor: Editor, node: gs.Node) -> bool:
    """``Cast -> Cast``: one, or none, where the first loses nothing."""
    before = editor.producer(node.inputs[0], node, "Cast")
    if before is None:
        return False
    source, middle, target = editor.dtype(before.inputs[0]), before.attrs.get("to"), node.attrs.get("to")
    if not isinstance(middle, int) or not isinstance(target, int) or not holds(middle, source):
        return False
    if target == source:
        editor.bypass(node, before.inputs[0])
    elif target in _MANTISSA or (target in _BITS and source in _BITS and (middle in _BITS or holds(target, source))):
        # An integer out of range wraps, a float out of range does not: then the way matters.
        editor.rewrite(node, "Cast", [before.inputs[0]], node.attrs)
    else:
        return False
    editor.counts["casts"] += 1
    return True


def holds(wide: Any, narrow: Any) -> bool:
    """Whether a type represents every value of another."""
    if wide == narrow:
        return wide in _BITS or wide in _MANTISSA
    if narrow in _BITS:
        bits, signed = _BITS[narrow]
        if wide in _BITS:
            return wide != _T.BOOL and bits <= _BITS[wide][0] and (_BITS[wide][1] or not signed)
        return wide in _MANTISSA and bits <= _MANTISSA[wide]
    return narrow in _MANTISSA and wide in _MANTISSA and _MANTISSA[narrow] <= _MANTISSA[wide]
