"""backend="auto" and chunk_size="auto": decided by what one task takes, looked at once for each problem and shape."""

import math
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from metaprox import checks
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.losses.adapted import AdaptedLoss, flat_loss
from metaprox.losses.agreement import agreement
from metaprox.losses.backend import Backend, Seed
from metaprox.losses.by_loss import BackendByLoss
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.compiling import rare_collection
from metaprox.losses.look import LOOK_NOISE, Look
from metaprox.losses.loop import LoopBackend
from metaprox.losses.noise import Noise
from metaprox.losses.setting import Setting
from metaprox.losses.vmap import VmapBackend
from metaprox.losses.vmapped import FlatLoss
from metaprox.vectors.parameters import Parameters

BackendName = Literal["auto", "vmap", "loop"]
ChunkSize = int | Literal["auto"] | None


@dataclass(frozen=True)
class Limits:
    """Up to how many parameters, and operations of a loss on a task, eager vmap is taken for the faster one."""

    parameters: float
    flops: float


# One thread of a CPU was measured: benchmarks/backends.py. Elsewhere starting an operation is what takes the time.
LIMITS, ELSEWHERE = {"cpu": Limits(1.5e5, 2e8)}, Limits(1e7, math.inf)


@dataclass(frozen=True)
class Cost:
    """What one task takes: ``flops`` and ``saved_bytes`` are the larger loss's.

    flops: operations of the matrix products and convolutions in a forward pass.
    saved_bytes: what that keeps for the backward pass, parameters aside.
    vmaps: whether vmap can take both losses, and gives the gradients that the loop gives.
    differs: where it can, and does not: by how much.
    inner_flops: of the inner loss.
    """

    flops: int
    saved_bytes: int
    vmaps: bool
    differs: str = ""
    inner_flops: int = 0


@dataclass(frozen=True)
class Choice:
    """The settings ``backend``, ``chunk_size`` and ``compile`` of an estimator, checked."""

    backend: BackendName
    chunk_size: ChunkSize
    compile: bool = False

    def __post_init__(self) -> None:
        checks.choice("backend", self.backend, ("auto", "vmap", "loop"))
        if self.chunk_size is not None and self.chunk_size != "auto":
            checks.count("chunk_size", self.chunk_size)
        if self.compile and self.backend == "loop":
            raise InputError("compile=True needs backend='vmap'; with 'loop' compile the model: torch.compile(model)")

    def backend_for(
        self, setting: Setting, at_once: int = 1, *, twice: bool = False, queried: bool = True
    ) -> tuple[Backend, str]:
        """Returns the backend for these losses and tasks, and why: what was asked for, or what decided.

        ``at_once``: the evaluations whose memory a task takes at once under vmap. ``twice``: whether the inner loss is
        to be differentiated twice. ``queried``: whether the outer loss is evaluated at all.

        Raises:
            InputError: vmap is asked for, and gives other gradients than the loop.
        """
        parameters, batch, look = setting.parameters, setting.batch, setting.look
        asked = f"backend={self.backend!r} was asked for"
        if parameters.shards is not None:
            return self._loop_of_shards(), "the model is in shards"
        if self.backend == "loop":
            return LoopBackend(), asked
        if not setting.stackable:  # refused where they are stacked
            why = "the tasks are not tensors of equal shapes"
            return (self._loop(), why) if self.backend == "auto" else (VmapBackend(None), asked)
        limits = LIMITS.get(parameters.device.type, ELSEWHERE)
        size = parameters.adapted.size
        if self.backend == "auto" and not self.compile and size > limits.parameters:
            return (
                LoopBackend(),
                f"{size:,} parameters adapt; up to {limits.parameters:,.0f} vmap is the faster one",
            )
        cost = cost_of_task(setting, twice=twice, queried=queried)
        chunk = self._chunk(cost, parameters, at_once)
        if self.backend == "vmap":
            if cost.differs:
                raise InputError(
                    f"backend='vmap' gives other gradients of these losses: {cost.differs}; use backend='loop'"
                )
            return VmapBackend(chunk, self._compiles(look), fuses(look, parameters)), asked
        if cost.differs:
            return self._loop(), f"vmap gives other gradients: {cost.differs}"
        if not cost.vmaps:
            return self._loop(), "vmap can't take the losses"
        if chunk is not None and chunk < min(2, batch.size):
            return self._loop(), "two tasks at once take too much memory"
        if not self.compile and cost.flops > limits.flops:
            apart = cost.inner_flops <= limits.flops and not (twice or look.draws) and parameters.shared is None
            which = "the outer loss, in the loop," if apart else "a loss"
            return (
                BackendByLoss(chunk) if apart else self._loop(),
                f"{which} takes {cost.flops:.2g} operations; up to {limits.flops:.2g} vmap is the faster one",
            )
        vmapped = VmapBackend(chunk, self._compiles(look), fuses(look, parameters))
        return vmapped, "it is the faster one for a loss of this size"

    def _compiles(self, look: Look) -> bool:
        if self.compile and look.writes:
            warnings.warn("metaprox goes on without compile=True: a loss writes on its parameters", stacklevel=2)
        return self.compile and not look.writes

    def _loop(self) -> Backend:
        if self.compile:
            why = "these losses, or these tasks, can't be vmapped"
            warnings.warn(f"metaprox goes on without compile=True: {why}", stacklevel=2)
        return LoopBackend()

    def _loop_of_shards(self) -> Backend:
        if self.backend == "vmap" or self.compile:
            raise InputError(
                "backend='vmap' and compile=True are not for a model in shards, whose hooks gather whole parameters "
                "one evaluation at a time: use backend='loop', or 'auto', without compile"
            )
        return LoopBackend()

    def _chunk(self, cost: Cost | None, parameters: Parameters, at_once: int) -> int | None:
        """As asked for; or how many tasks take a quarter of the device's memory, by an estimate."""
        if self.chunk_size != "auto":
            return self.chunk_size
        if cost is None:
            return None
        vectors = (2 * at_once + 4) * parameters.adapted.size * parameters.adapted.dtype.itemsize
        return max(1, memory_of(parameters.device) // 4 // (vectors + 3 * at_once * cost.saved_bytes))


def fuses(look: Look, parameters: Parameters) -> bool:
    """Whether losses draw on a device that has fused operations for it."""
    return look.draws and parameters.device.type != "cpu"


def memory_of(device: torch.device) -> int:
    """All there is, in bytes, whatever of it is free: the same in every run on a machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cost_of_task(setting: Setting, *, twice: bool = False, queried: bool = True) -> Cost:
    """Returns the cost of the batch's first task; looked up where a task of these shapes was seen before.

    ``queried``: whether that of the outer loss is asked for too.
    """
    problem, task = setting.problem, setting.batch.first
    leaves, tree = setting.batch.leaves_of_first
    shapes = tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else None for leaf in leaves)
    key = ("cost", setting.parameters.structure, setting.look.modes, twice, queried, shapes, tree)
    found: Cost = problem.cache.get_or_make(key, lambda: _cost_of_losses(setting, task, twice, queried))
    return found


def _cost_of_losses(setting: Setting, task: Task, twice: bool, queried: bool) -> Cost:
    problem, parameters, look = setting.problem, setting.parameters, setting.look
    # On the CPU the same seed means the same numbers, vmapped or not; kernels elsewhere may draw in another order.
    fused = fuses(look, parameters)
    agree = partial(agreement, comparable=look.repeats and not fused, branches=1 if fused else 2)
    losses = [(problem.inner_loss, "inner_loss", task.support), (problem.outer_loss, "outer_loss", task.query)]
    seed = partial(_look_noise, setting.noise)
    with seed(0), rare_collection():  # torch.func imports torch's compiler when it is first used
        parts = [
            _cost(CheckedLoss(loss, role, differentiable=False), parameters, data, seed, agree, twice=twice and not k)
            for k, (loss, role, data) in enumerate(losses[: 1 + queried])
        ]
    return Cost(
        max(part.flops for part in parts),
        max(part.saved_bytes for part in parts),
        all(part.vmaps for part in parts),
        next((part.differs for part in parts if part.differs), ""),
        parts[0].flops,
    )


def _look_noise(noise: Noise, task: int) -> AbstractContextManager[None]:
    return noise.of(LOOK_NOISE)


def _cost(
    loss: CheckedLoss, parameters: Parameters, data: Any, seed: Seed, agree: Callable[..., Any], *, twice: bool
) -> Cost:
    adapted = AdaptedLoss(loss, parameters.structure, parameters.w)
    x = torch.cat(parameters.pieces)
    counted = _count(adapted, x.clone().requires_grad_(), data)
    loss.release()
    points: list[tuple[FlatLoss, Tensor]] = [(adapted, x)]
    if parameters.shared is not None:  # its gradient is wanted too, and w is then vmapped as well
        points.append((flat_loss(loss, parameters), parameters.at(x)))
    found = []
    for function, point in points:
        found.append(agree(function, point, data, seed, twice=twice))
        loss.release()
    differs = next((difference for _, difference in found if difference), "")
    vmaps = counted is not None and all(can for can, _ in found) and not differs
    return Cost(*(counted or (0, 0)), vmaps, differs)


def _count(loss: AdaptedLoss, x: Tensor, data: Any) -> tuple[int, int] | None:
    """Operations of a forward pass, and the bytes that it keeps; None for what can't be counted."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() != x.data_ptr():
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor.detach()  # an output that its own graph held would never be freed

    hooks = saved_tensors_hooks(keep, lambda tensor: tensor)
    try:
        with warnings.catch_warnings(), torch.enable_grad(), hooks, FlopCounterMode(display=False) as flops:
            warnings.simplefilter("ignore")  # the counter hooks modules, which compiled ones warn of
            loss(x, data)
    except Exception:  # such as losses that take derivatives of their own
        return None
    return flops.get_total_flops(), sum(saved.values())
