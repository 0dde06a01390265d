"""How long does a meta-gradient take, and how much memory, in units of the plain gradients that it is made of?

The unit: K plain support gradients for each task, tasks one by one in eager mode. The floor: a unit and one query
gradient for each task; "its own" are all the gradients that FO-B-MAML takes, plain. FO-B-MAML here is K base steps, one
query gradient and 5 branch steps (forward, residual correction, perturb="center" with eps = 0.1), in the loop, vmapped,
and vmapped and compiled; beside it are the paper's equation (2) written naively (nu = 0.1), our FO-MAML, MAML and
iMAML, those of higher, TorchOpt, learn2learn, Betty and parallel-metalearn, where they are installed, and MAML in mixed
mode (MixFlow-MG, Kemaev et al., arXiv 2505.00793). Gradient descent, float32, one thread. The workloads are described
in workloads.py, the rows in speed_rows.py.

Time: of the processor for one thread, which other processes do not lengthen, of the clock for more, and by the clock
beside it. All are timed in turn, in ``--rounds`` rounds; a row that has had 3 calls and ``--seconds`` sits out the
rest. A call's ratio is to the unit of the same round, so that ratios hold while the machine's speed drifts; the median,
and its quartiles. The first call is shown apart, and counts only where it took 2 seconds or more and compiled nothing;
for the compiled row it is the time to compile. Short calls are repeated for 50 ms.

Memory: the peak of tensor memory, ``.grad`` included, beyond the model and the data, in a process of its own, by the
floor's.

Error: ||g - reference|| / ||reference|| in the same run. The reference is the method in exact arithmetic: our loop in
float64. TorchOpt's iMAML is held to conjugate gradients that go on where curvature is negative, as its own do and ours
do not; Betty's darts to lam times FO-MAML's gradient, which it is. Limit: the error against the derivative that a
difference approximates, with the same steps. (The gradient of F itself, at exact inner solutions, is out of reach here:
with ReLU and lam = 0.5 the inner problems are neither smooth nor convex, and no solver brings their gradients to zero.)

Writes results.json and table.md as it goes, and prints the table. What is not run again keeps its numbers in them.
"""

import argparse
import gc
import json
import os
import platform
import textwrap
import time
from pathlib import Path

import torch

from measures import relative_error
from speed_memory import Job, peak_of
from speed_rows import FLOOR, HOW, ROWS, Prepare, Row, Work, gradient, gradients, version_of
from turns import Result, Seconds, in_turn
from workloads import STEPS, Workload, workload


def seconds(load: Workload, run: Work, calls: int = 1) -> Seconds:
    """Garbage of earlier calls is collected before; what survives is left out of later collections."""
    gc.collect()
    gc.freeze()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start, began = clock(), time.perf_counter()
    for _ in range(calls):
        load.model.zero_grad()
        run()
    return Seconds((clock() - start) / calls, (time.perf_counter() - began) / calls)


def first_calls(load: Workload, rows: list[Row], steps: int) -> tuple[dict[Row, Work], dict[Row, Result]]:
    """What runs, and for each row the seconds of the first call and its errors, or why it can't."""
    wide = load.double()
    wanted = {prepare for row in rows for prepare in (row.exactly, row.limit) if prepare}
    truth = {prepare: gradient(prepare, wide, steps) for prepare in wanted}

    def error(prepare: Prepare | None) -> float | None:
        return None if prepare is None else relative_error(gradients(load), truth[prepare])

    work: dict[Row, Work] = {}
    found: dict[Row, Result] = {}
    for row in rows:
        try:
            run = row.work(load, steps)
            first = seconds(load, run).own
        except Exception as why:
            if row.package is None:
                raise
            found[row] = {"cannot": "can't: " + textwrap.shorten(f"{type(why).__name__}: {why}", 100)}
            continue
        work[row] = run
        found[row] = {"first_call_seconds": first, "error": error(row.exactly), "limit_error": error(row.limit)}
    return work, found


def measure(name: str, steps: int, rows: list[Row], rounds: int, budget: float, seed: int) -> list[Result]:
    """A result for each of ``rows``, of which the first is the unit."""
    load = workload(name, seed)
    work, found = first_calls(load, [row for row in rows if row.installed], steps)
    first = {row: found[row]["first_call_seconds"] for row in work}
    unit, timed = in_turn(work, first, lambda run, calls: seconds(load, run, calls), rounds, budget)
    gc.unfreeze()
    results = []
    for row in rows:
        result = {"workload": name, "steps": steps, "row": row.label(load)}
        if not row.installed:
            assert row.package is not None
            result["cannot"] = f"not installed: {HOW[row.package]}"
        results.append(result | found.get(row, {}) | timed.get(row, {}))
    unit_times = {"unit_seconds": unit.own}
    return [result | unit_times for result in results]


def with_peaks(found: list[Result], row: Row, cases: list[tuple[str, int]], seed: int) -> list[Result]:
    """``found``, with the peak memory of ``row`` in each of the cases; as it is where that could not be had."""
    peaks = {case: peak_of(Job(row.name, *case, seed)) for case in cases}
    names = {name: row.label(workload(name, seed)) for name in {name for name, _ in cases}}

    def with_peak(one: Result) -> Result:
        peak = peaks.get(case_of(one)) if one["row"] == names.get(one["workload"]) else None
        return one | {"peak_bytes": peak} if peak else one

    return [with_peak(one) for one in found]


def with_peak_ratios(found: list[Result]) -> list[Result]:
    """``found``, with peaks by the floor's of the same case."""
    floors = {case_of(one): one.get("peak_bytes") for one in found if one["row"] == FLOOR.name}

    def ratio(one: Result) -> float | None:
        own, floor = one.get("peak_bytes"), floors.get(case_of(one))
        return own / floor if own and floor else None

    return [one | {"peak_ratio": ratio(one)} if "peak_bytes" in one else one for one in found]


def case_of(found: Result) -> tuple[str, int]:
    return found["workload"], found["steps"]


def replaced(kept: list[Result], timed: list[Result]) -> list[Result]:
    """``kept``, with those of one case ``timed`` anew, and what is known of their memory."""
    case = case_of(timed[0])
    known = {one["row"]: one for one in kept if case_of(one) == case}
    peaks = [{"peak_bytes": known[one["row"]].get("peak_bytes")} if one["row"] in known else {} for one in timed]
    order = list(STEPS)
    rows = [one for one in kept if case_of(one) != case] + [one | own for one, own in zip(timed, peaks, strict=True)]
    return sorted(rows, key=lambda one: (order.index(one["workload"]), one["steps"]))


def markdown(results: list[Result]) -> str:
    """One table: the unit, the floors, then by time; what can't run at the end."""
    head = [
        "K",
        "row",
        "time / unit",
        "quartiles",
        "by the clock",
        "calls",
        "first call, s",
        "memory / floor",
        "error",
        "limit",
    ]
    ran = [row for row in results if "cannot" not in row]
    ran.sort(key=lambda row: (row["steps"], "one by one" not in row["row"], row["ratio"]))
    lines = [head, ["---"] * len(head)]
    for row in ran:
        low, _, high = row["quartiles"]
        lines.append([str(row["steps"]), row["row"], f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}"])
        lines[-1].append(number(row.get("clock_ratio"), ".2f"))
        lines[-1] += [str(row["calls"]), f"{row['first_call_seconds']:.2f}", number(row.get("peak_ratio"), ".2f")]
        lines[-1] += [number(row["error"], ".0e"), number(row["limit_error"], ".0e")]
    table = [f"| {' | '.join(line)} |" for line in lines]
    cannot = {row["row"]: row["cannot"] for row in results if "cannot" in row}
    return "\n".join([*table, *(f"\n{name}: {why}" for name, why in cannot.items())])


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def processor() -> str:
    """Its model, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--workloads", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="enough for a row (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and tasks (default: %(default)s)")
    parser.add_argument("--no-memory", action="store_true", help="time alone: memory is the same with more threads")
    parser.add_argument("--no-times", action="store_true", help="memory alone, which other work does not change")
    parser.add_argument(
        "--memory-of", nargs="+", metavar="ROW", choices=[row.name for row in ROWS], help="memory alone, of these"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    file = options.out / "results.json"
    rows: list[Result] = json.loads(file.read_text())["rows"] if file.exists() else []
    options.out.mkdir(parents=True, exist_ok=True)
    for name in () if options.no_times or options.memory_of else options.workloads:
        for steps in STEPS[name]:
            rows = replaced(rows, measure(name, steps, ROWS, options.rounds, options.seconds, options.seed))
            write(options, rows)
    cases = [(name, steps) for name in options.workloads for steps in STEPS[name]]
    for row in () if options.no_memory else ROWS:
        if row.installed and row.name in (options.memory_of or [row.name]):
            rows = with_peaks(rows, row, cases, options.seed)
            write(options, rows)
    print((options.out / "table.md").read_text())


def write(options: argparse.Namespace, rows: list[Result]) -> None:
    """What there is so far, so that nothing is lost where the rest fails."""
    rows = with_peak_ratios(rows)
    packages = ("metaprox", "torch", *HOW)
    record = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "threads": options.threads,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "seed": options.seed,
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in packages},
        "rows": rows,
    }
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    tables = [section(name, found) for name in STEPS if (found := [row for row in rows if row["workload"] == name])]
    (options.out / "table.md").write_text(f"{described(record)}\n\n" + "\n".join(tables))


def section(name: str, rows: list[Result]) -> str:
    return f"## {name}\n\n{markdown(rows)}\n"


def described(record: Result) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in record["versions"].items() if found)
    machine = "{processor}, {cores} cores".format(**record["machine"])
    settings = "threads of torch: {threads}; seed: {seed}; rounds: {rounds}".format(**record)
    return f"{machine}; {settings}; {versions}."


if __name__ == "__main__":
    main()
