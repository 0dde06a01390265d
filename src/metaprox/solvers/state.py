"""A solver's state as tensors, for graphs that step with it."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

Form = Any  # None, Tensor, or a class and the forms of what an object of it holds


def none_taken(y: Tensor) -> Tensor:
    """A count of steps from y [T, B, P] that begins: 0 for each task [T, 1, 1], in a dtype that can count."""
    return torch.zeros(len(y), 1, 1, dtype=torch.promote_types(y.dtype, torch.float32), device=y.device)


def taken_apart(state: Any) -> tuple[Form, list[Tensor]] | None:
    """Returns how a state is built, and the tensors in it; None where other things are in it too, such as a count."""
    if state is None:
        return None, []
    if isinstance(state, Tensor):
        return Tensor, [state]
    kind: type = type(state)
    if kind is not tuple and not is_dataclass(state):
        return None
    forms: list[Form] = []
    tensors: list[Tensor] = []
    for item in state if kind is tuple else [getattr(state, field.name) for field in fields(state)]:
        part = taken_apart(item)
        if part is None:
            return None
        forms.append(part[0])
        tensors += part[1]
    return (kind, tuple(forms)), tensors


def alike(one: Form, other: Form) -> bool:
    """Whether these forms are the same: by identity, since some versions of torch's compiler can't compare classes."""
    if not isinstance(one, tuple) or not isinstance(other, tuple):
        return one is other
    (kind, parts), (other_kind, others) = one, other
    if kind is not other_kind or len(parts) != len(others):
        return False
    return all(alike(*pair) for pair in zip(parts, others, strict=True))


def put_together(form: Form, tensors: Iterator[Tensor]) -> Any:
    """The state of this form."""
    if form is None:
        return None
    if form is Tensor:
        return next(tensors)
    kind, forms = form
    items = [put_together(one, tensors) for one in forms]
    return tuple(items) if kind is tuple else kind(*items)
