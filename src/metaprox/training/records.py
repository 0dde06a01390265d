"""What is told of a run: the lines of metrics.jsonl, and what a watcher sees."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from metaprox.estimators import MetaGradient
from metaprox.evaluation import Evaluation, Statistic


@dataclass(frozen=True)
class Progress:
    """What a watcher sees after each meta-step: steps done, loss and metrics on the query sets of the batch.

    Both are means over the tasks that were not skipped. health: medians over tasks of ||g|| / ||v||, "ratio", and of
    the relative error of g, "error", where they are known. warnings: what the run was warned of so far, by name.
    evaluated: the last evaluation during training, by split and name, such as "validation loss"; empty before the
    first, and after a run was resumed until the next.
    """

    step: int
    total: int
    loss: float
    metrics: dict[str, float]
    health: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    evaluated: dict[str, float] = field(default_factory=dict)


def means(out: MetaGradient) -> dict[str, float]:
    """Of the query loss, as "loss", and of each metric, over the tasks that were not skipped."""
    kept = ~out.info.skipped
    return {name: float(values[kept].mean()) for name, values in ({"loss": out.query_loss} | out.metrics).items()}


def length(grad: Mapping[str, Tensor]) -> Tensor:
    """Of a gradient by name."""
    return torch.stack([g.norm() for g in grad.values()]).norm()


def step_record(step: int, out: MetaGradient, lr: float, seconds: float) -> dict[str, Any]:
    """Of a meta-step; ``lr``: of the next one."""
    return {
        "kind": "step",
        "step": step,
        **means(out),
        "gradient_norm": float(length(out.grad)),
        "next_lr": lr,
        **out.info.summary(),
        **asdict(out.info.counts),
        "seconds": seconds,
    }


def progress(
    total: int, record: dict[str, Any], out: MetaGradient, said: dict[str, str], evaluated: dict[str, float]
) -> Progress:
    """After a meta-step with this line in metrics.jsonl."""
    names = {"ratio": "gradient_ratio_median", "error": "relative_error_median"}
    health = {name: record[column] for name, column in names.items() if column in record}
    metrics = {name: record[name] for name in out.metrics}
    return Progress(record["step"], total, record["loss"], metrics, health, dict(said), evaluated)


def evaluation_record(step: int, split: str, result: Evaluation) -> dict[str, Any]:
    """Of an evaluation after ``step`` meta-steps."""
    statistics = {"loss": result.loss} | result.metrics
    return {
        "kind": "evaluation",
        "step": step,
        "split": split,
        "transductive": result.transductive,
        **({"transductive_by": result.transductive_by} if result.transductive_by else {}),
        **{name: asdict(statistic) for name, statistic in statistics.items()},
    }


def tested(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Statistic]]:
    """Of the log of a finished run, "before" training (empty where a run goes on without its log) and "after" it."""
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    both = {"before": evaluations[0] if evaluations[0]["step"] == 0 else {}, "after": evaluations[-1]}
    return {
        when: {name: Statistic(**value) for name, value in record.items() if isinstance(value, dict)}
        for when, record in both.items()
    }
