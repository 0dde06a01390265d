"""A user's loss as a function that always returns (scalar, metrics), or says what it returned instead."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from metaprox.checks.trees import describe, devices, kind
from metaprox.errors import InputError, MetaproxError
from metaprox.modules.loss import ModuleLoss, PrivateLoss
from metaprox.types import Loss, Metrics

InGraph = Callable[[dict[str, Tensor], Any], tuple[Tensor, Metrics]]  # a loss of parameters and data, to be traced
A_LOSS = "a loss returns a scalar tensor, or (scalar tensor, {name: number or scalar tensor})"


@dataclass(frozen=True)
class CheckedLoss:
    """``loss(params, batch)``. ``role``: its name for people.

    differentiable: whether its gradient is wanted, so that it has to depend on the parameters.

    Raises InputError for what is no loss; whatever else the user's code raises passes through.
    """

    loss: Loss
    role: str
    differentiable: bool = True

    def __call__(self, params: dict[str, Tensor], batch: Any) -> tuple[Tensor, Metrics]:
        try:
            result = self.loss(params, batch)
        except Exception as error:
            if isinstance(error, MetaproxError):
                raise
            if isinstance(error, RuntimeError) and (apart := devices(batch) - devices(params)):
                raise InputError(
                    f"{self.role} got a batch with tensors on {', '.join(apart)} and parameters on "
                    f"{', '.join(devices(params))}, and failed: {str(error).splitlines()[0]}; move the tasks to the "
                    "parameters' device, or each batch in the loss"
                ) from error
            error.add_note(f"metaprox: raised by {self.role} on a batch of {describe(batch)}; {A_LOSS}")
            raise
        return self._value(params, result)

    def for_graphs(self) -> InGraph:
        """Returns the same, to be traced: by names, for before torch 2.8 a graph is tied to an object called in it."""
        loss = self.loss.prepared() if isinstance(self.loss, ModuleLoss) else self.loss
        return lambda params, batch: self._value(params, loss(params, batch))

    def release(self) -> None:
        """After an evaluation whose graph is no longer needed: let go of its tensors."""
        if isinstance(self.loss, PrivateLoss):
            self.loss.release()

    def fork(self) -> "CheckedLoss":
        """The same for an evaluation whose graph outlives the next one."""
        loss = self.loss.fork() if isinstance(self.loss, PrivateLoss) else self.loss
        return CheckedLoss(loss, self.role, self.differentiable)

    def _value(self, params: dict[str, Tensor], result: Any) -> tuple[Tensor, Metrics]:
        value: Any = result
        metrics: Any = {}
        if isinstance(result, tuple):
            if len(result) != 2:
                raise InputError(f"{self.role} returned a tuple of {len(result)}: {A_LOSS}")
            value, metrics = result
        if not isinstance(value, Tensor) or value.dim() != 0:
            hint = "; reduce it, for example with .mean()" if isinstance(value, Tensor) else ""
            raise InputError(f"{self.role} must return a scalar tensor, got {kind(value)}{hint}: {A_LOSS}")
        if not value.is_floating_point():
            raise InputError(f"{self.role} must return a real floating-point scalar, got one of {value.dtype}")
        if self.differentiable and not value.requires_grad:
            raise InputError(
                f"{self.role} does not depend on the parameters {list(params)}; is the loss computed from them, "
                "and without detach() or no_grad()?"
            )
        return value, _metrics(metrics, self.role)


def _metrics(metrics: Any, role: str, prefix: str = "") -> Metrics:
    """As a flat dictionary of scalar tensors; those of a dictionary in it as "outer.inner"."""
    if not isinstance(metrics, Mapping):
        raise InputError(
            f"{role} returned {kind(metrics)} beside the loss, where {{name: scalar}} belongs; return the loss alone, "
            "or name what is to be reported"
        )
    found: Metrics = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or (name == "loss" and not prefix):
            why = "is the name of the loss itself" if name == "loss" else "is no name"
            raise InputError(f"{role} returned a metric {name!r}, which {why}; rename it")
        if isinstance(value, Mapping):
            found |= _metrics(value, role, f"{prefix}{name}.")
        else:
            found[prefix + name] = _metric(value, role, prefix + name)
    return found


def _metric(value: Any, role: str, name: str) -> Tensor:
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex():
        return value
    if isinstance(value, Real):
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")
    raise InputError(f"{role} returned {kind(value)} as the metric {name!r}: a metric is a number or a scalar tensor")


def together(parts: Sequence[Tensor]) -> Tensor:
    """One after another; the tensor itself where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def joined(parts: Sequence[Metrics], join: Callable[[list[Tensor]], Tensor] = together) -> Metrics:
    """The metrics of several tasks, or chunks of them, as one. Raises InputError where their names differ."""
    for part in parts:
        if part.keys() != parts[0].keys():
            raise InputError(
                f"a loss reports other metrics in one task than in another: {list(parts[0])}, {list(part)}"
            )
    return {name: join([part[name] for part in parts]) for name in parts[0]}
