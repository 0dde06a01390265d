"""FO-B-MAML: the meta-gradient as a finite difference of inner solutions."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from metaprox import checks
from metaprox.errors import InputError
from metaprox.estimators.branched import Branched
from metaprox.estimators.branches import AtBase, Problems
from metaprox.estimators.error import BASE_STEPS, linear_residual, of_base, of_difference
from metaprox.estimators.in_one import estimate_in_one
from metaprox.estimators.info import Info
from metaprox.estimators.leaving import check_offload, leave, solved
from metaprox.estimators.result import Estimate
from metaprox.estimators.stencil import STENCILS, Scheme, stencil
from metaprox.estimators.truncation import Bend, check_known, truncation
from metaprox.estimators.until import Until
from metaprox.inner.failures import Purpose
from metaprox.inner.proximal import proximal_solve
from metaprox.losses.choose import Choice
from metaprox.losses.gradients import Gradients
from metaprox.vectors.norms import norm
from metaprox.vectors.rest import Rest, rest_on, whole

# Of ||g|| / ||v||, which is at most 1 for convex inner losses: above it a branch at -nu has left what has a minimum.
LARGEST_RATIO = 2.0


@dataclass(frozen=True)
class FOBMAML(Branched):
    """First-order B-MAML: grad F(x) = -lam d y_nu / d nu at nu = 0, by a finite difference over coupled branches.

        y_nu = argmin_y  fhat(y) + nu f(y) + (lam/2) ||y - x||^2            perturb="loss", the paper's
        y_nu = argmin_y  fhat(y) + (lam/2) ||y - x + (nu/lam) v||^2         perturb="center", v = grad f(y_0)
        g    = -(lam/nu) sum_j a_j y_(n_j nu)                               nodes n_j, weights a_j of the scheme

    The base solve goes from x to y_0; then all branches start at y_0 together and share steps, step sizes and
    noise, so that what they have in common cancels in the difference. In the loop no step makes a vector of P numbers:
    beyond activations there are the branches and one more, two more at the last step for the error estimate, v with
    "center", y_0 with a single branch, a parameter's gradient, and x up to a megabyte; ``offload`` leaves three
    of them, two with "loss".
    Vmap takes P numbers and an evaluation for each task and branch. Of exact solves the error of forward differences is
    O(nu), else see ``scheme``.

    Where neither nu nor eps is given, eps = D min(2, (||r|| / (lam D))^(1/order)) for each task, with D = ||y_0 - x||
    and r the gradient left at y_0, so that the truncation is of the order of the base's own error, and nu = lam eps /
    ||v||. For "loss" nu ||v|| is at most 0.175 ||grad fhat(y_0)||; where a branch at -nu goes astray all the same (the
    task's gradient ratio is above 2), the task is differentiated anew by "center". eps is no less than what balances
    rounding. No change of units changes it; docs/method.md, (5), has the details.

    Args:
        solver: the inner solver of the base solve.
        steps: base steps K. Or ``tol`` with ``max_steps``.
        tol: in place of ``steps``: each task stops once its gradient norm is <= tol (and its branches once theirs are
            as small relative to lam eps, where they begin, as tol is to lam D, and a hundredth of it at most).
        scheme: "forward", "symmetric", "central4", "central6", of order 1, 2, 4, 6 in nu. With "loss", nodes below 0
            need lam + min eig(Hess fhat) > |n_j| nu max eig(Hess f).
        perturb: where nu enters, the query loss or the centre of the proximal term. "center" needs the query gradient
            once a task, "loss" at every step, and on fixed steps next to the edge of stability trains more safely.
            Default: "loss" where nu is given, else "center".
        nu: weight of the query loss at a node of 1, for perturb="loss".
        eps: distance that the proximal centre moves at a node of 1, nu = lam eps / ||v||, for perturb="center".
        branch_solver: solver of the branches (default: ``solver``). ``mp.ConjugateGradient`` needs the fewest steps.
        branch_steps: steps of each branch (default: ``steps`` or ``max_steps``).
        residual_correction: subtract the gradient left at y_0 from every branch's gradient, so that y_0 is
            exactly stationary at nu = 0 and a node of 0 costs nothing. g is then (1) with H and v taken at y_0.
            Noise is then the same at all branch steps. Where y_0 is far from solved, that is not the gradient of what
            the solver reaches, and long training ends worse.
        start: "base": branches start at y_0. "predictor": at y_0 - (n_j nu/lam) v, the solution to first order
            where fhat is flat; with branch_steps=0 this is FO-MAML exactly.
        estimate_error: whether to say ``info.relative_error``. Without it the loop backend saves two vectors.
        rtol: each task's base and branches take steps until their parts of that error are at most 1 : B of rtol, and
            ``steps`` and ``branch_steps`` at most. For convex inner losses and tasks that can be solved.
        estimate_truncation: whether ``info.truncation_error`` is part of it, of forward and symmetric differences. It
            costs a support gradient a task (forward "loss": a query gradient too), and seven vectors.
        offload: whether vectors that are not in use rest in the memory of the CPU, pinned where the parameters are on
            CUDA: y_0, r and v, the branches that have ended or not begun, what the error estimate compares, and the sum
            over tasks. Each branch then takes all of its steps alone, in the loop, and results are the same to the last
            bit. With gradient descent two vectors of P numbers stay on the device beyond the model, a third with
            "center" and with ``residual_correction``, a fourth with both and several branches, whatever the scheme, and
            blocks of 4 MiB. A task moves (10 B + 6) P numbers, (6 B + 2) P with estimate_error=False, and P more with
            "center"; 2 P go for the sum over several tasks. Other solvers hold their state, and compare more steps:
            84 P with Nesterov and two branches. Not with vmap, compile, tol, rtol, estimate_truncation, or where
            several branches' solver looks at all of them. Where parameters are on the CPU nothing changes.

    ``max_steps``, ``backend``, ``chunk_size``, ``compile`` and ``on_nonfinite`` are as for every estimator.

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
    scheme: Scheme = "symmetric"
    nu: float | None = None
    eps: float | None = None
    estimate_error: bool = True
    rtol: float | None = None
    estimate_truncation: bool = False
    offload: bool = False
    _takes_shards: ClassVar[bool] = True
    step_of: ClassVar[dict[str, str]] = {"nu": "loss", "eps": "center"}  # where each of the two has a meaning

    def __post_init__(self) -> None:
        checks.settle(self, **dict.fromkeys(("estimate_error", "estimate_truncation", "offload"), checks.switch))
        super().__post_init__()
        step = checks.optional(partial(checks.positive, why="it is the step of a finite difference"))
        checks.settle(self, scheme=checks.one_of(*STENCILS), nu=step, eps=step, rtol=checks.optional(checks.positive))
        if self.rtol is not None and (self.tol is not None or not self.estimate_error):
            raise InputError(f"rtol={self.rtol!r} needs steps=K, at most, and estimate_error=True")
        if self.nu is not None and self.eps is not None:
            raise InputError(f"give nu={self.nu!r}, for perturb='loss', or eps={self.eps!r}, for 'center', not both")
        for name, perturb in self.step_of.items():
            value = getattr(self, name)
            if value is not None and self.perturb != perturb:
                raise InputError(f"{name}={value!r} is the step of perturb={perturb!r}, but perturb={self.perturb!r}")
        if self.estimate_truncation:
            check_known(self.scheme, self.estimate_error)
        if self.offload:
            check_offload(self)

    def _choice(self) -> Choice:
        chosen = super()._choice()
        takes_loop = self.offload and chosen.backend == "auto" and not chosen.compile
        return replace(chosen, backend="loop") if takes_loop else chosen

    def _rest(self, device: torch.device) -> Rest:
        return rest_on(device) if self.offload else super()._rest(device)

    @classmethod
    def without_meaning(cls, given: Mapping[str, Any]) -> set[str]:
        perturb = given.get("perturb") or cls.perturbs_by_default(given)
        return {name for name, one in cls.step_of.items() if one != perturb}

    def _evaluations_at_once(self) -> int:
        return len(self._nodes_and_weights[0])

    @property
    def _nodes_and_weights(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return stencil(self.scheme).branches(corrected=self.residual_correction)

    @property
    def _chooses(self) -> bool:
        """Whether the step is the default one."""
        return self.nu is None and self.eps is None

    @property
    def _may_go_astray(self) -> bool:
        """Whether branches at -nu may have no minimum although nobody gave the nu."""
        return self._chooses and self.perturb == "loss" and min(stencil(self.scheme).nodes) < 0

    def _estimate(self, gradients: Gradients, keep_adapted: bool) -> Estimate:
        if (found := estimate_in_one(self, gradients, keep_adapted)) is not None:
            return self._unless_astray(found, gradients)
        watched, until = BASE_STEPS * self.estimate_error, Until.of(self.rtol, gradients, self._evaluations_at_once())
        stopping, enough = self._stopping(), until.base if until else None
        base = proximal_solve(gradients, self.solver, stopping, self.on_nonfinite, watched=watched, enough=enough)
        measure = self._chooses or self.tol is not None
        at_base, query, shared = AtBase.of(gradients, base.y, measured=measure, trail=base.trail)
        seen = of_base(base.trail, gradients, base.y, at_base.lengths)
        base, at_base = replace(base, parts=()), at_base.resting(gradients.rest)
        adapted, norm_residual, norm_v = at_base.y0 if keep_adapted else None, at_base.norm_residual, at_base.norm_v
        self._require_finite(gradients, norm_residual, norm_v)
        branches, starts, first, tol = leave(self, at_base, gradients)
        solver = gradients.for_parameters(self._solver_of_branches)
        problems = Problems(branches, gradients, solver, self.perturb == "loss", not self.residual_correction)
        bend = self._bend(at_base, problems)
        del at_base  # and with it y_0, r and v, but for what the branches' problems keep
        ends = solved(self, bend or problems, starts, first, until or tol, base)
        shared = shared + branches.per_nu(branches.shared_difference(gradients, ends.parts))
        grad = problems.derivative(ends.parts)
        per_nu = branches.per_nu(torch.ones_like(branches.nu)).flatten()
        bent = (
            None
            if bend is None
            else truncation(bend.theta(), stencil(self.scheme).order, center=self.perturb == "center")
        )
        length, norm_v = norm(grad).flatten(), norm_v.flatten()
        info = Info.of(
            base,
            ends,
            gradients.counts,
            base_residual=norm_residual.flatten(),
            gradient_ratio=torch.where(norm_v > 0, length / norm_v, 0.0),
            linear_residual=linear_residual(ends.trail, norm_v, per_nu),
            nu=branches.nu.flatten(),
            seen=of_difference(gradients.lam, length, seen, ends, per_nu, bent, early=(until or tol) is not None),
        )
        adapted, ends = None if adapted is None else whole(adapted), replace(ends, parts=())
        out = [Estimate.of(adapted, grad, shared, query, info, base, ends)]
        del grad  # so that nobody has it where it is computed anew
        return self._unless_astray(out.pop(), gradients)

    def _bend(self, at_base: AtBase, problems: Problems) -> Bend | None:
        """What the truncation is judged by, where it is asked for."""
        if not self.estimate_truncation:
            return None
        early = self.tol is not None or self.rtol is not None
        return Bend.of(problems, at_base, self.scheme, 0 if early else self._steps_of_branches - 1)

    def _unless_astray(self, found: Estimate, gradients: Gradients) -> Estimate:
        """``found``, or by "center" for the tasks of which a branch at -nu has left what has a minimum."""
        if self.perturb == "center" or min(stencil(self.scheme).nodes) >= 0:
            return found
        base, branch = found.solves
        astray = base.finite & ~(branch.finite & (found.info.gradient_ratio <= LARGEST_RATIO))
        if self._chooses and bool(astray.any()):
            if bool(astray.all()):  # none of it stays
                found = replace(found, grad=found.grad.new_zeros(1))
            found = found.where(~astray, replace(self, perturb="center")._estimate(gradients, keep_adapted=False))
        return replace(found, info=replace(found.info, astray=astray))

    def _purpose_of_branches(self, gradients: Gradients) -> Purpose:
        if self.perturb == "center" or self.nu is None or min(stencil(self.scheme).nodes) >= 0:
            advice = ""
        else:
            advice = f" Or lower nu={self.nu:g}: at -nu, f may outweigh what has a minimum."
        purpose = self._purpose("branch solve", gradients, advice)
        astray = self._may_go_astray and self.on_nonfinite == "raise"
        return replace(purpose, on_nonfinite="tell") if astray else purpose
