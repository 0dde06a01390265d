"""How long a run is, how often it is evaluated, and what it draws."""

from dataclasses import dataclass
from typing import Literal

from metaprox import checks
from metaprox.errors import InputError
from metaprox.tasks import Split
from metaprox.tasks.base import SPLITS


@dataclass(frozen=True)
class Pace:
    """Numbers of a run that are not those of a method."""

    seed: int = 0
    """Seed of any noise in training; with settings, also of the tasks and the initial weights. Equal seeds give equal
    runs."""
    meta_steps: int = 1000
    """Meta-training steps."""
    meta_batch: int = 16
    """Tasks of a meta-step."""
    eval_every: int = 100
    """Meta-steps between evaluations during training."""
    eval_tasks: int = 200
    """Tasks of each evaluation during training."""
    eval_split: Split = "validation"
    """Split of the evaluations during training. Nothing is chosen by them, but with keep_weights and patience."""
    test_tasks: int = 600
    """Test tasks of the evaluations before and after training."""
    checkpoint_every: int = 100
    """Meta-steps between checkpoints, from which a stopped run goes on."""
    keep_checkpoints: int = 2
    """How many checkpoints are kept: should the newest be damaged, a run goes on from the one before."""
    keep_weights: Literal["last", "best"] = "last"
    """Weights that a run ends with: the last ones, or those of its best evaluation during training."""
    patience: int | None = None
    """End after so many evaluations during training without a better one. Default: do all meta-steps."""
    clip: float | None = None
    """Longest meta-gradient that the outer optimizer gets; a longer one is scaled down. Default: as it is."""
    accumulate: int = 1
    """Batches of tasks whose meta-gradients are averaged into one meta-step, where one batch does not fit."""
    threads: int = 1
    """Threads of torch on the CPU. One is fastest for small models."""

    def __post_init__(self) -> None:
        counts: tuple[str, ...] = (
            "meta_steps",
            "meta_batch",
            "eval_every",
            "eval_tasks",
            "test_tasks",
            "checkpoint_every",
            "threads",
        )
        counts = (*counts, "keep_checkpoints", "accumulate")
        checks.settle(self, seed=checks.seed, eval_split=checks.one_of(*SPLITS))
        checks.settle(self, **dict.fromkeys(counts, checks.count))
        checks.settle(self, keep_weights=checks.one_of("last", "best"), patience=checks.optional(checks.count))
        checks.settle(self, clip=checks.optional(checks.positive))
        if self.eval_split == "test" and (self.keep_weights == "best" or self.patience):
            chosen = "keep_weights='best'" if self.keep_weights == "best" else f"patience={self.patience}"
            raise InputError(f"{chosen} chooses by eval_split='test', and so would what is tested: take 'validation'")

    @property
    def chooses(self) -> bool:
        """Whether anything depends on the evaluations during training."""
        return self.keep_weights == "best" or self.patience is not None
