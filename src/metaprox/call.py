"""What one call of the library works with: every public computation begins here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from metaprox.data.batch import TaskBatch
from metaprox.errors import NonFiniteError
from metaprox.losses.backend import Backend
from metaprox.losses.choose import Choice
from metaprox.losses.gradients import Gradients
from metaprox.losses.look import Query, look_at
from metaprox.losses.noise import coupled_noise, drawn_seed
from metaprox.losses.setting import Setting
from metaprox.problem import ProximalProblem
from metaprox.types import Params
from metaprox.vectors.parameters import SMALL, Parameters


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


@dataclass(frozen=True)
class Call(Setting):
    """What losses are evaluated in, and how."""

    backend: Backend

    def chunks(self) -> list[tuple[int, int]]:
        """The ranges of tasks that are processed together."""
        return self.backend.chunks(self.batch.size)

    def gradients(self, tasks: tuple[int, int]) -> Gradients:
        """Of the losses, on the tasks of a chunk."""
        return Gradients(
            self.problem,
            self.parameters,
            self.backend,
            self.noise,
            self.batch,
            tasks,
            writes=self.look.writes,
            draws=self.look.draws,
            first=self.first,
        )


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
) -> Iterator[Call]:
    """Yields a call in which nothing of the user's is written on, whatever the caller's grad mode.

    ``query``: what is asked of the outer loss. ``at_once``: the evaluations whose memory a task takes at once.
    ``twice``: whether the inner loss is differentiated twice. ``place``: of the batch among the tasks that are called
    tasks 0, 1, ... and share a seed; None: they are the batch, and the seed is a fresh one.

    Raises:
        InputError: what ``Parameters.of`` and ``look_at`` refuse.
        NonFiniteError: one within the call; that of a task whose data are not finite says so.
    """
    with torch.inference_mode(False), torch.no_grad():
        parameters = Parameters.of(params, problem.adapted_names)
        private = problem.private()
        seed, first = (place.seed, place.first) if place else (None, 0)
        with coupled_noise(parameters.device, seed) as noise:
            look = look_at(private, parameters, batch, noise, query)
            setting = Setting(private, parameters, batch, noise, look, first)
            backend, _ = choice.backend_for(setting, at_once, twice=twice)
            flat = parameters.flat(up_to=SMALL if backend.sequential else None)
            try:
                yield Call(private, flat, batch, noise, look, first, backend)
            except NonFiniteError as error:
                hint = "" if error.task is None else batch.non_finite(error.task - first)
                if not hint:
                    raise
                explained = NonFiniteError(f"{error} {hint}", task=error.task, step=error.step)
                for note in getattr(error, "__notes__", ()):
                    explained.add_note(note)
                raise explained from error
