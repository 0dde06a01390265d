"""FO-B-MAML: the meta-gradient as a finite difference of inner solutions."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from metaprox import checks
from metaprox.backends import Evaluation
from metaprox.errors import InputError
from metaprox.estimators.base import ChunkResult, Info, ratio, require_finite
from metaprox.estimators.branched import Branched
from metaprox.gradients import BRANCH_NOISE, Gradients
from metaprox.pull import Shift
from metaprox.solve import Fused, Solution, Step, add_weighted, solve_parts
from metaprox.solvers.protocol import InnerSolver, separates_branches
from metaprox.stencil import STENCILS, Stencil, stencil

# Of the default steps. Branches at nu < 0 minimize fhat - |nu| f, which needs a small nu to have a minimum.
LARGEST_EPS, LARGEST_NU = 1.0, 0.1


@dataclass(frozen=True)
class FOBMAML(Branched):
    """First-order B-MAML: grad F(x) = -lam d y_nu / d nu at nu = 0, by a finite difference over coupled branches.

        y_nu = argmin_y  fhat(y) + nu f(y) + (lam/2) ||y - x||^2            perturb="loss", the paper's
        y_nu = argmin_y  fhat(y) + (lam/2) ||y - x + (nu/lam) v||^2         perturb="center", v = grad f(y_0)
        g    = -(lam/nu) sum_j a_j y_(n_j nu)                               nodes n_j, weights a_j of the scheme

    The base solve goes from x to y_0; then all branches start at y_0 together and share steps, step sizes and
    noise, so that what they have in common cancels in the difference. Memory does not grow with the steps. In the
    loop backend a loss is evaluated with one batch's memory, as in plain training, and (symmetric, "loss", gradient
    descent) 3 further vectors of P numbers: both branches and a gradient; a fourth at the last step for the error
    estimate. Between evaluations there are up to 5. Up to a megabyte of parameters x is copied: one more. Under vmap
    it is P numbers and an evaluation's memory for each task and branch of the chunk at hand. With forward and symmetric
    differences of exact solves the error is O(nu) and O(nu^2); see ``scheme``.

    Args:
        solver: the inner solver of the base solve.
        steps: base steps K. Or ``tol`` with ``max_steps``: each task stops once its gradient norm is <= tol
            (and its branches once theirs are <= nu tol, because the difference is divided by nu).
        scheme: "forward", "symmetric", "central4", "central6", of order 1, 2, 4, 6 in nu. With "loss", nodes below 0
            need lam + min eig(Hess fhat) > |n_j| nu max eig(Hess f).
        perturb: where nu enters, as above. "center" needs the query gradient once a task, "loss" at every step.
        nu: weight of the query loss at a node of 1, for perturb="loss".
        eps: distance that the proximal centre moves at a node of 1, nu = lam eps / ||v||, for perturb="center".
        Where neither is given, eps = min(1, ||r||/lam)^(1/order) for each task, with r the gradient left at y_0, so
            that the truncation is of the order of the base's own error, and nu = min(0.1, lam eps / ||v||) for
            "loss". eps is at least (machine epsilon)^(1/(order + 1)), which balances rounding.
        branch_solver: solver of the branches (default: ``solver``). ``mp.Anderson`` needs the fewest steps.
        branch_steps: steps of each branch (default: ``steps`` or ``max_steps``).
        residual_correction: subtract the gradient left at y_0 from every branch's gradient, so that y_0 is
            exactly stationary at nu = 0 and a node of 0 costs nothing. g is then (1) with H and v taken at y_0.
            Noise is then the same at all branch steps. Where y_0 is far from solved, that is not the gradient of what
            the solver reaches, and long training ends worse.
        start: "base": branches start at y_0. "predictor": at y_0 - (n_j nu/lam) v, the solution to first order
            where fhat is flat; with branch_steps=0 this is FO-MAML exactly.
        estimate_error: whether to compute ``info.error_estimate``. Without it the loop backend saves a vector.
        backend, chunk_size, compile: as for every estimator: "auto", "vmap" or "loop"; "auto", None or a number;
            whether vmapped gradients are compiled.

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
    estimate_error: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        step = checks.optional(partial(checks.positive, why="it is the step of a finite difference"))
        checks.settle(self, scheme=checks.one_of(*STENCILS), nu=step, eps=step, estimate_error=checks.switch)
        for name, value, goes_with in (("nu", self.nu, "loss"), ("eps", self.eps, "center")):
            if value is not None and self.perturb != goes_with:
                raise InputError(f"{name}={value!r} is the step of perturb={goes_with!r}, but perturb={self.perturb!r}")

    def _evaluations_held(self) -> int:
        return len(self._table(stencil(self.scheme))[0])

    def _estimate(self, gradients: Gradients, keep_adapted: bool) -> ChunkResult:
        base = self._solve_base(gradients)
        adapted = base.y if keep_adapted else None
        origin, query, shared = self._origin(gradients, base.y)
        base = replace(base, parts=())  # the origin lets go of y_0 as soon as it can
        solver = gradients.for_parameters(self._solver_of_branches)
        branches = solve_parts(
            self._branch_gradient(gradients, origin),
            self._starts(gradients, origin),
            solver,
            self._steps_of_branches,
            fused=self._fused(gradients, origin, solver),
            tol=None if self.tol is None else self.tol * origin.nu.flatten(),
            weights=origin.weights if self.estimate_error else None,
            describe="branch solve",
            first_task=gradients.start,
        )
        self._release(origin)
        shared = shared + self._shared_difference(gradients, origin, branches) / origin.nu
        left = branches.grad  # (lam v - (H + lam I) g) nu / lam
        error = torch.full_like(origin.nu, torch.nan) if left is None else _norm(left) / origin.nu
        del left
        grad = _difference(branches.parts, origin).mul_(-gradients.lam / origin.nu)
        info = Info(
            base_residual=origin.norm_residual.flatten(),
            gradient_ratio=ratio(grad, origin.norm_v),
            error_estimate=ratio(error, origin.norm_v),
            nu=origin.nu.flatten(),
            base_steps=base.steps,
            branch_steps=branches.steps,
            base_step_sizes=base.step_sizes,
            branch_step_sizes=branches.step_sizes,
            counts=gradients.counts,
        )
        return ChunkResult.of(adapted, grad, shared, query, info, gradients.start)

    def _origin(self, gradients: Gradients, y0: Tensor) -> tuple["_Origin", Evaluation, Tensor]:
        """What the branches start from; the query loss at y_0, without its gradient; grad_w f."""
        residual = gradients.proximal(y0, BRANCH_NOISE, 0)
        query, shared = gradients.query_both(y0, BRANCH_NOISE, 0)
        norm_residual, norm_v = _norm(residual), _norm(query.grad)
        require_finite(norm_residual, norm_v, gradients.start)
        rule = stencil(self.scheme)
        nu = self._step(rule, gradients.lam, norm_v, norm_residual)
        origin = _Origin(*self._table(rule), nu, norm_residual, norm_v, y0, residual, query.grad)
        return origin, replace(query, grad=norm_v), shared

    def _starts(self, gradients: Gradients, origin: "_Origin") -> list[Tensor]:
        """Where the branches start: in one part, or each in its own where that saves memory and changes nothing."""
        apart = gradients.one_branch_at_a_time and self.tol is None and separates_branches(self._solver_of_branches)
        count = len(origin.nodes)
        parts = [slice(j, j + 1) for j in range(count)] if apart else [slice(0, count)]
        if self.start == "predictor":
            return [origin.y0 - (origin.tilt[:, part] / gradients.lam) * origin.v for part in parts]
        return [origin.y0.expand(-1, part.stop - part.start, -1) for part in parts]

    def _branch_gradient(self, gradients: Gradients, origin: "_Origin") -> Callable[[Tensor, int, slice], Tensor]:
        """(y, step, branches) -> gradients [T, b, P] of the branch problems."""

        def gradient(y: Tensor, step: int, branches: slice) -> Tensor:
            if step == 0 and self.start == "base":
                return self._at_y0(origin, branches)
            self._release(origin)
            noise = self._noise(step)
            grad = gradients.proximal(y, BRANCH_NOISE, noise, shift=self._shift(origin, branches))
            moved = slice(1 if origin.nodes[branches][0] == 0 else 0, None)  # a node of 0 comes first, without query
            if self.perturb == "loss" and y[:, moved].shape[1]:
                tilt = origin.tilt[:, branches]
                gradients.add_query(grad[:, moved], tilt[:, moved], y[:, moved], BRANCH_NOISE, noise)
            return grad

        return gradient

    def _fused(self, gradients: Gradients, origin: "_Origin", solver: InnerSolver) -> Fused:
        """(y, step, branches) -> gradient and step in one, where no query gradient comes between."""

        def step(y: Tensor, step: int, branches: slice) -> Step | None:
            if self.perturb == "loss" or (step == 0 and self.start == "base"):
                return None
            shift = self._shift(origin, branches)
            return gradients.step(solver, y, BRANCH_NOISE, self._noise(step), shift=shift)

        return step

    def _noise(self, step: int) -> int:
        return 0 if self.residual_correction else step

    def _shift(self, origin: "_Origin", branches: slice) -> Shift | None:
        """What is the same in these branches' gradients at all steps."""
        if branches.start not in origin.shifts:
            tilt, terms = origin.tilt[:, branches], []
            if self.perturb == "center":
                terms.append((tilt, origin.v))
            if self.residual_correction:
                terms.append((-torch.ones_like(tilt), origin.residual))
            origin.shifts[branches.start] = Shift(terms) if terms else None
        return origin.shifts[branches.start]

    def _at_y0(self, origin: "_Origin", branches: slice) -> Tensor:
        """The gradients of the branch problems at y_0, where all is known; the last branch's takes over a vector."""
        tilt = origin.tilt[:, branches]
        if self.residual_correction:
            return tilt * origin.v
        if branches.start == 0 or branches.stop < len(origin.nodes):
            return torch.addcmul(origin.residual, tilt, origin.v)
        last = origin.residual.addcmul_(tilt, origin.v)
        self._release(origin)
        return last

    def _release(self, origin: "_Origin") -> None:
        """Let go of the vectors that nothing after the first step needs."""
        nothing = origin.nu.new_empty(0)
        if len(origin.nodes) > 1:
            origin.y0 = nothing
        if not self.residual_correction:
            origin.residual = nothing
        if self.perturb == "loss":
            origin.v = nothing

    def _table(self, rule: Stencil) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Nodes and weights of the branches that are solved.

        With residual correction the branch at node 0 stays at y_0: the one left differs from y_0 itself.
        """
        rows = [(n, w) for n, w in zip(rule.nodes, rule.weights, strict=True) if n or not self.residual_correction]
        nodes, weights = zip(*rows, strict=True)
        return nodes, weights

    def _step(self, rule: Stencil, lam: float, norm_v: Tensor, norm_residual: Tensor) -> Tensor:
        """nu [T, 1, 1]. Where v = 0 every step gives 0, so any finite one will do."""
        if self.nu is not None:
            return torch.full_like(norm_v, self.nu)
        eps = _distance(rule, norm_residual / lam) if self.eps is None else self.eps
        nu = torch.where(norm_v > 0, lam * eps / norm_v, LARGEST_NU)
        return nu if self.perturb == "center" else nu.clamp(max=LARGEST_NU)

    def _shared_difference(self, gradients: Gradients, origin: "_Origin", branches: Solution) -> Tensor:
        """sum_j a_j grad_w fhat(y_j) [T, 1, W], with the same noise at every point."""
        if not gradients.shares:
            return origin.nu[..., :0]
        weights = origin.nu.new_tensor(origin.weights)[:, None]
        total = (weights * gradients.support_shared(branches.y, BRANCH_NOISE, 0)).sum(1, keepdim=True)
        if len(origin.nodes) == 1:  # the branch at node 0 is y_0, with weight -1
            total = total - gradients.support_shared(origin.y0, BRANCH_NOISE, 0)
        return total


@dataclass
class _Origin:
    """The point y_0 that the branches start at, the gradients there, and the difference to take from there."""

    nodes: tuple[float, ...]
    weights: tuple[float, ...]
    nu: Tensor
    norm_residual: Tensor
    norm_v: Tensor
    y0: Tensor
    residual: Tensor
    v: Tensor
    shifts: dict[int, Shift | None] = field(default_factory=dict)  # of the branches from there on

    def __post_init__(self) -> None:
        self.tilt = self.nu.new_tensor(self.nodes)[:, None] * self.nu


def _distance(rule: Stencil, error: Tensor) -> Tensor:
    """The default eps, where y_0 is at most ``error`` from the solution (for a convex inner loss)."""
    least = rule.default_step(torch.finfo(error.dtype).eps)
    return (error.clamp(max=LARGEST_EPS) ** (1 / rule.order)).clamp(min=least)


def _norm(vector: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vector, dim=-1, keepdim=True)


def _difference(parts: Sequence[Tensor], origin: _Origin) -> Tensor:
    """sum_j a_j y_j [T, 1, P], as differences to the first branch (a single one: to y_0), because sum_j a_j = 0."""
    branches = [part[:, j : j + 1] for part in parts for j in range(part.shape[1])]
    first, *others = branches if len(branches) > 1 else (origin.y0, *branches)
    total: Tensor | None = None
    for branch, weight in zip(others, origin.weights[-len(others) :], strict=True):
        total = add_weighted(total, branch - first, (weight,))
    assert total is not None
    return total
