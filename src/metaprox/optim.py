"""Outer optimizers for objectives whose smoothness grows with their gradient, ||Hess F|| <= L0 + L1 ||grad F||.

Both are ordinary ``torch.optim.Optimizer``s: parameter groups, ``state_dict``, schedulers. The norm is taken
over all groups together, so that splitting parameters into groups of equal settings changes nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from metaprox import checks
from metaprox.errors import InputError, NonFiniteError


class NormalizedSGD(Optimizer):
    """Normalized SGD with momentum: m <- beta m + (1 - beta) g;  x <- x - lr m / ||m||.

    Every step has length ``lr`` (where all groups share it), whatever the size of the gradient. m starts at 0,
    and the first step is along g. Where m is 0, nothing moves. State: one vector like the parameters.

    Args:
        params: parameters or groups. lr, in units of the parameters, and momentum may differ between groups.
        lr: step length eta. Decay it to 0 (for example with ``LinearLR``) to converge to a point.
        momentum: beta in [0, 1).

    Raises:
        NonFiniteError: the gradient has a non-finite norm; nothing was changed.

    Source: Cutkosky & Mehta, arXiv 2002.03305; used for FO-B-MAML by Chayti & Jaggi, arXiv 2409.03682.

    Example:
        >>> import torch, metaprox as mp
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> opt = mp.optim.NormalizedSGD([x], lr=1.0, momentum=0.9)
        >>> x.square().sum().backward(); opt.step(); x.data
        tensor([2.4000, 3.2000])
    """

    def __init__(self, params: ParamsT, lr: float, momentum: float = 0.9) -> None:
        checks.nonnegative("lr", lr)
        checks.fraction("momentum", momentum)
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients that are there; ``closure``, if given, is called first to fill them."""
        loss = _evaluate(closure)
        groups = _groups_with_gradients(self)
        _finite_norm(groups)
        buffers = [self._momentum(group, params) for group, params in groups]
        norm = _norm([buffer for some in buffers for buffer in some])
        if norm > 0:
            for (group, params), some in zip(groups, buffers, strict=True):
                torch._foreach_add_(params, some, alpha=-float(group["lr"]) / norm)
        return loss

    def _momentum(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, _gradients(params), 1 - group["momentum"])
        return buffers


class ClippedSGD(Optimizer):
    """Clipped SGD: x <- x - min(lr, gamma / ||g||) g, a step of lr g that is never longer than ``gamma``.

    Args:
        params: parameters or groups. lr and gamma may differ between groups.
        lr: step size eta, for small gradients.
        gamma: the longest step, in units of the parameters.

    Raises:
        NonFiniteError: the gradient has a non-finite norm; nothing was changed.

    Source: Zhang, He, Sra & Jadbabaie, arXiv 1905.11881.
    """

    def __init__(self, params: ParamsT, lr: float, gamma: float) -> None:
        checks.nonnegative("lr", lr)
        checks.positive("gamma", gamma)
        super().__init__(params, {"lr": lr, "gamma": gamma})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients that are there; ``closure``, if given, is called first to fill them."""
        loss = _evaluate(closure)
        groups = _groups_with_gradients(self)
        norm = _finite_norm(groups)
        for group, params in groups:
            size = float(group["lr"]) if norm == 0 else min(float(group["lr"]), group["gamma"] / norm)
            torch._foreach_add_(params, _gradients(params), alpha=-size)
        return loss


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


def _norm(tensors: list[Tensor]) -> float:
    """Euclidean norm of all tensors together, which may lie on several devices."""
    if not tensors:
        return 0.0
    norms = [norm.to(tensors[0].device, torch.float64) for norm in torch._foreach_norm(tensors)]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _finite_norm(groups: list[tuple[dict[str, Any], list[Tensor]]]) -> float:
    norm = _norm([gradient for _, params in groups for gradient in _gradients(params)])
    if not norm < float("inf"):
        raise NonFiniteError(
            f"the gradient has norm {norm}; no parameter was changed. Skip the step, or find the cause"
        )
    return norm
