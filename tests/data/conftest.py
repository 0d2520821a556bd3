import numpy as np
import pytest

from graphopt.runtime import TensorSpec


def spec(shape, dtype="float32", name="x"):
    return TensorSpec(name, np.dtype(dtype), shape)


@pytest.fixture
def image():
    """Inputs of a model that takes one grey image of 4 x 4, any batch size."""
    return [spec(("N", 1, 4, 4))]


@pytest.fixture
def pixels():
    return np.random.default_rng(0).random((12, 1, 4, 4)).astype(np.float32)
