"""Measured latencies as a CSV file: ``graphopt bench --csv`` appends a row a model, ``calibrate-target`` reads them.

A file may as well be written by hand or by another tool: only ``model``, ``batch`` and ``median_ms`` must be there.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from graphopt.errors import DataError, OutputError

NEEDED = ("model", "batch", "median_ms")


@dataclass(frozen=True)
class Measurement:
    """One model, measured on a device.

    Attributes:
        model: path of the model as it was given.
        sha256: of the file; empty where nobody noted it.
        runtime: what executed it, as the target names its runtimes (``tensorrt``); empty where nobody noted it.
        provider: ONNX Runtime's execution provider; empty for other tools.
        batch: samples of one call.
        threads: intra-op threads on the CPU; None where nobody noted them.
        median_ms: milliseconds of one call, for the whole batch.
        p10_ms: 10th percentile; None where nobody noted it.
        p90_ms: 90th percentile; None likewise.
    """

    model: str
    sha256: str
    runtime: str
    provider: str
    batch: int
    threads: int | None
    median_ms: float
    p10_ms: float | None
    p90_ms: float | None


COLUMNS = tuple(field.name for field in fields(Measurement))


def append(path: Path, row: Measurement) -> None:
    """Add a row to the file; write it with a header where it is new.

    Raises:
        DataError: the file is there and has other columns.
        OutputError: it cannot be written.
    """
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        header = _header(path)
        if missing := [name for name in COLUMNS if name not in header]:
            raise DataError(f"{path}: has no column {missing[0]!r}; give a new file, or one that bench --csv wrote")
    else:
        header = list(COLUMNS)
    values = {key: "" if value is None else value for key, value in asdict(row).items()}
    try:
        unfinished = not new and not path.read_bytes().endswith((b"\n", b"\r"))
        with path.open("a", encoding="utf-8", newline="") as file:
            if unfinished:
                file.write("\n")
            writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(values)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _header(path: Path) -> list[str]:
    return next(iter(_lines(path)), [])


def _lines(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.reader(file))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_measurements(path: Path) -> tuple[Measurement, ...]:
    """Read all rows.

    Raises:
        DataError: the file cannot be read, lacks a column that must be there, has no rows, or a value is wrong.
    """
    lines = _lines(path)
    header = [name.strip() for name in lines[0]] if lines else []
    if missing := [name for name in NEEDED if name not in header]:
        raise DataError(f"{path}: no column {missing[0]!r} in the first line; needed: {', '.join(NEEDED)}")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in line):
            continue
        if len(line) != len(header):
            raise DataError(f"{path}, line {number}: {len(line)} values for {len(header)} columns")
        rows.append(
            _measurement(dict(zip(header, (cell.strip() for cell in line), strict=True)), f"{path}, line {number}")
        )
    if not rows:
        raise DataError(f"{path}: no measurements")
    return tuple(rows)


def _measurement(line: Mapping[str, str], where: str) -> Measurement:
    if not line["model"]:
        raise DataError(f"{where}: 'model' must be the path of the model")
    median, batch = _number(line, "median_ms", where), _number(line, "batch", where)
    threads = _number(line, "threads", where)
    if median is None or batch is None or batch != int(batch):
        raise DataError(f"{where}: 'batch' must be a whole number and 'median_ms' a number")
    return Measurement(
        model=line["model"],
        sha256=line.get("sha256", "").lower(),
        runtime=line.get("runtime", ""),
        provider=line.get("provider", ""),
        batch=int(batch),
        threads=None if threads is None else int(threads),
        median_ms=median,
        p10_ms=_number(line, "p10_ms", where),
        p90_ms=_number(line, "p90_ms", where),
    )


def _number(line: Mapping[str, str], name: str, where: str) -> float | None:
    """A positive number; None where the cell is empty or the column is not there."""
    text = line.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"{where}: {name!r} is {text!r}; it must be a positive number")
    return value
