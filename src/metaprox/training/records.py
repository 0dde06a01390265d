"""What is told of a run: the lines of metrics.jsonl, and what a watcher sees."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from metaprox.estimators import MetaGradient
from metaprox.evaluation import Evaluation


@dataclass(frozen=True)
class Progress:
    """What a watcher sees after each meta-step: steps done, loss and metrics on the query sets of the batch.

    Both are means over the tasks that were not skipped. evaluated: the last evaluation during training, by split and
    name, such as "validation loss"; empty before the first, and after a run was resumed until the next.
    """

    step: int
    total: int
    loss: float
    metrics: dict[str, float]
    evaluated: dict[str, float] = field(default_factory=dict)


def means(out: MetaGradient) -> dict[str, float]:
    """Of the query loss, as "loss", and of each metric, over the tasks that were not skipped."""
    kept = ~out.info.skipped
    return {name: float(values[kept].mean()) for name, values in ({"loss": out.query_loss} | out.metrics).items()}


def step_record(step: int, out: MetaGradient, lr: float, seconds: float) -> dict[str, Any]:
    """Of a meta-step; ``lr``: of the next one."""
    norm = torch.stack([g.norm() for g in out.grad.values()]).norm()
    return {
        "kind": "step",
        "step": step,
        **means(out),
        "gradient_norm": float(norm),
        "next_lr": lr,
        **out.info.summary(),
        **asdict(out.info.counts),
        "seconds": seconds,
    }


def evaluation_record(step: int, split: str, result: Evaluation) -> dict[str, Any]:
    """Of an evaluation after ``step`` meta-steps."""
    statistics = {"loss": result.loss} | result.metrics
    return {
        "kind": "evaluation",
        "step": step,
        "split": split,
        "transductive": result.transductive,
        **{name: asdict(statistic) for name, statistic in statistics.items()},
    }
