"""The main job, ``optimize``: read, run the passes, judge, report. And ``run``, which applies passes ungated.

The only place that knows the order of the work. Everything heavy is imported inside the functions, so that
``import graphopt`` stays fast.
"""

from __future__ import annotations

import os
import warnings as python_warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from graphopt.errors import PassError, PassWarning, UsageError

if TYPE_CHECKING:
    import onnx

    from graphopt.data import Parts
    from graphopt.model import ModelSource
    from graphopt.passes.base import Feed, Pass
    from graphopt.result import Result
    from graphopt.targets import Target

Progress: TypeAlias = Callable[[str, int, int], None]
Shapes: TypeAlias = Mapping[str, Sequence[int]]

# On so many inputs exact passes are compared with the model before them.
COMPARED_FEEDS = 2


def optimize(
    model: ModelSource,
    *,
    target: str | os.PathLike[str] | Target = "cpu",
    data: Any = None,
    calibration_data: Any = None,
    eval_data: Any = None,
    max_drop: float = 0.01,
    min_speedup: float = 1.0,
    max_size: int | None = None,
    max_macs: float | None = None,
    metric: str | Callable[..., float] = "auto",
    passes: Sequence[str | Pass] | None = None,
    skip: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    input_shapes: Shapes | None = None,
    fix_shapes: bool = False,
    providers: Sequence[str] | None = None,
    threads: int = 1,
    seed: int = 0,
    jobs: int | None = None,
    preprocess: Any = None,
    allow_unvalidated: bool = False,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Result:
    """Make a model faster for a target, and prove that it still answers right.

    Args:
        model: path, bytes or ``onnx.ModelProto``; never changed.
        target: name of a target, a profile ``FILE.toml``, or a ``Target``.
        data: a SOURCE (``FILE.npz``, a folder, ``MODULE:FUNCTION``), a mapping of arrays, or any iterable of
            ``{name: array}`` or ``(inputs, label)``; split into disjoint parts. Without data only exact passes run.
        calibration_data: samples for statistics and choices only.
        eval_data: samples for the verdict only.
        max_drop: most that the metric may fall, absolute, in its own 0..1 scale.
        min_speedup: least that the result must be faster than the original, as a ratio.
        max_size: most bytes of the result.
        max_macs: most multiply-adds of the result, as a share of the original's.
        metric: ``auto``, ``top1``, ``top5``, ``agreement``, ``cosine``, ``MODULE:FUNCTION``, or a function
            ``(outputs, original outputs, label) -> score in 0..1``.
        passes: names (or passes) to run in this order, instead of the target's recipe.
        skip: names of passes to leave out.
        options: ``"pass.key"`` -> value; texts are converted.
        input_shapes: input name -> shape, for dynamic inputs.
        fix_shapes: write these shapes into the model, which then accepts no others, so that more folds.
        providers: ONNX Runtime's execution providers; by default the target's.
        threads: intra-op threads that latency is judged at.
        seed: of everything random.
        jobs: intra-op threads for work that is not timed; by default the processor cores that may be used.
        preprocess: how images become inputs: a TOML file or a mapping; by default what the model's metadata say.
        allow_unvalidated: let approximate passes run without samples to judge them by; calibration still needs some.
        progress: called with (what, done, total); total 0 when unknown.
        dry_run: check everything, plan, and do nothing.

    Returns:
        the result; ``rejected`` where no candidate held the gates.

    Raises:
        UsageError: unknown target, pass, option or metric; a dynamic input without a shape.
        ModelError: the model cannot be read, is unsafe or unsupported.
        DataError: the data cannot be read or do not fit the model.
    """
    from graphopt.data import assemble, open_data, preprocess_of
    from graphopt.judge import DataJudge
    from graphopt.model import read
    from graphopt.passes.base import Context, quantizes, vouches_for_float16
    from graphopt.pipeline import search
    from graphopt.result import judged, planned, stamp_bytes
    from graphopt.runtime import input_specs
    from graphopt.stages import StageRunner
    from graphopt.targets import load_target, usable_cores
    from graphopt.validation import Gates, check_metric

    profile = load_target(target)
    named = passes is not None
    if fix_shapes:
        passes, options = _with_fixed_shapes(profile, passes, options, input_shapes)
    chosen = _chosen(profile, passes, skip, options)
    if isinstance(metric, str):
        check_metric(metric)
    jobs = usable_cores() if jobs is None else jobs
    _check_positive(threads=threads, jobs=jobs)
    loaded = read(model)
    with _data_warnings() as told:
        specs = input_specs(loaded.proto)
        how = preprocess if preprocess is not None else preprocess_of(loaded.proto)
        parts = assemble(
            data,
            calibration_data,
            eval_data,
            opener=lambda source: open_data(source, specs, preprocess=how, shapes=input_shapes),
            seed=seed,
        )
        judge = DataJudge(
            loaded.proto,
            Gates(max_drop, min_speedup, max_size, max_macs),
            parts,
            _feeds(loaded.proto, parts, input_shapes, seed),
            metric=metric,
            threads=threads,
            jobs=jobs,
            providers=tuple(providers or profile.hardware.providers),
            seed=seed,
            overhead=stamp_bytes(loaded, profile, chosen),
            allow_unvalidated=allow_unvalidated,
            progress=progress or _no_progress,
            hardware=profile.hardware,
            float16=any(map(vouches_for_float16, chosen)),
        )
        judge.check_original(loaded.name)
        if dry_run:
            return planned(loaded, profile, chosen, judge, told())
        context = Context(
            hardware=profile.hardware,
            calibration=parts.calibration.feeds if parts.calibration else None,
            selection=parts.selection.feeds if parts.selection else None,
            seed=seed,
            threads=threads,
            jobs=jobs,
            goals=judge.goals(to_threshold=named, int8_follows=any(map(quantizes, chosen))),
            shapes=judge.shapes,
            progress=judge.progress,
        )
        attempt = search(loaded.proto, chosen, StageRunner(context, judge, judge.costs))
        return judged(loaded, profile, attempt, judge, told())


def run(
    model: ModelSource,
    passes: Sequence[str | Pass],
    data: Any = None,
    options: Mapping[str, Any] | None = None,
    target: str | os.PathLike[str] | Target = "cpu",
    seed: int = 0,
    jobs: int | None = None,
) -> onnx.ModelProto:
    """Apply passes without gates: exact ones until none changes anything, of others the first candidate.

    An exact pass that fails beside others is left out with a ``PassWarning``.

    Args:
        model: path, bytes or ``onnx.ModelProto``; never changed.
        passes: names of passes, or passes, in the order they run.
        data: samples for statistics and choices, as in ``optimize``; needed by passes that calibrate.
        options: ``"pass.key"`` -> value.
        target: whose hardware facts the passes read.
        seed: of everything random.
        jobs: intra-op threads; by default the processor cores that may be used.

    Returns:
        the resulting model.

    Raises:
        UsageError: unknown target, pass or option; a pass needs data and there is none.
        ModelError: the model cannot be read, is unsafe or unsupported.
        DataError: the data cannot be read or do not fit the model.
        PassError: an approximate pass failed, or all of several exact ones.
    """
    from graphopt.data import assemble, open_data, preprocess_of
    from graphopt.exact import paused_collector, run_exact
    from graphopt.graph.cost import cost
    from graphopt.model import read
    from graphopt.passes.base import Context, Goals, quantizes
    from graphopt.runtime import input_specs
    from graphopt.stages import groups, is_approximate, is_exact, run_ungated
    from graphopt.targets import load_target, usable_cores

    jobs = usable_cores() if jobs is None else jobs
    _check_positive(jobs=jobs)
    profile = load_target(target)
    chosen = _chosen(profile, passes, (), options)
    with paused_collector():
        proto = read(model).proto
    specs, how = input_specs(proto), preprocess_of(proto)
    parts = assemble(calibration_data=data, opener=lambda source: open_data(source, specs, preprocess=how), seed=seed)
    for one in chosen:
        if "calibration" in getattr(one, "needs", ()) and parts.calibration is None:
            raise UsageError(f"{one.name} calibrates on samples; give data=")
    shapes = _shapes_of(parts)
    context = Context(
        hardware=profile.hardware,
        calibration=parts.calibration.feeds if parts.calibration else None,
        selection=parts.selection.feeds if parts.selection else None,
        seed=seed,
        jobs=jobs,
        goals=Goals(original_macs=cost(proto, shapes=shapes).macs, int8_follows=any(map(quantizes, chosen))),
        shapes=shapes,
    )
    for group in groups(chosen):
        exact = [one for one in group if is_exact(one)]
        if exact:
            proto, outcomes = run_exact(exact, proto, context)
            failed = [f"{outcome.name}: {outcome.failure}" for outcome in outcomes if outcome.failure]
            if len(failed) == len(outcomes):
                raise PassError("; ".join(failed))
            for text in failed:
                python_warnings.warn(f"{text}; it was left out", PassWarning, stacklevel=2)
        for one in group:
            if is_approximate(one):
                proto = run_ungated(one, proto, context)
    return proto


def _with_fixed_shapes(
    profile: Target,
    passes: Sequence[str | Pass] | None,
    options: Mapping[str, Any] | None,
    shapes: Shapes | None,
) -> tuple[Sequence[str | Pass], Mapping[str, Any]]:
    """Passes and options that begin with fixing the shapes."""
    from graphopt.passes.fix_shapes import FixShapes, as_text

    if not shapes:
        raise UsageError("fix_shapes fixes what input_shapes gives (--input-shape NAME:1,3,224,224), and there is none")
    rest = [one for one in (profile.recipe if passes is None else passes) if one != FixShapes.name]
    text = as_text({name: tuple(shape) for name, shape in shapes.items()})
    return [FixShapes.name, *rest], {**(options or {}), f"{FixShapes.name}.inputs": text}


def _chosen(
    profile: Target, passes: Sequence[str | Pass] | None, skip: Sequence[str], options: Mapping[str, Any] | None
) -> tuple[Pass, ...]:
    """Make the passes of the run; passes given as objects stay as they are."""
    from graphopt.options import build_passes, chosen_names
    from graphopt.passes import PASSES

    if isinstance(passes, str):
        raise UsageError(f"passes is a list of names, not the text '{passes}'")
    given = {one.name: one for one in passes or () if not isinstance(one, str)}
    names = None if passes is None else [one if isinstance(one, str) else one.name for one in passes]
    names = chosen_names(profile.recipe, names, skip, [*PASSES, *given])
    stated = {
        key: value
        for key, value in profile.options.items()
        if (name := key.partition(".")[0]) in names and name not in given
    }
    return build_passes(names, {**stated, **(options or {})}, PASSES, given)


def _feeds(model: onnx.ModelProto, parts: Parts, shapes: Shapes | None, seed: int) -> list[Feed]:
    """Return a few inputs: of the calibration samples where there are any, else random ones.

    Evaluation samples lend their shapes only: nothing may be chosen on them.
    """
    from graphopt.data import random_feeds
    from graphopt.runtime import input_specs

    source = parts.calibration or parts.selection
    if source is not None:
        return list(islice(source.feeds, COMPARED_FEEDS))
    fixed: Shapes = dict(shapes or {})
    if parts.evaluation is not None:
        first = next(iter(parts.evaluation.feeds))
        fixed = {**{name: array.shape for name, array in first.items()}, **fixed}
    return list(random_feeds(input_specs(model), fixed, seed=seed, count=COMPARED_FEEDS).feeds)


def _shapes_of(parts: Parts) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the inputs in the samples; None without any."""
    if parts.calibration is None:
        return None
    first = next(iter(parts.calibration.feeds), {})
    return {name: tuple(array.shape) for name, array in first.items()}


def _check_positive(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")


def _no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


@contextmanager
def _data_warnings() -> Iterator[Callable[[], list[str]]]:
    """Collect what the data layer warns of, for the report; other warnings go their way at the end."""
    from graphopt.data import DataWarning

    with python_warnings.catch_warnings(record=True) as caught:
        python_warnings.simplefilter("always", DataWarning)
        yield lambda: [str(one.message) for one in caught if issubclass(one.category, DataWarning)]
    for one in caught:
        if not issubclass(one.category, DataWarning):
            python_warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
