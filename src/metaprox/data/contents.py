"""What examples hold, as short checksums by class or group, by which data are known again and changes are named."""

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

MANY = 200_000  # examples; of more, classes are told apart, and not their examples
SHOWN = 5  # changes that a message names
DIGITS = 8


def checksum(content: bytes) -> int:
    """The first 32 bits of the SHA-256."""
    return int.from_bytes(hashlib.sha256(content).digest()[: DIGITS // 2])


@dataclass(frozen=True, eq=False)
class Contents:
    """Of N examples what each holds, and where it belongs.

    Args:
        owners: of each example, the name of its class or group.
        checksums: of each example, as ``checksum`` gives them.
        shown: of an example's place, 0 to N - 1, what it is called in messages.
    """

    owners: Sequence[Hashable]
    checksums: Sequence[int]
    shown: Callable[[int], str]

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, owner in enumerate(self.owners):
            found.setdefault(str(owner), []).append(row)
        return dict(sorted(found.items()))

    @cached_property
    def parts(self) -> dict[str, str]:
        """Class or group -> 8 hexadecimal digits for each of its examples, in their order.

        Where there are more than ``MANY`` in all: how many it has, and one SHA-256.
        """
        found = {}
        for name, rows in self._rows.items():
            digits = "".join(f"{self.checksums[row]:0{DIGITS}x}" for row in rows)
            many = len(self.owners) > MANY
            found[name] = f"{len(rows)} {hashlib.sha256(digits.encode()).hexdigest()}" if many else digits
        return found

    @property
    def sha256(self) -> str:
        """Of all of it."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def changes(self, then: Mapping[str, str]) -> list[str]:
        """What is not as in ``then``, the ``parts`` of before: classes that are new or gone, examples that changed."""
        now = self.parts
        found = [f"{name!r} is new" for name in now if name not in then]
        found += [f"{name!r} is gone" for name in then if name not in now]
        for name in now:
            if then.get(name, now[name]) != now[name]:
                found += self._within(name, then[name], now[name])
        return found

    def _within(self, name: str, then: str, now: str) -> list[str]:
        before, rows = _count(then), self._rows[name]
        if before != len(rows):
            return [f"{name!r} has {len(rows)} examples, and had {before}"]
        if " " in now + then:
            return [f"one of the {before} examples of {name!r} is another"]
        one, other = _each(then), _each(now)
        if sorted(one) == sorted(other):
            return [f"the examples of {name!r} are in another order"]
        odd = [row for row, a, b in zip(rows, one, other, strict=True) if a != b]
        return [f"{self.shown(row)} is another" for row in odd]


def told(changes: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return "; ".join(changes[:SHOWN]) + more


def _count(part: str) -> int:
    return int(part.split()[0]) if " " in part else len(part) // DIGITS


def _each(part: str) -> list[str]:
    return [part[i : i + DIGITS] for i in range(0, len(part), DIGITS)]
