"""Is training healthy? What the meta-gradients of a run say of themselves, looked at every so many meta-steps."""

import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox.errors import (
    AstrayWarning,
    HealthWarning,
    InaccurateWarning,
    IndefiniteWarning,
    InputError,
    LossWarning,
    RatioWarning,
    RoundingWarning,
    UnmovedWarning,
)
from metaprox.estimators.info import Info, check_columns
from metaprox.estimators.result import MetaGradient
from metaprox.losses.counts import Counts
from metaprox.problem import ProximalProblem

WINDOW = 25  # meta-steps that are looked at together, in one transfer from the device
ENOUGH = 12  # of them, where a run ends
HALF = 0.5  # of the tasks
ROUNDING, LEAST = 0.2, 0.01  # of an error that is worth a word; as much again and more is the branches' own rounding
Numbers = dict[str, float]


@dataclass(frozen=True)
class Rule:
    """``number`` above ``limit`` is not healthy; ``text`` says what it means, with the numbers, and the remedy."""

    warning: type[HealthWarning]
    number: str
    limit: float
    text: str


STABLE = "take a shorter inner step, mp.AdaptiveGradientDescent, or a larger lam"
RULES = (
    Rule(
        UnmovedWarning,
        "to_go",
        30.0,
        "the base solve moves {moved:.2g} from x and has some {to_go:.2g} times that way to go (median over tasks), so "
        "that adaptation does next to nothing: take a longer inner step, more steps, or a larger lam",
    ),
    Rule(
        InaccurateWarning,
        "relative_error",
        0.95,
        "g is {relative_error:.0%} error (median over tasks; {branch_error:.0%} of it from the branches, "
        "{base_error:.0%} from the base): take more steps, a larger lam, or a better solver of the branches, such as "
        "branch_solver=mp.Anderson(lr)",
    ),
    Rule(
        RatioWarning,
        "long",
        HALF,
        "{long:.0%} of the tasks have ||g|| above ||v||, their query gradient (median ratio {ratio:.2g}), which solved "
        "convex problems never have: inner steps lose hold, and training is about to collapse: " + STABLE,
    ),
    Rule(
        LossWarning,
        "rise",
        3.0,
        "the query loss after adaptation is {loss:.3g}, {rise:.1f} times what it has been ({least:.3g}); the median of "
        "||g|| / ||v|| is {ratio:.2g}, of the error {relative_error:.0%}. Where the ratio is up: "
        + STABLE
        + "; else a shorter outer step",
    ),
    Rule(
        AstrayWarning,
        "astray",
        0.1,
        "for {astray:.0%} of the tasks fhat - nu f has no minimum near y_0, so that the branches at -nu run away. With "
        'the default step those were taken anew by "center", at twice the cost; with a nu of your own they stay wrong: '
        'take perturb="center", or a smaller nu',
    ),
    Rule(
        RoundingWarning,
        "rounding",
        HALF,
        "rounding rules the error of {rounding:.0%} of the tasks: the difference is taken over nu = {nu:.2g} "
        "(median), which is too little for this precision: leave nu and eps out, or take float64",
    ),
    Rule(
        IndefiniteWarning,
        "indefinite",
        HALF,
        "H + lam I has negative curvature along the last steps of {indefinite:.0%} of the tasks, which are near no "
        "minimum: their g is no derivative of a solution. Take a larger lam, or more base steps",
    ),
)


class Monitor:
    """Looks at the meta-gradients of a run, 25 meta-steps at a time, and warns once of each thing that is wrong.

    ``backward`` of every estimator tells the monitor of its problem. A loop of calls in its place has its own:
    ``monitor = mp.Monitor()`` and ``monitor.see(out)`` after each. Between the looks nothing is computed, and no device
    is waited for.

    Attributes:
        said: by the name of the warning's class, what this run was warned of.
        numbers: of the last look: medians, and shares of the tasks.
    """

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.numbers: Numbers = {}
        self._steps = self._count = 0
        self._least = math.inf
        self._window: list[MetaGradient] = []
        self._lock = threading.Lock()

    @classmethod
    def of(cls, problem: ProximalProblem) -> "Monitor":
        """That of ``problem``, which lives as long."""
        monitor: Monitor = problem.cache.get_or_make(cls, cls)
        return monitor

    @classmethod
    def anew(cls, problem: ProximalProblem) -> "Monitor":
        """A fresh one in its place: a run begins."""
        problem.cache[cls] = monitor = cls()
        return monitor

    def goes_on(
        self, step: int, losses: Sequence[float], said: dict[str, str], state: Mapping[str, Tensor] | None = None
    ) -> None:
        """A run is resumed after ``step`` meta-steps; ``losses``: that of each look at them; of which this was said.

        ``state``: what ``state()`` was then.
        """
        self._steps, self.said, self._least = step, dict(said), min(losses, default=math.inf)
        if state:
            columns = {name: values for name, values in state.items() if name not in ("steps", "lam", "loss")}
            info = Info.of_columns(columns, Counts(), float(state["lam"]))
            self._window, self._count = [MetaGradient({}, state["loss"], {}, None, info)], int(state["steps"])

    @staticmethod
    def check_state(state: Mapping[str, Tensor]) -> None:
        """Raise InputError unless ``state`` is one that ``state()`` gives."""
        if not state:
            return
        columns = dict(state)
        steps, lam, loss = (columns.pop(name, torch.empty(0, 0, device="cpu")) for name in ("steps", "lam", "loss"))
        if steps.dim() or lam.dim() or loss.dim() != 1 or not 0 < int(steps) < WINDOW:
            raise InputError(f"a monitor of {WINDOW} meta-steps has no such state")
        check_columns(columns, len(loss))

    def state(self) -> dict[str, Tensor]:
        """What the next look will be at, so far, by name; nothing right after a look."""
        if not self._window:
            return {}
        info = Info.join([out.info for out in self._window])
        loss = torch.cat([out.query_loss for out in self._window])
        lam = torch.tensor(info.seen.lam, dtype=torch.float64, device="cpu")
        return {"steps": torch.tensor(self._count, device="cpu"), "lam": lam, "loss": loss, **info.columns()}

    def see(self, out: MetaGradient) -> None:
        """Of one meta-step. Warns, where it is the last of a window and something is wrong, once of each thing."""
        with self._lock:
            self._window.append(out.without_vectors())
            self._steps, self._count = self._steps + 1, self._count + 1
            full = self._count >= WINDOW
        if full:
            self.look()

    def end(self, enough: int = ENOUGH) -> None:
        """Look at what is left, if it is ``enough`` to judge by, and forget it: the run ends."""
        if self._count >= enough:
            self.look()
        self._window, self._count = [], 0

    def look(self) -> None:
        """At the meta-steps since the last look."""
        with self._lock:
            window, count, self._window, self._count = self._window, self._count, [], 0
        if not window:
            return
        self.numbers = _numbers(window)
        loss = self.numbers["loss"]
        self.numbers |= {"least": self._least, "rise": loss / self._least if self._least > 0 else math.nan}
        self._least = min(self._least, loss if math.isfinite(loss) else math.inf)
        when = f"meta-steps {self._steps - count + 1} to {self._steps}: "
        for rule in RULES:
            name = rule.warning.__name__
            if self.numbers[rule.number] > rule.limit and name not in self.said:
                self.said[name] = when + rule.text.format(**self.numbers)
                warnings.warn(self.said[name], rule.warning, stacklevel=4)


def _numbers(window: Sequence[MetaGradient]) -> Numbers:
    """Medians, and shares, of all tasks of these meta-steps that were not skipped; NaN where nothing is known."""
    info = Info.join([out.info for out in window])
    kept, seen = ~info.skipped, info.seen
    ratio, whole = info.gradient_ratio[kept], info.relative_error[kept]
    curvature = torch.minimum(seen.curvature.nan_to_num(0.0), seen.base_curvature.nan_to_num(0.0))[kept]
    median: dict[str, Tensor] = {
        "ratio": ratio,
        "relative_error": whole,
        "branch_error": info.branch_error[kept] / whole,
        "base_error": info.base_error[kept] / whole,
        "to_go": seen.to_go()[kept],
        "moved": seen.moved[kept],
        "nu": info.nu[kept],
    }
    share: dict[str, Tensor] = {
        "long": ratio > 1,
        "astray": info.astray[kept],
        "rounding": (info.rounding_error[kept] > ROUNDING * whole) & (whole > LEAST),
        "indefinite": curvature < 0,
    }
    mean: Callable[[Tensor], Tensor] = lambda values: values.to(ratio.dtype).mean()  # noqa: E731
    loss = torch.cat([out.query_loss for out in window])[kept]
    found = [*(values.nanmedian() for values in median.values()), *map(mean, share.values()), mean(loss)]
    return dict(zip((*median, *share, "loss"), torch.stack(found).tolist(), strict=True))
