"""Numbers and names of tasks, and errors, as bytes for other processes. They are numbers and JSON: no code is run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from metaprox.checks.trees import under
from metaprox.errors import InputError, MetaproxError, NonFiniteError, PeerError
from metaprox.estimators.info import Info
from metaprox.estimators.reduce import TaskResults
from metaprox.losses.checked import joined
from metaprox.losses.counts import Counts

LENGTH = 8  # bytes


def packed(columns: Mapping[str, Tensor], more: Any = None) -> Tensor:
    """Returns bytes of columns [T] or [T, k] by name, and of what JSON holds."""
    kinds = {
        name: [column.shape[1] if column.dim() > 1 else None, str(column.dtype)] for name, column in columns.items()
    }
    rows = len(next(iter(columns.values()), ()))
    text = json.dumps({"rows": rows, "columns": kinds, "more": more}).encode()
    text += b" " * (-len(text) % LENGTH)
    head = torch.frombuffer(bytearray(len(text).to_bytes(LENGTH) + text), dtype=torch.uint8)
    wide = [column.reshape(len(column), -1).double() for column in columns.values()]
    if not wide:
        return head
    return torch.cat([head, torch.cat(wide, 1).contiguous().view(-1).cpu().view(torch.uint8)])


def unpacked(data: Tensor, device: torch.device) -> tuple[dict[str, Tensor], Any]:
    """What ``packed`` packed, whatever comes after it."""
    size = int.from_bytes(bytes(data[:LENGTH].tolist())) + LENGTH
    values = json.loads(bytes(data[LENGTH:size].tolist()))
    kinds = values["columns"]
    widths = [1 if width is None else width for width, _ in kinds.values()]
    if not kinds:
        return {}, values["more"]
    numbers = data[size : size + values["rows"] * sum(widths) * LENGTH].clone().view(torch.float64)
    table = numbers.view(values["rows"], sum(widths)).to(device)
    found = {}
    for (name, (width, dtype)), part in zip(kinds.items(), table.split(widths, 1), strict=True):
        found[name] = (part[:, 0] if width is None else part).to(getattr(torch, dtype.removeprefix("torch.")))
    return found, values["more"]


def packed_results(tasks: TaskResults) -> Tensor:
    """Of all that is known of some tasks."""
    columns = {"weights": tasks.weights, "length": tasks.length, "loss": tasks.query_loss}
    columns |= {f"metric {name}": metric for name, metric in tasks.metrics.items()}
    columns |= {f"info {name}": column for name, column in tasks.info.columns().items()}
    failure = None if tasks.failure is None else asdict(Failure.of(tasks.failure))
    more = {"counts": asdict(tasks.info.counts), "lam": tasks.info.seen.lam, "failure": failure}
    return packed(columns, more)


def joined_results(parts: Sequence[Tensor], device: torch.device) -> TaskResults:
    """Of the tasks of several processes, one after another. Raises InputError where their metrics differ."""
    every = [_results(part, device) for part in parts]
    return TaskResults(
        torch.cat([one.weights for one in every]),
        torch.cat([one.length for one in every]),
        torch.cat([one.query_loss for one in every]),
        joined([one.metrics for one in every]),
        Info.join([one.info for one in every]),
        next((one.failure for one in every if one.failure), None),
    )


def _results(data: Tensor, device: torch.device) -> TaskResults:
    columns, more = unpacked(data, device)
    info = Info.of_columns(under("info ", columns), Counts(**more["counts"]), more["lam"])
    failure = Failure(**more["failure"]).error(None) if more["failure"] else None
    metrics = under("metric ", columns)
    return TaskResults(columns["weights"], columns["length"], columns["loss"], metrics, info, failure)


@dataclass(frozen=True)
class Failure:
    """An error of another process."""

    kind: str
    message: str
    notes: list[str]
    task: int | None
    step: int | None

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Of an error here."""
        notes = [str(note) for note in getattr(error, "__notes__", ())]
        task, step = (getattr(error, name, None) for name in ("task", "step"))
        return cls(type(error).__name__, str(error), notes, task, step)

    def error(self, rank: int | None) -> MetaproxError:
        """The same here: what diverged is said alike in all processes, all else is a failure of the other one."""
        error: MetaproxError
        if self.kind == NonFiniteError.__name__:
            error = NonFiniteError(self.message, task=self.task, step=self.step)
        elif self.kind == InputError.__name__:
            error = InputError(self.message if rank is None else f"rank {rank}: {self.message}")
        else:
            error = PeerError(f"rank {rank} failed: {self.kind}: {self.message}", rank=rank)
        for note in self.notes:
            error.add_note(note)
        return error

    def packed(self) -> Tensor:
        """As bytes."""
        return packed({}, asdict(self))

    @classmethod
    def unpacked(cls, data: Tensor) -> "Failure":
        """What ``packed`` gave."""
        return cls(**unpacked(data, data.device)[1])
