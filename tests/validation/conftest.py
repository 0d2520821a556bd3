import numpy as np
import pytest
from small_nets import linear

from graphopt.data import open_data
from graphopt.runtime import input_specs


@pytest.fixture
def one_hot():
    """Eight samples, each class twice, that the identity answers right."""
    model = linear(np.eye(4))
    rows = np.tile(np.eye(4, dtype=np.float32), (2, 1))
    return model, open_data({"x": rows, "labels": np.tile(np.arange(4), 2)}, input_specs(model)), rows
