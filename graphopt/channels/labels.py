"""Labels on channels, and which of them must be cut together.

Every filter that a layer computes gets a label, a positive integer. Labels travel with the data: operators that move
data are executed on arrays of labels. Label 0 marks elements that belong to no filter. Coupled labels form a class;
one with a reason against it is pinned: none of its members can be cut.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# Label of each element of a tensor: as many axes as the tensor, size 1 on axes along which labels do not differ.
Field: TypeAlias = npt.NDArray[np.int64]


class Labels:
    """Union-find over labels."""

    def __init__(self) -> None:
        self._parent: list[int] = [0]
        self._reason: dict[int, str] = {}

    def new(self, count: int) -> Field:
        """Make ``count`` labels, [count]."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def find(self, label: int) -> int:
        """The class of a label, named by its smallest member."""
        parent = self._parent
        root = label
        while parent[root] != root:
            root = parent[root]
        while parent[label] != root:
            parent[label], label = root, parent[label]
        return root

    def classes(self, field: Field) -> Field:
        """The class of every label of an array."""
        values, places = np.unique(field, return_inverse=True)
        roots = np.array([self.find(int(value)) for value in values], dtype=np.int64)
        return np.asarray(roots[places].reshape(field.shape))

    def couple(self, one: Field, other: Field, why: str) -> bool:
        """Couple labels element by element, after broadcasting; coupling with label 0 pins, for the reason ``why``.

        Returns:
            whether any two classes were merged or pinned.
        """
        pairs = np.stack([part.reshape(-1) for part in np.broadcast_arrays(one, other)], axis=1)
        changed = False
        for first, second in np.unique(pairs, axis=0):
            changed |= self._merge(int(first), int(second), why)
        return changed

    def _merge(self, one: int, other: int, why: str) -> bool:
        one, other = self.find(one), self.find(other)
        if one == other:
            return False
        low, high = min(one, other), max(one, other)
        if low == 0:
            return self._pin(high, why)
        self._parent[high] = low
        if high in self._reason:
            self._reason.setdefault(low, self._reason.pop(high))
        return True

    def pin(self, field: Field, why: str) -> bool:
        """Forbid that any of these labels is cut; the first reason is kept."""
        changed = False
        for label in np.unique(field):
            root = self.find(int(label))
            changed |= root != 0 and self._pin(root, why)
        return changed

    def _pin(self, root: int, why: str) -> bool:
        if root in self._reason:
            return False
        self._reason[root] = why
        return True

    def reason(self, label: int) -> str | None:
        """Why a label cannot be cut; None: it can."""
        return "it belongs to no filter" if label == 0 else self._reason.get(self.find(label))

    def __len__(self) -> int:
        return len(self._parent)
