"""A search for the settings of one method: what it is made of, and how one trial of it goes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from metaprox import checks
from metaprox.errors import InputError
from metaprox.training import Composition, Settings
from metaprox.tuning.space import Axis

# What the rungs say, and the search.
OF_THE_RUNGS = {
    "eval_every": "runs are judged at the rungs: --rungs, --reduction",
    "checkpoint_every": "runs are kept at the rungs: --rungs, --reduction",
    "eval_split": "runs are judged on the validation split",
    "test_tasks": "no test task is looked at",
}


@dataclass(frozen=True)
class Search:
    """Settings of a method, searched on validation tasks by successive halving.

    A candidate is a run of ``meta_steps``. After each of ``rungs()`` but the last it goes on only if it is among the
    best 1/``reduction`` of those that have come so far.

    Args:
        label: of the method.
        settings: what all candidates share.
        axes: what is searched.
        levels: how many rungs there are, the end among them.
        reduction: by how much a rung is longer than the one before, and how many candidates go on at most, inversely.
    """

    label: str
    settings: Settings
    axes: tuple[Axis, ...]
    levels: int = 3
    reduction: int = 3

    def __post_init__(self) -> None:
        checks.settle(self, levels=checks.count)
        checks.count("reduction", self.reduction, least=2)
        for name, why in OF_THE_RUNGS.items():
            if name in self.settings.given:
                raise InputError(f"{name}={self.settings.given[name]!r} can't be given to a search: {why}")
        if self.meta_steps < self.reduction ** (self.levels - 1):
            raise InputError(
                f"meta_steps={self.meta_steps} are too few for {self.levels} rungs, each {self.reduction} times as "
                f"long as the one before: give at least {self.reduction ** (self.levels - 1)}, or fewer rungs"
            )
        for axis in self.axes:
            for value in axis.ends:
                self.run({axis.name: value})

    @property
    def meta_steps(self) -> int:
        """Of a whole run."""
        return int(self.settings.given.get("meta_steps") or self.settings.defaults()["meta_steps"])

    @property
    def first(self) -> int:
        """Meta-steps until the first rung."""
        return int(self.meta_steps // self.reduction ** (self.levels - 1))

    def rungs(self) -> tuple[int, ...]:
        """After how many meta-steps a candidate is judged; the last is a whole run."""
        return (*(self.first * self.reduction**level for level in range(self.levels - 1)), self.meta_steps)

    def run(self, found: Mapping[str, Any]) -> Composition:
        """The run of a candidate. Raises InputError where it can't be."""
        try:
            one = self.settings.but(**found, eval_every=self.first, checkpoint_every=self.first)
            return one.composition()
        except InputError as error:
            error.add_note(f"{self.label}, with {', '.join(f'{name}={value!r}' for name, value in found.items())}")
            raise

    def described(self) -> dict[str, Any]:
        """As JSON holds it: searches of which this is equal are one."""
        axes = [{name: value for name, value in asdict(axis).items() if name != "whole"} for axis in self.axes]
        made = self.run({}).configuration()
        return {"run": made, "axes": axes, "rungs": list(self.rungs()), "reduction": self.reduction}
