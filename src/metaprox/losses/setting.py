"""What losses are evaluated in, before it is said how."""

from dataclasses import dataclass

from metaprox.data.batch import TaskBatch
from metaprox.losses.look import Look
from metaprox.losses.noise import Noise
from metaprox.problem import ProximalProblem
from metaprox.vectors.parameters import Parameters


@dataclass(frozen=True)
class Setting:
    """A problem whose losses are on replicas of their models, its parameters, tasks and noise, and what was seen.

    first: the position of the first task among all tasks, some of which other calls, or other processes, have.
    """

    problem: ProximalProblem
    parameters: Parameters
    batch: TaskBatch
    noise: Noise
    look: Look
    first: int
