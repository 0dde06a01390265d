"""What is suggested, and what it rests on."""

from dataclasses import dataclass

from metaprox.solvers import GradientDescent


@dataclass(frozen=True)
class Tried:
    """Adaptation by ``steps`` steps of ``inner_lr`` under ``lam``, on all tasks that were looked at.

    Means over these: residual is ||grad fhat + lam (y_K - x)|| over ||grad fhat(x)||, support_loss fhat(y_K),
    query_loss f(y_K).
    """

    steps: int
    inner_lr: float
    lam: float
    residual: float
    support_loss: float
    query_loss: float


@dataclass(frozen=True)
class Suggestion:
    """Settings of the inner problem to begin with, and what was seen. ``print`` explains them.

    Attributes:
        inner_lr: step of gradient descent, in squared parameters per loss; it is stable: inner_lr (L + lam) = 1 < 2.
        lam: weight of the proximal term, in loss per squared parameter.
        steps: K.
        curvature: L, the largest curvature of fhat that was seen: at x, on the way, or at the end.
        curvature_at_x: the largest of fhat at x, over the tasks.
        support_loss: mean of fhat(x) over the tasks, before adaptation.
        query_loss: mean of f(x).
        tried: what adaptation gave for each number of steps that was tried; ``chosen`` is that of ``steps``.
        tasks: how many were looked at.
        support_gradients: what it cost, over all tasks.
    """

    inner_lr: float
    lam: float
    steps: int
    curvature: float
    curvature_at_x: float
    support_loss: float
    query_loss: float
    tried: tuple[Tried, ...]
    tasks: int
    support_gradients: int

    @property
    def solver(self) -> GradientDescent:
        """``GradientDescent`` with ``inner_lr``."""
        return GradientDescent(self.inner_lr)

    @property
    def chosen(self) -> Tried:
        """What adaptation with these settings gave."""
        return next(one for one in self.tried if one.steps == self.steps)

    @property
    def residual(self) -> float:
        """After ``steps`` steps, relative to the gradient at x."""
        return self.chosen.residual

    def __str__(self) -> str:
        limit = 2 / (self.curvature + self.lam)
        rows = [
            f"  {one.steps:4} steps of {one.inner_lr:.2g}, lam {one.lam:.2g}: support loss {self.support_loss:.4g} -> "
            f"{one.support_loss:.4g}, query loss {self.query_loss:.4g} -> {one.query_loss:.4g}, "
            f"{100 * one.residual:.0f}% of the gradient left"
            for one in self.tried
        ]
        return "\n".join(
            [
                f"Suggested by {self.tasks} task{'s' * (self.tasks != 1)}: inner step {self.inner_lr:.2g}, "
                f"lam {self.lam:.2g}, {self.steps} steps",
                f"  curvature of the inner loss: {self.curvature_at_x:.2g} at x, {self.curvature:.2g} at most; steps "
                f"are stable below {limit:.2g}, twice the one suggested",
                *rows,
                f"  cost: {self.support_gradients} support gradients",
                f"  options: --inner-lr {self.inner_lr:.2g} --lam {self.lam:.2g} --steps {self.steps}",
            ]
        )
