"""Evaluations in compiled graphs, which losses of one origin share; how many there are is bounded."""

import threading
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.cache import BoundedCache
from metaprox.checks.trees import flattened
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.compiling import CompiledFunction, NotCompiledError, compile_lock, only_compiled
from metaprox.losses.noise import padded_to
from metaprox.losses.origin import describe, origin
from metaprox.losses.vmapped import evaluate_all
from metaprox.vectors.norms import norm_here
from metaprox.vectors.parameters import Structure

# Up to how many losses have graphs, the latest used; for how many shapes of tasks each loss; and how many graphs each
# evaluation of tasks of one shape, which are several where modes or numbers in the loss change.
MOST_LOSSES, MOST_SHAPES, MOST_CHANGES = 32, 16, 8
# Evaluations that pay for one more: a graph takes seconds to compile, and a megabyte that torch never frees.
EVALUATIONS_PER_GRAPH = 10_000
# So many batch sizes of one shape are compiled as they are; further ones are powers of 2.
EXACT_SIZES = 4


class Graphs:
    """The evaluations of ``loss`` on parameters of one structure, in graphs where there are some or may be made.

    Shapes: T tasks, B branches, P parameters that adapt, W that do not. A result is None where there is no graph to be
    had: the caller then evaluates in eager mode.

    Graphs belong to the origin of a loss, the code and the classes that it is made of, so that losses, models and
    problems that the same lines make anew use those there are; what differs all the same, such as a number in a
    closure, a mode or a hook, torch guards, and a graph is added.

    Batches of T tasks are padded, with copies of their first task, to the least size from T to 2 T that has graphs. If
    there is none they get their own: T, or from the ``EXACT_SIZES + 1``-th size of a shape on the next power of 2. So a
    shape has at most EXACT_SIZES + log2(largest T) + 1 sizes, and ``MOST_SHAPES`` counts each of them.

    With C kinds of evaluations (a step and a gradient, each with so many branches: four with symmetric differences)
    there are up to C MOST_SHAPES MOST_CHANGES graphs of a loss. Beyond ``MOST_SHAPES``, or ``MOST_CHANGES`` for one
    shape, a warning says once why there are so many. Those there are stay in use, and further ones are paid for by
    use: one for each ``EVALUATIONS_PER_GRAPH``, in the place of what was not used for longest.
    """

    def __init__(self, loss: CheckedLoss, structure: Structure) -> None:
        self._loss = loss
        self._pool = _POOLS.get_or_make((origin(loss), structure), lambda: _Pool(loss, structure))
        self._latest: tuple[Any, _Batches | None, Any] = (None, None, None)

    def evaluate(self, w: Tensor, y: Tensor, data: Any) -> Any:
        """(w [W], y [T, B, P], data) -> gradients, (values, metrics)."""
        return self._call("evaluate", (w,), (y,), data)

    def step(self, w: Tensor, x: Tensor, lam: Tensor, size: Tensor, y: Tensor, shift: Tensor, data: Any) -> Any:
        """Returns y - size g, g and ||g||, of w [W], x [P], lam [], size [], y and shift [T, B, P], and data.

        g = gradients + lam (y - x) + shift. No number is a constant of the graph.
        """
        return self._call("step", (w, x, lam, size), (y, shift), data)

    def _call(self, name: str, fixed: tuple[Tensor, ...], of_tasks: tuple[Tensor, ...], data: Any) -> Any:
        tasks, branches = of_tasks[0].shape[:2]
        batches, padded = self._batches(data, tasks)
        self._pool.evaluations += 1
        if batches is None:
            return None
        missing = batches.size - tasks
        if missing:
            padded_to(batches.size)
        out = batches((name, branches), self._loss, *fixed, *_padded(of_tasks, missing), padded)
        return pytree.tree_map(lambda leaf: leaf[:tasks], out) if missing and out is not None else out

    def _batches(self, data: Any, tasks: int) -> "tuple[_Batches | None, Any]":
        """Where graphs for these data are, and the data padded to their size; looked up once a solve."""
        if self._latest[0] is not data:
            batches = self._pool.batches(_shape(data), tasks)
            self._latest = (data, batches, _padded(data, batches.size - tasks) if batches else None)
        return self._latest[1:]


def forget() -> None:
    """Let go of all graphs of all losses."""
    for key in _POOLS:
        pool = _POOLS.pop(key, None)
        if pool is not None:
            pool.drop()


class _Batches:
    """The graphs for batches of ``size`` tasks of one shape."""

    def __init__(self, size: int, pool: "_Pool") -> None:
        self.size = size
        self._pool = pool
        self._functions: dict[tuple[str, int], CompiledFunction] = {}
        self._graphs: Counter[tuple[str, int]] = Counter()
        self._evaluations = 0
        self._closed = False

    def __call__(self, key: tuple[str, int], *args: Any) -> Any:
        """``key``: which evaluation, and for how many branches. None where there is no graph to be had."""
        self._evaluations += 1
        if self._closed:
            return None
        try:
            return self._functions[key].run(*args)
        except Exception:  # none yet, none for these arguments, or one that can't be entered while a thread compiles
            with compile_lock():
                return self._run_or_compile(key, args)

    def drop(self) -> None:
        self._closed = True
        for function in list(self._functions.values()):
            function.drop()

    def _run_or_compile(self, key: tuple[str, int], args: tuple[Any, ...]) -> Any:
        try:
            return self._functions[key].run(*args)  # another thread may have compiled it meanwhile
        except (KeyError, NotCompiledError):
            pass
        except Exception as error:
            self._pool.warn_of_failure(error)
            return None
        if not _affordable(self._graphs[key], MOST_CHANGES, self._evaluations):
            self._pool.warn_of_changes(self._graphs[key])
            return None
        try:
            return self._function_for_one_more(key).compile(*args)
        except Exception as error:
            self.drop()  # so that torch is not asked again
            self._pool.warn_of_failure(error)
            return None

    def _function_for_one_more(self, key: tuple[str, int]) -> CompiledFunction:
        """With less than ``MOST_CHANGES`` graphs: a new one where there are as many."""
        if self._graphs[key] % MOST_CHANGES == 0:
            if key in self._functions:
                self._functions[key].drop()
            self._functions[key] = CompiledFunction(_FUNCTIONS[key[0]](self._pool.structure))
        self._graphs[key] += 1
        return self._functions[key]


class _Pool:
    """The graphs of losses of one origin, on parameters of one structure."""

    def __init__(self, loss: CheckedLoss, structure: Structure) -> None:
        self.structure = structure
        self.evaluations = 0
        self._name = describe(loss)
        self._found = 0
        self._of_shape: BoundedCache[tuple[Any, int], _Batches] = BoundedCache(MOST_SHAPES, _Batches.drop)
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def batches(self, shape: Any, tasks: int) -> _Batches | None:
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
            self._of_shape[shape, size] = made = _Batches(size, self)
            return made

    def drop(self) -> None:
        for batches in list(self._of_shape.values()):
            batches.drop()

    def warn_of_failure(self, error: Exception) -> None:
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        self._warn("failure", f"metaprox goes on without compile=True, which failed for {self._name}: {reason}")

    def warn_of_changes(self, count: int) -> None:
        self._warn(
            "changes",
            f"metaprox has compiled {self._name} {count} times for tasks of one shape, and goes on without where no "
            "graph fits: something in the loss or the model differs from call to call, as where every step makes a new "
            "loss around a new number. Make the problem once, and hand what changes to the loss as a tensor in the "
            "data. TORCH_LOGS=recompiles says what it is",
        )

    def _warn_of_shapes(self) -> None:
        self._warn(
            "shapes",
            f"metaprox has compiled {self._name} for tasks of {self._found} shapes, and evaluates further shapes "
            "without compile=True: pad the data to fewer shapes, or raise metaprox.losses.compiled.MOST_SHAPES",
        )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)


_POOLS: BoundedCache[Any, _Pool] = BoundedCache(MOST_LOSSES, _Pool.drop)


def _affordable(made: int, free: int, evaluations: int) -> bool:
    """Whether one more graph, or shape, may be compiled: up to ``free``, and then by use."""
    return made < free + evaluations // EVALUATIONS_PER_GRAPH


def _evaluate(structure: Structure) -> Callable[..., Any]:
    def evaluate(loss: CheckedLoss, w: Tensor, y: Tensor, data: Any) -> Any:
        only_compiled()
        return evaluate_all(lambda point, one: loss.in_graph(structure.unflatten(point, w), one), y, data)

    return evaluate


def _step(structure: Structure) -> Callable[..., Any]:
    def step(
        loss: CheckedLoss, w: Tensor, x: Tensor, lam: Tensor, size: Tensor, y: Tensor, shift: Tensor, data: Any
    ) -> tuple[Tensor, ...]:
        only_compiled()
        gradient, _ = evaluate_all(lambda point, one: loss.in_graph(structure.unflatten(point, w), one), y, data)
        gradient = gradient + lam * (y - x) + shift
        return y - size * gradient, gradient, norm_here(gradient).squeeze(-1)

    return step


_FUNCTIONS = {"evaluate": _evaluate, "step": _step}


def _shape(data: Any) -> Any:
    """All of ``data`` [T, ...] that graphs depend on, but T."""
    leaves, tree = flattened(data)
    return tree, tuple((leaf.shape[1:], leaf.dtype, leaf.device) for leaf in leaves)


def _padded(tree: Any, missing: int) -> Any:
    """With ``missing`` further copies of the first row."""
    if not missing:
        return tree
    return pytree.tree_map(lambda leaf: torch.cat([leaf, leaf[:1].expand(missing, *leaf.shape[1:])]), tree)
