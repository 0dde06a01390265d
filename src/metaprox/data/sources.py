"""Labelled examples of any kind by index: tensors, arrays, datasets of torch and HuggingFace, what a reader found."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from metaprox import checks
from metaprox.data.examples import Examples
from metaprox.errors import InputError

KINDS = (
    "a pair (x, y) of tensors or arrays, a torch Dataset of pairs (x, label), a HuggingFace Dataset with "
    "columns=(x, label), or the Examples of a reader"
)


@dataclass(frozen=True)
class Source:
    """N examples: ``take(rows)`` reads their inputs, and nothing else is read.

    Args:
        size: N.
        labels: of the N examples, any values that can be told apart; None where there are none.
        take: of rows, a tree of tensors with a leading dimension, or a list of items that are none yet.
        names: of labels, where they have others than themselves.
        random: whether reading draws random numbers of torch.
        targets: in place of labels, where each is several numbers [N, ...].
    """

    size: int
    labels: Sequence[Any] | None
    take: Callable[[list[int]], Any]
    names: Callable[[Any], str] = str
    random: bool = False
    targets: Tensor | None = None

    def required(self) -> Sequence[Any]:
        """The labels. Raises InputError where there are none."""
        if self.labels is None:
            raise InputError("the source has no labels, a number or string each: give labels, one for each example")
        return self.labels


def source_of(data: Any, labels: Any = None, columns: Sequence[str] | None = None) -> Source:
    """Returns ``data`` as a Source. ``labels``: one for each example, where the data do not say.

    Raises:
        InputError: it is none of the kinds that are known, or labels are not as many as examples.
    """
    if isinstance(data, Source):
        found = data
    elif isinstance(data, Examples):
        found = _of_examples(data)
    elif hasattr(data, "column_names") and hasattr(data, "features"):
        found = _of_table(data, columns)
    elif isinstance(data, (tuple, list)) and len(data) == 2 and _size(data[0]) is not None:
        found = _of_arrays(*data)
    elif callable(getattr(data, "__getitem__", None)) and callable(getattr(data, "__len__", None)):
        found = _of_dataset(data, labels)
    else:
        raise InputError(f"source must be {KINDS}, got {checks.shown(data)}")
    if columns is not None and not hasattr(data, "column_names"):
        raise InputError("columns are those of a HuggingFace Dataset; other sources have none")
    if labels is not None:
        found = replace(found, labels=plain(labels))
    if found.labels is not None and len(found.labels) != found.size:
        raise InputError(f"there are {len(found.labels)} labels for {found.size} examples")
    return found


def plain(values: Any) -> list[Hashable]:
    """Labels, groups or times as Python's own values."""
    found = values.tolist() if callable(getattr(values, "tolist", None)) else list(values)
    for value in found:
        if not isinstance(value, Hashable):
            raise InputError(f"labels must be numbers or strings, one for each example, got {checks.shown(value)}")
    return found


def _size(tree: Any) -> int | None:
    """How many examples a tree of tensors or arrays has; None where it is none."""
    leaves = pytree.tree_leaves(tree)
    if not leaves or not all(getattr(leaf, "shape", ()) for leaf in leaves):
        return None
    return int(leaves[0].shape[0])


def _of_arrays(x: Any, y: Any) -> Source:
    tensors = pytree.tree_map(_tensor, x)
    sizes = {len(leaf) for leaf in pytree.tree_leaves(tensors)}
    if len(sizes) > 1:
        raise InputError(f"the tensors of x have different numbers of examples: {', '.join(map(str, sorted(sizes)))}")

    def take(rows: list[int]) -> Any:
        chosen = torch.tensor(rows, device="cpu")
        return pytree.tree_map(lambda leaf: leaf[chosen.to(leaf.device)], tensors)

    if len(getattr(y, "shape", ())) > 1:
        return Source(sizes.pop(), None, take, targets=_tensor(y))
    return Source(sizes.pop(), None if y is None else plain(y), take)


def _tensor(leaf: Any) -> Tensor:
    try:
        return torch.as_tensor(leaf)
    except TypeError as error:  # of an array of objects
        raise InputError(f"x must be of numbers: {error}") from error


def _of_examples(data: Examples) -> Source:
    labels = None if data.labels is None else data.labels.tolist()
    names: Callable[[Any], str] = (lambda label: data.names[label]) if data.names else str

    def take(rows: list[int]) -> Any:
        if isinstance(data.items, Tensor):
            return data.items[torch.tensor(rows, device="cpu")]
        return [data.items[i] for i in rows]

    return Source(len(data), labels, take, names)


def _of_table(data: Any, columns: Sequence[str] | None) -> Source:
    """A HuggingFace Dataset; of its other columns nothing is read."""
    if columns is None or isinstance(columns, str) or len(columns) != 2:
        raise InputError(
            f"columns must be two of {', '.join(data.column_names)}: that of the inputs and that of the labels"
        )
    if lacking := [name for name in columns if name is not None and name not in data.column_names]:
        raise InputError(
            f"the Dataset has no column {', '.join(map(repr, lacking))}; it has {', '.join(data.column_names)}"
        )
    inputs, label = columns
    chosen = data.select_columns([inputs])
    named = getattr(data.features.get(label), "int2str", None)
    labels = None if label is None else plain(data.with_format(None)[label][:])
    return Source(len(data), labels, lambda rows: chosen[rows][inputs], named or str)


def _of_dataset(data: Any, labels: Any) -> Source:
    """A map-style dataset of (x, label). Labels it does not list, as ``targets`` or ``labels``, are read one by one."""
    listed = next((getattr(data, name) for name in ("targets", "labels") if hasattr(data, name)), None)
    if labels is None and listed is None:
        listed = [_pair(data, i)[1] for i in range(len(data))]
        listed = [one.item() if isinstance(one, Tensor) and not one.dim() else one for one in listed]
    names = getattr(data, "classes", None)
    named: Callable[[Any], str] = str
    if isinstance(names, Sequence) and not isinstance(names, str):
        named = lambda label: str(names[label]) if isinstance(label, int) and label < len(names) else str(label)  # noqa: E731

    def take(rows: list[int]) -> Any:
        many = getattr(data, "__getitems__", None)
        return [one[0] for one in many(rows)] if callable(many) else [_pair(data, i)[0] for i in rows]

    return Source(len(data), None if listed is None else plain(listed), take, named, random=True)


def _pair(data: Any, index: int) -> Any:
    found = data[index]
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise InputError(f"example {index} of the source must be a pair (x, label), got {checks.shown(found)}")
    return found


def inputs_of(source: Source, rows: list[int], inputs: Callable[[Any], Any] | None) -> Any:
    """The inputs of rows, a tree of tensors with a leading dimension. Raises InputError where there are none."""
    taken = source.take(rows)
    if inputs is not None:
        return inputs(taken)
    if isinstance(taken, Mapping) or not isinstance(taken, list):
        return taken
    try:
        found = default_collate(taken)
    except (TypeError, RuntimeError) as error:
        raise InputError(f"the inputs can't be stacked: {error}. Give inputs=, a function of a list of them") from error
    if not all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(found)):
        raise InputError(
            f"the inputs are no tensors, but {checks.shown(taken[0])}: give inputs=, a function of a list of them, "
            "such as one of metaprox.readers"
        )
    return found
