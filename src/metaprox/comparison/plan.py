"""What is compared, and what is equal for all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from metaprox import checks
from metaprox.comparison.cost import Cost
from metaprox.errors import InputError
from metaprox.training import Composition, Pace, Settings, Trainer

Budget = Literal["steps", "gradients"]
NOT_SHARED = {"seed": "give --seeds", "method": "name methods in --methods or --variants"}


LONGEST = 200  # bytes of a label, which is the name of a folder
FILES = ("comparison.json", "starts.jsonl", "table.md", "report.html", "figures")  # beside the folders of the methods


class Contender(Protocol):
    """What takes part in a comparison: a run for each seed."""

    @property
    def pace(self) -> Pace:
        """Of every run, but for the seed."""

    def trainer(self, seed: int) -> Trainer:
        """The run of a seed."""

    def configuration(self, seed: int) -> Mapping[str, Any]:
        """What the run of a seed says of itself, as in its folder."""


@dataclass(frozen=True)
class Composed:
    """A contender by its parts."""

    composition: Composition

    @property
    def pace(self) -> Pace:
        return self.composition.pace

    def trainer(self, seed: int) -> Trainer:
        return self.composition.but(seed=seed).trainer()

    def configuration(self, seed: int) -> Mapping[str, Any]:
        return self.composition.but(seed=seed).configuration()


@dataclass(frozen=True)
class Scripted:
    """A contender by a script's function of the seed."""

    make: Callable[[int], Trainer]
    pace: Pace

    def trainer(self, seed: int) -> Trainer:
        return self.make(seed)

    def configuration(self, seed: int) -> Mapping[str, Any]:
        made = self.trainer(seed).configuration
        assert made is not None
        return made


@dataclass(frozen=True)
class Plan:
    """What is compared: a contender for each label, the seeds, and what is equal for all.

    budget: "steps": equal numbers of inner and outer steps; "gradients": as many meta-steps as the first method's
        gradient evaluations pay for, a Hessian-vector product counted as two.
    """

    contenders: dict[str, Contender]
    seeds: tuple[int, ...]
    budget: Budget = "steps"

    @classmethod
    def of(
        cls, shared: Settings, variants: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], budget: Budget = "steps"
    ) -> "Plan":
        """``variants``: label -> changes to the shared settings. Raises InputError before any work is done."""
        checks.choice("budget", budget, ("steps", "gradients"))
        if not isinstance(shared, Settings):
            raise InputError(f"shared must be training.Settings, got {checks.shown(shared)}")
        if not isinstance(variants, Mapping) or not all(isinstance(own, Mapping) for own in variants.values()):
            raise InputError(f"variants must be a dict: label -> changed settings, got {checks.shown(variants)}")
        seeds = _checked(variants, seeds)
        for name, remedy in NOT_SHARED.items():
            if name in shared.given:
                raise InputError(f"{name}={shared.given[name]!r} can't be shared by all methods: {remedy}")
        for label, changes in variants.items():
            if {"seed", "tasks"} & changes.keys():
                raise InputError(f"{label}: seed and tasks are the same for all methods, got {dict(changes)}")
        found: dict[str, Contender] = {}
        for label, changes in variants.items():
            one = Composed(shared.variant(changes).composition())
            one.composition.trainer()
            found[label] = one
        return cls(_on_equal_tasks(found), seeds, budget)

    @classmethod
    def of_trainers(cls, make: Mapping[str, Callable[[int], Trainer]], seeds: Sequence[int]) -> "Plan":
        """Returns a plan of runs from ``make``: label -> a function of the seed that makes one, with its own model.

        Each is tried for every seed at once, so that none fails after hours.

        With several jobs at once they are made in other processes: functions of a module, not lambdas.

        Raises:
            InputError: ``make`` or ``seeds`` are something else; before any work is done.
        """
        if not isinstance(make, Mapping) or not all(callable(one) for one in make.values()):
            raise InputError(f"make must be a dict: label -> a function of the seed, got {checks.shown(make)}")
        seeds = _checked(make, seeds)
        found: dict[str, Contender] = {}
        for label, function in make.items():
            paces = {seed: _made(label, function, seed).pace for seed in seeds}
            if odd := [seed for seed, pace in paces.items() if replace(pace, seed=seeds[0]) != paces[seeds[0]]]:
                raise InputError(f"{label}: the pace of seed {odd[0]} is not that of seed {seeds[0]}")
            found[label] = Scripted(function, paces[seeds[0]])
        return cls(_on_equal_tasks(found), seeds)

    def with_equal_gradients(self, costs: Mapping[str, Cost]) -> "Plan":
        """The plan with each method's meta-steps such that its gradient evaluations are those of the first."""
        first = next(iter(self.contenders))
        if first not in costs:
            raise InputError(f"{first} diverges at the first meta-step, so that its gradients are no budget")
        pace = self.contenders[first].pace
        total = pace.meta_steps * per_meta_step(pace, costs[first])
        found = dict(self.contenders)
        for label, one in self.contenders.items():
            if not isinstance(one, Composed):
                raise InputError(f"{label} is made by a script, which alone can give it other numbers of meta-steps")
            if label in costs:
                count = max(1, round(total / per_meta_step(one.pace, costs[label])))
                found[label] = Composed(one.composition.but(meta_steps=count))
        return replace(self, contenders=found)

    def runs(self) -> list[tuple[str, int, Contender]]:
        """(label, seed, contender) of every run, seed by seed."""
        return [(label, seed, one) for seed in self.seeds for label, one in self.contenders.items()]


def _made(label: str, make: Callable[[int], Any], seed: int) -> Trainer:
    """What a script's function makes. Raises InputError unless it is a trainer of the seed."""
    made = make(seed)
    if not isinstance(made, Trainer):
        raise InputError(f"{label}: the function must make a training.Trainer, got {checks.shown(made)}")
    if made.pace.seed != seed:
        raise InputError(f"{label}: the function makes a run of seed {made.pace.seed} where it was asked for {seed}")
    return made


def _on_equal_tasks(contenders: dict[str, Contender]) -> dict[str, Contender]:
    """The same. Raises InputError where one has other numbers of test tasks, or may end before its last meta-step."""
    for label, one in contenders.items():
        if one.pace.patience is not None:
            raise InputError(f"{label}: patience={one.pace.patience} makes runs of other lengths: compare without it")
    counts = {label: one.pace.test_tasks for label, one in contenders.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"test_tasks must be the same for all methods, which are compared task by task, got {counts}")
    return contenders


def _checked(labels: Mapping[str, Any], seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds. Raises InputError unless there are several labels, each fit for a folder, and seeds, each once."""
    seeds = checks.tuple_of("seeds", seeds, checks.seed)
    if len(labels) < 2:
        raise InputError(f"a comparison needs at least two methods, got {list(labels)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds must be given, each once, got {list(seeds)}")
    for label in labels:
        if not _names_a_folder(label):
            raise InputError(
                f"{checks.shown(label)} names a folder: it can't be empty, start with a dot, have slashes or what is "
                f"not printed, start or end with a space, or take more than {LONGEST} bytes"
            )
        if label in FILES:
            raise InputError(f"{label!r} can't name a method: it is a file of the comparison")
    return seeds


def _names_a_folder(label: Any) -> bool:
    if not isinstance(label, str) or not label.isprintable() or label != label.strip() or label.startswith("."):
        return False
    return bool(label) and not set(label) & set("/\\") and len(label.encode()) <= LONGEST


def run_path(out: Path, label: str, seed: int) -> Path:
    """The run folder of a method and seed."""
    return out / label / f"seed_{seed}"


def per_meta_step(pace: Pace, cost: Cost) -> int:
    """Gradient evaluations of a meta-step, of all its tasks."""
    return cost.gradients * pace.meta_batch
