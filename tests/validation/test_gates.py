"""Gates: each holds, fails with figures, or fails because its figure is not known."""

import pytest

from graphopt.validation import Accuracy, Gates, Latency, Timing, verdict

TIMING = Timing(1.0, 0.9, 1.1, 20, 2, "cpu")


def accuracy(drop, max_drop=0.01, reason=""):
    return Accuracy("top1", 0.9, 0.9 - drop, drop, max_drop, 100, 40.0, (drop, drop), not reason, reason)


def latency(low, high):
    return Latency(
        "measured", "CPUExecutionProvider", 1, 2.0, 1.0, (low + high) / 2, (low, high), 1.0, True, TIMING, TIMING
    )


def test_everything_holds():
    gates = Gates(max_drop=0.01, min_speedup=2.0, max_size=100, max_macs=0.5)
    found = verdict(gates, accuracy=accuracy(0.01), latency=latency(1.9, 2.1), size=100, macs=50, baseline_macs=100)
    assert found.passed
    assert found.failures == ()


def test_what_was_not_measured_fails_no_default_gate():
    assert verdict(Gates()).passed


@pytest.mark.parametrize(
    ("gates", "figures", "message"),
    [
        (Gates(), {"accuracy": accuracy(0.02)}, "top1 falls by 0.0200, allowed is 0.01"),
        (Gates(max_drop=1), {"accuracy": accuracy(0.0, reason="output y (NaN)")}, "output y (NaN)"),
        (Gates(min_speedup=2), {"latency": latency(1.5, 1.7)}, "speed 1.60x (95 % interval 1.50 to 1.70) is below 2x"),
        (Gates(max_size=99), {"size": 100}, "100 bytes, allowed are 99"),
        (Gates(max_size=99), {}, "the size is not known, allowed are 99 bytes"),
        (Gates(max_macs=0.5), {"macs": 60, "baseline_macs": 100}, "60.0% of the original's"),
        (Gates(max_macs=0.5), {"baseline_macs": 100}, "multiply-accumulates are not known"),
    ],
)
def test_fails(gates, figures, message):
    found = verdict(gates, **figures)
    assert not found.passed
    assert len(found.failures) == 1
    assert message in found.failures[0]


def test_every_failure_is_told():
    assert len(verdict(Gates(max_size=1, max_macs=0.1), size=2, macs=2, baseline_macs=2).failures) == 2
