"""Random numbers in the user's loss (dropout, augmentation) as functions of integer ids.

Two evaluations with the same ids see the same noise, however far the generators have run in between. That is
what couples the branches of a task: their noise cancels in the difference instead of being divided by nu. The noise of
a task is that of its position among all tasks, evaluated alone or with others, in one process or in several.

torch's global generators are the process's, so that threads share them. They are lent to all calls that run at a time,
and evaluations, each seeded, take turns.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaprox.losses.by_task import DrawsByTask

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Noise:
    """Seeds torch's global generators with hash(seed, ids)."""

    seed: int
    device: torch.device

    def of(self, *ids: int) -> AbstractContextManager[None]:
        """An evaluation, with no other at the same time: what the generators produce depends on (seed, ids) alone."""
        return _Evaluation(self, ids)

    def of_tasks(self, first: int, count: int, *ids: int, apart: bool) -> AbstractContextManager[None]:
        """Returns the same for ``count`` tasks from position ``first`` on: on (seed, ids, position) for each of them.

        ``apart``: whether random numbers of all are drawn in one operation, as vmap does, and are to be told apart.
        """
        return _EvaluationOfTasks(self, ids, first, count) if apart else _Evaluation(self, (*ids, first))

    def again(self, *ids: int) -> None:
        """Seed the generators, within an evaluation of tasks, with other ids."""
        _GENERATORS.current.begin(ids)

    def set(self, *ids: int) -> None:
        """Seed the generators."""
        digest = hashlib.blake2b(repr((self.seed, ids)).encode(), digest_size=8).digest()
        value = int.from_bytes(digest)
        torch.default_generator.manual_seed(value)
        if self.device != CPU:
            _seed(self.device, value)

    def state(self) -> list[Tensor]:
        """Of the generators that are seeded: another one after a draw."""
        return [_state(device) for device in _devices(self.device)]

    def put_back(self, state: list[Tensor]) -> None:
        """Undo what was drawn since ``state``."""
        _put_back(dict(zip(_devices(self.device), state, strict=True)))


def padded_to(tasks: int) -> None:
    """Of the evaluation that runs: it is of so many tasks, of which the last ones are to fill it up."""
    _GENERATORS.current.pad(tasks)


class _Evaluation:
    """``Noise.of``: a class, for that costs less. Of tasks it is the one at the position that ``ids`` end with."""

    def __init__(self, noise: Noise, ids: tuple[int, ...]) -> None:
        self._noise, self._ids = noise, ids

    def begin(self, ids: tuple[int, ...]) -> None:
        self._noise.set(*ids, self._ids[-1])

    def pad(self, tasks: int) -> None:
        """Nothing is drawn."""

    def __enter__(self) -> None:
        _GENERATORS.lock.acquire()
        self._before, _GENERATORS.current = _GENERATORS.current, self
        self._noise.set(*self._ids)

    def __exit__(self, *error: object) -> None:
        _GENERATORS.current = self._before
        _GENERATORS.lock.release()


class _EvaluationOfTasks:
    """``Noise.of_tasks`` of several at once."""

    def __init__(self, noise: Noise, ids: tuple[int, ...], first: int, count: int) -> None:
        self._noise, self._ids, self._first = noise, ids, first
        self._draws = DrawsByTask(self._seed, noise.state, noise.put_back, count)

    def begin(self, ids: tuple[int, ...]) -> None:
        self._ids = ids
        self._draws.restart()

    def pad(self, tasks: int) -> None:
        self._draws.rows = tasks

    def _seed(self, task: int) -> None:
        self._noise.set(*self._ids, self._first + task)

    def __enter__(self) -> None:
        _GENERATORS.lock.acquire()
        self._before, _GENERATORS.current = _GENERATORS.current, self
        self._draws.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        self._draws.__exit__(*error)  # type: ignore[no-untyped-call]
        _GENERATORS.current = self._before
        _GENERATORS.lock.release()


class _Generators:
    """torch's global generators: the first call that runs saves their states, the last one puts them back.

    To the caller each call is one draw. In a thread that is within a call already (a loss that calls), a further one
    draws from the noise of the evaluation, which couples it too.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.current: Any = None  # the evaluation that holds the lock
        self._saved: dict[torch.device, Tensor] = {}
        self._calls: dict[torch.device, int] = {}
        self._within = threading.local()

    @contextmanager
    def borrowed(self, device: torch.device, *, fresh: bool = True) -> Iterator[int]:
        """A fresh seed, 0 unless wanted; the generators of the CPU and of ``device`` may be seeded until the end."""
        nested = getattr(self._within, "call", False)
        kept = self._nest(device, fresh) if nested else self._begin(device, fresh)
        self._within.call = True
        try:
            yield kept[0]
        finally:
            self._within.call = nested
            if nested:
                _put_back(kept[1])
            else:
                self._end(device)

    def _nest(self, device: torch.device, fresh: bool) -> tuple[int, dict[torch.device, Tensor]]:
        seed = _draw() if fresh else 0
        return seed, {each: _state(each) for each in _devices(device)}

    def _begin(self, device: torch.device, fresh: bool) -> tuple[int, dict[torch.device, Tensor]]:
        with self.lock:
            seed = self._drawn() if fresh else 0
            for each in _devices(device):
                if not self._calls.get(each):
                    self._saved[each] = _state(each)
                self._calls[each] = self._calls.get(each, 0) + 1
        return seed, {}

    def drawn(self) -> int:
        """A fresh seed, by a draw from what the caller's generator of the CPU is."""
        with self.lock:
            return _draw() if getattr(self._within, "call", False) else self._drawn()

    def _drawn(self) -> int:
        if not self._calls.get(CPU):  # it is the caller's own
            return _draw()
        running = _state(CPU)
        _put_back({CPU: self._saved[CPU]})
        seed = _draw()
        self._saved[CPU] = _state(CPU)
        _put_back({CPU: running})
        return seed

    def _end(self, device: torch.device) -> None:
        with self.lock:
            for each in _devices(device):
                self._calls[each] -= 1
                if not self._calls[each]:
                    _put_back({each: self._saved.pop(each)})


_GENERATORS = _Generators()


@contextmanager
def coupled_noise(device: torch.device, seed: int | None = None) -> Iterator[Noise]:
    """Yields a Noise with a fresh seed, or with ``seed``, which ``drawn_seed`` gave.

    The caller's generators are left as if one number had been drawn, in a seed's case as they were, also on errors.
    """
    with _GENERATORS.borrowed(device, fresh=seed is None) as own:
        yield Noise(own if seed is None else seed, device)


def drawn_seed() -> int:
    """A fresh seed: one draw from the caller's generator of the CPU."""
    return _GENERATORS.drawn()


def _devices(device: torch.device) -> list[torch.device]:
    return [CPU] if device == CPU else [CPU, device]


def _draw() -> int:
    return int(torch.randint(2**63 - 1, (), device=CPU))


def _seed(device: torch.device, value: int) -> None:
    """That device's generator, which need not be the current one of its kind."""
    module = torch.get_device_module(device)
    if device.index is not None and (generators := getattr(module, "default_generators", ())):
        generators[device.index].manual_seed(value)
    else:
        module.manual_seed(value)


def _state(device: torch.device) -> Tensor:
    state: Tensor = torch.get_rng_state() if device == CPU else torch.get_device_module(device).get_rng_state(device)
    return state


def _put_back(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        if device == CPU:
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)
