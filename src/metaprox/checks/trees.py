"""Trees of tensors: their leaves by path, in words, and whether several are alike."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.errors import InputError

Entry = TypeVar("Entry")


Form = Any  # how a tree is built: None for a leaf, or its kind, what else there is to know, and those of what it holds


@dataclass(frozen=True)
class _OfTorch:
    """How a tree of another kind is built, in torch's words, which are no key in torch 2.7 where it holds lists."""

    spec: pytree.TreeSpec

    def __hash__(self) -> int:
        return hash((self.spec.type, self.spec.num_leaves))


def flattened(tree: Any) -> tuple[list[Any], Form]:
    """The leaves, in torch's order, and how they are arranged: hashable. For plain trees in a tenth of torch's time."""
    found: list[Any] = []
    return found, _take(tree, found)


def unflattened(leaves: Iterable[Any], form: Form) -> Any:
    """The tree of this form."""
    return _build(form, iter(leaves))


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree, with what ``function`` makes of each leaf."""
    found, form = flattened(tree)
    return unflattened(map(function, found), form)


def _take(tree: Any, found: list[Any]) -> Form:
    kind = type(tree)
    if (
        kind is tuple
        or kind is list
        or (issubclass(kind, tuple) and tuple in kind.__bases__ and hasattr(kind, "_fields"))
    ):
        return kind, (), tuple([_take(item, found) for item in tree])
    if kind is dict:
        return kind, tuple(tree), tuple([_take(item, found) for item in tree.values()])
    if issubclass(kind, (tuple, list, dict)) or kind in pytree.SUPPORTED_NODES:
        leaves, spec = pytree.tree_flatten(tree)
        found += leaves
        return _OfTorch(spec)
    found.append(tree)
    return None


def _build(form: Form, leaves: Iterator[Any]) -> Any:
    if form is None:
        return next(leaves)
    if isinstance(form, _OfTorch):
        return pytree.tree_unflatten(list(itertools.islice(leaves, form.spec.num_leaves)), form.spec)
    kind, keys, forms = form
    items = [_build(one, leaves) for one in forms]
    if kind is dict:
        return dict(zip(keys, items, strict=True))
    return items if kind is list else tuple(items) if kind is tuple else kind(*items)


def under(prefix: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}


def on_device(tree: Any, device: torch.device) -> Any:
    """The same tree with its tensors there."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)


def devices(tree: Any) -> set[str]:
    """Those that its tensors lie on."""
    return {str(leaf.device) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)}


def leaves(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf), such as (".support[0]", tensor)."""
    named, _ = pytree.tree_flatten_with_path(tree)
    return [(pytree.keystr(path), leaf) for path, leaf in named]


def kind(value: object) -> str:
    """What ``value`` is: of a tensor, its dtype and shape."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def describe(tree: Any) -> str:
    """The kinds of the leaves, on one line."""
    parts = [f"{path}: {kind(leaf)}" if path else kind(leaf) for path, leaf in leaves(tree)]
    more = f", and {len(parts) - 8} more" if len(parts) > 8 else ""
    return f"{', '.join(parts[:8])}{more}" if parts else f"{kind(tree)} without leaves"


def check_alike(trees: Sequence[Any], remedy: str) -> None:
    """Raise InputError, which names the place in ``tasks`` and the remedy, unless they are tensors of equal shapes."""
    if not all(map(_dense, flattened(trees[0])[0])):
        path, leaf = next(one for one in leaves(trees[0]) if not _dense(one[1]))
        raise InputError(f"tasks[0]{path} is {kind(leaf)}, {remedy}")
    if len(trees) == 1:
        return
    first, structure = leaves(trees[0]), pytree.tree_structure(trees[0])
    for index, tree in enumerate(trees[1:], start=1):
        if pytree.tree_structure(tree) != structure:
            raise InputError(f"tasks[0] and tasks[{index}] are built differently, {remedy}")
        for (path, one), (_, other) in zip(first, leaves(tree), strict=True):
            if kind(one) != kind(other):
                raise InputError(
                    f"tasks[0]{path} is {kind(one)} but tasks[{index}]{path} is {kind(other)}: tasks of unequal "
                    f"shapes, {remedy}"
                )


def _dense(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_nested
