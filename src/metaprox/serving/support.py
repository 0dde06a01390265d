"""A support as a person has it, as what a loss takes: examples with labels, of classes that have names."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metaprox import checks
from metaprox.data.examples import Examples
from metaprox.errors import InputError
from metaprox.serving.parts import names_of


def batch_of(
    support: Any,
    names: Sequence[str] | None,
    preprocessing: Callable[[Sequence[Any]], Any] | None,
    *,
    needs_classes: bool,
    fixed: Sequence[str] | None,
) -> tuple[Any, tuple[str, ...]]:
    """Returns the support as the loss takes it, and the names of its classes; () where it has none.

    ``fixed``: the names of the classes that the model answers with, in their order, which labels are put in.

    Raises:
        InputError: it is not (items, labels) where it has to be, or labels are not among the names, or these not
            among those that are fixed.
    """
    if isinstance(support, Examples):
        names = support.names if names is None else names
        targets = support.targets  # numbers are a column, as the outputs of a model are
        support = (support.items, targets if support.names or targets.dim() > 1 else targets.unsqueeze(1))
    names = fixed if names is None else names
    given = None if names is None else names_of("names", names)
    if not isinstance(support, (tuple, list)) or len(support) != 2:
        if given is not None or needs_classes or preprocessing is not None:
            raise InputError(f"the support must be (items, labels), got {checks.shown(support)}")
        return support, ()
    items, labels = support
    inputs = items if preprocessing is None else preprocessing(items)
    labels, known = labelled(labels, given, whole=needs_classes)
    if fixed is not None and known:
        labels, known = _in_order(labels, known, tuple(fixed))
    if needs_classes and not known:
        raise InputError(f"a head that is made for each task needs labels of classes, got {checks.shown(labels)}")
    if (count := _length(inputs)) is not None and isinstance(labels, Tensor) and labels.dim() and count != len(labels):
        raise InputError(f"the support has {count} examples and {len(labels)} labels")
    return (inputs, labels), known


def labelled(labels: Any, names: tuple[str, ...] | None, *, whole: bool) -> tuple[Any, tuple[str, ...]]:
    """Returns labels as a tensor, integers 0 to C - 1 for classes, and the names of these; () for numbers.

    Raises:
        InputError: a label is none of the names; or a name has no example, where the ``whole`` of them has to be there.
    """
    if not isinstance(labels, Tensor) and callable(getattr(labels, "tolist", None)):
        labels = labels.tolist()  # an array, or a column of a table
    if isinstance(labels, (list, tuple)) and any(isinstance(x, str) for x in labels):
        each = checks.tuple_of("labels", labels, checks.text)
        known = tuple(sorted(set(each))) if names is None else names
        place = {name: index for index, name in enumerate(known)}
        if odd := next((one for one in each if one not in place), None):
            raise InputError(f"label {odd!r} is none of the names: {', '.join(map(repr, known[:10]))}")
        labels = torch.tensor([place[one] for one in each], device="cpu")
    else:
        labels = _tensor(labels)
        if names == () or labels.is_floating_point() or labels.dim() != 1:
            if names:
                raise InputError(f"names are of classes, but the labels are {checks.shown(labels)}")
            return labels, ()
        highest = min(int(labels.max()), len(labels)) if len(labels) else -1  # of which no class can be missing
        known = tuple(map(str, range(highest + 1))) if names is None else names
    return _in_range(labels.long(), known, whole=whole), known


def _in_order(labels: Tensor, names: tuple[str, ...], fixed: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Returns labels, indices into ``names``, as such into ``fixed``. Raises InputError where a name is not in it."""
    if odd := next((name for name in names if name not in fixed), None):
        raise InputError(
            f"the support has the class {odd!r}, and the model answers with {', '.join(map(repr, fixed[:10]))} alone: "
            "leave it out, or train with a head that is made for the classes of a task, head=mp.Head(...) (--head)"
        )
    return torch.tensor([fixed.index(name) for name in names], device=labels.device)[labels], fixed


def _tensor(labels: Any) -> Tensor:
    try:
        return labels if isinstance(labels, Tensor) else torch.as_tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"labels must be numbers, or names of classes, got {checks.shown(labels)}") from error


def _in_range(labels: Tensor, names: tuple[str, ...], *, whole: bool) -> Tensor:
    """The labels [N]. Raises InputError unless they are of 0 to C - 1, and where ``whole`` all of these are there."""
    found = set(labels.tolist())
    if odd := sorted(found - set(range(len(names)))):
        raise InputError(f"the support has the label {odd[0]}, of {len(names)} classes: their labels are 0 to C - 1")
    if whole and (missing := sorted(set(range(len(names))) - found)):
        raise InputError(f"the support has no example of {names[missing[0]]!r}: give at least one of each class")
    if not found:
        raise InputError("the support has no examples: give at least one of each class")
    return labels


def _length(inputs: Any) -> int | None:
    """How many examples the inputs are of, where that can be told."""
    leaves = [inputs] if isinstance(inputs, Tensor) else list(inputs.values()) if isinstance(inputs, dict) else []
    return next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)
