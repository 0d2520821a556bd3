"""Einsum as Transpose, Reshape, MatMul, Mul and ReduceSum.

Operands are taken together two at a time, from the left. Letters that only one of the two has and nobody wants are
summed first; then ::

    shared and wanted: batch      shared and not wanted: contracted      the rest: of the left, of the right

    left  -> Transpose [batch, left, contracted]
    right -> Transpose [batch, contracted, right]   MatMul -> [batch, left, right] -> Transpose

A group of several letters becomes one axis by Reshape, for which its sizes must be known, one of no letter an axis of
size 1. Without a contracted letter it is a product of the two, broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.passes.writing_out.draft import CannotWriteError, Draft, Value


@dataclass(frozen=True)
class _Operand:
    value: Value
    letters: str


def einsum(draft: Draft) -> None:
    """Write a sum of products."""
    terms, wanted = _read(draft)
    sizes = _sizes(draft, terms)
    operands = [_Operand(tensor, letters) for tensor, letters in zip(draft.node.inputs, terms, strict=True)]
    while len(operands) > 1:
        first, second, *rest = operands
        later = set(wanted).union(*(each.letters for each in rest))
        operands = [_product(draft, first, second, later, sizes), *rest]
    found = _summed(draft, operands[0], set(wanted))
    if found.letters != wanted:
        draft.op("Transpose", found.value, perm=[found.letters.index(letter) for letter in wanted])
    elif found.value is draft.node.inputs[0]:
        draft.op("Identity", found.value)


def _read(draft: Draft) -> tuple[list[str], str]:
    """The letters of each operand and of the result; those that ``...`` stands for are capital digits' stand-ins."""
    equation = str(draft.attr("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(draft.node.inputs):
        raise CannotWriteError("its equation has not as many operands as it reads")
    more = ""
    if "..." in equation:
        counts = {draft.rank(slot) - len(term.replace("...", "")) for slot, term in enumerate(terms) if "..." in term}
        if len(counts) != 1:
            raise CannotWriteError("its '...' stands for different numbers of axes")
        more = "".join(chr(ord("0") + number) for number in range(counts.pop()))
        terms = [term.replace("...", more) for term in terms]
    if arrow:
        wanted = right.replace("...", more)
    else:
        every = "".join(terms)
        wanted = more + "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
    if any(len(set(letters)) < len(letters) for letters in (*terms, wanted)):
        raise CannotWriteError("a letter stands twice in one operand")
    return terms, wanted


def _sizes(draft: Draft, terms: Sequence[str]) -> dict[str, int]:
    """Sizes of the axes, where they are known."""
    sizes: dict[str, int] = {}
    for slot, letters in enumerate(terms):
        shape = draft.shape(slot)
        if shape is None:
            continue
        if len(shape) != len(letters):
            raise CannotWriteError("its equation does not fit the number of axes")
        for letter, size in zip(letters, shape, strict=True):
            if isinstance(size, int) and sizes.setdefault(letter, size) != size:
                raise CannotWriteError("an axis of size 1 is broadcast")
    return sizes


def _summed(draft: Draft, operand: _Operand, wanted: set[str]) -> _Operand:
    """The operand without letters that nobody wants."""
    axes = [axis for axis, letter in enumerate(operand.letters) if letter not in wanted]
    if not axes:
        return operand
    kept = "".join(letter for letter in operand.letters if letter in wanted)
    return _Operand(draft.reduce("ReduceSum", operand.value, axes, keepdims=False), kept)


def _product(draft: Draft, left: _Operand, right: _Operand, later: set[str], sizes: dict[str, int]) -> _Operand:
    left = _summed(draft, left, later | set(right.letters))
    right = _summed(draft, right, later | set(left.letters))
    shared = [letter for letter in left.letters if letter in right.letters]
    batch = "".join(letter for letter in shared if letter in later)
    contracted = "".join(letter for letter in shared if letter not in later)
    of_left = "".join(letter for letter in left.letters if letter not in shared)
    of_right = "".join(letter for letter in right.letters if letter not in shared)
    letters = batch + of_left + of_right
    if not contracted:
        return _Operand(draft.op("Mul", *(_spread(draft, each, letters) for each in (left, right))), letters)
    first = _grouped(draft, left, (batch, of_left, contracted), sizes)
    second = _grouped(draft, right, (batch, contracted, of_right), sizes)
    product = draft.op("MatMul", first, second)
    if len(of_left) == len(of_right) == 1:
        return _Operand(product, letters)
    return _Operand(_ungrouped(draft, product, (batch, of_left, of_right), sizes), letters)


def _ordered(draft: Draft, operand: _Operand, letters: str) -> Value:
    if operand.letters == letters:
        return operand.value
    return draft.op("Transpose", operand.value, perm=[operand.letters.index(letter) for letter in letters])


def _spread(draft: Draft, operand: _Operand, letters: str) -> Value:
    """The operand with an axis for each letter."""
    own = "".join(letter for letter in letters if letter in operand.letters)
    value = _ordered(draft, operand, own)
    missing = [axis for axis, letter in enumerate(letters) if letter not in own]
    return draft.unsqueeze(value, missing) if missing else value


def _grouped(draft: Draft, operand: _Operand, groups: tuple[str, str, str], sizes: dict[str, int]) -> Value:
    """The operand with its batch axes and one axis for each of the two other groups."""
    value = _ordered(draft, operand, "".join(groups))
    batch, *matrix = groups
    if all(len(group) == 1 for group in matrix):
        return value
    if all(len(group) <= 1 for group in matrix):
        return draft.unsqueeze(value, [len(batch) + at for at, group in enumerate(matrix) if not group])
    return draft.reshape(value, _target(batch, [_volume(group, sizes) for group in matrix], sizes))


def _ungrouped(draft: Draft, value: Value, groups: tuple[str, str, str], sizes: dict[str, int]) -> Value:
    batch, *matrix = groups
    if all(len(group) <= 1 for group in matrix):
        return draft.squeeze(value, [len(batch) + at for at, group in enumerate(matrix) if not group])
    return draft.reshape(value, _target(batch, [_volume(letter, sizes) for group in matrix for letter in group], sizes))


def _target(batch: str, matrix: Sequence[int | None], sizes: dict[str, int]) -> list[int]:
    """What to reshape to: batch axes keep their sizes, and one axis may be left to be told from the rest."""
    unknown = sum(size is None for size in matrix)
    if unknown > 1:
        raise CannotWriteError("its sizes are not known")
    return [0] * len(batch) + [-1 if size is None else size for size in matrix]


def _volume(group: str, sizes: dict[str, int]) -> int | None:
    volume = 1
    for letter in group:
        if letter not in sizes:
            return None
        volume *= sizes[letter]
    return volume
