"""What is compared, and what is equal for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from metaprox import checks
from metaprox.errors import InputError
from metaprox.training.config import DEFAULTS, TrainConfig
from metaprox.training.cost import Cost
from metaprox.training.setup import build

Budget = Literal["steps", "gradients"]


@dataclass(frozen=True)
class Plan:
    """What is compared: a configuration for each label, the seeds, and what is equal for all.

    budget: "steps": equal numbers of inner and outer steps; "gradients": as many meta-steps as the first method's
        gradient evaluations pay for, a Hessian-vector product counted as two.
    """

    configs: dict[str, TrainConfig]
    seeds: tuple[int, ...]
    budget: Budget = "steps"

    @classmethod
    def of(
        cls, shared: TrainConfig, variants: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], budget: Budget
    ) -> "Plan":
        """``variants``: label -> changes to the shared settings. Raises InputError before any work is done."""
        checks.choice("budget", budget, ("steps", "gradients"))
        if not isinstance(shared, TrainConfig):
            raise InputError(f"shared must be a training.TrainConfig, got {checks.shown(shared)}")
        if not isinstance(variants, Mapping) or not all(isinstance(own, Mapping) for own in variants.values()):
            raise InputError(f"variants must be a dict: label -> changed settings, got {checks.shown(variants)}")
        seeds = checks.tuple_of("seeds", seeds, checks.seed)
        if len(variants) < 2:
            raise InputError(f"a comparison needs at least two methods, got {list(variants)}")
        if not seeds or len(set(seeds)) < len(seeds):
            raise InputError(f"seeds must be given, each once, got {list(seeds)}")
        for name, remedy in (("seed", "give --seeds"), ("method", "name methods in --methods or --variants")):
            if getattr(shared, name) != DEFAULTS[name]:
                raise InputError(f"{name}={getattr(shared, name)!r} can't be shared by all methods: {remedy}")
        for label, changes in variants.items():
            if not isinstance(label, str) or not label or set(label) & set("/\\") or label.startswith("."):
                raise InputError(
                    f"{checks.shown(label)} names a folder: it can't be empty, start with a dot or have slashes"
                )
            if {"seed", "tasks"} & changes.keys():
                raise InputError(f"{label}: seed and tasks are the same for all methods, got {dict(changes)}")
        configs = {label: shared.variant(changes).resolved() for label, changes in variants.items()}
        for config in configs.values():
            build(config)
        return cls(configs, tuple(seeds), budget)

    def with_equal_gradients(self, costs: Mapping[str, Cost]) -> "Plan":
        """The plan with each method's meta-steps such that its gradient evaluations are those of the first."""
        first = next(iter(self.configs))
        if first not in costs:
            raise InputError(f"{first} diverges at the first meta-step, so that its gradients are no budget")
        total = (self.configs[first].meta_steps or 0) * per_meta_step(self.configs[first], costs[first])
        configs = {
            label: replace(config, meta_steps=max(1, round(total / per_meta_step(config, costs[label]))))
            if label in costs
            else config
            for label, config in self.configs.items()
        }
        return replace(self, configs=configs)

    def runs(self) -> list[tuple[str, int, TrainConfig]]:
        """(label, seed, configuration) of every run, seed by seed."""
        return [(label, seed, replace(c, seed=seed)) for seed in self.seeds for label, c in self.configs.items()]


def run_path(out: Path, label: str, seed: int) -> Path:
    """The run folder of a method and seed."""
    return out / label / f"seed_{seed}"


def per_meta_step(config: TrainConfig, cost: Cost) -> int:
    """Gradient evaluations of a meta-step, of all its tasks."""
    return cost.gradients * (config.meta_batch or 0)
