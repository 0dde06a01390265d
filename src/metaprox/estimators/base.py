"""The interface of every meta-gradient estimator."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metaprox import checks
from metaprox.arguments import check_estimate, parameters_to_fill
from metaprox.call import begun
from metaprox.data.batch import TaskBatch, has_no_task
from metaprox.data.task import Task
from metaprox.estimators.monitor import Monitor
from metaprox.estimators.reduce import Reduce, ReduceSetting, check_reduce, reduction
from metaprox.estimators.result import ChunkResult, Estimate, MetaGradient
from metaprox.estimators.sums import Sums
from metaprox.inner.failures import Purpose
from metaprox.inner.solve import Stopping
from metaprox.losses.choose import BackendName, Choice, ChunkSize
from metaprox.losses.gradients import Gradients
from metaprox.losses.look import Query
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import InnerSolver, check_solver
from metaprox.solvers.stability import check_stable
from metaprox.types import Params
from metaprox.vectors.rest import HERE, Rest
from metaprox.vectors.shards import refuse_shards


@dataclass(frozen=True)
class Estimator(ABC):
    """A way to estimate grad F(x) on a batch of tasks. Every one of them starts with a base solve from x to y_0.

    Subclasses say how to treat one chunk of tasks.

    Args:
        solver: the inner solver of the base solve.
        steps: base steps K. Or ``tol`` with ``max_steps``.
        tol: in place of ``steps``: each task stops once its gradient norm is <= tol.
        max_steps: the most steps that are taken with ``tol``.
        backend: "vmap", all tasks at once; "loop", one after another, for any model; "auto", vmap for small models
            that it can take and for tasks of equal shapes, and the loop else, also for an outer loss of much data
            beside a vmapped inner one. "auto" evaluates the losses on the first task to find out, once for each
            problem and shape of the data; the choice does not depend on time.
        chunk_size: how many tasks vmap takes at once; None: all; "auto": as many as fit a quarter of the device's
            memory by an estimate. Peak memory grows with it.
        compile: compile solves, of vmapped gradients, and for FO-B-MAML base, branches and what is between them in one,
            with ``torch.compile``, once for each shape of the data, however many steps are taken and problems made of
            the same lines; a batch is padded to at most twice its tasks. Losses that draw random numbers, and early
            stops, take a graph a step. Takes ten seconds or more, and on the
            CPU a C++ compiler. Where it fails, or would be done too often (``metaprox.losses.compiled``), a warning
            says so, and it goes on without. Second derivatives, and gradients of parameters that do not adapt, are not
            compiled.
        on_nonfinite: "raise" NonFiniteError where a task diverges, or "skip" it: the mean is then over the others, and
            ``info.skipped`` names it. Its ``query_loss`` is what it came to, NaN where the base diverged. Where all
            tasks diverge, NonFiniteError is raised all the same.
        reduce: what becomes of the tasks' gradients, a ``mp.Reduce`` or a list of them: ``mp.distributed.AllReduce()``
            sums over processes. None: their weighted mean, in one process.
    """

    solver: InnerSolver
    steps: int | None = None
    _: KW_ONLY
    tol: float | None = None
    max_steps: int | None = None
    backend: BackendName = "auto"
    chunk_size: ChunkSize = "auto"
    compile: bool = False
    on_nonfinite: Literal["raise", "skip"] = "raise"
    reduce: ReduceSetting = None

    _query: ClassVar[Query] = "gradient"
    _differentiates_twice: ClassVar[bool] = False
    _takes_shards: ClassVar[bool] = False  # of vectors it takes norms and sums by metaprox.vectors alone

    @classmethod
    def without_meaning(cls, given: Mapping[str, Any]) -> set[str]:
        """Settings that have no meaning beside those that are given."""
        return set()

    def _check_base(self) -> None:
        """Raise InputError unless the settings of the base solve are in range; ``__post_init__`` calls it."""
        checks.settle(self, solver=check_solver, compile=checks.switch, reduce=check_reduce)
        checks.settle(self, **dict.fromkeys(("steps", "max_steps"), checks.optional(checks.count)))
        checks.settle(self, tol=checks.optional(checks.positive), chunk_size=checks.count_or("auto"))
        self._stopping()
        self._choice()
        checks.choice("on_nonfinite", self.on_nonfinite, ("raise", "skip"))

    def _stopping(self) -> Stopping:
        return Stopping.of(self.steps, self.tol, self.max_steps)

    def _choice(self) -> Choice:
        return Choice(self.backend, self.chunk_size, self.compile)

    def _rest(self, device: torch.device) -> Rest:
        """Where vectors are while nobody uses them."""
        return HERE

    def _evaluations_at_once(self) -> int:
        """How many evaluations' memory a task takes at once under vmap."""
        return 1

    def _purpose(self, name: str, gradients: Gradients, advice: str = "") -> Purpose:
        return Purpose(name, gradients.start, gradients.lam, advice, self.on_nonfinite)

    def check(self, problem: ProximalProblem) -> None:
        """Raise InputError where the problem is not one this estimator can treat, before any loss is evaluated."""
        self._check_problem(problem)
        for name, solver, steps in self._solves():
            check_stable(solver, problem.lam, steps, name)

    def _solves(self) -> list[tuple[str, InnerSolver, int]]:
        """The settings that take steps on the proximal objective, and how many."""
        return [("solver", self.solver, self._stopping().max_steps)]

    @abstractmethod
    def _check_problem(self, problem: ProximalProblem) -> None:
        """Raise InputError where the method is not for this problem."""

    @abstractmethod
    def _estimate(self, gradients: Gradients, keep_adapted: bool) -> Estimate:
        """The per-task meta-gradients at x [P], and w, for the tasks of ``gradients``; y_i too if it is to be kept."""

    def __call__(
        self,
        problem: ProximalProblem,
        params: Params,
        tasks: Task | Sequence[Task],
        *,
        weights: Sequence[float] | Tensor | None = None,
        per_task: bool = False,
    ) -> MetaGradient:
        """Estimate grad F(x) at ``params``. Pure: nothing is written on, global generators advance by one draw.

        What it costs is said by each estimator's class.

        Args:
            problem: the losses, lam, and what adapts.
            params: the meta-parameters x, a dict of tensors.
            tasks: a Task whose tensors have a leading dimension T, or a sequence of T single Tasks.
            weights: w_i >= 0 [T]: the mean is sum_i w_i g_i / sum_i w_i. None: all are 1.
            per_task: whether to return the gradient of each task too, as ``reduce`` leaves it: T P numbers.

        Returns:
            The mean over tasks of grad F_i(x), shaped like ``params``, with y_i, query losses and diagnostics [T].

        Raises:
            InputError: bad parameters, tasks or losses, before anything is changed; or there are several processes and
                no ``reduce``.
            NonFiniteError: a solve or a gradient overflowed, and such tasks are not skipped, or all are; names the task
                and the step.
        """
        with reduction(self.reduce).call() as reduce:
            check_estimate(problem, params)
            return self._run(reduce, problem, params, tasks, weights, keep_adapted=True, per_task=per_task)

    def backward(
        self,
        problem: ProximalProblem,
        tasks: Task | Sequence[Task],
        params: Mapping[str, Tensor] | None = None,
        *,
        weights: Sequence[float] | Tensor | None = None,
        per_task: bool = False,
    ) -> MetaGradient:
        """Add the meta-gradient at ``params`` to their ``.grad``, as ``loss.backward()`` would.

        ``params`` are the module's trainable parameters unless given; ``weights`` and ``per_task`` as for a call.
        Nothing is added if anything raises. Of every 25 calls the problem's ``mp.Monitor`` warns of what is not
        healthy, once of each thing.

        Returns:
            That of a call, at the same cost. Where a ``.grad`` was None, it and the result's ``grad`` are one tensor;
            the adapted parameters are not kept (``adapted`` is None): it takes no more memory than it must.

        Raises:
            InputError: as for a call; or a parameter's ``.grad`` can't be added to, or none were given and there are
                no live ones.
            NonFiniteError: as for a call.
        """
        with reduction(self.reduce).call() as reduce:
            params = parameters_to_fill(problem, params)
            result = self._run(reduce, problem, params, tasks, weights, keep_adapted=False, per_task=per_task)
        with torch.no_grad():
            for name, value in params.items():
                if value.grad is None:
                    value.grad = result.grad[name]
                else:
                    value.grad.add_(result.grad[name])
        Monitor.of(problem).see(result)
        return result

    def _run(
        self,
        reduce: Reduce,
        problem: ProximalProblem,
        params: Params,
        tasks: Task | Sequence[Task],
        weights: Sequence[float] | Tensor | None,
        *,
        keep_adapted: bool,
        per_task: bool,
    ) -> MetaGradient:
        self.check(problem)
        checks.switch("per_task", per_task)
        if not self._takes_shards:
            refuse_shards(params.values(), type(self).__name__)
        batch = None if reduce.takes_no_tasks and has_no_task(tasks) else TaskBatch.of(tasks)
        kept = {"keep_adapted": keep_adapted, "keep_tasks": per_task}
        sums = Sums.begun(reduce, problem, params, batch, weights, rest_on=self._rest, **kept)
        if batch is not None:
            with begun(
                problem,
                params,
                batch,
                self._choice(),
                query=self._query,
                at_once=self._evaluations_at_once(),
                twice=self._differentiates_twice,
                place=sums.place,
                takes_shards=self._takes_shards,
                parameters=sums.parameters,
                rest=sums.rest,
            ) as call:
                for span in call.chunks():
                    gradients = call.gradients(span)
                    purpose = self._purpose("meta-gradient", gradients)
                    estimate = self._estimate(gradients, keep_adapted)
                    estimate = replace(estimate, grad=call.of_learned(estimate.grad, gradients))
                    sums.add(ChunkResult.of(estimate, self.solver, purpose), span)
                    del estimate
                if keep_adapted:
                    sums.name_adapted(call.adapted)
        return sums.result()
