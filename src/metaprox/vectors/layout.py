"""Named parameters as one flat vector, and back."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from metaprox.data.inference import normal
from metaprox.errors import InputError
from metaprox.vectors.norms import all_finite, largest_of
from metaprox.vectors.shards import Shards, is_sharded, part_here


@dataclass(frozen=True)
class Layout:
    """Where each named parameter lies in a flat vector of P numbers.

    Flattening copies; unflattening gives views (a cast copy where a parameter is narrower than the vector).
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    dtype: torch.dtype
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)  # of each parameter
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(shape.numel() for shape in self.shapes))
        object.__setattr__(self, "_hash", hash((self.names, self.shapes, self.dtypes, self.device, self.dtype)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def of(cls, params: Mapping[str, Tensor], shards: Shards | None = None) -> "Layout":
        """Returns the layout of ``params``, as a vector of the widest of their dtypes; in ``shards`` of the part here.

        Raises:
            InputError: there are none, or not all are real, finite, at least float32 and on one device.
        """
        if not params:
            raise InputError("there are no parameters to adapt: the dictionary of parameters is empty")
        for name, value in params.items():
            _check_kind(name, value, sharded=shards is not None)
        _check_finite(params)
        params = {name: part_here(value) for name, value in params.items()}
        devices = {value.device for value in params.values()}
        if len(devices) > 1:
            raise InputError(f"parameters lie on several devices {sorted(map(str, devices))}; move them to one")
        dtypes = tuple(value.dtype for value in params.values())
        widest = torch.float64 if torch.float64 in dtypes else torch.float32
        shapes = tuple(value.shape for value in params.values())
        return cls(tuple(params), shapes, dtypes, devices.pop(), widest)

    def only(self, names: Collection[str]) -> "Layout | None":
        """The layout of these parameters alone, None where there are none."""
        kept = [index for index, name in enumerate(self.names) if name in names]
        if not kept:
            return None
        return replace(
            self,
            names=tuple(self.names[index] for index in kept),
            shapes=tuple(self.shapes[index] for index in kept),
            dtypes=tuple(self.dtypes[index] for index in kept),
        )

    @property
    def size(self) -> int:
        """P."""
        return sum(self.sizes)

    def pieces(self, params: Mapping[str, Tensor]) -> list[Tensor]:
        """dict of parameters -> each as a vector, a view where memory layout and dtype allow."""
        return [normal(part_here(params[name]).detach()).reshape(-1).to(self.dtype) for name in self.names]

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """dict of parameters -> a new vector [P]."""
        return torch.cat(self.pieces(params))

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """[..., P] -> dict of views [..., *shape], all of the dtype of ``flat``."""
        lead = flat.shape[:-1]
        parts = zip(self.names, self.shapes, flat.split_with_sizes(self.sizes, -1), strict=True)
        return {name: part if len(shape) == 1 else part.view(lead + shape) for name, shape, part in parts}

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """[..., P] -> dict of tensors [..., *shape], as views where the dtype allows."""
        return self.cast(self.views(flat))

    def cast(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same of the parameters' own dtypes: copies of those that are narrower."""
        own = zip(views.items(), self.dtypes, strict=True)
        return {name: part if part.dtype == dtype else part.to(dtype) for (name, part), dtype in own}


_WIDE = (torch.float32, torch.float64)
_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def _is_odd(value: Tensor) -> bool:
    """Whether a tensor may be one that can't be adapted."""
    hooked = any(getattr(value, hooks, None) for hooks in _HOOKS)
    return hooked or value.layout != torch.strided or value.is_nested or value.is_meta


def _check_kind(name: str, value: Tensor, *, sharded: bool) -> None:
    if type(value) in (Tensor, torch.nn.Parameter) and value.dtype in _WIDE and not _is_odd(value):
        return
    if not isinstance(value, Tensor):
        raise InputError(f"parameter {name!r} must be a tensor, got {type(value).__name__}")
    if is_sharded(value) and not sharded:
        raise InputError(
            f"parameter {name!r} is a DTensor, of which this rank has a part: FOBMAML, FOMAML, Reptile and mp.evaluate "
            "take a model in shards; else give it before it is sharded"
        )
    for hooks in _HOOKS:
        if getattr(value, hooks, None):
            raise InputError(
                f"parameter {name!r} has a gradient hook, which inner steps and the meta-gradient would pass by; do "
                "what it does in the loss (multiply by a mask, ...) or on .grad afterwards, and remove it"
            )
    if is_lazy(value):
        raise InputError(
            f"parameter {name!r} is not initialized, as those of lazy modules are not: call the model once on data"
        )
    if value.layout != torch.strided or value.is_nested:
        raise InputError(f"parameter {name!r} is of layout {value.layout}, sparse or nested: give it as a dense tensor")
    if value.is_meta:
        raise InputError(
            f"parameter {name!r} is on the device meta, without values: model.to_empty(...) gives it memory"
        )
    if value.dtype.is_complex or not value.dtype.is_floating_point:
        raise InputError(
            f"parameter {name!r} has dtype {value.dtype}: only real floating-point parameters can be adapted; "
            "freeze it (requires_grad_(False)) or convert it"
        )
    if torch.finfo(value.dtype).bits < 32:
        raise InputError(
            f"parameter {name!r} has dtype {value.dtype}, too coarse for differences of solutions; "
            "keep parameters in float32 and use torch.autocast inside the loss"
        )


def _check_finite(params: Mapping[str, Tensor]) -> None:
    """One look from the host, however many parameters there are."""
    if all_finite(params.values()):
        return
    filled = {name: value.detach() for name, value in params.items() if value.numel()}
    for name, largest in zip(filled, largest_of(list(filled.values())), strict=True):
        if not math.isfinite(largest):
            raise InputError(f"parameter {name!r} has non-finite values")
