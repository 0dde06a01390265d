"""What is examined, and in which precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from metaprox.call import Call, begun
from metaprox.checking.double import data_in_float64, problem_in_float64
from metaprox.checking.losses import first_line
from metaprox.checking.probe import Probe
from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.estimators import Estimator, Reptile
from metaprox.losses.choose import Choice
from metaprox.losses.look import Query
from metaprox.problem import ProximalProblem
from metaprox.types import Params

LOOP = Choice("loop", None)
SAME = 0.01  # relative: up to here a loss in float64 is the loss


@dataclass(frozen=True)
class Subject:
    """A problem, parameters and a few tasks, all for losses to write on, and an estimator, if one was given."""

    problem: ProximalProblem
    x: Params
    tasks: Task | list[Task]
    estimator: Estimator | None

    @property
    def choice(self) -> Choice:
        """Of the backend."""
        return Choice("auto", "auto") if self.estimator is None else self.estimator._choice()

    @property
    def at_once(self) -> int:
        return 1 if self.estimator is None else self.estimator._evaluations_at_once()

    @property
    def twice(self) -> bool:
        return self.estimator is not None and self.estimator._differentiates_twice

    @property
    def roles(self) -> tuple[str, ...]:
        """The losses that are differentiated."""
        return ("inner_loss",) if isinstance(self.estimator, Reptile) else ("inner_loss", "outer_loss")

    @property
    def precision(self) -> float:
        """Machine epsilon of the parameters."""
        return max(torch.finfo(value.dtype).eps for value in self.x.values())

    @contextmanager
    def call(self, choice: Choice = LOOP) -> Iterator[Call]:
        query: Query = "gradient" if "outer_loss" in self.roles else "value"
        batch = TaskBatch.of(self.tasks)
        with begun(self.problem, self.x, batch, choice, query=query, at_once=self.at_once, twice=self.twice) as call:
            yield call

    def values(self, call: Call) -> list[float]:
        """Of the losses that are differentiated, at x, on all tasks."""
        tasks = range(call.batch.size)
        return [float(Probe(call, role, task).at(call.x(task)).value) for role in self.roles for task in tasks]

    def in_float64(self, unseen: Task | list[Task], values: list[float]) -> "Subject | str":
        """Returns the same in float64, on the tasks ``unseen``; or why not, where a loss is then another, or fails.

        ``values``: those of the losses as they are.
        """
        x = {name: value.detach().double() for name, value in self.x.items()}
        try:
            precise = replace(self, problem=problem_in_float64(self.problem), x=x, tasks=data_in_float64(unseen))
            with precise.call() as call:
                found = precise.values(call)
                drawn = call.look.draws
                dtype = Probe(call, "inner_loss", 0).at(call.x(0)).value.dtype
        except Exception as error:  # a dtype that is written down in the model
            return first_line(error)
        if dtype != torch.float64:
            return f"the inner loss is computed in {dtype} whatever its parameters are"
        same = all(abs(one - other) <= SAME * abs(other) for one, other in zip(found, values, strict=True))
        return precise if same or drawn else "the losses have other values in float64"
