"""A run in several processes: who takes which tasks, and who writes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metaprox import checks
from metaprox.distributed import AllReduce, evaluate, shard
from metaprox.distributed.exchange import Exchange
from metaprox.distributed.group import Group
from metaprox.distributed.packing import packed, unpacked
from metaprox.errors import InputError, PeerError
from metaprox.estimators import Estimator
from metaprox.evaluation import Evaluation
from metaprox.training.folder import RunFolder

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer

Made = TypeVar("Made")


def writes() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    return Group.of() is None or dist.get_rank() == 0


def by_first(act: Callable[[], Any]) -> Any:
    """Returns in all processes what ``act`` gave in rank 0, which JSON holds; elsewhere it is not called.

    What it raises there is told to the others: see ``mp.distributed.AllReduce``.
    """
    group = Group.of()
    if group is None:
        return act()
    exchange = Exchange(group)
    with exchange.guarded():
        exchange.begin([])
        told = exchange.end(packed({}, act() if group.rank == 0 else None))
        return unpacked(told[0], told[0].device)[1]


def first_then_others(act: Callable[[], Made]) -> Made:
    """``act`` in rank 0, which may mend files, and after it in the others, each with what it gave there."""
    own: list[Made] = []
    by_first(lambda: own.append(act()))
    return own[0] if own else act()


def agreed(number: int | None) -> int | None:
    """The largest that a process has; None where all have none. All come here."""
    group = Group.of()
    if group is None:
        return number
    own = torch.tensor([number or 0], dtype=torch.int64, device="cpu")
    return max(int(one) for one in group.gather(own).flatten()) or None


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Within, rank 0 has the folder, and no other run does. Raises in all processes where it can't have it."""
    with ExitStack() as stack:
        by_first(lambda: stack.enter_context(folder.locked()))
        yield


def refuse_stream(trainer: "Trainer") -> None:
    """Raise InputError where training tasks come one after another, and there are other processes to share them."""
    if trainer.stream is not None and Group.of() is not None:
        raise InputError(
            "training tasks of an iterable come one after another, and can't be shared out among processes: give a "
            "function of ids, or an object with batch(ids)"
        )


def summing(estimator: Estimator) -> Estimator:
    """The same over the tasks of all processes."""
    if Group.of() is None:
        return estimator
    given = estimator.reduce
    parts = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
    if any(isinstance(part, AllReduce) for part in parts):
        return estimator
    return replace(estimator, reduce=(*parts, AllReduce()))


def own_batch(trainer: "Trainer", ids: Sequence[int]) -> Any:
    """The training tasks of this process, of those with ``ids``, or of the next ones of a stream."""
    if Group.of() is None:
        return trainer.training_batch(ids)
    own = shard(ids)
    return trainer.batch("train", own) if len(own) else []


def evaluation(
    trainer: "Trainer",
    split: str,
    count: int,
    between: Callable[[], None] = lambda: None,
    tell: Callable[[int, int], None] = lambda done, count: None,
    *,
    shared: bool,
) -> Evaluation:
    """Evaluate tasks 0 to ``count`` - 1 of a split; ``shared``: by all processes, which all come here.

    Where there are no more than some ``distinct`` tasks, it is these, each once: repeated, they would narrow intervals.
    ``between`` is called before each part of the tasks, and may raise; not where processes share them. ``tell`` is told
    before each part how many tasks of how many are done, in all processes if these keep pace.

    Returns:
        That of all tasks.
    """
    one, alone = trainer.estimator, not shared or Group.of() is None
    distinct = getattr(trainer.tasks[split], "distinct", None)
    total, done, processes = (
        count if distinct is None else min(count, distinct),
        0,
        1 if alone else dist.get_world_size(),
    )

    def part(some: Sequence[int]) -> Any:
        nonlocal done
        if alone:
            between()
        tell(min(done * processes, total), total)
        done += len(some)
        return trainer.batch(split, some)

    return evaluate(
        trainer.evaluated or trainer.problem,
        part,
        range(total),
        one.solver,
        one.steps,
        more=lambda some: _baseline(trainer, split, some),
        tol=one.tol,
        max_steps=one.max_steps,
        batch_size=one.chunk_size if isinstance(one.chunk_size, int) else 100,
        backend=one.backend,
        shared=shared,
    )


def _baseline(trainer: "Trainer", split: str, ids: Sequence[int]) -> Mapping[str, Tensor]:
    more = trainer.baseline(trainer.model, trainer.batch(split, ids)) if trainer.baseline else {}
    return checks.instance_of(Mapping)("what baseline returns", more)


@contextmanager
def telling() -> Iterator[None]:
    """Around what a run does: if an error ends it, the other processes are told which."""
    group = Group.of()
    if group is not None:
        group.tell("")  # what ended a run before this one is no more
    try:
        yield
    except BaseException as error:
        if group is not None and not isinstance(error, PeerError):
            with suppress(RuntimeError):  # the store may be gone
                group.tell(f"{type(error).__name__}: {error}", stay=isinstance(error, Exception))
        raise


class ReadFolder(RunFolder):
    """The folder of a run to the processes that do not write in it."""

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Rank 0 does."""

    def write_test_values(self, values: Mapping[str, list[float]]) -> None:
        """Rank 0 does."""

    def seal(self) -> None:
        """Rank 0 does."""

    def unseal(self) -> None:
        """Rank 0 does."""


def made_by_first(folder: Callable[[], RunFolder]) -> RunFolder:
    """The run folder that rank 0 makes or opens; to the others one to read."""
    own: list[RunFolder] = []

    def act() -> str:
        own.append(folder())
        return str(own[0].path)

    path = by_first(act)
    return own[0] if own else ReadFolder(Path(path))
