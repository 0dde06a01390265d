"""How FO-B-MAML's branches leave y_0: together, each in a part of its own, or one after another while others rest."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from metaprox.checks import shown
from metaprox.errors import InputError
from metaprox.estimators.branches import AtBase, Branches, Problems
from metaprox.estimators.error import of_last_steps
from metaprox.estimators.stencil import stencil
from metaprox.estimators.step import nu_of
from metaprox.estimators.truncation import Bend
from metaprox.estimators.until import Until
from metaprox.inner.progress import Solution
from metaprox.inner.solve import solve_parts
from metaprox.inner.turns import Turns
from metaprox.losses.gradients import Gradients
from metaprox.solvers.protocol import resumed, separates_branches

if TYPE_CHECKING:
    from metaprox.estimators.finite_difference import FOBMAML

TOGETHER = "which are told of all branches at every step, and offload=True has one at a time on the device"


def check_offload(meta: "FOBMAML") -> None:
    """Raise InputError where a setting needs several branches at once."""
    solver, name = meta._solver_of_branches, "solver" if meta.branch_solver is None else "branch_solver"
    if meta.backend == "vmap" or meta.compile:
        found = "compile=True" if meta.compile else "backend='vmap'"
        remedy = "use backend='loop' or 'auto', which is the loop then, without compile"
        raise InputError(f"offload=True is for the loop, and {found} holds all tasks and branches at once: {remedy}")
    for setting in ("tol", "rtol"):
        if (value := getattr(meta, setting)) is not None:
            raise InputError(f"{setting}={value!r} ends solves by the gradients {TOGETHER}: give steps=K alone")
    if meta.estimate_truncation:
        raise InputError(
            "estimate_truncation=True takes seven vectors more, on the device: leave it out, or offload=True"
        )
    if meta._evaluations_at_once() > 1 and not separates_branches(solver):
        raise InputError(
            f"{name}={shown(solver)} does not say that it steps each branch without a look at the others, and "
            "offload=True has one at a time on the device: give branch_solver=mp.GradientDescent(...), mp.Nesterov, "
            "mp.Adam, mp.Anderson or mp.TorchOptimizer; one of your own that does says so: separate_branches = True"
        )


def leave(
    meta: "FOBMAML", at_base: AtBase, gradients: Gradients
) -> tuple[Branches, list[Tensor] | Turns, list[Tensor], Tensor | None]:
    """Returns the branches' problems, starts, gradients there and tolerance; consumes ``at_base``.

    They start in one part, or each in its own where that saves memory and changes nothing; or take turns.
    """
    lam, corrected, norm_v, lengths = gradients.lam, meta.residual_correction, at_base.norm_v, at_base.lengths
    given, (nodes, weights) = {"nu": meta.nu, "eps": meta.eps}, meta._nodes_and_weights
    nu = nu_of(stencil(meta.scheme), lam, norm_v, lengths, query_moves=meta.perturb == "loss", **given)
    branches = Branches.of(at_base, nodes, weights, nu, center=meta.perturb == "center", corrected=corrected)
    where: dict[str, Any] = {"lam": lam, "corrected": corrected, "predict": meta.start == "predictor"}
    if gradients.rest.moves:
        turns = Turns(lambda part: at_base.begin(branches.tilt[:, part], **where), len(nodes), gradients.rest, nu)
        return branches, turns, [], None
    together = meta.tol is not None or meta.rtol is not None or not separates_branches(meta._solver_of_branches)
    apart = gradients.one_branch_at_a_time and not together
    parts = [slice(j, j + 1) for j in range(len(nodes))] if apart else [slice(0, len(nodes))]
    starts, first = at_base.leave(branches.tilt, parts, **where)
    tol = None if meta.tol is None or lengths is None else lengths.tolerance(meta.tol, lam, nu * norm_v / lam)
    return branches, starts, first, tol


def solved(
    meta: "FOBMAML",
    of: Problems | Bend,
    starts: list[Tensor] | Turns,
    first: list[Tensor],
    tol: Until | Tensor | None,
    base: Solution,
) -> Solution:
    """The branches' solutions from ``starts``."""
    problems, steps = of.solved if isinstance(of, Bend) else of, meta._steps_of_branches
    solver, branches, rest = problems.solver, problems.branches, problems.gradients.rest
    trail = of_last_steps(branches.weights, solver, steps, rest) if meta.estimate_error else None
    return solve_parts(
        of.gradient,
        starts,
        solver,
        steps,
        first=first,
        fused=of.fused,
        in_one=of.in_one,
        tol=tol.branches(branches, trail) if isinstance(tol, Until) else tol,
        trail=trail,
        begin=resumed(solver, meta.solver, base.step_sizes),
        memory=problems.memory,
        purpose=meta._purpose_of_branches(problems.gradients),
    )
