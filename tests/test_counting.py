"""The benchmark of the counts: nothing of its table is passed over, and what needs no torch is counted here, too."""

import pytest

from benchmarks.counting import DEFINITION, count, difference, latency_nets, mobilenet_by_formula
from benchmarks.counting_nets import EXPLAINED, LEFT_OUT, Net, net_of, rows
from models import mobilenet_v1


def test_every_published_figure_has_a_net_or_a_reason():
    found = [net_of(row) for row in rows()]

    assert sum(isinstance(one, Net) for one in found) > 100
    assert all(found)


def test_every_reason_is_needed():
    for paper, beginning in LEFT_OUT:
        assert any(row.paper == paper and row.architecture.startswith(beginning) for row in rows()), beginning
    for paper, architecture, _ in EXPLAINED:
        assert any((row.paper, row.architecture) == (paper, architecture) for row in rows()), architecture


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("width", "size"), [(1.0, 224), (0.75, 224), (0.25, 128), (2.0, 64)])
def test_mobilenet_is_counted_as_its_formula_says(width, size, plain):
    built = mobilenet_v1.build(mobilenet_v1.Net(plain=plain, width=width, size=size), seed=None)

    assert count(built) == mobilenet_by_formula(width, size, plain)


def test_nets_with_published_latency_are_counted_as_their_table_says():
    """Of DPN and NASNet, Pad and Slice are fed by computed constants: shapes are lost where those are not folded."""
    names = ("DPN-68", "NASNet-A-Mobile", "SE-ResNet-50", "MobileNet-v2")

    found = latency_nets(names)

    assert found.keys() == set(names)
    for name, one in found.items():
        off = [difference(one["ours"], one["other"], figure) for figure in ("macs", "parameters")]
        assert off == pytest.approx([0, 0], abs=DEFINITION / 10), (name, one)
