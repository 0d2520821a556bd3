"""Which nodes add the most noise in float16: those that go back to float32 where all of them add too much."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt import runtime
from graphopt.calibration.collect import RUN_BYTES, observing, shapes
from graphopt.passes.float16.sites import Site

Feed = Mapping[str, npt.NDArray[Any]]
SAMPLES = 4
# Shares of the noise that goes, step after step.
STEPS = (0.5, 0.5, 0.8, 0.8, 0.95, 0.95)
# A step is worth a candidate where its noise is so much less, as a share of that before.
CLEARLY_LESS = 0.8


def noisiest(
    model: onnx.ModelProto,
    simulation: onnx.ModelProto,
    graph: gs.Graph,
    sites: Sequence[Site],
    half: Collection[int],
    feeds: Iterable[Feed],
    threads: int,
) -> list[tuple[int, float]]:
    """Return sites by the noise that they add, the most first.

    That is the noise-to-signal power of what they write beyond that of what they read. What a node in float32 adds (it
    takes the difference of two that are nearly equal, say) is put down to those in float16 behind it. Subgraphs are not
    looked into.

    Args:
        model: the float32 model.
        simulation: the same with the sites ``half`` rounded.
        graph: the model, opened.
        sites: all sites of it.
        half: numbers of those in float16.
        feeds: samples; the first few are used.
        threads: intra-op threads.
    """
    here = [site for site in sites if site.home is graph and site.writes]
    names = list(dict.fromkeys(site.node.outputs[slot].name for site in here for slot in site.writes))
    samples = list(islice(feeds, SAMPLES))
    if not names or not samples:
        return []
    noise = _noise(model, simulation, names, samples, threads)
    writers = {id(site.node.outputs[slot]): site for site in here for slot in site.writes}
    added: dict[int, float] = {}
    for site in here:
        before = max((noise.get(site.node.inputs[slot].name, 0.0) for slot in site.reads), default=0.0)
        after = max(noise[site.node.outputs[slot].name] for slot in site.writes)
        if after > before:
            more = after - before if np.isfinite(after) else np.inf
            for number in _culprits(site, half, writers):
                added[number] = added.get(number, 0.0) + more
    return sorted(added.items(), key=lambda each: (-each[1], each[0]))


def _culprits(site: Site, half: Collection[int], writers: Mapping[int, Site]) -> set[int]:
    """The site itself where it is in float16; else those behind it whose rounding it makes more of."""
    found: set[int] = set()
    pending, seen = [site], {site.number}
    while pending:
        current = pending.pop()
        if current.number in half:
            found.add(current.number)
            continue
        for slot in current.reads:
            behind = writers.get(id(current.node.inputs[slot]))
            if behind is not None and behind.number not in seen:
                seen.add(behind.number)
                pending.append(behind)
    return found


def worst(added: Sequence[tuple[int, float]], share: float) -> frozenset[int]:
    """The fewest sites that add a share of the noise; all that make infinity, where any do."""
    infinite = frozenset(number for number, noise in added if np.isinf(noise))
    if infinite:
        return infinite
    total = sum(noise for _, noise in added)
    found: set[int] = set()
    sum_so_far = 0.0
    for number, noise in added:
        if sum_so_far >= share * total:
            break
        found.add(number)
        sum_so_far += noise
    return frozenset(found)


def _noise(
    model: onnx.ModelProto, simulation: onnx.ModelProto, names: Sequence[str], samples: Sequence[Feed], threads: int
) -> dict[str, float]:
    """Noise-to-signal power of each tensor."""
    result: dict[str, float] = {}
    for group in _groups(model, names, samples[0], threads):
        exact, rough = (observing(each, group, threads) for each in (model, simulation))
        signal, error = dict.fromkeys(group, 0.0), dict.fromkeys(group, 0.0)
        for feed in samples:
            wanted, found = runtime.run(exact, feed, group), runtime.run(rough, feed, group)
            for name in group:
                reference = wanted[name].astype(np.float64)
                signal[name] += float(np.square(reference).sum())
                with np.errstate(invalid="ignore"):
                    error[name] += float(np.square(found[name] - reference).sum())
        for name in group:
            ratio = error[name] / signal[name] if signal[name] else 0.0
            result[name] = ratio if np.isfinite(ratio) else np.inf
    return result


def _groups(model: onnx.ModelProto, names: Sequence[str], feed: Feed, threads: int) -> list[list[str]]:
    """Tensors in groups that fit memory together."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes(model, names, feed, threads).items():
        size = 4 * int(np.prod(shape))
        if used + size > RUN_BYTES and groups[-1]:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups
