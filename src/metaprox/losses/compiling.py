"""A function and the graphs that torch has compiled of it."""

import gc
import importlib
import threading
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import Any

import torch

from metaprox.errors import MetaproxError
from metaprox.losses.guards import STRICT, only_needed, replaced_in

# Of torch.compile. Random numbers are those of eager mode, so that graphs agree on noise with each other and with it.
SETTINGS: dict[str, Any] = {"options": {"fallback_random": True}}
# Graphs with loops in them may be kept on disk as others are, where torch can be told: their key there is of all that
# is in the loops too.
ON_DISK = ("unsafe_marked_cacheable_functions", {"torch.ops.higher_order.while_loop": "1"})
# Up to so many numbers that it reads, on the CPU, a graph is C++ throughout: what calls its kernels, and its loops, not
# only the kernels. Python takes a tenth of a small call for that; C++ does not let other threads, nor an interrupt, in
# before the graph's end.
IN_CPP_UP_TO = 2**20
# Kernels apart from what calls them, and that with few optimizations: half the time of compiling both at once.
IN_CPP = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}

RARELY = 100_000, 20, 100  # after so many new objects, such looks, and looks of those


class NotCompiledError(Exception):
    """There is no graph for these arguments."""


def only_compiled() -> None:
    """Raise NotCompiledError unless torch is tracing: the first line of a function that is to run in graphs alone."""
    if not torch.compiler.is_dynamo_compiling():
        raise NotCompiledError


class CompiledFunction:
    """``function``, which begins with ``only_compiled()``: ``run`` uses the graphs there are, ``compile`` makes one.

    A graph is used wherever torch's guards find the arguments to be like those it was traced with: equal shapes,
    dtypes, Python numbers, code and modes, whatever the objects are. It holds no object that it was given. What the
    function writes on its arguments and puts back, as a swap of a module's tensors, is not written when a graph runs;
    on what it finds in a global variable it is, for a moment. Threads may run graphs while another compiles.

    ``same``: names of arguments, and of what ``function`` closes over, that are the same at all calls. Guards are not
    on these, nor on code that does not change, nor on most methods of classes, which ``saw`` is told of.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        same: Collection[str] = (),
        saw: Callable[[Iterable[type]], object] = lambda classes: None,
    ) -> None:
        self._function, self._compiler = _with_own_code(function), _Compiler()
        settings = _settings(self._compiler, only_needed(same, saw))
        self._compile = torch.compile(self._function, fullgraph=True, dynamic=False, **settings)
        self._run = torch._dynamo.run(self._compile)
        self._lock = threading.Lock()
        self._users = 0
        self._dropped = False

    def run(self, *args: Any) -> Any:
        """Raises NotCompiledError where there is no graph for ``args``, at times RuntimeError while others compile."""
        with self._used():
            return self._run(*args)

    def compile(self, *args: Any, draws: bool = True) -> Any:
        """The same with a new graph where there is none. Raises whatever torch raises where it can't have one."""
        limits = {"recompile_limit": 2**16, "accumulated_recompile_limit": 2**16}  # the caller has its own
        look_at_processor()
        with self._used(), _configured(torch._dynamo.config, STRICT | limits):
            self._compiler.may_be_cpp = not draws  # modes that tell random numbers apart see those of Python alone
            try:
                return self._compile(*args)
            except torch._dynamo.exc.BackendCompilerFailed:
                if not self._compiler.took_cpp:
                    raise
            self._compiler.may_be_cpp = False
            return self._compile(*args)

    def drop(self) -> None:
        """Let go of all graphs, as soon as no thread is in one. Of each, torch keeps a megabyte or more."""
        with self._lock:
            self._dropped = True
            self._free_if_idle()

    @contextmanager
    def _used(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._free_if_idle()

    def _free_if_idle(self) -> None:
        if self._dropped and not self._users:
            torch._dynamo.eval_frame.remove_from_cache(self._function)


@contextmanager
def rare_collection() -> Iterator[None]:
    """Garbage is looked for rarely: torch makes millions of objects that stay, and looks take a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        if before != RARELY:  # of another thread, which puts back what was before
            gc.set_threshold(*before)


def compile_lock() -> AbstractContextManager[Any]:
    """What torch itself holds while it compiles, whoever asked for it: nobody may enter a graph while it traces."""
    return torch._dynamo.convert_frame.compile_lock


class _Compiler:
    """torch's own, for a graph and what that reads: its arguments, and what a loss holds."""

    def __init__(self) -> None:
        self.may_be_cpp = self.took_cpp = False

    def __repr__(self) -> str:
        return "torch's own"  # where it says which compiler failed

    def __call__(self, graph: Any, inputs: list[Any], options: dict[str, Any]) -> Any:
        self.took_cpp = False
        if name := replaced_in(graph):
            raise MetaproxError(f"something stands in for {name}, which torch calls twice in a graph")
        self.took_cpp = self.may_be_cpp and in_cpp(inputs)
        return torch._inductor.compile(graph, inputs, options | IN_CPP if self.took_cpp else options)


def _settings(compiler: _Compiler, guards: dict[str, Any]) -> dict[str, Any]:
    if "options" not in SETTINGS:
        return {**SETTINGS, "options": guards}
    from torch._inductor import config  # which takes a while

    name, loops = ON_DISK
    kept = {name: {**getattr(config, name), **loops}} if hasattr(config, name) else {}
    return {**SETTINGS, "options": {**SETTINGS["options"], **kept, **guards}, "backend": compiler}


def _configured(config: Any, values: dict[str, Any]) -> AbstractContextManager[Any]:
    """With those of ``values`` that this torch knows."""
    changed: AbstractContextManager[Any] = config.patch({n: value for n, value in values.items() if hasattr(config, n)})
    return changed


def in_cpp(inputs: Iterable[Any]) -> bool:
    """Whether a graph of ``inputs`` is to be C++ throughout: where they are small, and this torch is quick at it."""
    if not all(hasattr(torch._inductor.config, name) for name in ("cpp_cache_precompile_headers", *IN_CPP)):
        return False
    found = [one for one in inputs if isinstance(one, torch.Tensor)]
    return all(one.device.type == "cpu" for one in found) and sum(one.numel() for one in found) <= IN_CPP_UP_TO


@cache
def look_at_processor() -> None:
    """Have torch find out, in a thread while it traces, which vector instructions there are.

    For that it starts compilers and other processes, one after another, and waits for them: 10 seconds where its cache
    on disk is empty, and else 1.
    """
    if "options" not in SETTINGS:
        return
    with suppress(Exception):  # which torch meets itself when it needs them
        for name in ("torch._inductor.codecache", "torch._inductor.cpp_builder", "torch.utils.cpp_extension"):
            importlib.import_module(name)  # here: of threads that import at a time one may see half a module
        threading.Thread(target=_vector_instructions, name="metaprox-vector-instructions", daemon=True).start()


def _vector_instructions() -> None:
    with suppress(Exception):
        torch._inductor.cpu_vec_isa.valid_vec_isa_list()


def _with_own_code(function: Callable[..., Any]) -> types.FunctionType:
    """A copy with code and globals of its own, which torch keeps its graphs and what they need in."""
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(
        function.__code__.replace(co_name=function.__name__),
        dict(function.__globals__),
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__module__ = function.__module__
    return copy
