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
from metaprox.losses.noise import coupled_noise
from metaprox.losses.setting import Setting
from metaprox.problem import ProximalProblem
from metaprox.types import Params
from metaprox.vectors.parameters import SMALL, Parameters


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
            self.problem, self.parameters, self.backend, self.noise, self.batch, tasks, writes=self.look.writes
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
) -> Iterator[Call]:
    """Yields a call in which nothing of the user's is written on, whatever the caller's grad mode.

    ``query``: what is asked of the outer loss. ``at_once``: the evaluations whose memory a task takes at once.
    ``twice``: whether the inner loss is differentiated twice.

    Raises:
        InputError: what ``Parameters.of`` and ``look_at`` refuse.
        NonFiniteError: one within the call; that of a task whose data are not finite says so.
    """
    with torch.inference_mode(False), torch.no_grad():
        parameters = Parameters.of(params, problem.adapted_names)
        private = problem.private()
        with coupled_noise(parameters.device) as noise:
            look = look_at(private, parameters, batch, noise, query)
            setting = Setting(private, parameters, batch, noise, look)
            backend, _ = choice.backend_for(setting, at_once, twice=twice)
            flat = parameters.flat(up_to=SMALL if backend.sequential else None)
            try:
                yield Call(private, flat, batch, noise, look, backend)
            except NonFiniteError as error:
                hint = "" if error.task is None else batch.non_finite(error.task)
                if not hint:
                    raise
                explained = NonFiniteError(f"{error} {hint}", task=error.task, step=error.step)
                for note in getattr(error, "__notes__", ()):
                    explained.add_note(note)
                raise explained from error
