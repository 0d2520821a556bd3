"""Seven tiny networks at half of every group: what common architectures hang together by must not stop a cut."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt import channels
from tests.support import assert_same, feeds, outputs
from tests.toy_graphs import TOYS, ideal, parameters


def halved(proto: onnx.ModelProto) -> tuple[channels.Dependencies, channels.Selection]:
    """Half of every group, drawn at random."""
    found = channels.dependency_groups(proto)
    rng = np.random.default_rng(0)
    scores = {group.number: rng.random(group.size) for group in found}
    return found, channels.select(found, scores, {group.number: group.size // 2 for group in found})


@pytest.mark.parametrize("name", TOYS)
def test_the_toys_are_what_they_say(name: str) -> None:
    build, known = TOYS[name]
    onnx.checker.check_model(build(), full_check=True)
    assert ideal(build) < known + 0.005
    if known < 0.5:
        assert round(ideal(build), 2) == known


@pytest.mark.parametrize("name", TOYS)
def test_half_of_every_group_leaves_the_parameters_of_the_net_of_half_the_width(name: str) -> None:
    build, _ = TOYS[name]
    found, selection = halved(build())
    kept = parameters(channels.cut(found, selection).model) / parameters(build())
    assert kept == pytest.approx(ideal(build), rel=0.1)


@pytest.mark.parametrize("name", TOYS)
def test_the_cut_net_answers_as_the_original_with_those_channels_at_zero(name: str) -> None:
    build, _ = TOYS[name]
    found, selection = halved(build())
    fed = feeds(build())
    smaller = outputs(channels.cut(found, selection).model, fed)
    assert_same(outputs(channels.mask(found, selection), fed), smaller, rtol=1e-5)


@pytest.mark.parametrize("name", TOYS)
def test_every_convolution_parameter_lies_in_a_group(name: str) -> None:
    build, _ = TOYS[name]
    assert channels.dependency_groups(build()).share["convolution"] == pytest.approx(1.0)
