"""Gradients of the two losses at T x B points, counted and with coupled noise."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metaprox.data.batch import TaskBatch
from metaprox.losses.adapted import AdaptedLoss, flat_loss
from metaprox.losses.backend import Backend, Evaluation, Further, Run, Seed, Step, Steps
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.counts import Counts
from metaprox.losses.evaluation import Unwritten, evaluation
from metaprox.losses.look import Look
from metaprox.losses.memory import Memory
from metaprox.losses.noise import Noise
from metaprox.losses.sharded import LossInShards
from metaprox.losses.vmapped import FlatLoss
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import InnerSolver, check_takes_shards, for_parameters, keeps_gradients, relative_step
from metaprox.types import Metrics
from metaprox.vectors.parameters import Parameters
from metaprox.vectors.rest import HERE, Rest
from metaprox.vectors.terms import LinearTerm, ProximalTerm

# First noise id of the gradients of a base solve, and of everything from its end on; the second is the step.
BASE_NOISE, BRANCH_NOISE = 0, 1
ALL = slice(None)


class Gradients:
    """Gradients of one problem's losses on a range of the tasks of a batch, counted and with coupled noise.

    This is where branches are coupled: equal ``step`` and ``noise`` mean equal random numbers in the loss, at whatever
    points. ``start`` and ``stop`` are the tasks' positions among all tasks, of which the batch begins at ``first``.
    ``look``: what was seen of the losses. ``rest``: where vectors are while nobody uses them.
    """

    def __init__(
        self,
        problem: ProximalProblem,
        parameters: Parameters,
        backend: Backend,
        noise: Noise,
        batch: TaskBatch,
        tasks: tuple[int, int],
        look: Look,
        first: int = 0,
        rest: Rest = HERE,
    ) -> None:
        self.start, self.stop = first + tasks[0], first + tasks[1]
        self.lam, self.counts = problem.lam, Counts()
        self.backend, self.noise, self.parameters, self.rest = backend, noise, parameters, rest
        self.data = backend.data(batch, *tasks)
        self.writes, self.draws, self.coarse = look.writes, look.draws, look.coarse
        self.inner = CheckedLoss(problem.inner_loss, "inner_loss")
        self.outer = CheckedLoss(problem.outer_loss, "outer_loss")
        self.adapted_inner, self.adapted_outer = self._adapted(self.inner), self._adapted(self.outer)
        self._unwritten = Unwritten(parameters.w)
        self._left: tuple[Tensor | None, Tensor | None] = (None, None)  # a point, and ``proximal`` there
        self._memory: Memory | None = None  # of the latest solve

    def for_parameters(self, solver: InnerSolver) -> InnerSolver:
        """``solver``, told of the parameters' shapes if it wants to know. Refuses one that can't step shards."""
        if self.parameters.shards is not None:
            check_takes_shards(solver)
        return for_parameters(solver, self.parameters.adapted.views)

    def memory(self, solver: InnerSolver) -> Memory | None:
        """What a solve of one task may write on, where it is: in the loop, of a model that is whole."""
        if not self.backend.sequential or self.stop - self.start > 1 or self.parameters.shards is not None:
            return None
        self._memory = Memory(self.parameters.adapted, relative_step(solver), reusable=not keeps_gradients(solver))
        return self._memory

    def per_task(self, value: float) -> Tensor:
        """``value`` for each task [T], in the dtype of the parameters."""
        return self.parameters.pieces[0].new_full((self.stop - self.start,), value)

    def start_at_x(self) -> Tensor:
        """x for each task [T, 1, P]; not the live parameters, but not to be written on."""
        return self.parameters.start().expand(self.stop - self.start, 1, -1)

    def displacement(self, y: Tensor) -> Tensor:
        """y - x [T, B, P], a new tensor."""
        return self.parameters.displacement(y)

    def proximal(
        self,
        y: Tensor,
        step: int,
        branches: slice = ALL,
        *,
        noise: int = BRANCH_NOISE,
        linear: LinearTerm | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Returns grad fhat(y) + lam (y - x) + u [T, b, P]: the inner problem's gradient, a linear term added to it.

        y are the points of these branches, of which ``linear`` holds the u of all. A new tensor, or of ``memory``.
        """
        if self.backend.compile and y.shape[1] == 1:
            (at, known), self._left = self._left, (None, None)
            if at is y and known is not None and linear is None:
                self.counts.support_gradients += len(y)
                return known
            alone = Run(y, 1, torch.ones(len(y), dtype=torch.bool, device=y.device))
            if (taken := self.steps(alone, linear=linear and linear.of(branches))) is not None:
                return taken.grad
        self.counts.support_gradients += y.shape[0] * y.shape[1]
        term, seed = self.term(branches, linear), self.seed(0, noise, step)
        with self.evaluation("support"):
            in_graph = self.backend.step(self.adapted_inner, y, self.data.support, seed, term, 0.0)
            if in_graph is not None and in_graph.grad is not None:
                return in_graph.grad
            total = term.gradient(y, self._spare(y) if memory is None else memory.take(y))
            self.backend.add_gradient(self.adapted_inner, y, self.data.support, seed, total, memory=memory)
            return total

    def step(
        self,
        solver: InnerSolver,
        y: Tensor,
        step: int,
        branches: slice = ALL,
        *,
        noise: int = BRANCH_NOISE,
        linear: LinearTerm | None = None,
    ) -> Step | None:
        """``proximal`` and the step of ``solver`` along it in one, where that can be had; None where not."""
        size = relative_step(solver) if self.backend.compile else None
        if size is None:
            return None
        term, seed = self.term(branches, linear), self.seed(0, noise, step)
        with self.evaluation("support"):
            taken = self.backend.step(self.adapted_inner, y, self.data.support, seed, term, size)
        self.counts.support_gradients += 0 if taken is None else y.shape[0] * y.shape[1]
        return taken

    def steps(
        self, run: Run, *, linear: LinearTerm | None = None, tilt: Tensor | None = None, ends: bool = False
    ) -> Steps | None:
        """Returns steps of all branches that are taken in one; None where that can't be, as where losses draw numbers.

        ``tilt``: [T, b, 1] times grad f is added to the gradients of the last b branches. ``ends``: as of the run.
        """
        if self.draws or not self.backend.compile:
            return None
        further = None if tilt is None else Further(self.adapted_outer, self.data.query, tilt)
        term, seed, run = self.term(ALL, linear), self.seed(0, BRANCH_NOISE, 0), replace(run, ends=ends)
        with self.evaluation("support"):
            taken = self.backend.steps(self.adapted_inner, self.data.support, seed, term, run, further)
        if taken is not None:
            self._left = (taken.y, taken.grad) if taken.ended else (None, None)
            self.counts.took(len(taken.norms) * len(run.y), run.y.shape[1], 0 if tilt is None else tilt.shape[1])
        return taken

    def _spare(self, like: Tensor) -> Tensor | None:
        """What the latest solve has left, if that is like ``like``; it is let go of."""
        left, self._memory = None if self._memory is None else self._memory.left(), None
        return left if left is not None and left.shape == like.shape else None

    def query(self, y: Tensor, step: int) -> Evaluation:
        """grad f at y [T, B, P]."""
        self._memory = None
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        with self.evaluation("query"):
            return self.backend.evaluate(self.adapted_outer, y, self.data.query, self.seed(1, BRANCH_NOISE, step))

    def add_query(self, total: Tensor, weight: Tensor, y: Tensor, step: int, memory: Memory | None = None) -> None:
        """Add ``weight`` [T, B, 1] times grad f at y to ``total`` [T, B, P] in place."""
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        with self.evaluation("query"):
            seed = self.seed(1, BRANCH_NOISE, step)
            self.backend.add_gradient(self.adapted_outer, y, self.data.query, seed, total, weight, memory)

    def query_both(self, y: Tensor, step: int) -> tuple[Evaluation, Tensor]:
        """grad f at y with respect to y, as ``query``, and with respect to w [T, B, W], for the price of one."""
        if not self.shares:
            return self.query(y, step), self.nothing(y)
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        loss, seed = self._flat(self.outer), self.seed(1, BRANCH_NOISE, step)
        with self.evaluation("query"):
            out = self.backend.evaluate(loss, self.parameters.at(y), self.data.query, seed)
        size = y.shape[-1]
        return Evaluation(out.grad[..., :size], out.value, out.metrics), out.grad[..., size:]

    def support_shared(self, y: Tensor, step: int) -> Tensor:
        """grad fhat at y [T, B, P] with respect to w [T, B, W]. Costs nothing where W is 0."""
        if not self.shares:
            return self.nothing(y)
        self.counts.support_gradients += y.shape[0] * y.shape[1]
        size, inner = y.shape[-1], self._flat(self.inner)

        def at_fixed_y(z: Tensor, data: Any) -> tuple[Tensor, Metrics]:
            return inner(torch.cat([z[:size].detach(), z[size:]]), data)

        loss = inner if self.parameters.shards is not None else at_fixed_y
        z, seed = self.parameters.at(y), self.seed(0, BRANCH_NOISE, step)
        with self.evaluation("support"):
            return self.backend.evaluate(loss, z, self.data.support, seed).grad[..., size:]

    def query_values(self, y: Tensor, step: int) -> tuple[Tensor, Metrics]:
        """f and its metrics [T] at y [T, P], without a gradient (and so not counted as one)."""
        loss = self._adapted(replace(self.outer, differentiable=False))
        with self.evaluation("query"):
            return self.backend.values(loss, y, self.data.query, self.seed(1, BRANCH_NOISE, step))

    @property
    def shares(self) -> bool:
        """Whether there are parameters w that do not adapt."""
        return self.parameters.shared is not None

    @property
    def one_branch_at_a_time(self) -> bool:
        """Whether evaluating branches one after another takes less memory than all at once."""
        return self.backend.sequential

    @staticmethod
    def nothing(y: Tensor) -> Tensor:
        """What a gradient with respect to w is where there is none."""
        return y.new_empty(*y.shape[:-1], 0)

    def seed(self, *noise_ids: int) -> Seed:
        """Equal ids mean equal noise in the same task: of support (0) or query (1), base or branches, a step."""
        if self.backend.sequential:
            return lambda task: self.noise.of(*noise_ids, self.start + task)
        count, apart = self.stop - self.start, self.draws
        return lambda task: self.noise.of_tasks(self.start, count, *noise_ids, apart=apart)

    def evaluation(self, half: str) -> AbstractContextManager[None]:
        """Around a call of the backend: losses let go of its tensors; errors of the user's code say where they rose."""
        return evaluation((self.start, self.stop), half, (self.inner, self.outer), self._unwritten)

    def _adapted(self, loss: CheckedLoss) -> FlatLoss:
        """``loss`` of y [P]."""
        at_w = (self.parameters.structure, self.parameters.w)
        return AdaptedLoss(loss, *at_w, self.writes) if self.parameters.shards is None else LossInShards(loss, *at_w)

    def _flat(self, loss: CheckedLoss) -> FlatLoss:
        """``loss`` of z [P + W]."""
        if self.parameters.shards is None:
            return flat_loss(loss, self.parameters, writes=self.writes)
        return self._adapted(loss)

    def term(self, branches: slice, linear: LinearTerm | None) -> ProximalTerm:
        """What is known of the objective of these branches without the data, of which ``linear`` holds that of all."""
        return ProximalTerm(self.parameters, self.lam, None if linear is None else linear.of(branches))
