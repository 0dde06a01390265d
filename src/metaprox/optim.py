"""Outer optimizers for objectives whose smoothness grows with their gradient, ||Hess F|| <= L0 + L1 ||grad F||.

Both are ordinary ``torch.optim.Optimizer``s: parameter groups, ``state_dict``, schedulers. The norm is taken
over all groups together, so that splitting parameters into groups of equal settings changes nothing; it neither
overflows nor vanishes where the gradient itself does not. Settings are checked when an optimizer is made, and at every
step, whoever has changed them since.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from metaprox import checks
from metaprox.errors import InputError, NonFiniteError
from metaprox.vectors.norms import joint_norm, largest_of
from metaprox.vectors.shards import part_here


class NormalizedSGD(Optimizer):
    """Normalized SGD with momentum: m <- beta m + (1 - beta) g;  x <- x - lr m / ||m||.

    Every step has length ``lr`` (where all groups share it), whatever the size of the gradient. m starts at 0,
    and the first step is along g. Where m is 0, nothing moves. State: one vector like the parameters.

    Args:
        params: parameters or groups. lr, in units of the parameters, and momentum may differ between groups.
        lr: step length eta. Decay it to 0 (for example with ``LinearLR``) to converge to a point.
        momentum: beta in [0, 1).

    Raises:
        InputError: a setting of a group is out of range, when it is made or at a step. NonFiniteError: the gradient, or
            a momentum buffer that was loaded, is not finite. Nothing was changed then.

    Source: Cutkosky & Mehta, arXiv 2002.03305; used for FO-B-MAML by Chayti & Jaggi, arXiv 2409.03682.

    Example:
        >>> import torch, metaprox as mp
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> opt = mp.optim.NormalizedSGD([x], lr=1.0, momentum=0.9)
        >>> x.square().sum().backward(); opt.step(); x.data
        tensor([2.4000, 3.2000])
    """

    def __init__(self, params: ParamsT, lr: float, momentum: float = 0.9) -> None:
        super().__init__(_parameters(params), {"lr": lr, "momentum": momentum})
        self._check_settings()

    def _check_settings(self) -> None:
        for index, group in enumerate(self.param_groups):
            checks.nonnegative(_of_group(self, index, "lr"), group["lr"])
            checks.fraction(_of_group(self, index, "momentum"), group["momentum"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients that are there; ``closure``, if given, is called first to fill them."""
        self._check_settings()
        loss = _evaluate(closure)
        groups = _groups_with_gradients(self)
        _require_finite_gradients(self)
        remedy = "Load another state_dict, or make a new optimizer"
        self._check_buffers(remedy)
        _require_finite(self, "momentum buffer", remedy, lambda p: self.state.get(p, {}).get("momentum_buffer"))
        buffers = [self._momentum(group, params) for group, params in groups]
        scale, norm = joint_norm([buffer for some in buffers for buffer in some])
        if norm > 0:
            for (group, params), some in zip(groups, buffers, strict=True):
                _move(params, some, -float(group["lr"]) / norm, scale)
        return loss

    def _check_buffers(self, remedy: str) -> None:
        for p, state in self.state.items():
            buffer = state.get("momentum_buffer", p)
            if buffer.shape != p.shape:
                raise InputError(
                    f"a momentum buffer is of shape {tuple(buffer.shape)}, its parameter of {tuple(p.shape)}. {remedy}"
                )

    def _momentum(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(_here(buffers), _here(_gradients(params)), 1 - float(group["momentum"]))
        return buffers


class ClippedSGD(Optimizer):
    """Clipped SGD: x <- x - min(lr, gamma / ||g||) g, a step of lr g that is never longer than ``gamma``. No state.

    Args:
        params: parameters or groups. lr and gamma may differ between groups.
        lr: step size eta, for small gradients.
        gamma: the longest step, in units of the parameters.

    Raises:
        InputError: a setting of a group is out of range, when it is made or at a step. NonFiniteError: the gradient is
            not finite. Nothing was changed then.

    Source: Zhang, He, Sra & Jadbabaie, arXiv 1905.11881.
    """

    def __init__(self, params: ParamsT, lr: float, gamma: float) -> None:
        super().__init__(_parameters(params), {"lr": lr, "gamma": gamma})
        self._check_settings()

    def _check_settings(self) -> None:
        for index, group in enumerate(self.param_groups):
            checks.nonnegative(_of_group(self, index, "lr"), group["lr"])
            checks.positive(_of_group(self, index, "gamma"), group["gamma"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients that are there; ``closure``, if given, is called first to fill them."""
        self._check_settings()
        loss = _evaluate(closure)
        groups = _groups_with_gradients(self)
        _require_finite_gradients(self)
        scale, norm = joint_norm([gradient for _, params in groups for gradient in _gradients(params)])
        for group, params in groups:
            longest = float(group["gamma"]) / norm if norm > 0 else math.inf
            _move(params, _gradients(params), -min(float(group["lr"]) * scale, longest), scale)
        return loss


def _parameters(params: Any) -> list[Any]:
    """As a list. Raises InputError where there are none; of what they are torch is the judge."""
    if isinstance(params, (str, Tensor)) or not isinstance(params, Iterable):
        raise InputError(f"params must be parameters or groups of them, got {checks.shown(params)}: model.parameters()")
    found = list(params)
    if not found:
        raise InputError("params is empty: there is nothing to optimize")
    return found


def _move(params: list[Tensor], directions: list[Tensor], size: float, scale: float) -> None:
    """Add ``size`` / ``scale`` times the directions; where scale is not 1, the quotient alone might overflow."""
    params, directions = _here(params), _here(directions)
    if scale != 1:
        directions = list(torch._foreach_div(directions, scale))
    torch._foreach_add_(params, directions, alpha=size)


def _here(tensors: list[Tensor]) -> list[Tensor]:
    """What this rank holds of those in shards, in the same memory."""
    return [part_here(tensor) for tensor in tensors]


def _of_group(optimizer: Optimizer, index: int, name: str) -> str:
    return name if len(optimizer.param_groups) == 1 else f"{name} of parameter group {index}"


def _evaluate(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _groups_with_gradients(optimizer: Optimizer) -> list[tuple[dict[str, Any], list[Tensor]]]:
    groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in optimizer.param_groups]
    for index, (_, params) in enumerate(groups):
        if any(gradient.is_sparse for gradient in _gradients(params)):
            raise InputError(
                f"parameter group {index} has sparse gradients; {type(optimizer).__name__} needs dense ones"
            )
    return [(group, params) for group, params in groups if params]


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _require_finite(optimizer: Optimizer, what: str, remedy: str, of: Callable[[Tensor], Tensor | None]) -> None:
    """Raise NonFiniteError, naming the parameter, unless what belongs to each is finite, and twice its value too."""
    named = [
        (f"parameter {place} of group {index}", tensor)
        for index, group in enumerate(optimizer.param_groups)
        for place, p in enumerate(group["params"])
        if p.grad is not None and (tensor := of(p)) is not None and tensor.numel()
    ]
    if not named:
        return
    largest = largest_of([tensor for _, tensor in named])
    for value, (name, tensor) in zip(largest, named, strict=True):
        if not value <= torch.finfo(tensor.dtype).max / 2:
            raise NonFiniteError(f"the {what} of {name} has an entry of {value}; no parameter was changed. {remedy}")


def _require_finite_gradients(optimizer: Optimizer) -> None:
    _require_finite(optimizer, "gradient", "Skip the step, or find the cause", lambda p: p.grad)
