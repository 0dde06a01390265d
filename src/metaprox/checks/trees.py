"""Trees of tensors: their leaves by path, in words, and whether several are alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.errors import InputError

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class TreeKey:
    """How a tree is built, as a key. torch's own description is none in torch 2.7, where it holds lists."""

    spec: pytree.TreeSpec

    def __hash__(self) -> int:
        return hash((self.spec.type, self.spec.num_leaves))


def flattened(tree: Any) -> tuple[list[Any], TreeKey]:
    """The leaves, and how they are arranged."""
    found, spec = pytree.tree_flatten(tree)
    return found, TreeKey(spec)


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
    first, structure = leaves(trees[0]), pytree.tree_structure(trees[0])
    for path, leaf in first:
        if not isinstance(leaf, Tensor) or leaf.layout != torch.strided or leaf.is_nested:
            raise InputError(f"tasks[0]{path} is {kind(leaf)}, {remedy}")
    for index, tree in enumerate(trees[1:], start=1):
        if pytree.tree_structure(tree) != structure:
            raise InputError(f"tasks[0] and tasks[{index}] are built differently, {remedy}")
        for (path, one), (_, other) in zip(first, leaves(tree), strict=True):
            if kind(one) != kind(other):
                raise InputError(
                    f"tasks[0]{path} is {kind(one)} but tasks[{index}]{path} is {kind(other)}: tasks of unequal "
                    f"shapes, {remedy}"
                )
