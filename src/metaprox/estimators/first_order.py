"""The cheap methods that FO-B-MAML is compared with: FO-MAML and Reptile. Both are biased."""

from dataclasses import dataclass
from typing import ClassVar

from metaprox.errors import InputError
from metaprox.estimators.base import Estimator
from metaprox.estimators.info import Info
from metaprox.estimators.result import Estimate
from metaprox.inner.proximal import proximal_solve
from metaprox.losses.backend import Evaluation
from metaprox.losses.gradients import Gradients
from metaprox.losses.look import Query
from metaprox.problem import ProximalProblem


@dataclass(frozen=True)
class FOMAML(Estimator):
    """First-order MAML: g = grad f(y_K), as if y_K did not depend on x through the inner problem.

    With exact inner solves it converges to the point where E[grad f_i(y_i(x))] = 0, and the gradient of F is
    E[lam (H_i + lam I)^{-1} grad f_i(y_i(x))]: another point wherever curvatures differ between tasks, however many
    inner steps are taken. Works with and without a proximal term (lam = 0).

    Arguments as for every estimator. Cost per task: K support gradients and 1 query gradient.

    Source: Finn, Abbeel & Levine, arXiv 1703.03400, section 5.2.
    """

    _takes_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_base()

    def _check_problem(self, problem: ProximalProblem) -> None:
        return None

    def _estimate(self, gradients: Gradients, keep_adapted: bool) -> Estimate:
        base = proximal_solve(gradients, self.solver, self._stopping(), self.on_nonfinite)
        query, shared = gradients.query_both(base.y, 0)
        return Estimate.of(base.y, query.grad, shared, query, Info.of(base, None, gradients.counts), base)


@dataclass(frozen=True)
class Reptile(Estimator):
    """Reptile: g = x - y_K. The query data are not learned from, only reported on.

    With exact inner solves lam g is the gradient of E[min_y fhat_i(y) + (lam/2) ||y - x||^2], the smoothed support
    loss: it converges to a minimizer of that, not of F. Works with and without a proximal term (lam = 0).

    Arguments as for every estimator. Cost per task: K support gradients and a forward pass on the query.

    Raises:
        InputError: the problem has parameters that do not adapt (``adapt=...``).

    Source: Nichol, Achiam & Schulman, arXiv 1803.02999.
    """

    _query: ClassVar[Query] = "value"
    _takes_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_base()

    def _check_problem(self, problem: ProximalProblem) -> None:
        if problem.adapt is not None:
            raise InputError(
                f"Reptile moves only what adapts: adapt={problem.adapt!r} would leave the other parameters without a "
                "meta-gradient. Freeze them, or use another method"
            )

    def _estimate(self, gradients: Gradients, keep_adapted: bool) -> Estimate:
        base = proximal_solve(gradients, self.solver, self._stopping(), self.on_nonfinite)
        loss, metrics = gradients.query_values(base.y.squeeze(1), 0)
        moved = gradients.displacement(base.y).neg_()
        query = Evaluation(moved, loss.unsqueeze(1), {name: metric.unsqueeze(1) for name, metric in metrics.items()})
        return Estimate.of(base.y, moved, moved[..., :0], query, Info.of(base, None, gradients.counts), base)
