"""Exact passes on nets drawn at random."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support import apply, model

from graphopt.passes.eliminate_dead import EliminateDead
from graphopt.passes.fold_batchnorm import FoldBatchNorm
from graphopt.passes.fold_constants import FoldConstants


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_nets(data: st.DataObject) -> None:
    """Nets of random linear, affine and other nodes, some read twice: the result is always the same net."""
    lines, weights = [], []
    names, channels = ["x"], [4]
    for step in range(data.draw(st.integers(2, 9), label="nodes")):
        source = data.draw(st.integers(max(0, len(names) - 2), len(names) - 1), label="source")
        x, count = names[source], channels[source]
        kind = data.draw(st.sampled_from(["conv", "depthwise", "deconv", "bn", "mul", "add", "div", "relu", "scalar"]))
        out, width = f"t{step}", count
        if kind == "conv":
            width = data.draw(st.sampled_from([2, 4]))
            pads = data.draw(st.sampled_from(["0, 0, 0, 0", "1, 1, 1, 1"]))
            size = 3 if pads.startswith("1") else 1
            bias = data.draw(st.booleans())
            weights.append(f"float[{width},{count},{size},{size}] w{step}, float[{width}] b{step}")
            lines.append(f"{out} = Conv<pads = [{pads}]>({x}, w{step}{f', b{step}' if bias else ''})")
        elif kind == "depthwise":
            weights.append(f"float[{count},1,3,3] w{step}")
            lines.append(f"{out} = Conv<group = {count}, pads = [1, 1, 1, 1]>({x}, w{step})")
        elif kind == "deconv":
            weights.append(f"float[{count},{count},1,1] w{step}")
            lines.append(f"{out} = ConvTranspose({x}, w{step})")
        elif kind == "bn":
            weights.append(", ".join(f"float[{count}] {role}{step}" for role in ("scale", "shift", "mean", "var")))
            lines.append(f"{out} = BatchNormalization({x}, scale{step}, shift{step}, mean{step}, var{step})")
        elif kind == "relu":
            lines.append(f"{out} = Relu({x})")
        else:
            weights.append(f"float k{step}" if kind == "scalar" else f"float[{count},1,1] k{step}")
            lines.append(f"{out} = {'Sub' if kind == 'scalar' else kind.capitalize()}({x}, k{step})")
        names.append(out)
        channels.append(width)
    extra = (
        f", float[N,{channels[-2]},6,6] {names[-2]}"
        if data.draw(st.booleans(), label="two outputs") and names[-2] != "x"
        else ""
    )
    head = f"g (float[N,4,6,6] x) => (float[N,{channels[-1]},6,6] {names[-1]}{extra})"
    declared = f"<{', '.join(weights)}>" if weights else ""
    proto = model(f"{head} {declared} {{ {'  '.join(lines)} }}")
    for one in (FoldBatchNorm(), FoldConstants(), EliminateDead()):
        apply(one, proto, rtol=1e-4)
