"""Where does the time of a small compiled meta-gradient go: into its graphs, or into what is around them?

FO-B-MAML on the sinusoids of workloads.py, K = 10, as the compiled row of speed.py: forward, residual correction,
perturb="center", 5 branch steps, one thread, float32. ``backward`` is called with timers around named parts of the
library, each of which has the time that is spent in it and in none of the others. "graphs" is what torch's compiler has
made; "entering graphs" is what torch does around it: guards, which see what a graph depends on, and its wrappers. All
else is ours. A timer costs a microsecond or less, so that the whole is timed without timers too.

Processor time; medians over ``--rounds`` rounds of ``--calls`` calls. Operations are those that torch starts outside of
graphs, counted in one call. Prints a table, and writes results.json and table.md.
"""

import argparse
import gc
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._inductor.output_code import CompiledFxGraph
from torch.utils._python_dispatch import TorchDispatchMode

import metaprox as mp
from measures import processor_seconds, provenance
from metaprox import call
from metaprox.estimators import base, monitor, result, sums
from metaprox.losses import choose, compiling
from metaprox.vectors import parameters
from workloads import compiled_call

GRAPHS, ENTERING, REST = "graphs", "entering graphs", "all else of the call"
# Whose attribute, its name, and the part that it is. What one calls of another one is the other's.
PARTS: list[tuple[Any, str, str]] = [
    (compiling.CompiledFunction, "run", ENTERING),
    (base, "parameters_to_fill", "parameters, found and looked at"),
    (parameters.Parameters, "of", "parameters, found and looked at"),
    (base.TaskBatch, "of", "tasks, looked at"),
    (mp.FOBMAML, "check", "settings, checked"),
    (mp.FOBMAML, "_estimate", "the method, around its graphs"),
    (call, "look_at", "losses, what is known of them"),
    (choose.Choice, "backend_for", "losses, what is known of them"),
    (call.Call, "gradients", "losses, what is known of them"),
    (sums.Sums, "begun", "sums over tasks, noise and result"),
    (sums.Sums, "add", "sums over tasks, noise and result"),
    (sums.Sums, "result", "sums over tasks, noise and result"),
    (result.ChunkResult, "of", "sums over tasks, noise and result"),
    (monitor.Monitor, "see", "monitor"),
]


class Parts:
    """The time spent in each part, and in none that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within = [REST]
        self._since = 0.0

    def begin(self) -> None:
        self._since = time.process_time()

    def end(self) -> None:
        self._switch()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._within[-1]] += now - self._since
        self._since = now

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        self._switch()
        self._within.append(part)
        try:
            yield
        finally:
            self._switch()
            self._within.pop()

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.within(part):
                return function(*args, **kwargs)

        return run


@contextmanager
def timers(parts: Parts) -> Iterator[None]:
    """Around each part, and each graph that there is."""
    with ExitStack() as stack:
        for owner, name, part in PARTS:
            own = vars(owner).get(name) or getattr(owner, name)
            if isinstance(own, classmethod):
                timed: Any = classmethod(parts.timed(own.__func__, part))
            else:
                timed = parts.timed(own, part)
            stack.enter_context(patch.object(owner, name, timed))
        for graph in (one for one in gc.get_objects() if type(one) is CompiledFxGraph):
            stack.enter_context(patch.object(graph, "current_callable", parts.timed(graph.current_callable, GRAPHS)))
        yield


class Operations(TorchDispatchMode):
    """Counts the operations that are started outside of graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.inside = False

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], None]) -> Counter[str]:
    """Of one call."""
    mode, enter = Operations(), compiling.CompiledFunction.run

    def entered(self: compiling.CompiledFunction, *args: Any) -> Any:
        mode.inside = True
        try:
            return enter(self, *args)
        finally:
            mode.inside = False

    with patch.object(compiling.CompiledFunction, "run", entered), mode:
        run()
    return mode.counts


def measure(rounds: int, calls: int) -> dict[str, Any]:
    """The record."""
    run = compiled_call()

    first = processor_seconds(run)
    for _ in range(2 * calls):
        run()
    whole: list[float] = []
    of_parts: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        gc.collect()
        whole.append(processor_seconds(lambda: [run() for _ in range(calls)]) / calls)
        parts = Parts()
        with timers(parts):
            parts.begin()
            for _ in range(calls):
                run()
            parts.end()
        for name, seconds in parts.seconds.items():
            of_parts[name].append(seconds / calls)
    counts = operations(run)
    return {
        "first_call_seconds": first,
        "call_seconds": statistics.median(whole),
        "call_quartiles": statistics.quantiles(whole, n=4)[::2],
        "parts_seconds": {name: statistics.median(found) for name, found in of_parts.items()},
        "operations": dict(counts.most_common()),
    }


def markdown(record: dict[str, Any]) -> str:
    parts = sorted(record["parts_seconds"].items(), key=lambda one: -one[1])
    total = sum(seconds for _, seconds in parts)
    lines = ["| part | ms | share |", "|---|---|---|"]
    lines += [f"| {name} | {1e3 * seconds:.3f} | {seconds / total:.0%} |" for name, seconds in parts]
    low, high = record["call_quartiles"]
    lines.append(f"| sum | {1e3 * total:.3f} | |")
    lines.append(
        f"| a call without timers | {1e3 * record['call_seconds']:.3f} ({1e3 * low:.3f} to {1e3 * high:.3f}) | |"
    )
    lines.append(f"\nOperations outside of graphs: {sum(record['operations'].values())}.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=50, help="calls of a round (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = provenance() | {"rounds": options.rounds, "calls": options.calls, **measure(options.rounds, options.calls)}
    print(markdown(record))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "table.md").write_text(markdown(record) + "\n")


if __name__ == "__main__":
    main()
