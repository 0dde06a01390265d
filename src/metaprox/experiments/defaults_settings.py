"""The settings of FO-B-MAML that the experiment ``defaults`` compares."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import metaprox as mp
from metaprox.estimators.stencil import Scheme, stencil
from metaprox.solvers import InnerSolver

Step = float | Literal["rounding", "rule"]
SOLVERS: dict[str, Any] = {
    "gd": mp.GradientDescent,
    "nesterov": mp.Nesterov,
    "anderson": mp.Anderson,
    "adaptive": mp.AdaptiveGradientDescent,
    "conjugate": mp.ConjugateGradient,
}


@dataclass(frozen=True)
class Setting:
    """step: nu or eps; "rounding" is precision^(1/(p+1)), "rule" what FOBMAML takes if neither is given."""

    scheme: Scheme
    perturb: Literal["loss", "center"]
    step: Step
    corrected: bool = False
    solver: str = "gd"
    branch_steps: int = 10
    start: Literal["base", "predictor"] = "base"

    @property
    def name(self) -> str:
        marks = ["corrected"] * self.corrected + ["predictor"] * (self.start == "predictor")
        return ", ".join(
            [f"{self.scheme}, {self.perturb}", *marks, f"{self.branch_steps} {self.solver}", f"{self.step}"]
        )

    def options(self, lr: float) -> dict[str, Any]:
        """What FOBMAML and Tangent both take."""
        solver: InnerSolver = SOLVERS[self.solver](lr)
        return {
            "perturb": self.perturb,
            "residual_correction": self.corrected,
            "branch_solver": solver,
            "branch_steps": self.branch_steps,
            "start": self.start,
        }

    def meta(self, lr: float, steps: int, precision: float) -> mp.FOBMAML:
        """Base solves are by gradient descent; ``precision`` is the machine's epsilon."""
        meta = mp.FOBMAML(mp.GradientDescent(lr), steps, scheme=self.scheme, **self.options(lr))
        if self.step == "rule":
            return meta
        step = stencil(self.scheme).default_step(precision) if self.step == "rounding" else self.step
        return replace(meta, nu=step) if self.perturb == "loss" else replace(meta, eps=step)


DIFFERENCES = (
    Setting("symmetric", "loss", "rule"),
    Setting("symmetric", "center", "rule"),
    Setting("symmetric", "center", "rule", corrected=True),
    Setting("forward", "loss", "rule"),
    Setting("forward", "center", "rule"),
    Setting("forward", "center", "rule", corrected=True),
    Setting("central4", "center", "rule"),
)
STEPS: tuple[Step, ...] = ("rounding", 0.01, 0.1, 1.0, "rule")
OF_STEPS = [replace(one, step=step) for one in DIFFERENCES for step in STEPS]

FAMILIES = (
    Setting("symmetric", "loss", "rule"),
    Setting("symmetric", "center", "rule"),
    Setting("forward", "center", "rule", corrected=True),
)
BRANCH_STEPS = (3, 5, 10)
OF_SOLVERS = [
    replace(family, solver=solver, branch_steps=steps)
    for family in FAMILIES
    for solver in SOLVERS
    for steps in BRANCH_STEPS
] + [
    replace(family, solver=solver, branch_steps=steps, start="predictor")
    for family in FAMILIES
    for solver in ("gd", "anderson", "conjugate")
    for steps in (3, 10)
]
SETTINGS = {setting.name: setting for setting in OF_STEPS + OF_SOLVERS}
TRAINED = [
    replace(family, step=step)
    for family in FAMILIES
    for step in STEPS
    if step != 0.01 and (family.perturb == "center" or step != 1.0)
]
