"""What losses are evaluated in, before it is said how."""

from dataclasses import dataclass, field

from metaprox.data.batch import TaskBatch
from metaprox.losses.look import Look
from metaprox.losses.made import Made
from metaprox.losses.noise import Noise
from metaprox.problem import ProximalProblem
from metaprox.vectors.parameters import Parameters


@dataclass(frozen=True)
class Setting:
    """A problem whose losses are on replicas of their models, its parameters, tasks and noise, and what was seen.

    first: the position of the first task among all tasks, some of which other calls, or other processes, have.
    made: what tasks have of their own, None where all is x; ``parameters`` are then the first task's.
    """

    problem: ProximalProblem
    parameters: Parameters
    batch: TaskBatch
    noise: Noise
    look: Look
    first: int
    made: Made | None = field(default=None, kw_only=True)

    @property
    def stackable(self) -> bool:
        """Whether tasks are tensors of equal shapes, and what they have of their own is too."""
        return self.batch.stackable and (self.made is None or self.made.alike)
