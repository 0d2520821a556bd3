"""Accuracy of candidates beside the original on the evaluation samples of a case.

All models see a sample before the next one is read, so that no outputs are stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import ocr
from benchmarks.corpus import Case, load
from benchmarks.measure import Noise, feeds, session

Array = npt.NDArray[np.generic]
# The accuracy gate for every tool, absolute. Nets with random weights have no redundancy that would absorb rounding and
# nothing to be right about: all that is asked is that the outputs still point the same way.
MAX_DROP = {"top1": 0.01, "lines": 0.01, "cosine": 0.01, "sqnr": 0.05}


@dataclass(frozen=True)
class Score:
    """`value` is the case's accuracy, 0..1 (cosine to the original for random weights); `extra` is what else counts."""

    value: float
    sqnr_db: float
    extra: dict[str, float]


def holds(metric: str, value: float, baseline: float) -> bool:
    """Whether the accuracy gate holds; a level drop is within it."""
    return baseline - value <= MAX_DROP[metric] + 1e-9


def _cosine(first: Array, second: Array) -> float:
    left, right = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    return float(left @ right / max(float(np.linalg.norm(left) * np.linalg.norm(right)), 1e-30))


class _Tally:
    """What one model has scored so far."""

    def __init__(self, case: Case, classes: list[str]) -> None:
        self.case = case
        self.classes = classes
        self.noise = Noise()
        self.texts: list[str] = []
        self.right: list[bool] = []
        self.same: list[bool] = []
        self.cosines: list[float] = []

    def add(self, reference: list[Array], found: list[Array], label: int | None) -> None:
        self.noise.add(reference, found)
        self.cosines.append(_cosine(reference[0], found[0]))
        if found[0].ndim == 2:
            self.same.append(bool(found[0].argmax() == reference[0].argmax()))
            if label is not None:
                self.right.append(bool(found[0].argmax() == label))
        if self.classes:
            self.texts += ocr.decode(found[0].astype(np.float32), self.classes)

    def score(self) -> Score:
        extra = {"cosine": float(np.mean(self.cosines)), "evaluated": float(len(self.cosines))}
        if self.same:
            extra["agreement"] = float(np.mean(self.same))
        value = extra["cosine"]
        if self.case.accuracy == "top1":
            value = float(np.mean(self.right))
        elif self.case.accuracy == "lines":
            truth = ocr.load_texts(self.case.texts(self.case.evaluation))[: len(self.texts)]
            value, extra["characters"] = ocr.text_scores(self.texts, truth)
        return Score(value, self.noise.decibels, extra)


def evaluate(case: Case, candidates: Mapping[str, Path], samples: int | None = None) -> dict[str, Score]:
    """Scores of `candidates` by name and of the original, under "original", on the first `samples`."""
    columns = load(case.evaluation, samples)
    labels = columns.get("labels")
    runners = {"original": session(case.model)} | {name: session(path) for name, path in candidates.items()}
    inputs = [entry.name for entry in runners["original"].get_inputs()]
    columns = {name: columns[name] for name in inputs}
    classes = ocr.characters(case.model) if case.accuracy == "lines" else []
    tallies = {name: _Tally(case, classes) for name in runners}
    for index, feed in enumerate(feeds(columns)):
        found = {name: runner.run(None, feed) for name, runner in runners.items()}
        label = int(labels[index]) if labels is not None else None
        for name, values in found.items():
            tallies[name].add(found["original"], values, label)
    return {name: tally.score() for name, tally in tallies.items()}
