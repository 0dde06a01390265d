"""A mapping that holds so much and no more."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from typing import Generic, TypeVar

from metaprox import checks

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(MutableMapping[K, V], Generic[K, V]):
    """A dict of at most ``size`` entries, which lets go of the one that was not looked up for the longest time.

    Looking a key up, or setting it, makes its entry the latest; ``in``, ``len`` and iteration do not. Several threads
    may use it. Copies, also by pickle, are empty: what a cache holds can be had again.

    Args:
        size: how many entries there may be.
        dropped: is called with a value that had to make place, after it went; not with what is deleted or replaced.

    Example:
        >>> from metaprox.cache import BoundedCache
        >>> squares = BoundedCache(2)
        >>> squares.update({2: 4, 3: 9})
        >>> squares[2], squares.setdefault(4, 16), list(squares)
        (4, 16, [2, 4])
    """

    def __init__(self, size: int, dropped: Callable[[V], object] | None = None) -> None:
        checks.count("size", size)
        self._size = size
        self._dropped = dropped
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.RLock()

    def __getitem__(self, key: K) -> V:
        with self._lock:
            value = self._entries[key]
            self._entries.move_to_end(key)
            return value

    def __setitem__(self, key: K, value: V) -> None:
        with self._lock:
            gone = self._store(key, value)
        self._drop(gone)

    def __delitem__(self, key: K) -> None:
        with self._lock:
            del self._entries[key]

    def __iter__(self) -> Iterator[K]:
        """From the entry that goes next to the latest, as they are now."""
        with self._lock:
            return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __reduce__(self) -> tuple[type, tuple[int, Callable[[V], object] | None]]:
        return type(self), (self._size, self._dropped)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {self._size})"

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Returns the value of ``key``; where there is none, what ``make`` returns, kept unless ``make`` raises.

        Threads that ask at the same time all get the value that was there first, though each may have made one.
        """
        with self._lock:
            if key in self._entries:
                return self[key]
        made = make()
        return self.setdefault(key, made)

    def setdefault(self, key: K, default: V) -> V:
        """The value of ``key``, which becomes ``default`` where there is none; in one for all threads."""
        with self._lock:
            if key in self._entries:
                return self[key]
            gone = self._store(key, default)
        self._drop(gone)
        return default

    def _store(self, key: K, value: V) -> list[V]:
        """What had to go."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        return [self._entries.popitem(last=False)[1] for _ in range(len(self._entries) - self._size)]

    def _drop(self, gone: list[V]) -> None:
        """Without the lock, so that what is called may take its own."""
        if self._dropped is not None:
            for value in gone:
                self._dropped(value)
