"""Which outer step suits each method on BANKING77? The same grid for all, judged on validation intents.

In each of three cases (LoRA adapters and the head adapt; LoRA adapters are learned and the head adapts; the head alone
on a frozen encoder) every method of benchmarks/banking77_variants.json meta-trains with every length of the outer step
(normalized SGD, decayed linearly to 0). FO-B-MAML takes META_STEPS, the others as many as its gradient evaluations pay
for: as in the comparison, but for half of them where all adapts, which takes longest. Seed 10, which the comparison
does not use. A step is judged by the accuracy on tasks of the validation intents; the test intents are not looked at.

Writes results.json, table.md and, for each case, CASE.json: what ``metaprox compare --variants`` takes. A run that was
stopped goes on with the parts it had finished. Needs METAPROX_DATA; half an hour on one core.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metaprox.comparison import Plan, measure
from metaprox.experiments.base import Remember
from metaprox.experiments.search import best_candidates, validation_accuracy
from metaprox.reports import style
from metaprox.training import Settings, read_variants

VARIANTS = read_variants(Path(__file__).with_name("banking77_variants.json"))
CASES: dict[str, dict[str, Any]] = {
    "head": {"encoder": "frozen"},
    "lora-head": {},
    "lora": {"adapt": "all", "inner_lr": 0.1, "lam": 1.0},
}
META_STEPS = {"head": 60, "lora-head": 60, "lora": 10}  # of FO-B-MAML
TASKS = {"head": 100, "lora-head": 100, "lora": 40}
LENGTHS = {"head": (0.003, 0.01, 0.03, 0.1, 0.3), "lora-head": (0.03, 0.1, 0.3), "lora": (0.03, 0.1, 0.3)}
SEED = 10


def methods(case: str) -> dict[str, dict[str, Any]]:
    """The settings of each method that applies: Reptile does not move what no task adapts."""
    return {m: CASES[case] | own for m, own in VARIANTS.items() if (case, m) != ("lora-head", "reptile")}


def search(case: str, remember: Remember) -> list[dict[str, Any]]:
    """A row for each method and length: meta-steps and validation accuracy."""
    shared = Settings("banking77", solver="gd", meta_steps=META_STEPS[case], eval_tasks=TASKS[case])
    plan = Plan.of(shared, methods(case), (SEED,), "gradients")
    plan = plan.with_equal_gradients(measure(plan.contenders, SEED, rounds=1))
    rows = []
    for label, own in methods(case).items():
        meta_steps = plan.contenders[label].pace.meta_steps
        for length in LENGTHS[case]:
            one = shared.variant(own).but(seed=SEED, lr=length, meta_steps=meta_steps).composition()
            found = remember(f"{case}_{label}_{length}", partial(validation_accuracy, one))
            row = {"method": label, "lr": length, "meta_steps": meta_steps, "validation_accuracy": found}
            print(case, row, flush=True)
            rows.append(row)
    return rows


def table(results: dict[str, Any]) -> str:
    """Accuracies in percent, a column for each length; Markdown."""
    lengths = sorted({length for of_case in LENGTHS.values() for length in of_case})
    lines = []
    for case, rows in results["cases"].items():
        for label in methods(case):
            found = {row["lr"]: f"{100 * row['validation_accuracy']:.1f}" for row in rows if row["method"] == label}
            (count,) = {row["meta_steps"] for row in rows if row["method"] == label}
            lines.append([case, style.method_name(label), str(count), *(found.get(length, "") for length in lengths)])
    return style.markdown(["case", "method", "meta-steps", *map(str, lengths)], lines)


def main() -> None:
    """Search, or go on searching, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    remember = Remember(out, f"seed_{SEED}")
    results = {"torch": torch.__version__, "seed": SEED, "tasks": TASKS, "cases": {}}
    for case in CASES:
        results["cases"][case] = rows = search(case, remember)
        found = best_candidates(rows, ["lr"])
        chosen = {label: own | found[label] for label, own in methods(case).items()}
        (out / f"{case}.json").write_text(json.dumps(chosen, indent=1) + "\n")
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(table(results))
    remember.forget()


if __name__ == "__main__":
    main()
