"""Every error that graphopt raises on purpose, and the exit code that the command line gives for it.

::

    GraphoptError                 4  (a bug, unless a subclass says otherwise)
    ├── UsageError                2  wrong option, unknown target or pass
    ├── ModelError                3  the model cannot be read
    │   ├── LfsPointerError       3  a Git LFS pointer stands in the place of the model or of its data
    │   ├── InvalidModelError     3  it is an ONNX file, but breaks the ONNX specification
    │   ├── UnsafeModelError      3  the model points outside its folder, or lies about its data
    │   └── UnsupportedModelError 3  the model is sound, but graphopt cannot treat it
    ├── DataError                 3  calibration or evaluation data cannot be read or does not fit
    ├── OutputError               3  the result cannot be written
    ├── GateError                 1  a promise (accuracy, latency, size) does not hold
    └── PassError                 4  a pass broke the graph; names the pass

A message says what was wrong, in which file and node, and what to do.
"""


class GraphoptError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line exits with."""

    exit_code = 4


class UsageError(GraphoptError):
    """A wrong option, or an unknown target, pass or metric."""

    exit_code = 2


class ModelError(GraphoptError):
    """The model cannot be read."""

    exit_code = 3


class LfsPointerError(ModelError):
    """A Git LFS pointer stands where the model or its data should be."""


class InvalidModelError(ModelError):
    """The file is an ONNX model, but breaks the ONNX specification."""


class UnsafeModelError(ModelError):
    """The model refers to data outside its folder, or its data does not fit the file."""


class UnsupportedModelError(ModelError):
    """The model is sound, but holds something that graphopt cannot carry through unharmed."""


class DataError(GraphoptError):
    """Calibration or evaluation data cannot be read or does not fit the model."""

    exit_code = 3


class OutputError(GraphoptError):
    """The result cannot be written."""

    exit_code = 3


class GateError(GraphoptError):
    """No candidate held the gates; nothing was written."""

    exit_code = 1


class PassError(GraphoptError):
    """A pass failed or left an invalid graph; a bug in the pass."""

    exit_code = 4


class PassWarning(UserWarning):
    """An exact pass failed and was left out, while others did their work; a bug in the pass."""
