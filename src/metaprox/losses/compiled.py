"""The compiled graphs that there are; how many is bounded."""

import logging
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from types import NoneType
from typing import Any

import torch

from metaprox.cache import BoundedCache
from metaprox.errors import MetaproxError
from metaprox.losses import traced, traced_branched
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.compiling import CompiledFunction, NotCompiledError, compile_lock, rare_collection
from metaprox.losses.noise import Noise
from metaprox.losses.origin import describe
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


def pool_of(key: Any, loss: CheckedLoss, structure: Structure, alone: "Pool | None" = None) -> "Pool":
    """That of what has this key, and of ``loss`` where there is none yet."""
    return _POOLS.get_or_make(key, lambda: Pool(loss, structure, alone))


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
            self._pool.warn_of_failure(self, error)
            return None
        name, branches, kind = key
        count = sum(self._graphs[one, branches, kind] for one in (STEPS if name in STEPS else (name,)))
        if not _affordable(count, MOST_CHANGES, self.evaluations):
            self._pool.warn_of_changes(count)
            return None
        try:
            found = self._compiled(key, args)
        except Exception as error:  # torch is not asked again
            if name in IN_ONE:
                self._give_up(key, error)
            else:
                self.drop()
                self._pool.warn_of_failure(self, error)
            return None
        self._pool.warn_of_smaller(self, name)
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
            self._pool.warn_of_solver(self, kind, error)
        elif name == "solve" or not any(kind[1:]):  # of a solver's steps its own graph says what there is to say
            self._pool.fail_in_one(name, error)

    def _function_for_one_more(self, key: Key) -> CompiledFunction:
        """With less than ``MOST_CHANGES`` graphs: a new one where there are as many."""
        if self._graphs[key] % MOST_CHANGES == 0:
            if key in self._functions:
                self._functions[key].drop()
            self._functions[key] = CompiledFunction(FUNCTIONS[key[0]](self._pool.structure), SAME)
        self._graphs[key] += 1
        return self._functions[key]


class Pool:
    """The graphs of losses of one origin, on parameters of one structure."""

    def __init__(self, loss: CheckedLoss, structure: Structure, alone: "Pool | None" = None) -> None:
        """``alone``: that of the first of two losses."""
        self.structure = structure
        self._alone = alone or self
        self._failed: dict[str, Exception] = {}  # what is in no graph that was to be one, and why; not said yet
        self.evaluations = 0
        self.name = describe(loss)
        self._found = 0
        self._of_shape: BoundedCache[tuple[Any, int], Batches] = BoundedCache(MOST_SHAPES, Batches.drop)
        self._lock = threading.Lock()
        self._warned: set[tuple[Any, ...]] = set()

    def batches(self, shape: Any, tasks: int) -> Batches | None:
        """The graphs to use for ``tasks`` tasks of this shape; None where there are none, and enough others."""
        with self._lock:
            sizes = [size for known, size in self._of_shape if known == shape]
            fitting = [size for size in sizes if tasks <= size <= 2 * tasks]
            if fitting:
                return self._of_shape[shape, min(fitting)]
            if not _affordable(self._found, MOST_SHAPES, self.evaluations):
                self._warn_of_shapes()
                return None
            self._found += 1
            size = tasks if len(sizes) < EXACT_SIZES else 1 << (tasks - 1).bit_length()
            self._of_shape[shape, size] = made = Batches(size, self)
            return made

    def drop(self) -> None:
        for batches in list(self._of_shape.values()):
            batches.drop()

    def fail_in_one(self, name: str, error: Exception) -> None:
        """Said as soon as smaller graphs are compiled, and not where these fail too."""
        self._alone._failed[name] = error

    def warn_of_solver(self, where: Batches, solver: type, error: Exception) -> None:
        self._warn(
            ("solver", id(where), solver),
            f"metaprox takes the steps of {solver.__qualname__} outside of graphs: {_said(error)}",
        )

    def warn_of_smaller(self, where: Batches, name: str) -> None:
        """``name`` was compiled, in whose place a larger graph may have failed."""
        for larger, smaller, words in (
            ("branched", "solve", "each solve alone, since base and branches"),
            ("solve", "step", "the step alone, since a solve"),
        ):
            error = self._failed.pop(larger, None) if name == smaller else None
            if error is not None:
                said = f"metaprox compiles {words} in one graph failed for {self.name}: {_said(error)}"
                self._warn((name, id(where)), said)

    def warn_of_failure(self, where: Batches, error: Exception) -> None:
        reason = _said(error)
        self._warn(
            ("failure", id(where)), f"metaprox goes on without compile=True, which failed for {self.name}: {reason}"
        )

    def warn_of_unseen(self, what: str) -> None:
        said = f"metaprox goes on without compile=True while {what}, which graphs would not see"
        self._alone._warn(("unseen", what), said)

    def warn_of_changes(self, count: int) -> None:
        self._warn(
            ("changes",),
            f"metaprox has compiled {self.name} {count} times for tasks of one shape, and goes on without where no "
            "graph fits: something in the loss or the model differs from call to call, as where every step makes a new "
            "loss around a new number. Make the problem once, and hand what changes to the loss as a tensor in the "
            "data. TORCH_LOGS=recompiles says what it is",
        )

    def _warn_of_shapes(self) -> None:
        self._warn(
            ("shapes",),
            f"metaprox has compiled {self.name} for tasks of {self._found} shapes, and evaluates further shapes "
            "without compile=True: pad the data to fewer shapes, or raise metaprox.losses.compiled.MOST_SHAPES",
        )

    def _warn(self, what: tuple[Any, ...], message: str) -> None:
        """Once of each shape, or of all."""
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, stacklevel=2)


_POOLS: BoundedCache[Any, Pool] = BoundedCache(MOST_LOSSES, Pool.drop)


def _affordable(made: int, free: int, evaluations: int) -> bool:
    """Whether one more graph, or shape, may be compiled: up to ``free``, and then by use."""
    return made < free + evaluations // EVALUATIONS_PER_GRAPH


def _said(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
