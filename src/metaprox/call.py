"""What one call of the library works with: every public computation begins here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaprox.data.batch import TaskBatch
from metaprox.errors import NonFiniteError
from metaprox.losses.backend import Backend
from metaprox.losses.choose import Choice
from metaprox.losses.gradients import Gradients
from metaprox.losses.look import Query, look_at
from metaprox.losses.made import Made
from metaprox.losses.noise import coupled_noise, drawn_seed
from metaprox.losses.setting import Setting
from metaprox.modules.head import ModuleHead
from metaprox.problem import ProximalProblem
from metaprox.types import Params
from metaprox.vectors.layout import Layout
from metaprox.vectors.parameters import SMALL, Parameters
from metaprox.vectors.rest import HERE, Rest
from metaprox.vectors.shards import Shards, over, refuse_shards


@dataclass(frozen=True)
class Place:
    """Where a batch is among several: the seed of their noise, and how many tasks come before."""

    seed: int
    first: int

    @classmethod
    def alone(cls) -> "Place":
        """Of all tasks there are, with a fresh seed."""
        return cls(drawn_seed(), 0)

    def after(self, count: int) -> "Place":
        """So many tasks later."""
        return Place(self.seed, self.first + count)

    def shared(
        self, problem: ProximalProblem, params: Params, batch: TaskBatch | None, weights: Tensor | None = None
    ) -> "Place":
        """Returns the same with the seed of the first of the ranks that share the shards of ``params``.

        Raises:
            InputError: these are not what the model is in; or, on all ranks, one has other tasks, or weights of them.
        """
        shards = Shards.of(params)
        problem.check_shards(shards is not None)
        if shards is None:
            return self
        given = () if batch is None else (batch.stacked, batch.singles, weights)
        return Place(shards.same(self.seed, given), self.first)


@dataclass(frozen=True)
class Call(Setting):
    """What losses are evaluated in, and how. rest: where vectors are while nobody uses them."""

    backend: Backend
    rest: Rest = HERE

    def chunks(self) -> list[tuple[int, int]]:
        """The ranges of tasks that are processed together."""
        return self.backend.chunks(self.batch.size)

    def gradients(self, tasks: tuple[int, int]) -> Gradients:
        """Of the losses, on the tasks of a chunk."""
        return Gradients(
            self.problem,
            self.parameters_of(tasks),
            self.backend,
            self.noise,
            self.batch,
            tasks,
            self.look,
            self.first,
            self.rest,
        )

    def parameters_of(self, tasks: tuple[int, int]) -> Parameters:
        """x and w of the tasks of a chunk, with what they have of their own."""
        return self.parameters if self.made is None else self._flat(self.made.parameters(*tasks))

    def of_learned(self, grad: Tensor, gradients: Gradients) -> Tensor:
        """Returns the gradient with respect to what is learned [T, 1, N], from that at (y, w) [T, 1, P + W].

        They are the same thing, unless tasks have parameters of their own, of which a product counts as a support
        gradient.
        """
        if self.made is None:
            return grad
        pulled, products = self.made.pulled(gradients.parameters, grad, gradients.start)
        gradients.counts.support_gradients += products
        return pulled

    def named(self, learned: Tensor) -> dict[str, Tensor]:
        """A vector [N] of what is learned, by name."""
        return self.parameters.named(learned) if self.made is None else self.made.learned.unflatten(learned)

    def adapted(self, chunks: Sequence[Tensor]) -> dict[str, Tensor] | None:
        """y [T, P] of all tasks by name; None where they have parameters of their own of unequal shapes."""
        if self.made is not None and not self.made.alike:
            return None
        return self.parameters.named_adapted(torch.cat(list(chunks)))

    def x(self, task: int) -> Tensor:
        """x [P], with what the task has of its own."""
        return self.parameters_of((task, task + 1)).x

    def at(self, learned: Tensor) -> "Call":
        """The same at other values of what is learned [N], in the loop."""
        if self.made is not None:
            return replace(self, made=self.made.at(self.made.learned.unflatten(learned)))
        size = self.parameters.adapted.size
        return replace(self, parameters=replace(self.parameters, pieces=(learned[:size],), w=learned[size:]))

    @property
    def point(self) -> Tensor:
        """What is learned, as a vector [N]."""
        return torch.cat([self.parameters.x, self.parameters.w]) if self.made is None else self.made.point

    def _flat(self, parameters: Parameters) -> Parameters:
        return parameters.flat(up_to=SMALL if self.backend.sequential else None)


@contextmanager
def begun(
    problem: ProximalProblem,
    params: Params,
    batch: TaskBatch,
    choice: Choice,
    *,
    query: Query = "gradient",
    at_once: int = 1,
    twice: bool = False,
    place: Place | None = None,
    takes_shards: bool = False,
    parameters: Parameters | None = None,
    rest: Rest = HERE,
) -> Iterator[Call]:
    """Yields a call in which nothing of the user's is written on, whatever the caller's grad mode.

    ``query``: what is asked of the outer loss. ``at_once``: the evaluations whose memory a task takes at once.
    ``twice``: whether the inner loss is differentiated twice. ``place``: of the batch among the tasks that are called
    tasks 0, 1, ... and share a seed; None: they are the batch, and the seed is a fresh one. ``takes_shards``: whether
    parameters may be in shards, over which norms are then. ``parameters``: ``params``, where they were looked at.
    ``rest``: where vectors are while nobody uses them.

    Raises:
        InputError: what ``Parameters.of`` and ``look_at`` refuse.
        NonFiniteError: one within the call; that of a task whose data are not finite says so.
    """
    with torch.inference_mode(False), torch.no_grad():
        own = problem.per_task is not None
        if own or not takes_shards:
            refuse_shards(params.values(), "per_task= or head=" if own else "this")
        parameters = None if own else parameters or Parameters.of(params, problem.adapted_names)
        private = problem.private()
        seed, first = (place.seed, place.first) if place else (None, 0)
        with coupled_noise(_device(private, params) if parameters is None else parameters.device, seed) as noise:
            made = Made.of(private, params, batch, noise, first) if parameters is None else None
            parameters = parameters if made is None else made.parameters(0, 1)
            assert parameters is not None
            look = look_at(private, parameters, batch, noise, query)
            setting = Setting(private, parameters, batch, noise, look, first, made=made)
            backend, _ = choice.backend_for(setting, at_once, twice=twice, queried=query != "nothing")
            flat = parameters.flat(up_to=SMALL if backend.sequential else None)
            try:
                with over(parameters.shards):
                    yield Call(private, flat, batch, noise, look, first, backend, rest, made=made)
            except NonFiniteError as error:
                hint = "" if error.task is None else batch.non_finite(error.task - first)
                if not hint:
                    raise
                explained = NonFiniteError(f"{error} {hint}", task=error.task, step=error.step)
                for note in getattr(error, "__notes__", ()):
                    explained.add_note(note)
                raise explained from error


def _device(private: ProximalProblem, params: Params) -> torch.device:
    """Where x is, or where there is none, a head that is made for each task. Raises InputError as ``Layout.of``."""
    if params:
        return Layout.of(params).device
    head = private.per_task
    return head.layer.weight.device if isinstance(head, ModuleHead) else torch.device("cpu")
