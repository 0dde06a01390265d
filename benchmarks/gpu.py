"""On a CUDA device: the tests marked for it, then times and memory of meta-gradients at sizes that fill it.

The rows are those of speed.py, in its units: K plain support gradients for each task, tasks one by one in eager mode.
Times are of the clock, with the device waited for, in turn, in ``--rounds`` rounds; a row that has had 3 calls and
``--seconds`` sits out the rest; the median of ratios to the unit of the same round, and its quartiles. The first call
is shown apart, and counts only where it took 2 seconds or more and compiled nothing; short ones are repeated for 50 ms.
Memory: the peak of what torch allocates in a further call, beyond the model, the data and ``.grad``. A row that runs
out of memory says so. float32 products are as torch has them by default: those of convolutions in TF32.

Error: ||g - reference|| / ||reference||, the reference in float64 on the same device; for the conv net alone.

sinusoid  MLP 1-40-40-1, 25 tasks, too small for such a device.
conv      speed.py's, 64 filters, with 32 tasks of 5 ways, 1 shot and 15 queries.
encoder   MiniLM-L6's sizes (transformers.BertModel), all 22 million parameters; 4 tasks of 5 ways, 5 shots of 128
          tokens, and 75 queries; bfloat16 autocast, fused attention.
decoder   GPT-2's sizes (transformers.GPT2LMHeadModel), LoRA of rank 8 on its attention; 2 tasks of 8 + 8 sequences of
          512 tokens; bfloat16 autocast, fused attention.
compiled  conv with its graphs, which take a minute or more to compile.

Weights and data are random. Where there is no CUDA device it says so and stops. Prints tables, and writes results.json,
table.md and tests.txt as it goes. What is not run again keeps its numbers in them, if device and versions are the same.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metaprox as mp
from measures import relative_error
from metaprox.checks.trees import on_device
from metaprox.comparison import peak_memory
from peer_methods import Predictor
from speed import case_of, described, section
from speed_rows import COMPILED, FLOOR, OWN, ROWS, UNIT, Row, Work, gradient, gradients, version_of
from turns import Result, Seconds, in_turn
from workloads import WAYS, Workload, classes, workload

TESTS = Path(__file__).resolve().parents[1] / "tests" / "test_gpu.py"
DEVICE = torch.device("cuda")
VOCABULARY = 30522


def mixed(model: Predictor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the last dimension, the model in bfloat16."""
    inputs, labels = batch
    with torch.autocast("cuda", torch.bfloat16):
        logits = model(inputs)
    return nn.functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten())


class Encoder(nn.Module):
    """Tokens [N, L] -> logits of the classes [N, WAYS]."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.body = BertModel(BertConfig(vocab_size=VOCABULARY, **sizes, **dropout), add_pooling_layer=False)
        self.head = nn.Linear(384, WAYS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(tokens).last_hidden_state.mean(1))


class Decoder(nn.Module):
    """Tokens [N, L] -> logits of the next ones [N, L, V]; of its parameters LoRA's alone are trained."""

    def __init__(self) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        base = GPT2LMHeadModel(GPT2Config(use_cache=False, **dropout))
        self.body = get_peft_model(base, LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(tokens).logits


def conv() -> Workload:
    return replace(workload("conv", 0), tasks=classes(1, 28, 28, tasks=32))


def encoder() -> Workload:
    def part(count: int) -> tuple[Tensor, Tensor]:
        return torch.randint(VOCABULARY, (4, count, 128)), (torch.arange(count) % WAYS).expand(4, count)

    return Workload(Encoder(), mixed, mp.Task(part(5 * WAYS), part(15 * WAYS)), 0.01, second_order=False)


def decoder() -> Workload:
    def part() -> tuple[Tensor, Tensor]:
        text = torch.randint(50257, (2, 8, 513))
        return text[..., :-1].contiguous(), text[..., 1:].contiguous()

    return Workload(Decoder(), mixed, mp.Task(part(), part()), 0.1, second_order=False)


@dataclass(frozen=True)
class Case:
    """What is timed at which numbers of inner steps. names: of the rows. precise: whether errors are looked at."""

    build: Callable[[], Workload]
    steps: tuple[int, ...]
    names: tuple[str, ...]
    precise: bool = False


PLAIN = (UNIT.name, FLOOR.name, OWN)
LOOPS = ("FO-B-MAML, loop", "FO-MAML, loop", "MAML, loop", "iMAML, loop")
SMALL = (
    *(
        *PLAIN,
        "K + 1 gradients, vmapped (floor)",
        *LOOPS,
        "FO-B-MAML, vmap",
        "FO-MAML, vmap",
        "MAML, vmap",
        "iMAML, vmap",
    ),
    *("MAML, torch.func by hand", "MAML, mixed mode by hand", "MAML, higher"),
)
CASES = {
    "encoder": Case(encoder, (5, 20), (*PLAIN, *LOOPS, "MAML, mixed mode by hand")),
    "decoder": Case(decoder, (5, 20), (*PLAIN, *LOOPS)),
    "conv": Case(conv, (5, 20), SMALL, precise=True),
    "sinusoid": Case(lambda: workload("sinusoid", 0), (10,), (*SMALL, COMPILED), precise=True),
    "compiled": Case(conv, (5, 20), (*PLAIN, "FO-B-MAML, vmap", COMPILED), precise=True),
}


def seconds(load: Workload, run: Work, calls: int = 1) -> Seconds:
    load.model.zero_grad(set_to_none=False)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        run()
    torch.cuda.synchronize()
    return Seconds((time.perf_counter() - began) / calls)


def first_call(row: Row, load: Workload, steps: int) -> tuple[Work | None, Result]:
    """What runs, and the seconds and the peak of its first calls; or why it can't."""
    try:
        run = row.work(load, steps)
        first = seconds(load, run).own
        load.model.zero_grad(set_to_none=False)
        return run, {"first_call_seconds": first, "peak_bytes": peak_memory(run, DEVICE)}
    except torch.cuda.OutOfMemoryError as error:
        why = f"out of memory: {str(error).split('. GPU')[0]}"
    except Exception as error:
        if row.package is None and not row.second_order:
            raise
        why = "can't: " + textwrap.shorten(f"{type(error).__name__}: {error}", 100)
    load.model.zero_grad()
    gc.collect()
    torch.cuda.empty_cache()
    return None, {"cannot": why}


def measure(name: str, steps: int, rounds: int, budget: float) -> list[Result]:
    """A result for each row of a case, of which the first is the unit."""
    case = CASES[name]
    torch.manual_seed(0)
    load = case.build()
    load = replace(load, model=load.model.to(DEVICE), tasks=on_device(load.tasks, DEVICE))
    for p in load.model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    rows = [row for row in ROWS if row.name in case.names and row.installed]
    work, found = {}, {}
    wide, truths = load.double() if case.precise else load, {}
    for row in rows:
        run, found[row] = first_call(row, load, steps)
        if run is not None:
            work[row] = run
        got = gradients(load) if run is not None and case.precise else None
        for name_of_error, prepare in (("error", row.exactly), ("limit_error", row.limit)):
            found[row][name_of_error] = None
            if got is not None and prepare is not None:
                if prepare not in truths:
                    truths[prepare] = gradient(prepare, wide, steps)
                found[row][name_of_error] = relative_error(got, truths[prepare])
    first = {row: found[row]["first_call_seconds"] for row in work}
    unit, timed = in_turn(work, first, lambda run, calls: seconds(load, run, calls), rounds, budget)
    floor = found[FLOOR]["peak_bytes"]
    for row in work:
        found[row]["peak_ratio"] = found[row]["peak_bytes"] / floor
    head = {"workload": name, "steps": steps, "unit_seconds": unit.own}
    return [head | {"row": row.label(load)} | found[row] | timed.get(row, {}) for row in rows]


def run_tests(out: Path, workers: int) -> str:
    """Runs them in a process of its own; returns the last line of what pytest prints, all of which is kept."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "--tb=short", "--durations=15", str(TESTS)]
    with (out / "tests.txt").open("w") as file:
        subprocess.run([*command, "-n", str(workers)], stdout=file, stderr=subprocess.STDOUT, check=False)
    last = (out / "tests.txt").read_text().strip().splitlines()[-1]
    print(last, flush=True)
    return last


def circumstances(rounds: int, budget: float) -> dict[str, Any]:
    """What times depend on."""
    return {
        "machine": {"processor": torch.cuda.get_device_name(), "cores": os.cpu_count(), "system": platform.system()},
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "seconds": budget,
        "seed": 0,
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, "metaprox": mp.__version__}
        | {name: version_of(name) for name in ("torch", "transformers", "peft", "higher")},
    }


def kept(out: Path, here: dict[str, Any]) -> dict[str, Any]:
    """What ``out`` holds of the same device and versions; else nothing."""
    file = out / "results.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    same = all(record.get(name) == here[name] for name in ("machine", "versions"))
    return record if same else {}


def write(out: Path, record: dict[str, Any]) -> None:
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    tables = [section(name, found) for name in CASES if (found := [r for r in record["rows"] if r["workload"] == name])]
    (out / "table.md").write_text("\n\n".join([described(record), *tables]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, table.md and tests.txt")
    parser.add_argument("--workloads", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, nargs="+", help="of these alone; default: each workload's")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="enough for a row (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes of tests (default: %(default)s)")
    parser.add_argument("--no-tests", action="store_true", help="times and memory alone")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("no CUDA device is at hand: nothing was run, and nothing written")
    options.out.mkdir(parents=True, exist_ok=True)
    here = circumstances(options.rounds, options.seconds)
    record = {"tests": None, "rows": []} | kept(options.out, here) | here
    if not options.no_tests:
        record["tests"] = run_tests(options.out, options.workers)
        write(options.out, record)
    for name in options.workloads:
        for steps in options.steps or CASES[name].steps:
            found = measure(name, steps, options.rounds, options.seconds)
            record["rows"] = [one for one in record["rows"] if case_of(one) != (name, steps)] + found
            print(section(name, found), flush=True)
            write(options.out, record)


if __name__ == "__main__":
    main()
