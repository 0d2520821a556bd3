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
    """Union-find over labels, on whole arrays at a time."""

    def __init__(self) -> None:
        self._parent: Field = np.zeros(1024, dtype=np.int64)
        self._pinned: npt.NDArray[np.bool_] = np.zeros(1024, dtype=bool)
        self._count = 1
        self._reason: dict[int, str] = {}

    def new(self, count: int) -> Field:
        """Make ``count`` labels, [count]."""
        first, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            more = 2 * self._count - len(self._parent)
            self._parent = np.concatenate([self._parent, np.zeros(more, dtype=np.int64)])
            self._pinned = np.concatenate([self._pinned, np.zeros(more, dtype=bool)])
        made = np.arange(first, self._count, dtype=np.int64)
        self._parent[first : self._count] = made
        return made

    def find(self, label: int) -> int:
        """The class of a label, named by its smallest member."""
        root = int(self._parent[label])
        while root != label:
            label, root = root, int(self._parent[root])
        return root

    def classes(self, field: Field) -> Field:
        """The class of every label of an array."""
        roots = self._parent[field]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = self._parent[above]
        self._parent[field] = roots
        return np.asarray(roots)

    def couple(self, one: Field, other: Field, why: str) -> bool:
        """Couple labels element by element, after broadcasting; coupling with label 0 pins, for the reason ``why``.

        Returns:
            whether any two classes were merged or pinned.
        """
        if one is other:
            return False
        changed = False
        first, second = (part.reshape(-1) for part in np.broadcast_arrays(one, other))
        while True:
            first, second = self.classes(first), self.classes(second)
            apart = first != second
            if not apart.any():
                return changed
            low, high = np.minimum(first[apart], second[apart]), np.maximum(first[apart], second[apart])
            nobody = low == 0
            if nobody.any():
                changed |= self._pin(high[nobody], why)
                low, high = low[~nobody], high[~nobody]
            if not low.size:
                return changed
            self._merge(low, high)
            changed = True
            first, second = low, high

    def _merge(self, low: Field, high: Field) -> None:
        """Hang roots ``high`` below roots ``low``; where one is to go below several, the smallest takes it."""
        order = np.argsort(-low, kind="stable")
        self._parent[high[order]] = low[order]
        if not self._reason:
            return
        for root in np.unique(high[self._pinned[high]]).tolist():
            below = int(self._parent[root])
            self._reason.setdefault(below, self._reason.pop(root))
            self._pinned[below] = True

    def pin(self, field: Field, why: str) -> bool:
        """Forbid that any of these labels is cut; the first reason is kept."""
        return self._pin(self.classes(field.reshape(-1)), why)

    def _pin(self, roots: Field, why: str) -> bool:
        fresh = np.unique(roots[~self._pinned[roots]])
        fresh = fresh[fresh > 0]
        self._pinned[fresh] = True
        self._reason.update(dict.fromkeys(fresh.tolist(), why))
        return fresh.size > 0

    def reason(self, label: int) -> str | None:
        """Why a label cannot be cut; None: it can."""
        return "it belongs to no filter" if label == 0 else self._reason.get(self.find(label))

    def free(self, field: Field) -> Field:
        """The class of every label of an array that can be cut, 0 for the others."""
        found = self.classes(field)
        return np.where(self._pinned[found], 0, found) if self._reason else found

    def __len__(self) -> int:
        return self._count
