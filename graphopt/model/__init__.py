"""Read models safely and write them whole. What is read, refused and written is in ``docs/models.md``."""

from graphopt.model.content import model_bytes
from graphopt.model.opset import upgrade_opset
from graphopt.model.provenance import stamp
from graphopt.model.reading import LoadedModel, ModelSource, load, read
from graphopt.model.structure import check
from graphopt.model.versions import initializers_are_constants, raise_ir_version
from graphopt.model.writing import SavedModel, save

__all__ = [
    "LoadedModel",
    "ModelSource",
    "SavedModel",
    "check",
    "initializers_are_constants",
    "load",
    "model_bytes",
    "raise_ir_version",
    "read",
    "save",
    "stamp",
    "upgrade_opset",
]
