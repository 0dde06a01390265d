"""Whether a loss under vmap is the loss: its value and gradients at one point, by vmap and in the loop."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from metaprox.losses.adapted import guarded
from metaprox.losses.backend import Seed
from metaprox.losses.loop import LoopBackend
from metaprox.losses.vmap import VmapBackend
from metaprox.losses.vmapped import FlatLoss, at_all

# Relative differences: far above those of rounding, far below those of a term that is missing.
TOLERANCE = 0.01
ROUNDING = 1e3  # in machine epsilons of the value, where a derivative is next to nothing
RUNS = 3  # TorchScript's second derivatives under vmap are wrong from the second run on


def agreement(
    loss: FlatLoss, x: Tensor, data: Any, seed: Seed, *, comparable: bool, twice: bool = False, branches: int = 2
) -> tuple[bool, str]:
    """Returns whether vmap can well take ``loss`` on a task's data, with branches; and what differs in the loop, or "".

    ``seed``: around each evaluation; for a single task both draw the same numbers from it. ``comparable``: whether the
    loss then gives the same again. ``twice``: second derivatives too. ``branches``: how many it takes at once.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            y = x.expand(1, branches, -1)
            of_task = pytree.tree_map(lambda leaf: leaf.unsqueeze(0), data)
            with seed(0):
                gradient, (value, _) = at_all(grad_and_value(loss, has_aux=True), guarded(y), of_task)
            products = [_product(VmapBackend(), loss, x, of_task, seed) for _ in range(RUNS)] if twice else []
        except Exception:  # whatever vmap can't do, the loop may
            return False, ""
        if any("performance drop" in str(one.message) for one in caught):  # torch goes through a slow loop of its own
            return False, ""
        if not comparable:
            return True, ""
        by_loop = LoopBackend().evaluate(loss, x[None, None], [data], seed)
        pairs = {"value": (value[0, -1], by_loop.value[0, 0]), "gradient": (gradient[0, -1], by_loop.grad[0, 0])}
        if twice:
            pairs["second derivative"] = (products[-1], _product(LoopBackend(), loss, x, [data], seed))
    scale = torch.linalg.vector_norm(x)
    for order, (name, (one, other)) in enumerate(pairs.items()):
        smallest = ROUNDING * torch.finfo(x.dtype).eps * by_loop.value.abs().max() / scale**order if scale > 0 else 0.0
        off, size = (float(torch.linalg.vector_norm(each)) for each in (one - other, other))
        if off > TOLERANCE * size + float(smallest):  # False where the loop's is not finite
            return True, f"their {name} differs from that of the loop by {off / max(size, 1e-300):.2g} of it"
    return True, ""


def _product(backend: VmapBackend | LoopBackend, loss: FlatLoss, x: Tensor, data: Any, seed: Seed) -> Tensor:
    """Hess loss(x) u [P], for a fixed vector u."""
    u = torch.cos(torch.arange(len(x), dtype=x.dtype, device=x.device))

    def product(point: Tensor, joined: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return backend.inner_gradient(loss, point, joined) @ u, {}

    return backend.evaluate(product, x[None, None], data, seed).grad[0, 0]
