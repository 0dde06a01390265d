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
from metaprox.losses.look import Look, Query, look_at
from metaprox.losses.noise import Noise, coupled_noise
from metaprox.problem import ProximalProblem
from metaprox.types import Params
from metaprox.vectors.parameters import Parameters


@dataclass(frozen=True)
class Call:
    """A problem whose losses are on replicas of their models, its parameters, tasks, noise, backend, what was seen."""

    problem: ProximalProblem
    parameters: Parameters
    batch: TaskBatch
    noise: Noise
    backend: Backend
    look: Look

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
    held: int = 1,
    twice: bool = False,
) -> Iterator[Call]:
    """A call in which nothing of the user's is written on, whatever the caller's grad mode.

    Args:
        query: what is asked of the outer loss.
        held, twice: the evaluations whose memory a task takes at once; whether the inner loss is differentiated twice.

    Raises what ``Parameters.of`` and ``look_at`` refuse. A NonFiniteError of a task whose data are not finite says so.
    """
    with torch.inference_mode(False), torch.no_grad():
        parameters = Parameters.of(params, problem.adapted_names)
        private = problem.private()
        with coupled_noise(parameters.device) as noise:
            look = look_at(private, parameters, batch, noise, query)
            backend = choice.of(private, parameters, batch, noise, look, held, twice=twice)
            joined = parameters.joined(sparing=backend.sequential)
            try:
                yield Call(private, joined, batch, noise, backend, look)
            except NonFiniteError as error:
                hint = "" if error.task is None else batch.non_finite(error.task)
                if not hint:
                    raise
                explained = NonFiniteError(f"{error} {hint}", task=error.task, step=error.step)
                for note in getattr(error, "__notes__", ()):
                    explained.add_note(note)
                raise explained from error
