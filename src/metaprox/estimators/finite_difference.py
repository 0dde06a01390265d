"""FO-B-MAML: the meta-gradient as a finite difference of inner solutions."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from metaprox import checks
from metaprox.errors import InputError
from metaprox.estimators.base import ChunkResult, Info, ratio, require_finite
from metaprox.estimators.branched import Branched
from metaprox.gradients import BRANCH_NOISE, Gradients
from metaprox.problem import ProximalProblem
from metaprox.solve import Solution, solve
from metaprox.stencil import Stencil, stencil


@dataclass(frozen=True)
class FOBMAML(Branched):
    """First-order B-MAML: grad F(x) = -lam d y_nu / d nu at nu = 0, by a finite difference over coupled branches.

        y_nu = argmin_y  fhat(y) + nu f(y) + (lam/2) ||y - x||^2            perturb="loss", the paper's
        y_nu = argmin_y  fhat(y) + (lam/2) ||y - x + (nu/lam) v||^2         perturb="center", v = grad f(y_0)
        g    = -(lam/nu) sum_j a_j y_(n_j nu)                               nodes n_j, weights a_j of the scheme

    The base solve goes from x to y_0; then all branches start at y_0 together and share steps, step sizes and
    noise, so that what they have in common cancels in the difference. Memory does not grow with the steps. In the
    loop backend it is that of a plain training step on one batch and 9 vectors of P numbers (symmetric, "loss");
    under vmap, P numbers and an evaluation's memory for each task and branch of the chunk at hand. With forward and
    symmetric differences of exact solves the error is O(nu) and O(nu^2); see ``scheme``.

    Args:
        solver: the inner solver of the base solve.
        steps: base steps K. Or ``tol`` with ``max_steps``: each task stops once its gradient norm is <= tol
            (and its branches once theirs are <= nu tol, because the difference is divided by nu).
        scheme: "forward", "symmetric", "central4", "central6", of order 1, 2, 4, 6 in nu. Nodes below 0 need
            lam + min eig(Hess fhat) > |n_j| nu max eig(Hess f).
        perturb: where nu enters, as above. "center" needs the query gradient once a task, "loss" at every step.
        nu: weight of the query loss at a node of 1, for perturb="loss".
        eps: distance that the proximal centre moves at a node of 1, nu = lam eps / ||v||, for perturb="center".
            Both default to (machine epsilon)^(1/(order + 1)).
        branch_solver: solver of the branches (default: ``solver``). ``mp.Anderson`` needs the fewest steps.
        branch_steps: steps of each branch (default: ``steps`` or ``max_steps``).
        residual_correction: subtract the gradient left at y_0 from every branch's gradient, so that y_0 is
            exactly stationary at nu = 0 and a node of 0 costs nothing. g is then (1) with H and v taken at y_0.
            Noise is then the same at all branch steps.
        start: "base": branches start at y_0. "predictor": at y_0 - (n_j nu/lam) v, the solution to first order
            where fhat is flat; with branch_steps=0 this is FO-MAML exactly.
        backend: "vmap", all tasks and branches in one call, or "loop", one after another, for any model.
        chunk_size: how many tasks the vmap backend takes at once (None: all). Peak memory grows with it.

    Cost per task, with B branches (forward with residual correction: 1) and J branch steps, from y_0:
    K + 1 + B (J - 1) support gradients, and 1 query gradient ("center") or 1 + B (J - 1) ("loss", without the branch of
    forward at node 0). Parameters w that do not adapt take a further support gradient for each node: grad_w F =
    grad_w f(y_0) + (1/nu) sum_j a_j grad_w fhat(y_(n_j nu)), by the envelope theorem.

    Raises:
        InputError: an argument is out of range, or lam is 0.
        NonFiniteError: a solve overflowed; names the task and the step.

    Source: Chayti & Jaggi, arXiv 2409.03682; schemes of higher order: Chen et al., arXiv 2509.02937.

    Example:
        >>> import torch, metaprox as mp
        >>> loss = lambda params, target: 0.5 * ((params["w"] - target) ** 2).sum()
        >>> problem = mp.ProximalProblem(loss, loss, lam=1.0)
        >>> tasks = mp.Task(support=torch.tensor([[1.0]]), query=torch.tensor([[3.0]]))
        >>> meta = mp.FOBMAML(mp.GradientDescent(lr=0.5), steps=20)
        >>> meta(problem, {"w": torch.zeros(1)}, tasks).grad["w"]   # lam/(1+lam) (y - 3) with y = 1/2
        tensor([-1.2500])
    """

    _: KW_ONLY
    scheme: str = "symmetric"
    nu: float | None = None
    eps: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        stencil(self.scheme)
        for name, value, goes_with in (("nu", self.nu, "loss"), ("eps", self.eps, "center")):
            if value is None:
                continue
            checks.positive(name, value, "it is the step of a finite difference")
            if self.perturb != goes_with:
                raise InputError(f"{name}={value!r} is the step of perturb={goes_with!r}, but perturb={self.perturb!r}")

    def _estimate(self, problem: ProximalProblem, x: Tensor, gradients: Gradients) -> ChunkResult:
        base = self._solve_base(problem, x, gradients)
        y0 = base.y
        residual = gradients.support(y0, BRANCH_NOISE, 0).grad.add_(y0 - x, alpha=problem.lam)
        query, shared = gradients.query_both(y0, BRANCH_NOISE, 0)
        norm_residual, norm_v = (torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (residual, query.grad))
        require_finite(norm_residual, norm_v, gradients.start)
        rule = stencil(self.scheme)
        nu = self._step(rule, problem.lam, norm_v)
        nodes, weights = self._table(rule, x)
        gradient = self._branch_gradient(problem.lam, x, gradients, y0, residual, query.grad, nodes * nu)
        start = y0.expand(-1, len(nodes), -1)
        if self.start == "predictor":
            start = start - (nodes * nu / problem.lam) * query.grad
        del residual  # vectors of P numbers that only ``gradient`` may still need
        query = replace(query, grad=norm_v)
        branches = solve(
            gradient,
            start,
            self._solver_of_branches,
            self._steps_of_branches,
            tol=None if self.tol is None else self.tol * nu.flatten(),
            describe="branch solve",
            first_task=gradients.start,
        )
        grad = (-problem.lam / nu) * (weights * (branches.y - y0)).sum(1, keepdim=True)
        info = Info(
            base_residual=norm_residual.flatten(),
            gradient_ratio=ratio(grad, norm_v),
            error_estimate=ratio(self._linear_residual(branches, weights, nu), norm_v),
            nu=nu.flatten(),
            base_steps=base.steps,
            branch_steps=branches.steps,
            base_step_sizes=base.step_sizes,
            branch_step_sizes=branches.step_sizes,
            counts=gradients.counts,
        )
        shared = shared + self._shared_difference(gradients, y0, branches.y, weights) / nu
        return ChunkResult.of(base, grad, shared, query, info, gradients.start)

    def _branch_gradient(
        self, lam: float, x: Tensor, gradients: Gradients, y0: Tensor, residual: Tensor, v: Tensor, tilt: Tensor
    ) -> Callable[[Tensor, int], Tensor]:
        """(y, step) -> gradients [T, B, P] of the branch problems, of query weights ``tilt`` [T, B, 1]."""
        center = x - (tilt / lam) * v if self.perturb == "center" else x
        shift = residual if self.residual_correction else None
        moved = slice(int(bool((tilt[0, 0] == 0).all())), None)  # a node of 0 comes first, and needs no query gradient
        known = [tilt * v if self.residual_correction else residual + tilt * v] if self.start == "base" else []

        def gradient(y: Tensor, step: int) -> Tensor:
            if known:  # at y_0
                return known.pop()
            noise = 0 if self.residual_correction else step
            grad = gradients.support(y, BRANCH_NOISE, noise).grad
            if self.perturb == "loss":
                grad[:, moved].addcmul_(tilt[:, moved], gradients.query(y[:, moved], BRANCH_NOISE, noise).grad)
            grad.add_(y - center, alpha=lam)
            return grad if shift is None else grad.sub_(shift)

        return gradient

    def _table(self, rule: Stencil, like: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes and weights [B, 1] of the branches that are solved.

        With residual correction the branch at node 0 stays at y_0, which the difference is taken from anyway.
        """
        rows = [(n, w) for n, w in zip(rule.nodes, rule.weights, strict=True) if n or not self.residual_correction]
        nodes, weights = zip(*rows, strict=True)
        return like.new_tensor(nodes)[:, None], like.new_tensor(weights)[:, None]

    def _step(self, rule: Stencil, lam: float, norm_v: Tensor) -> Tensor:
        """nu [T, 1, 1]. Where v = 0 every step gives 0, so any finite one will do."""
        default = rule.default_step(torch.finfo(norm_v.dtype).eps)
        if self.perturb == "loss":
            return torch.full_like(norm_v, self.nu or default)
        eps = self.eps or default
        return torch.where(norm_v > 0, lam * eps / norm_v, 1.0)

    def _shared_difference(self, gradients: Gradients, y0: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """sum_j a_j grad_w fhat(y_j) [T, 1, W], with the same noise at every point."""
        total = (weights * gradients.support_shared(y, BRANCH_NOISE, 0)).sum(1, keepdim=True)
        if self.residual_correction and self.scheme == "forward":  # the branch at node 0 is y_0, with weight -1
            total = total - gradients.support_shared(y0, BRANCH_NOISE, 0)
        return total

    @staticmethod
    def _linear_residual(branches: Solution, weights: Tensor, nu: Tensor) -> Tensor:
        """(lam v - (H + lam I) g) / lam [T, 1, P], as the difference of the branches' last gradients."""
        if branches.grad is None:
            return torch.full_like(branches.y[:, :1], torch.nan)
        return (weights * branches.grad).sum(1, keepdim=True) / nu
