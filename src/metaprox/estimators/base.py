"""The interface of every meta-gradient estimator, and what it returns."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from metaprox import checks
from metaprox.arguments import check_estimate, parameters_to_fill
from metaprox.backends import Evaluation
from metaprox.batch import TaskBatch
from metaprox.call import begun
from metaprox.checked import joined
from metaprox.choose import BackendName, Choice, ChunkSize
from metaprox.errors import NonFiniteError
from metaprox.gradients import Counts, Gradients
from metaprox.look import Query
from metaprox.problem import ProximalProblem, Task
from metaprox.proximal import proximal_solve
from metaprox.solve import Solution, Stopping
from metaprox.solvers.protocol import InnerSolver, check_solver
from metaprox.types import Metrics, Params


@dataclass(frozen=True)
class Info:
    """What happened in each of the T tasks. All tensors are on the parameters' device.

    base_residual: ||grad fhat(y_0) + lam (y_0 - x)|| [T], 0 at the exact inner solution.
    gradient_ratio: ||g_i|| / ||v_i|| [T] with v_i = grad f_i(y_0). At most 1 for convex inner losses and exact
        solves, so that larger values are an alarm.
    error_estimate: ||lam v - (H + lam I) g|| / (lam ||v||) [T], by the same difference of gradients that g is of
        solutions, one step before the end. For convex inner losses it bounds the error of g relative to ||v||
        that the branch solves cause. NaN where branches took no step, or it was not asked for.
    nu: the weight of the query loss at a node of 1 [T].
    base_steps, branch_steps: inner steps taken [T].
    base_step_sizes, branch_step_sizes: ||step|| / ||gradient|| of each [T, K], NaN where there was none.
    counts: gradient evaluations and Hessian-vector products, one per task and branch.

    What a method does not have, or would cost it a further evaluation, is NaN.
    """

    base_residual: Tensor
    gradient_ratio: Tensor
    error_estimate: Tensor
    nu: Tensor
    base_steps: Tensor
    branch_steps: Tensor
    base_step_sizes: Tensor
    branch_step_sizes: Tensor
    counts: Counts

    @classmethod
    def of_base(cls, base: Solution, counts: Counts, **known: Tensor) -> "Info":
        """Of a method without branches: what is not known is NaN, and there are no branch steps."""
        unknown = torch.full_like(base.y[:, 0, 0], torch.nan)
        names = ("base_residual", "gradient_ratio", "error_estimate", "nu")
        return cls(
            **(dict.fromkeys(names, unknown) | known),
            base_steps=base.steps,
            branch_steps=torch.zeros_like(base.steps),
            base_step_sizes=base.step_sizes,
            branch_step_sizes=base.step_sizes[:, :0],
            counts=counts,
        )

    def summary(self) -> dict[str, float]:
        """Median and worst over tasks of the residual, the ratio and the error estimate, where known, for a log."""
        rows = {}
        for name in ("base_residual", "gradient_ratio", "error_estimate"):
            values = getattr(self, name)
            if values.isnan().all():
                continue
            rows[f"{name}_median"] = float(values.median())
            rows[f"{name}_worst"] = float(values.max())
        rows["base_step_size_median"] = float(self.base_step_sizes.nanmedian())
        rows["base_step_size_least"] = float(self.base_step_sizes.nan_to_num(torch.inf).min())
        return rows


@dataclass(frozen=True)
class MetaGradient:
    """A meta-gradient and what was computed on the way.

    grad: mean over tasks of grad F_i(x), shaped like the parameters, adapted and shared ones alike.
    query_loss: f_i(y_i) at the adapted parameters [T]. metrics: whatever else the outer loss returned [T].
    adapted: y_i with a leading dimension T, of the parameters that adapt. None if not asked for.
    """

    grad: dict[str, Tensor]
    query_loss: Tensor
    metrics: dict[str, Tensor]
    adapted: dict[str, Tensor] | None
    info: Info


@dataclass(frozen=True)
class ChunkResult:
    """An estimate for some of the tasks: gradient [T, P + W], adapted parameters [T, P] if kept, the rest per task."""

    grad: Tensor
    adapted: Tensor | None
    query_loss: Tensor
    metrics: Metrics
    info: Info

    @classmethod
    def of(
        cls, y: Tensor | None, grad: Tensor, shared_grad: Tensor, query: Evaluation, info: Info, first_task: int
    ) -> "ChunkResult":
        """From tensors [T, 1, ...]: y_i, the gradients with respect to x and w, and the query loss at y_i.

        Raises NonFiniteError, naming the task, where an estimate is not finite.
        """
        whole = torch.cat([grad, shared_grad], dim=-1) if shared_grad.shape[-1] else grad
        require_finite(whole, query.value[..., None], first_task)
        metrics = {name: metric.squeeze(1) for name, metric in query.metrics.items()}
        return cls(whole.squeeze(1), None if y is None else y.squeeze(1), query.value.squeeze(1), metrics, info)


def ratio(vector: Tensor, reference: Tensor) -> Tensor:
    """||vector|| / ||reference|| [T] of tensors [T, 1, P], 0 where the reference is 0."""
    norm = torch.linalg.vector_norm(vector, dim=-1)
    scale = torch.linalg.vector_norm(reference, dim=-1)
    return torch.where(scale > 0, norm / scale, 0.0).squeeze(1)


def require_finite(one: Tensor, other: Tensor, first_task: int) -> None:
    """Raise NonFiniteError, naming the first task, unless both [T, 1, ...] are finite."""
    good = (_largest(one).isfinite() & _largest(other).isfinite()).flatten()
    if not bool(good.all()):
        task = first_task + int((~good).int().argmax())
        raise NonFiniteError(
            f"task {task}: the loss or its gradient is not finite at the adapted parameters. "
            "Lower lr, raise lam, or use mp.AdaptiveGradientDescent.",
            task=task,
        )


def _largest(tensor: Tensor) -> Tensor:
    """Of the absolute values in the last dimension, NaN if there is one; needs no memory of that size."""
    return torch.linalg.vector_norm(tensor, torch.inf, dim=-1)


@dataclass(frozen=True)
class Estimator(ABC):
    """A way to estimate grad F(x) on a batch of tasks. Every one of them starts with a base solve from x to y_0.

    Subclasses say how to treat one chunk of tasks.

    Args:
        solver: the inner solver of the base solve.
        steps: base steps K. Or ``tol`` with ``max_steps``: each task stops once its gradient norm is <= tol.
        backend: "vmap", all tasks at once; "loop", one after another, for any model; "auto", vmap for small models
            that it can take and for tasks of equal shapes, and the loop else. "auto" evaluates the losses on the
            first task to find out, once for each problem and shape of the data; the choice does not depend on time.
        chunk_size: how many tasks vmap takes at once; None: all; "auto": as many as fit a quarter of the device's
            memory by an estimate. Peak memory grows with it.
        compile: compile the vmapped gradients of both losses with ``torch.compile``, once for each shape of the data,
            however many steps are taken and problems made of the same lines; a batch is padded to at most twice its
            tasks. Takes ten seconds or more, and on the CPU a C++ compiler. Where it fails, or would be done too often
            (``metaprox.compiled``), a warning says so, and it goes on without. Second derivatives, and gradients of
            parameters that do not adapt, are not compiled.
    """

    solver: InnerSolver
    steps: int | None = None
    _: KW_ONLY
    tol: float | None = None
    max_steps: int | None = None
    backend: BackendName = "auto"
    chunk_size: ChunkSize = "auto"
    compile: bool = False

    _query: ClassVar[Query] = "gradient"
    _differentiates_twice: ClassVar[bool] = False

    def _check_base(self) -> None:
        """Raise InputError unless the settings of the base solve are in range; ``__post_init__`` calls it."""
        checks.settle(self, solver=check_solver, compile=checks.switch)
        checks.settle(self, **dict.fromkeys(("steps", "max_steps"), checks.optional(checks.count)))
        checks.settle(self, tol=checks.optional(checks.positive), chunk_size=checks.count_or("auto"))
        self._stopping()
        self._choice()

    def _stopping(self) -> Stopping:
        return Stopping.of(self.steps, self.tol, self.max_steps)

    def _choice(self) -> Choice:
        return Choice(self.backend, self.chunk_size, self.compile)

    def _evaluations_held(self) -> int:
        """How many evaluations' memory a task takes at once under vmap."""
        return 1

    def _solve_base(self, gradients: Gradients) -> Solution:
        return proximal_solve(gradients, self.solver, self._stopping())

    @abstractmethod
    def check(self, problem: ProximalProblem) -> None:
        """Raise InputError where the problem is not one this estimator can treat."""

    @abstractmethod
    def _estimate(self, gradients: Gradients, keep_adapted: bool) -> ChunkResult:
        """The per-task meta-gradients at x [P], and w, for the tasks of ``gradients``; y_i too if it is to be kept."""

    def __call__(self, problem: ProximalProblem, params: Params, tasks: Task | Sequence[Task]) -> MetaGradient:
        """The meta-gradient at ``params``. Pure: nothing is written on, global generators advance by one draw.

        Args:
            params: the meta-parameters x, a dict of tensors.
            tasks: a Task whose tensors have a leading dimension T, or a sequence of single Tasks.

        Raises:
            InputError: bad parameters, tasks or losses, before anything is changed.
            NonFiniteError: a solve or a gradient overflowed; names the task and the step.
        """
        check_estimate(problem, params)
        return self._run(problem, params, tasks, keep_adapted=True)

    def backward(
        self, problem: ProximalProblem, tasks: Task | Sequence[Task], params: Mapping[str, Tensor] | None = None
    ) -> MetaGradient:
        """Add the meta-gradient at ``params`` to their ``.grad``, as ``loss.backward()`` would.

        ``params`` are the module's trainable parameters unless given. Nothing is added if anything raises. Where a
        ``.grad`` was None, it and the result's ``grad`` are one tensor; the adapted parameters are not kept
        (``adapted`` is None): a meta-gradient takes no more memory than it must.
        """
        params = parameters_to_fill(problem, params)
        result = self._run(problem, params, tasks, keep_adapted=False)
        with torch.no_grad():
            for name, value in params.items():
                if value.grad is None:
                    value.grad = result.grad[name]
                else:
                    value.grad.add_(result.grad[name])
        return result

    def _run(
        self, problem: ProximalProblem, params: Params, tasks: Task | Sequence[Task], *, keep_adapted: bool
    ) -> MetaGradient:
        self.check(problem)
        batch = TaskBatch.of(tasks)
        total: Tensor | None = None
        chunks: list[ChunkResult] = []
        adapted: list[Tensor] = []
        with begun(
            problem,
            params,
            batch,
            self._choice(),
            query=self._query,
            held=self._evaluations_held(),
            twice=self._differentiates_twice,
        ) as call:
            for span in call.chunks():
                chunk = self._estimate(call.gradients(span), keep_adapted)
                some = chunk.grad[0] if len(chunk.grad) == 1 else chunk.grad.sum(0)
                total = some if total is None else total.add_(some)
                if keep_adapted:
                    assert chunk.adapted is not None
                    adapted.append(chunk.adapted)
                chunks.append(_without_vectors(chunk))
                del chunk, some
            parameters = call.parameters
        assert total is not None  # a batch has at least one task
        return MetaGradient(
            grad=parameters.unflatten(total.div_(batch.size)),
            query_loss=torch.cat([c.query_loss for c in chunks]),
            metrics=joined([c.metrics for c in chunks]),
            adapted=parameters.adapted.unflatten(torch.cat(adapted)) if keep_adapted else None,
            info=_join([c.info for c in chunks]),
        )


def _without_vectors(chunk: ChunkResult) -> ChunkResult:
    return ChunkResult(chunk.grad.new_empty(0), None, chunk.query_loss, chunk.metrics, chunk.info)


def _join(infos: list[Info]) -> Info:
    columns: dict[str, Any] = {
        field.name: _concatenate([getattr(info, field.name) for info in infos])
        for field in fields(Info)
        if field.name != "counts"
    }
    return Info(**columns, counts=Counts.total([info.counts for info in infos]))


def _concatenate(values: list[Tensor]) -> Tensor:
    """Along tasks; where solves ended after different numbers of steps, the shorter rows end in NaN."""
    if values[0].dim() == 2:
        width = max(v.shape[1] for v in values)
        values = [torch.nn.functional.pad(v, (0, width - v.shape[1]), value=torch.nan) for v in values]
    return torch.cat(values)
