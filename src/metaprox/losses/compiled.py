"""The compiled graphs that there are; how many is bounded."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

import torch

from metaprox.cache import BoundedCache
from metaprox.errors import MetaproxError
from metaprox.losses import traced, traced_branched
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.compiling import CompiledFunction, NotCompiledError, compile_lock, rare_collection
from metaprox.losses.methods import Replaceable, classes_in
from metaprox.losses.noise import Noise
from metaprox.losses.origin import describe
from metaprox.losses.warned import Warnings
from metaprox.vectors.parameters import Structure

# Up to how many losses have graphs, the latest used; for how many shapes of tasks each loss; and how many graphs each
# evaluation of tasks of one shape, which are several where modes or numbers in the loss change.
MOST_LOSSES, MOST_SHAPES, MOST_CHANGES = 32, 16, 8
# Evaluations that pay for one more: a graph takes seconds to compile, and a megabyte that torch never frees.
EVALUATIONS_PER_GRAPH = 10_000
# So many batch sizes of one shape are compiled as they are; further ones are powers of 2.
EXACT_SIZES = 4
STEPS = ("solve", "step")  # of which one does for the other
IN_ONE = ("branched", "solve")  # which smaller graphs do for as well, and which draw no random numbers
FUNCTIONS: dict[str, Callable[[Structure], Callable[..., Any]]] = {
    "evaluate": traced.evaluate,
    "step": traced.step,
    "solve": traced.solve,
    "branched": traced_branched.branched,
}

SAME = ("structure", "method")  # of each function there is one for every one of these
IN_WORDS = {"evaluate": "a gradient", "step": "a step", "solve": "a solve", "branched": "base and branches"}
LOG = logging.getLogger("metaprox")  # says at level INFO what is compiled, and how long that took

Key = tuple[str, int, Any]


def pool_of(
    key: Any, losses: Sequence[CheckedLoss], structure: Structure, alone: "Pool | None" = None
) -> "Pool | None":
    """Returns that of what has this key and the methods of now, made of ``losses`` where there is none.

    Beyond MOST_CHANGES versions of methods there is none: it warns.
    """
    for version in range(MOST_CHANGES):
        pool = _POOLS.get_or_make((key, version), lambda: Pool(losses, structure, alone))
        if pool.methods.are_as_they_were():
            return pool
    pool.says.warn_of_changes(MOST_CHANGES)
    return None


def forget() -> None:
    """Let go of all graphs of all losses."""
    for key in _POOLS:
        pool = _POOLS.pop(key, None)
        if pool is not None:
            pool.drop()


class Batches:
    """The graphs for batches of ``size`` tasks of one shape."""

    def __init__(self, size: int, pool: "Pool") -> None:
        self.size = size
        self._pool = pool
        self._functions: dict[Key, CompiledFunction] = {}
        self._graphs: Counter[Key] = Counter()
        self._without: set[Key] = set()
        self.evaluations = 0
        self._closed = False

    def __call__(self, key: Key, *args: Any) -> Any:
        """``key``: which function, for how many branches, and of what kind. None where there is no graph to be had."""
        if self._closed or key in self._without:
            return None
        try:
            return self._functions[key].run(*args)
        except Exception:  # none yet, none for these arguments, or one that can't be entered while a thread compiles
            with rare_collection(), compile_lock():
                return self._run_or_compile(key, args)

    def drop(self) -> None:
        self._closed = True
        for function in list(self._functions.values()):
            function.drop()

    def _run_or_compile(self, key: Key, args: tuple[Any, ...]) -> Any:
        try:
            return self._functions[key].run(*args)  # another thread may have compiled it meanwhile
        except (KeyError, NotCompiledError):
            pass
        except Exception as error:
            self._pool.says.warn_of_failure(self, error)
            return None
        name, branches, kind = key
        count = sum(self._graphs[one, branches, kind] for one in (STEPS if name in STEPS else (name,)))
        if not _affordable(count, MOST_CHANGES, self.evaluations):
            self._pool.says.warn_of_changes(count)
            return None
        try:
            found = self._compiled(key, args)
        except Exception as error:  # torch is not asked again
            if name in IN_ONE:
                self._give_up(key, error)
            else:
                self.drop()
                self._pool.says.warn_of_failure(self, error)
            return None
        self._pool.says.warn_of_smaller(self, name)
        return found

    def _compiled(self, key: Key, args: tuple[Any, ...]) -> Any:
        function, noise = self._function_for_one_more(key), Noise(0, args[1].device)
        before, what = noise.state(), f"{IN_WORDS[key[0]]} of {self._pool.name} for {self.size} tasks"
        LOG.info("metaprox compiles %s, once for this shape", what)
        start = time.perf_counter()
        found = function.compile(*args, draws=key[0] not in IN_ONE)
        LOG.info("metaprox has compiled %s in %.1f s", what, time.perf_counter() - start)
        drew = not all(map(torch.equal, before, noise.state()))
        if drew and key[0] in IN_ONE:
            raise MetaproxError("it draws random numbers, which it did not when it was first looked at")
        if drew:
            LOG.info("metaprox takes a graph for %s alone: %s draws random numbers", IN_WORDS[key[0]], self._pool.name)
        return found

    def _give_up(self, key: Key, error: Exception) -> None:
        """What is in one graph, for which smaller ones do as well."""
        self._without.add(key)
        self._graphs[key] = 0
        self._functions.pop(key).drop()
        name, _, kind = key
        if name == "solve" and kind is not NoneType:
            self._pool.says.warn_of_solver(self, kind, error)
        elif name == "solve" or not any(kind[1:]):  # of a solver's steps its own graph says what there is to say
            self._pool.says.fail_in_one(name, error)

    def _function_for_one_more(self, key: Key) -> CompiledFunction:
        """With less than ``MOST_CHANGES`` graphs: a new one where there are as many."""
        if self._graphs[key] % MOST_CHANGES == 0:
            if key in self._functions:
                self._functions[key].drop()
            self._functions[key] = CompiledFunction(
                FUNCTIONS[key[0]](self._pool.structure), SAME, self._pool.methods.add
            )
        self._graphs[key] += 1
        return self._functions[key]


class Pool:
    """The graphs of losses of one origin, on parameters of one structure, while methods in them stay as they are."""

    def __init__(self, losses: Sequence[CheckedLoss], structure: Structure, alone: "Pool | None" = None) -> None:
        """``alone``: that of the first of two losses."""
        self.structure = structure
        self.evaluations = 0
        self.name = describe(losses[0])
        self.says: Warnings = Warnings(self.name, alone.says if alone else None)
        self.methods = Replaceable()
        self.methods.add([kind for loss in losses for kind in classes_in(loss)])
        self._found = 0
        self._of_shape: BoundedCache[tuple[Any, int], Batches] = BoundedCache(MOST_SHAPES, Batches.drop)
        self._lock = threading.Lock()

    def batches(self, shape: Any, tasks: int) -> Batches | None:
        """The graphs to use for ``tasks`` tasks of this shape; None where there are none, and enough others."""
        with self._lock:
            sizes = [size for known, size in self._of_shape if known == shape]
            fitting = [size for size in sizes if tasks <= size <= 2 * tasks]
            if fitting:
                return self._of_shape[shape, min(fitting)]
            if not _affordable(self._found, MOST_SHAPES, self.evaluations):
                self.says.warn_of_shapes(self._found)
                return None
            self._found += 1
            size = tasks if len(sizes) < EXACT_SIZES else 1 << (tasks - 1).bit_length()
            self._of_shape[shape, size] = made = Batches(size, self)
            return made

    def drop(self) -> None:
        for batches in list(self._of_shape.values()):
            batches.drop()


_POOLS: BoundedCache[Any, Pool] = BoundedCache(MOST_LOSSES, Pool.drop)


def _affordable(made: int, free: int, evaluations: int) -> bool:
    """Whether one more graph, or shape, may be compiled: up to ``free``, and then by use."""
    return made < free + evaluations // EVALUATIONS_PER_GRAPH
