"""Every operator test of onnx through all exact passes: still right, and folded where nothing is left open.

    python -m benchmarks.suite [--every N] [--passes NAME,NAME] [--json FILE]

Each case runs in a child process; one that dies or hangs is counted, and the next child goes on after it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from benchmarks.suite_cases import VARIANTS, Case, Judge, Variant, cases, judge_of, variants, why_wrong

SECONDS = 120.0
Optimize = Callable[[onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True)
class Result:
    """What became of one variant of one case.

    Attributes:
        status: right, wrong, raised, unloadable or crashed; unjudged where nobody runs the original right.
        judge: who says so.
        folded: whether nothing but constants is left.
        stable: whether optimizing the result again leaves it as it is.
        before: nodes before.
        after: nodes after, Constant nodes left out.
        message: what went wrong.
    """

    case: str
    variant: str
    status: str
    judge: str = ""
    folded: bool = False
    stable: bool = True
    before: int = 0
    after: int = 0
    message: str = ""


def exact_passes() -> list[str]:
    """Names of all exact passes in the order of the CPU's recipe."""
    from graphopt.passes import PASSES
    from graphopt.targets import load_target

    return [name for name in load_target("cpu").recipe if PASSES[name].exact]


def by_passes(names: Sequence[str]) -> Optimize:
    """A function that sends a model through passes; one of them that fails raises."""
    import graphopt
    from graphopt.errors import PassWarning

    def optimize(model: onnx.ModelProto) -> onnx.ModelProto:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PassWarning)
            return graphopt.run(model, list(names))

    return optimize


def examine(variant: Variant, optimize: Optimize) -> Result:
    """Optimize one variant and judge the result."""
    name, kind = variant.case.name, variant.kind
    found = judge_of(variant)
    judge = found.name if found else ""
    before = _nodes(variant.model)
    try:
        result = optimize(variant.model)
        stable = _same(optimize(result), result)
    except Exception as error:  # any at all is what is counted here
        return Result(name, kind, "raised", judge, before=before, message=f"{type(error).__name__}: {error}"[:300])
    status, message = _verdict(variant, result, found)
    after = _nodes(result)
    return Result(name, kind, status, judge, after == 0, stable, before, after, message)


def _verdict(variant: Variant, result: onnx.ModelProto, judge: Judge | None) -> tuple[str, str]:
    if _interface(result) != _interface(variant.model):
        return "wrong", "other inputs or outputs"
    if judge is None:
        return "unjudged", ""
    try:
        answer = judge.run(result, variant.feed)
    except Exception as error:  # a model that ran before must run
        return "unloadable", str(error)[:300]
    problem = why_wrong(variant.case, judge.answer, answer)
    return ("right", "") if problem is None else ("wrong", problem)


def _interface(model: onnx.ModelProto) -> list[bytes]:
    # Below IR version 4 initializers are listed as inputs, and are none.
    stored = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else set()
    inputs = [info for info in model.graph.input if info.name not in stored]
    return [info.SerializeToString(deterministic=True) for info in (*inputs, *model.graph.output)]


def _nodes(model: onnx.ModelProto) -> int:
    return sum(node.op_type != "Constant" for node in model.graph.node)


def _same(first: onnx.ModelProto, second: onnx.ModelProto) -> bool:
    return first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def run(chosen: Sequence[Case], optimize: Optimize) -> Iterator[Result]:
    """Examine all variants of the cases, in child processes that take over from one another when one dies."""
    # Forked, so that children have the cases; this process never starts a thread of ONNX Runtime.
    context = multiprocessing.get_context("fork")
    work = [variant for case in chosen for variant in variants(case)]
    done = 0
    while done < len(work):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(work[done:], optimize, sender), daemon=True)
        child.start()
        sender.close()
        try:
            while done < len(work):
                if not receiver.poll(SECONDS):
                    raise EOFError
                yield receiver.recv()
                done += 1
        except EOFError:
            yield Result(work[done].case.name, work[done].kind, "crashed", message="died, or hung")
            done += 1
        finally:
            child.kill()
            child.join()


def _work(work: Sequence[Variant], optimize: Optimize, sender: Any) -> None:
    for variant in work:
        sender.send(examine(variant, optimize))


def summary(results: Sequence[Result]) -> str:
    """A table: one row a variant and judge."""
    lines = ["variant  judge       cases  right  wrong raised unload crash unstable  nodes left  folded"]
    for kind in VARIANTS:
        for judge in ("ort", "ort itself", "reference", ""):
            here = [each for each in results if each.variant == kind and each.judge == judge]
            if not here:
                continue
            count = Counter(each.status for each in here)
            figures = [count[status] for status in ("right", "wrong", "raised", "unloadable", "crashed")]
            left = sum(each.after for each in here) / max(1, sum(each.before for each in here))
            folded = 100 * sum(each.folded for each in here) / len(here)
            lines.append(
                f"{kind:8} {judge or '-':10} {len(here):6} "
                + " ".join(f"{figure:6}" for figure in figures)
                + f" {sum(not each.stable for each in here):8} {left:11.3f} {folded:6.1f} %"
            )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take every Nth case only")
    parser.add_argument("--only", default="", help="take cases with this text in their name")
    parser.add_argument(
        "--passes", default="", help="names of passes, separated by commas; all exact ones unless given"
    )
    parser.add_argument("--json", type=Path, help="write every result here")
    given = parser.parse_args()
    chosen = [case for case in cases() if given.only in case.name][:: given.every]
    names = given.passes.split(",") if given.passes else exact_passes()
    results = []
    for result in run(chosen, by_passes(names)):
        results.append(result)
        if result.status not in {"right", "unjudged"} or not result.stable:
            state = "" if result.stable else " (unstable)"
            print(f"{result.status}{state}: {result.case} [{result.variant}] {result.message}", flush=True)
    print(summary(results))
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in results], indent=1))


if __name__ == "__main__":
    main()
