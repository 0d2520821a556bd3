"""Write into a model where it came from."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

PREFIX = "graphopt."


def stamp(model: onnx.ModelProto, *, target: str, passes: Sequence[str], source_sha256: str, version: str) -> None:
    """Record provenance in ``metadata_props`` of ``model``, in place.

    Keys: ``graphopt.version``, ``graphopt.target``, ``graphopt.passes`` (comma-separated, in the order they ran) and
    ``graphopt.source_sha256``. An earlier stamp is replaced and the user's keys stay. No time is recorded: the same
    input gives the same bytes.
    """
    kept = [entry for entry in model.metadata_props if not entry.key.startswith(PREFIX)]
    entries = onnx.ModelProto(metadata_props=kept)
    for key, value in (
        ("version", version),
        ("target", target),
        ("passes", ",".join(passes)),
        ("source_sha256", source_sha256),
    ):
        entries.metadata_props.add(key=PREFIX + key, value=value)
    del model.metadata_props[:]
    model.metadata_props.MergeFrom(entries.metadata_props)
