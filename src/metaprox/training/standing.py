"""Where a run stands between two meta-steps, beside its tensors."""

from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from metaprox import checks
from metaprox.errors import InputError


@dataclass
class Standing:
    """``step`` meta-steps are done, which took ``seconds``.

    evaluated: whether what is evaluated after that step is in the log. ended: whether the run ends before its last
    meta-step. best_step and best: the evaluation during training with the best result, and that; best_weights: the
    weights then, where the run keeps them. health: what its monitor has seen since it last looked.
    """

    step: int = 0
    seconds: float = 0.0
    evaluated: bool = False
    ended: bool = False
    best_step: int | None = None
    best: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    health: dict[str, Tensor] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """All but the tensors, as JSON holds it."""
        return {name: value for name, value in vars(self).items() if name not in ("best_weights", "health")}

    @classmethod
    def of(cls, values: dict[str, Any], best_weights: dict[str, Tensor], meta_steps: int) -> Self:
        """What ``described`` gave. Raises InputError where it is none of a run of so many meta-steps."""
        step = checks.count("step", values["step"], least=0, most=meta_steps)
        best = values.get("best")
        best_step = values.get("best_step")
        if (best is None) != (best_step is None):
            raise InputError(f"best_step is {checks.shown(best_step)} where best is {checks.shown(best)}")
        return cls(
            step,
            checks.nonnegative("seconds", values["seconds"]),
            checks.switch("evaluated", values.get("evaluated", True)),
            checks.switch("ended", values.get("ended", False)),
            None if best_step is None else checks.count("best_step", best_step, least=0, most=step),
            None if best is None else checks.at_least("best", best, -checks.LARGEST_NUMBER),
            best_weights,
        )
