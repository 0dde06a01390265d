"""How long a run is, how often it is evaluated, and what it draws."""

from dataclasses import dataclass

from metaprox import checks
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
    """Split of the evaluations during training. Nothing is chosen by them."""
    test_tasks: int = 600
    """Test tasks of the evaluations before and after training."""
    checkpoint_every: int = 100
    """Meta-steps between checkpoints, from which a stopped run goes on."""
    threads: int = 1
    """Threads of torch on the CPU. One is fastest for small models."""

    def __post_init__(self) -> None:
        counts = ("meta_steps", "meta_batch", "eval_every", "eval_tasks", "test_tasks", "checkpoint_every", "threads")
        checks.settle(self, seed=checks.seed, eval_split=checks.one_of(*SPLITS))
        checks.settle(self, **dict.fromkeys(counts, checks.count))
