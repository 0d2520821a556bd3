"""Integers of which some are known only by name: polynomials in the open sizes of a model.

A size is an ``int`` where it is known and an ``Open`` where it is not. Equal ``Open`` mean equal sizes at every run,
so ``(N * 4) / 2`` and ``N * 2`` are one and the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

# Names in a product, sorted; and how many of it.
Term: TypeAlias = tuple[tuple[str, ...], int]
# Beyond this a formula says no more than a fresh name does.
_MAX_TERMS = 12
_MAX_NAME = 120
# Names that begin so stand for integers that may be negative; all others are sizes.
UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Open:
    """A sum of products of names, at least one of which is there; the empty product is the constant part."""

    terms: tuple[Term, ...]

    @property
    def is_size(self) -> bool:
        """Whether it can never be negative."""
        return all(count >= 0 and not any(name.startswith(UNKNOWN) for name in names) for names, count in self.terms)

    def __str__(self) -> str:
        return "+".join("*".join((str(count), *names)) for names, count in self.terms)


Size: TypeAlias = int | Open


def symbol(name: str) -> Open:
    """The open size called ``name``."""
    return Open((((name,), 1),))


def add(first: Size, second: Size) -> Size | None:
    """The sum; None where it would become a long formula."""
    if isinstance(first, int) and isinstance(second, int):
        return first + second
    total = dict(_terms(first))
    for names, count in _terms(second):
        total[names] = total.get(names, 0) + count
    return _collected(total)


def negative(size: Size) -> Size:
    """Minus the size."""
    return -size if isinstance(size, int) else Open(tuple((names, -count) for names, count in size.terms))


def subtract(first: Size, second: Size) -> Size | None:
    """The difference; None where it would become a long formula."""
    return add(first, negative(second))


def multiply(first: Size, second: Size) -> Size | None:
    """The product; None where it would become a long formula."""
    if isinstance(first, int) and isinstance(second, int):
        return first * second
    total: dict[tuple[str, ...], int] = {}
    for (left, some), (right, other) in itertools.product(_terms(first), _terms(second)):
        names = tuple(sorted((*left, *right)))
        total[names] = total.get(names, 0) + some * other
    return _collected(total)


def product(items: Iterable[Size]) -> Size | None:
    """The product of all; None where it would become a long formula."""
    total: Size | None = 1
    for item in items:
        total = None if total is None else multiply(total, item)
    return total


def divide(first: Size, second: Size) -> Size | None:
    """The quotient, rounded towards zero as ONNX's Div does."""
    if isinstance(first, int) and isinstance(second, int):
        if second == 0:
            return None
        return abs(first) // abs(second) * (1 if (first < 0) == (second < 0) else -1)
    if isinstance(second, int) and second > 0 and isinstance(first, Open):
        if all(count % second == 0 for _, count in first.terms):
            return Open(tuple((names, count // second) for names, count in first.terms))
        return named("div", first, second) if first.is_size else None
    return 1 if first == second and second != 0 else None


def modulo(first: Size, second: Size) -> Size | None:
    """The remainder with the sign of the divisor, as of integers in ONNX's Mod."""
    if isinstance(first, int) and isinstance(second, int):
        return None if second == 0 else first % second
    if isinstance(second, int) and second > 0 and isinstance(first, Open):
        if all(count % second == 0 for _, count in first.terms):
            return 0
        return named("mod", first, second)
    return None


def pick(name: str, choose: Callable[[int, int], int], first: Size, second: Size) -> Size | None:
    """The larger or the smaller of two."""
    if isinstance(first, int) and isinstance(second, int):
        return choose(first, second)
    if first == second:
        return first
    gap = subtract(first, second)
    for larger, smaller, over in ((first, second, gap), (second, first, None if gap is None else negative(gap))):
        if over is not None and _is_size(over):
            return larger if choose(1, 0) == 1 else smaller
    low, high = sorted((first, second), key=str)
    return named(name, low, high) if _is_size(first) and _is_size(second) else None


def equal(first: Size, second: Size) -> bool | None:
    """Whether two sizes are equal; None where that depends."""
    difference = subtract(first, second)
    if isinstance(difference, int):
        return difference == 0
    if difference is None:
        return None
    # A size and a number below all that it can be, such as -1.
    for one in (difference, negative(difference)):
        if isinstance(one, Open) and one.is_size and dict(one.terms).get((), 0) > 0:
            return False
    return None


def named(operator: str, first: Size, second: Size) -> Size | None:
    """A size of its own, that is the same wherever the same is computed again."""
    text = f"{operator}({first},{second})"
    return symbol(text) if len(text) <= _MAX_NAME else None


def ratio(whole: Size, part: Size) -> int | None:
    """How many times ``part`` is in ``whole``, if that is a whole number whatever they are."""
    if isinstance(part, int):
        return whole // part if isinstance(whole, int) and part > 0 and whole % part == 0 else None
    if isinstance(whole, int) or len(whole.terms) != len(part.terms) or not part.is_size:
        return None
    names, count = part.terms[0]
    times = dict(whole.terms).get(names, 0) // count
    return times if times > 0 and multiply(part, times) == whole else None


def quotient(whole: Size, part: Size) -> Size | None:
    """What times ``part`` is ``whole``, where both are single products and every name of ``part`` cancels."""
    (left, times), (right, by) = _terms(whole)[0], _terms(part)[0]
    if len(_terms(whole)) > 1 or len(_terms(part)) > 1 or by == 0 or times % by:
        return None
    names = list(left)
    for name in right:
        if name not in names:
            return None
        names.remove(name)
    return _collected({tuple(names): times // by})


def _is_size(size: Size) -> bool:
    return size >= 0 if isinstance(size, int) else size.is_size


def _terms(size: Size) -> tuple[Term, ...]:
    return (((), size),) if isinstance(size, int) else size.terms


def _collected(total: dict[tuple[str, ...], int]) -> Size | None:
    terms = tuple(sorted((names, count) for names, count in total.items() if count))
    if not terms:
        return 0
    if len(terms) == 1 and not terms[0][0]:
        return terms[0][1]
    if len(terms) > _MAX_TERMS or any(len(names) > _MAX_TERMS for names, _ in terms):
        return None
    return Open(terms)
