"""Training tasks from an iterable, such as a DataLoader, in the order in which it gives them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, default_collate

from metaprox import checks
from metaprox.checks.trees import kind
from metaprox.data.loader import own_generators
from metaprox.data.task import Task
from metaprox.errors import InputError, RunFolderError
from metaprox.training.borrowed import generators, seed_generators, set_generators

CPU = torch.device("cpu")


class Stream:
    """Batches of ``size`` tasks from ``source``: an iterable of single tasks, of lists of tasks, or a DataLoader.

    What ``source`` draws from the global generators is drawn from states of its own, seeded by ``seed``, so that it
    gives the same tasks whatever else the run draws. One that can be read again begins anew at its end; the end of one
    that can be read once is an error.

    A run that is resumed reads the stream again up to where it was, from the start of the pass, and compares what it
    read last with a checksum in the checkpoint. So the order of a stream must not depend on anything but its seed.
    """

    def __init__(self, source: Iterable[Any], size: int, seed: int) -> None:
        self.source, self.size, self.seed = source, size, seed
        self._iterator: Iterator[Any] | None = None
        self._own: dict[str, Tensor] | None = None  # generators, as the stream left them
        self._begin: dict[str, Tensor] = {}  # as they were at the start of the pass
        self._taken, self._passes, self._last = 0, 0, None  # items of the pass, and the last of them
        self._ahead: Task | Sequence[Task] | None = None

    def peek(self) -> Task | Sequence[Task]:
        """The batch that ``take`` gives next."""
        if self._ahead is None:
            self._ahead = self._read()
        return self._ahead

    def next_tasks(self, ids: Sequence[int]) -> list[Task]:
        """Tasks of the next batch by their places in it, which stays next. Raises InputError where it is smaller."""
        if max(ids) >= self.size:
            raise InputError(
                f"task {max(ids)} is asked for of a stream, of which {self.size} are known: its next batch"
            )
        batch = self.peek()
        return [_part(batch, i) if isinstance(batch, Task) else batch[i] for i in ids]

    def take(self) -> Task | Sequence[Task]:
        """The next batch. Raises InputError where there is none, or it is none of ``size`` tasks."""
        batch, self._ahead = self.peek(), None
        return batch

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Where the stream is, as JSON, and the generators at the start of its pass."""
        if self._ahead is not None:  # which is looked at before the first is taken
            return {"taken": 0, "passes": 0, "sha256": _fingerprint(None)}, {}
        return {"taken": self._taken, "passes": self._passes, "sha256": _fingerprint(self._last)}, self._begin

    def go_to(self, state: dict[str, Any], begin: dict[str, Tensor]) -> None:
        """Read up to where a stream was that left this ``state``.

        Raises:
            RunFolderError: what it gives now is another thing than what it gave then.
        """
        taken = checks.count("taken", state["taken"], least=0)
        passes = checks.count("passes", state["passes"], least=0)
        if taken and not isinstance(self.source, Iterator):
            self._own = dict(begin)
            for index, generator in enumerate(self._sources()):
                generator.set_state(begin[f"own.{index}"])
        for _ in range(taken):
            self._next()
        if self._passes or _fingerprint(self._last) != state["sha256"]:
            raise RunFolderError(
                f"the training tasks come in another order than in the run: item {taken} of its pass is another. A "
                "stream can be gone on with where its order depends on its seed alone; tasks by number always can: "
                "give a function of ids"
            )
        self._passes = passes

    def _read(self) -> Task | Sequence[Task]:
        found: list[Task] = []
        while len(found) < self.size:
            item = self._next()
            if isinstance(item, Task) and self._is_stack():
                return self._checked(item, len(pytree.tree_leaves(item)[0]))
            if isinstance(item, Task):
                found.append(item)
            elif isinstance(item, Sequence) and item and all(isinstance(one, Task) for one in item) and not found:
                return self._checked(item, len(item))
            else:
                raise InputError(f"tasks['train'] must yield mp.Task, or lists of them, got {kind(item)}")
        return found

    def _sources(self) -> list[torch.Generator]:
        """The generators that a DataLoader was given."""
        return own_generators(self.source) if isinstance(self.source, DataLoader) else []

    def _is_stack(self) -> bool:
        """Whether an item is a batch: a DataLoader stacks tasks, unless it is told to do something else with them."""
        source = self.source
        return isinstance(source, DataLoader) and source.batch_size is not None and source.collate_fn is default_collate

    def _checked(self, batch: Any, size: int) -> Any:
        if size != self.size:
            raise InputError(
                f"tasks['train'] yields {size} tasks at once, and a meta-step takes {self.size}: give "
                f"Pace(meta_batch={size}), or a DataLoader with batch_size={self.size} and drop_last=True"
            )
        return batch

    def _next(self) -> Any:
        with self._drawing():
            for _ in range(2):
                if self._iterator is None:
                    self._begin = generators(CPU) | {f"own.{i}": g.get_state() for i, g in enumerate(self._sources())}
                    self._iterator = iter(self.source)
                try:
                    self._last = next(self._iterator)
                    self._taken += 1
                    return self._last
                except StopIteration:
                    if self._iterator is self.source:
                        break
                    self._iterator, self._taken, self._passes = None, 0, self._passes + 1
        raise InputError(
            f"tasks['train'] ends after {self._taken} items of its pass: give what does not end, or can be read again"
        )

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Within, the global generators are the stream's."""
        before = generators(CPU)
        if self._own is None:
            seed_generators(self.seed)
        else:
            set_generators(self._own, CPU)
        try:
            yield
        finally:
            self._own = generators(CPU)
            set_generators(before, CPU)


class Listed:
    """The first tasks of an iterable, by number, for evaluation: read once, and kept."""

    def __init__(self, split: str, source: Iterable[Any]) -> None:
        self._split, self._stream, self._kept = split, Stream(source, 1, 0), list[Task]()

    def __call__(self, ids: Sequence[int]) -> list[Task]:
        """Tasks by their numbers. Raises InputError where there are not so many."""
        while len(self._kept) <= max(ids):
            item = self._stream._next()
            if self._stream._passes:
                count = len(self._kept)
                raise InputError(f"tasks[{self._split!r}] yields {count} tasks, and task {max(ids)} is asked for")
            if isinstance(item, Task) and self._stream._is_stack():
                item = [_part(item, i) for i in range(len(pytree.tree_leaves(item)[0]))]
            self._kept.extend([item] if isinstance(item, Task) else item)
        return [self._kept[i] for i in ids]


def is_stream(source: Any) -> bool:
    """Whether ``source`` is read in its order, and not by ids."""
    return not callable(source) and not callable(getattr(source, "batch", None)) and isinstance(source, Iterable)


def _part(batch: Task, index: int) -> Task:
    """A task of a stack."""
    part: Task = pytree.tree_map(lambda leaf: leaf[index], batch)
    return part


def _fingerprint(batch: Any) -> str:
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
