"""What is known of a solver's steps before any is taken: up to which curvature they converge, and what would help."""

from metaprox.errors import InputError, UnstableError
from metaprox.solvers.adaptive import AdaptiveGradientDescent
from metaprox.solvers.protocol import InnerSolver, promised, relative_step

STIFF = 0.5  # of lr * lam: from here on a larger lam is no remedy


def largest_curvature(solver: InnerSolver, steps: int) -> float | None:
    """Returns up to which curvature ``steps`` steps come closer to a minimum: 2/h for steps of h times the gradient.

    None where ``solver`` has declared neither ``relative_step`` nor ``largest_curvature``.
    """
    step = relative_step(solver)
    if step is not None:
        return 2 / step
    declared = promised(solver, "largest_curvature")
    return None if declared is None else declared(steps)


def check_stable(solver: InnerSolver, lam: float, steps: int, name: str = "solver") -> None:
    """Refuse a ``lam`` that makes the steps diverge whatever the losses are.

    A single step from x does not see the proximal term.

    Raises:
        UnstableError: the proximal term alone, of curvature ``lam``, makes them diverge.
    """
    limit = largest_curvature(solver, steps)
    if limit is None or steps == 1 or lam <= limit:
        return
    lr = relative_step(solver) or getattr(solver, "lr", None)
    known = "" if lr is None else f"lr * lam = {lr * lam:.4g} > {lr * limit:.4g}: "
    lower = "" if lr is None else f"Use lr < {lr * limit / lam:.4g}, or "
    raise UnstableError(
        f"{name}={solver!r} with lam={lam:.6g}: {known}(lam/2) ||y - x||^2 alone makes {steps} such steps diverge. "
        f"{lower}{'lam' if lower else 'Use lam'} < {limit:.4g}"
    )


def remedy(solver: InnerSolver, lam: float | None = None) -> str:
    """What helps where a solve overflowed, as far as is known."""
    lr = relative_step(solver) or getattr(solver, "lr", None)
    if isinstance(solver, AdaptiveGradientDescent):
        return f"{'Give lr, the longest step' if lr is None else 'Lower lr'}, or raise lam."
    if lr is not None and lam is not None and lr * lam > STIFF:
        stiff = f"lower lam, of which much of the stiffness comes (lr * lam = {lr * lam:.3g})"
        return f"Lower lr, or {stiff}; or use mp.AdaptiveGradientDescent."
    return "Lower lr, raise lam, or use mp.AdaptiveGradientDescent."


def check_first_step(branches: InnerSolver, base: InnerSolver) -> None:
    """Raise InputError where branches, next to their solution, would begin with a probe as for a solve from afar."""
    if isinstance(branches, AdaptiveGradientDescent) and branches.lr is None and branches != base:
        raise InputError(
            f"branch_solver={branches!r} finds its first step in a base that it has solved too, but solver={base!r}: "
            "give it lr, its longest step, or leave branch_solver out and give it as the solver"
        )
