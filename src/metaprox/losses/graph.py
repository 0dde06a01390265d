"""The graph that autograd keeps of an evaluation."""

from collections.abc import Iterator
from typing import Any


def nodes(*roots: Any, end: Any = None) -> Iterator[Any]:
    """Each node that ``roots`` lead to, and they themselves, once; not ``end``, nor what is reached by it alone."""
    seen, left = {end}, list(roots)
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [parent for parent, _ in node.next_functions]
            yield node
