"""How well the latency model predicts nets, families and devices that it was not fitted on.

    python -m benchmarks.latency

Writes benchmarks/results/latency.json and latency.md.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import latency_engines
from benchmarks.latency_data import DEVICES, Point, families, measured, nets, points
from benchmarks.latency_fit import base, fit_all, judged
from benchmarks.latency_report import as_markdown
from benchmarks.latency_scores import scores
from graphopt.latency.constants import DATASHEET, Constants
from graphopt.latency.fitting import Measured, fit
from graphopt.latency.kernels import Kernel
from graphopt.latency.refitting import REFIT
from graphopt.latency.uncertainty import ENGINE, FITTED, OTHER_DEVICE

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 8, 16, 32)
HALVES = 5
MEANS = ("spearman", "mape", "ratio")
# One net for each kind of operator, as facts/latency.md chose them, of those that are given.
FEW = ("AlexNet", "ResNet-50", "MobileNet-v2", "ResNeXt-101 (32x4d)", "VGG-16")

Predictions = dict[str, np.ndarray]


class Bench:
    """The measurements and the kernels of all nets."""

    def __init__(self) -> None:
        self.points: dict[str, list[Point]] = points()
        self.kernels: dict[str, list[Kernel]] = nets()
        self.sets: dict[str, Measured] = {d: measured(d, found, self.kernels) for d, found in self.points.items()}

    def left_out(self, groups: list[set[str]], of: Callable[[Point], str]) -> Predictions:
        """Predictions for each group of families or nets by constants fitted on all others."""
        result = {device: np.full(len(found), np.nan) for device, found in self.points.items()}
        for group in groups:
            keep = [np.array([of(p) not in group for p in found]) for found in self.points.values()]
            fitted = fit_all(self.sets, keep)
            for (device, own), kept, values in zip(self.sets.items(), keep, fitted.devices, strict=True):
                result[device][~kept] = own.predict(values)[~kept]
        return result

    def table(self, predictions: Predictions, batches: tuple[int, ...] = BATCHES) -> dict[str, Any]:
        rows = {}
        for device, found in self.points.items():
            for batch in batches:
                chosen = [i for i, p in enumerate(found) if p.batch == batch and np.isfinite(predictions[device][i])]
                one = scores([found[i] for i in chosen], predictions[device][chosen])
                rows[f"{device} b{batch}"] = one.as_dict()
        return rows

    def residuals(self, predictions: Predictions, batches: tuple[int, ...] = (1, 16)) -> np.ndarray:
        parts = []
        for device, found in self.points.items():
            chosen = [i for i, p in enumerate(found) if p.batch in batches]
            parts.append(self.sets[device].log_ms[chosen] - predictions[device][chosen])
        return np.concatenate(parts)

    def by_macs(self) -> Predictions:
        """Time proportional to multiply-adds, the factor fitted without the family, for each batch size."""
        result = {}
        for device, found in self.points.items():
            macs = [p.batch * sum(float(w.macs) for k in self.kernels[p.net] for w in k.works) for p in found]
            off = self.sets[device].log_ms - np.log(macs)
            result[device] = np.array(
                [
                    np.log(macs[i])
                    + np.mean([off[j] for j, q in enumerate(found) if q.batch == p.batch and q.family != p.family])
                    for i, p in enumerate(found)
                ]
            )
        return result

    def by_sheet(self) -> Predictions:
        """The roofline of the data sheet, operator by operator: no constants at all."""
        return {
            device: own.predict({**DATASHEET, "overlap": 1.0, "launch.product_us": 1e-9})
            for device, own in self.sets.items()
        }

    def halves(self) -> list[dict[str, Any]]:
        """Fitted on a random half of the nets, for the other half."""
        names = sorted(families())
        tables = []
        for seed in range(HALVES):
            half = set(np.random.default_rng(seed).permutation(names)[: len(names) // 2].tolist())
            tables.append(self.table(self.left_out([half], lambda p: p.net), (1, 16)))
        return tables

    def other_device(self) -> Predictions:
        """The constants fitted on one device alone, with the data sheet and the processor of the other."""
        result = {}
        for device in self.sets:
            (other,) = set(self.sets) - {device}
            found = fit_all({other: self.sets[other]}).devices[0]
            launch = base(device)["launch.product_us"] / base(other)["launch.product_us"] * found["launch.product_us"]
            result[device] = self.sets[device].predict({**found, "launch.product_us": launch})
        return result

    def other_device_refitted(self) -> Predictions:
        """The same after five nets were measured at batch 1 and 16."""
        result = {}
        for device, own in self.sets.items():
            (other,) = set(self.sets) - {device}
            start: Constants = {
                **fit_all({other: self.sets[other]}).devices[0],
                "launch.product_us": base(device)["launch.product_us"],
            }
            keep = np.array([p.net in FEW and p.batch in (1, 16) for p in self.points[device]])
            found = fit([own], [start], REFIT, keep=[keep]).devices[0]
            predicted = own.predict(found)
            predicted[[p.net in FEW for p in self.points[device]]] = np.nan
            result[device] = predicted
        return result


def run() -> dict[str, Any]:
    bench = Bench()
    everything = fit_all(bench.sets)
    families_out = bench.left_out([{f} for f in dict.fromkeys(families().values())], lambda p: p.family)
    inside = {
        device: own.predict(values)
        for (device, own), values in zip(bench.sets.items(), everything.devices, strict=True)
    }
    transferred = bench.other_device()
    halves = bench.halves()
    off = {
        "fitted": (bench.residuals(families_out), FITTED),
        "other device": (bench.residuals(transferred), OTHER_DEVICE),
    }
    return {
        "nets": len(families()),
        "tables": {
            "leave one family out": bench.table(families_out),
            "all nets in the fit": bench.table(inside),
            "MACs alone (1 constant a batch)": bench.table(bench.by_macs()),
            "roofline of the data sheet (no constants)": bench.table(bench.by_sheet()),
            "constants of the other device": bench.table(transferred, (1, 16)),
            "and five nets measured": bench.table(bench.other_device_refitted(), (1, 16)),
        },
        "halves": {
            cell: {key: round(float(np.mean([t[cell][key] for t in halves])), 4) for key in MEANS} for cell in halves[0]
        },
        "spread": {
            name: _spread({"": r}, sigma) for name, (r, sigma) in off.items()
        },
        "engines": of_engines(judged(everything.shared)),
        "errors": {
            f"{DEVICES[d].name} {p.net} b{p.batch}": _error(families_out[d][i] - bench.sets[d].log_ms[i])
            for d, found in bench.points.items()
            for i, p in enumerate(found)
            if p.batch in (1, 16)
        },
    }  # fmt: skip


def of_engines(start: Constants) -> dict[str, Any]:
    """TensorRT on each of the devices by constants that the others taught."""
    sets = latency_engines.measured(latency_engines.engines())
    before = {device: own.predict(start) - own.log_ms for device, (own, _) in sets.items()}
    without = latency_engines.left_out(sets, start)
    rows = {
        f"{device}, {engine.precision}, {engine.net}, batch {engine.batch}": {
            "ms": engine.ms,
            "judged": _error(before[device][i]),
            "left_out": _error(without[device][i]),
        }
        for device, (_, engines) in sets.items()
        for i, engine in enumerate(engines)
    }
    return {"rows": rows, "spread": {"judged": _spread(before, ENGINE), "left out": _spread(without, ENGINE)}}


def _spread(off: Predictions, sigma: float) -> dict[str, float]:
    """Errors, and the share of them within the 90 % interval that `sigma` gives."""
    every = np.concatenate(list(off.values()))
    return {
        "within": round(float(np.mean(np.abs(every) <= 1.645 * sigma)), 4),
        "rms": round(float(np.sqrt(np.mean(every**2))), 4),
        "p90": round(float(np.quantile(np.abs(every), 0.9)), 4),
        "mape": round(float(np.mean(np.abs(np.expm1(every)))), 4),
    }


def _error(off: float) -> float:
    return round(float(np.expm1(off)), 3)


def main() -> None:
    result = run()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latency.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = as_markdown(result)
    (RESULTS / "latency.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
