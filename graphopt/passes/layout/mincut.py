"""Minimum cut of a network with capacities at its terminals, by augmenting along shortest paths from each source.

A set of nodes that cannot reach the sink never can again, so it is searched once: where sinks are few, as here, the
work is linear.
"""

from __future__ import annotations

from collections import deque


class Network:
    """Nodes are numbers; each may be fed by the source and drained by the sink."""

    def __init__(self) -> None:
        self._feeds: list[float] = []
        self._drains: list[float] = []
        self._edges: list[list[int]] = []
        self._heads: list[int] = []
        self._room: list[float] = []

    def add_node(self) -> int:
        """Make a node."""
        self._feeds.append(0.0)
        self._drains.append(0.0)
        self._edges.append([])
        return len(self._edges) - 1

    def feed(self, node: int, capacity: float) -> None:
        """Cost of having ``node`` on the side of the sink."""
        self._feeds[node] += capacity

    def drain(self, node: int, capacity: float) -> None:
        """Cost of having ``node`` on the side of the source."""
        self._drains[node] += capacity

    def connect(self, start: int, end: int, capacity: float) -> None:
        """Cost of having ``start`` on the side of the source and ``end`` on that of the sink."""
        for tail, head, room in ((start, end, capacity), (end, start, 0.0)):
            self._edges[tail].append(len(self._heads))
            self._heads.append(head)
            self._room.append(room)

    def source_side(self, effort: int = 200) -> set[int] | None:
        """The smallest source side of a minimum cut; None where it takes over ``effort`` times the network's size."""
        feeds, drains, edges, heads, room = self._feeds, self._drains, self._edges, self._heads, self._room
        left = effort * (len(edges) + len(heads)) + 10_000
        reached: set[int] = set()
        for start in range(len(edges)):
            while feeds[start] > 0 and start not in reached:
                came: dict[int, int] = {start: -1}
                queue = deque([start])
                end = -1
                while queue:
                    node = queue.popleft()
                    if drains[node] > 0:
                        end = node
                        break
                    left -= len(edges[node])
                    for edge in edges[node]:
                        head = heads[edge]
                        if room[edge] > 0 and head not in came and head not in reached:
                            came[head] = edge
                            queue.append(head)
                if end < 0:
                    reached.update(came)
                    break
                if left < 0:
                    return None
                amount, node = min(feeds[start], drains[end]), end
                while node != start:
                    amount = min(amount, room[came[node]])
                    node = heads[came[node] ^ 1]
                feeds[start] -= amount
                drains[end] -= amount
                node = end
                while node != start:
                    room[came[node]] -= amount
                    room[came[node] ^ 1] += amount
                    node = heads[came[node] ^ 1]
        return reached
