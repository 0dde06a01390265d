"""Classes, or groups of them, that training, validation and test do not share."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from metaprox import checks
from metaprox.data.draws import KeyedDraws
from metaprox.errors import InputError

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def split_classes(
    classes: Sequence[Hashable],
    fractions: Mapping[str, float] | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    lists: Mapping[str, Sequence[Hashable]] | None = None,
    seed: int = 0,
) -> dict[str, tuple[Any, ...]]:
    """Each class in one split, or in none.

    Args:
        classes: names or numbers, each once.
        fractions: split -> its share of the classes, or of the groups; of these at least one. They sum to 1, or to
            less. None: 0.6, 0.2 and 0.2 for train, validation and test.
        groups: of each class, a group that stays together: an alphabet, a domain.
        lists: split -> its classes, or its groups, in place of fractions.
        seed: of the order in which they are dealt out, which does not depend on that of ``classes``.

    Returns:
        Split -> its classes, in the order of ``classes``.

    Raises:
        InputError: a class comes twice, or fractions or lists are not such that each class has one place; names them.

    Example:
        >>> from metaprox.data import split_classes
        >>> split_classes(["cat", "dog", "eel", "fox", "gnu"])
        {'train': ('cat', 'eel', 'fox'), 'validation': ('gnu',), 'test': ('dog',)}
    """
    classes = list(classes)
    if twice := [one for one, count in Counter(classes).items() if count > 1]:
        raise InputError(f"the class {twice[0]!r} comes twice in classes")
    own = classes if groups is None else list(groups)
    if len(own) != len(classes):
        raise InputError(f"groups must be one for each of {len(classes)} classes, got {len(own)}")
    if lists is not None:
        place = _listed(lists, classes, own)
    else:
        place = _dealt(FRACTIONS if fractions is None else fractions, own, checks.seed("seed", seed))
    splits = list(lists if lists is not None else FRACTIONS if fractions is None else fractions)
    where = [place.get(one, place.get(group)) for one, group in zip(classes, own, strict=True)]
    return {split: tuple(one for one, there in zip(classes, where, strict=True) if there == split) for split in splits}


def _dealt(fractions: Mapping[str, float], groups: list[Hashable], seed: int) -> dict[Hashable, str]:
    """Group -> split, by fractions."""
    shares = {name: checks.positive(f"fractions[{name!r}]", one) for name, one in fractions.items()}
    if not shares or sum(shares.values()) > 1 + 1e-9:
        raise InputError(f"fractions must sum to at most 1, got {checks.shown(dict(fractions))}")
    known = sorted(set(groups), key=lambda one: (str(one), repr(one)))
    if len(known) < len(shares):
        raise InputError(f"{len(known)} classes or groups can't be dealt out to {', '.join(shares)}: there are too few")
    counts = _counts(shares, len(known))
    order = iter(KeyedDraws("classes", seed).order(len(known)))
    return {known[next(order)]: name for name, count in counts.items() for _ in range(count)}


def _counts(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers near the shares of a total, each at least 1."""
    counts = {name: max(1, int(share * total + 1e-9)) for name, share in shares.items()}
    wanted = round(sum(shares.values()) * total)
    while sum(counts.values()) > max(wanted, len(shares)):
        counts[max(counts, key=lambda name: (counts[name] - shares[name] * total, counts[name]))] -= 1
    while sum(counts.values()) < wanted:
        counts[max(shares, key=lambda name: shares[name] * total - counts[name])] += 1
    return counts


def _listed(
    lists: Mapping[str, Sequence[Hashable]], classes: list[Hashable], groups: list[Hashable]
) -> dict[Hashable, str]:
    """Class or group -> split, by lists."""
    place: dict[Hashable, str] = {}
    for split, names in lists.items():
        for name in [names] if isinstance(names, str) else names:
            if place.setdefault(name, split) != split:
                raise InputError(f"{name!r} is in the lists of both {place[name]} and {split}")
    known = {*classes, *groups}
    if odd := [name for name in place if name not in known]:
        raise InputError(f"the lists name {', '.join(map(repr, odd[:5]))}, which the data do not have")
    for one, group in zip(classes, groups, strict=True):
        if one != group and one in place and place.get(group, place[one]) != place[one]:
            raise InputError(
                f"{one!r} is in the list of {place[one]}, and its group {group!r} in that of {place[group]}"
            )
    return place
