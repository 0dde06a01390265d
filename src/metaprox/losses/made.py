"""Parameters that each task has of its own, made of x and its support: where they start, and what x gets of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.checks.trees import kind
from metaprox.data.batch import TaskBatch
from metaprox.data.inference import normal
from metaprox.data.microbatches import MicroBatches
from metaprox.errors import InputError, MetaproxError, NonFiniteError
from metaprox.losses.adapted import guarded
from metaprox.losses.noise import Noise
from metaprox.modules.head import ModuleHead
from metaprox.problem import ProximalProblem
from metaprox.types import Params
from metaprox.vectors.layout import Layout
from metaprox.vectors.parameters import Parameters

MADE_NOISE = 3  # first noise id; those of the losses in use are 0 and 1, of a look 2


@dataclass(frozen=True)
class Made:
    """h_i = h(x, support_i) for each task of a batch, by the ``per_task`` of a private problem.

    Names and dtypes are the same in all tasks; shapes need not be. first: position of the first among all tasks.
    """

    problem: ProximalProblem
    x: Params
    batch: TaskBatch
    noise: Noise
    first: int
    starts: tuple[dict[str, Tensor], ...]

    @classmethod
    def of(cls, problem: ProximalProblem, x: Params, batch: TaskBatch, noise: Noise, first: int = 0) -> "Made | None":
        """Returns h_i of all tasks; None where the problem has no ``per_task``. Costs an evaluation of it each.

        Raises:
            InputError: it gives something else than tensors by name, or a name of x.
            NonFiniteError: what it gives is not finite; names the task.
        """
        if problem.per_task is None:
            return None
        nothing = cls(problem, x, batch, noise, first, ())
        starts = []
        for task in range(batch.size):
            with nothing.evaluated({name: guarded(normal(value)) for name, value in x.items()}, task) as found:
                starts.append({name: value.detach() for name, value in _checked(found, x, task).items()})
        _check_alike(starts)
        return cls(problem, x, batch, noise, first, tuple(starts))

    @property
    def alike(self) -> bool:
        """Whether tasks have tensors of the same shapes."""
        shapes = [{name: value.shape for name, value in start.items()} for start in self.starts]
        return all(one == shapes[0] for one in shapes)

    def parameters(self, start: int, stop: int) -> Parameters:
        """Of tasks start..stop-1: x, and what they have of their own. Raises InputError where shapes differ."""
        own = self.starts[start:stop]
        first = {name: tuple(value.shape) for name, value in own[0].items()}
        for index, task in enumerate(own):
            if (other := {name: tuple(value.shape) for name, value in task.items()}) != first:
                raise InputError(
                    f"task {start} has parameters of its own of shapes {first}, task {start + index} of {other}, which "
                    "can't be vmapped; use backend='loop'"
                )
        return Parameters.of({**self.x, **own[0]}, lambda names: self.problem.adapted_names(names, own[0])).of_tasks(
            own
        )

    @property
    def learned(self) -> Layout:
        """Of x alone."""
        return Layout.of(self.x)

    @property
    def point(self) -> Tensor:
        """x as a new vector [N]."""
        return self.learned.flatten(self.x)

    def at(self, x: Params) -> "Made":
        """The same at another x."""
        made = Made.of(self.problem, x, self.batch, self.noise, self.first)
        assert made is not None
        return made

    def only(self, task: int) -> "Made":
        """That of one task."""
        return replace(
            self, batch=TaskBatch.of([self.batch.one(task)]), first=self.first + task, starts=(self.starts[task],)
        )

    def pulled(self, parameters: Parameters, grad: Tensor, start: int) -> tuple[Tensor, int]:
        """Returns the gradient with respect to x [T, 1, N] from that at (y, w) [T, 1, P + W], h_i among y's.

        g_x + (dh_i/dx)^T g_h. And how many vector-Jacobian products it took: one a task where h depends on x.
        """
        size, structure, learned = parameters.adapted.size, parameters.structure, self.learned
        views = structure.adapted.views(grad[..., :size])
        if structure.shared is not None:
            views |= structure.shared.views(grad[..., size:])
        rows = torch.cat([views[name].reshape(len(grad), 1, -1) for name in learned.names], -1)
        taken = 0
        for index in range(len(grad)):
            places = learned.views(rows[index, 0])
            products = self._product(start + index, {n: views[n][index, 0] for n in self.starts[0]})
            taken += bool(products)
            for name, product in products.items():
                places[name].add_(product)
        return rows, taken

    def _product(self, task: int, right: dict[str, Tensor]) -> dict[str, Tensor]:
        """(dh_i/dx)^T ``right`` by name; those that are 0 are left out."""
        leaves = {name: guarded(normal(value)).requires_grad_() for name, value in self.x.items()}
        with self.evaluated(leaves, task) as found:
            pairs = [(value, right[name].to(value.dtype)) for name, value in found.items() if value.requires_grad]
            if not pairs:
                return {}
            outputs, directions = zip(*pairs, strict=True)
            gradients = torch.autograd.grad(outputs, list(leaves.values()), directions, allow_unused=True)
        return {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None}

    @contextmanager
    def evaluated(self, x: Params, task: int) -> Iterator[Params]:
        """h(x, support) of a task, always with the same noise, and its graph until the end."""
        make, support = self.problem.per_task, self.batch.one(task).support
        assert make is not None
        if any(isinstance(leaf, MicroBatches) for leaf in pytree.tree_leaves(support)):
            raise InputError(
                "a task's own parameters are made of its whole support, not of MicroBatches: give it at once"
            )
        try:
            with self.noise.of(MADE_NOISE, self.first + task), torch.enable_grad():
                yield make(dict(x), support)
        except Exception as error:
            if not isinstance(error, MetaproxError):
                error.add_note(f"metaprox: in task {task}, while its own parameters were made")
            raise
        finally:
            if isinstance(make, ModuleHead):
                make.release()


def _checked(found: object, x: Params, task: int) -> dict[str, Tensor]:
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"per_task must return a dict of tensors by name, got {kind(found)}")
    for name, value in found.items():
        if name in x:
            raise InputError(
                f"{name!r} is made for each task, and is none of the meta-parameters: leave it out of params"
            )
        if not value.is_floating_point():
            raise InputError(f"per_task must return real floating-point tensors, got {kind(value)} as {name!r}")
        if not bool(value.isfinite().all()):
            raise NonFiniteError(f"task {task}: its own parameter {name!r} is not finite where it starts.", task=task)
    return found


def _check_alike(starts: list[dict[str, Tensor]]) -> None:
    kinds = [{name: value.dtype for name, value in start.items()} for start in starts]
    for task, other in enumerate(kinds):
        if other != kinds[0]:
            raise InputError(f"per_task gives other names or dtypes for task {task}: {other}, for task 0: {kinds[0]}")
