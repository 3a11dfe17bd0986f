"""Where a condition along a line changes: bisection to the last float64.

Owns the search that inverts exact tests into intervals. Refuses nothing: callers give a line whose
one end fails and whose other holds; with both alike it ends at the outer end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_BISECTIONS: Final = 200  # a float64 interval has fewer halvings in it


def edge(inner: float, outer: float, outside: Callable[[float], bool]) -> float:
    """The outer side of the change between a point inside and a point outside.

    Args:
        inner: Where `outside` is false.
        outer: Where it is true; also the answer if it is not.
        outside: Monotone between the two.
    """
    for _ in range(_BISECTIONS):
        middle = (outer + inner) / 2
        if middle in (outer, inner):
            break
        if outside(middle):
            outer = middle
        else:
            inner = middle
    return outer
