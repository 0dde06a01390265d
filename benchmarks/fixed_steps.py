"""Does meta-training end well on fixed inner steps, and on steps that are found? Perturbed centre and perturbed loss.

- sinusoid: MLP 1-40-40-1 with ReLU, lam 0.5; 300 meta-steps of 25 tasks, outer step 0.1; judged by the query loss on
  200 unseen tasks. What answers 0 whatever it is given comes to 3 or more, and is lost.
- texts: the messages of docs/five_cases.md, LoRA in the encoder, and a head that adapts; 20 meta-steps of 2 tasks,
  outer step 0.3; judged by accuracy on 30 unseen tasks of five classes. MAML beside it.

K = J = 10, normalized SGD with momentum 0.9 and a step that decays linearly to 0; seeds 0 to 4, of weights and tasks.
Writes results.json and table.md. Ten minutes of one core.
"""

import argparse
import contextlib
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import five_cases
import metaprox as mp
from measures import provenance
from metaprox import training
from metaprox.comparison.statistics import Estimate, OfSeed
from metaprox.experiments.budgets_settings import TRAININGS, meta_train
from metaprox.reports import style

SEEDS, META_STEPS, UNSEEN, USELESS = range(5), 300, 200, 3.0
FIXED = (0.01, 0.02, 0.03)
TEXTS: dict[str, dict[str, Any]] = {
    "meta_steps": 20, "meta_batch": 2, "queries": 3, "eval_every": 20, "eval_tasks": 2, "test_tasks": 30, "lr": 0.3,
    "text_column": "question", "label_column": "topic",
}  # fmt: skip


def sinusoid(step: float | None, perturb: Any, seed: int) -> float | None:
    """The query loss that training ends with; None where a solve diverges."""
    solver = mp.AdaptiveGradientDescent() if step is None else mp.GradientDescent(step)
    meta = mp.FOBMAML(solver, 10, perturb=perturb, compile=True)
    ran = meta_train(TRAININGS["sinusoid"], meta, seed, META_STEPS, 0.1, "test", UNSEEN)
    return None if ran["died"] or not math.isfinite(ran["result"]["mean"]) else float(ran["result"]["mean"])


def texts(solver: str, how: dict[str, Any], seed: int) -> float:
    """The accuracy that training ends with."""
    settings = training.Settings("text", data="messages.csv", solver=solver, seed=seed, **TEXTS, **how)
    with tempfile.TemporaryDirectory() as out:
        return float(training.train(settings, out).tested()["after"]["accuracy"].mean)


def measure() -> list[dict[str, Any]]:
    """A row for each way; of runs that diverged, None."""
    rows = []
    for step in (*FIXED, None):
        for perturb in ("center", "loss"):
            found = [sinusoid(step, perturb, seed) for seed in SEEDS]
            rows.append({"problem": "sinusoid", "step": step, "method": perturb, "by_seed": found})
            print(rows[-1], flush=True)
    ways: dict[str, dict[str, Any]] = {"center": {"perturb": "center"}, "loss": {"perturb": "loss"}}
    for solver, step in (("gd", 0.3), ("adaptive", None)):
        for name, how in (ways | {"MAML": {"method": "maml"}}).items():
            found = [texts(solver, how, seed) for seed in SEEDS]
            rows.append({"problem": "texts", "step": step, "method": name, "by_seed": found})
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = []
    for row in rows:
        ends = [value for value in row["by_seed"] if value is not None]
        one = Estimate.of([OfSeed(value, None, 0) for value in ends]) if len(ends) > 1 else None
        lost = len(row["by_seed"]) - len(ends)
        lost += sum(value > USELESS for value in ends) if row["problem"] == "sinusoid" else 0
        scale, digits, unit = (1, 3, "") if row["problem"] == "sinusoid" else (100, 1, " %")
        shown = (
            "" if one is None else f"{scale * one.mean:.{digits}f} ± {scale * (one.over_seeds or 0):.{digits}f}{unit}"
        )
        step = "found" if row["step"] is None else f"{row['step']:g}"
        lines.append([row["problem"], step, row["method"], shown, f"{lost} of {len(row['by_seed'])}"])
    header = [
        "problem",
        "inner step",
        "FO-B-MAML, or another method",
        "of runs that did not diverge, ± over seeds",
        "lost",
    ]
    return style.markdown(header, lines)


def main() -> None:
    """Train, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(compile(five_cases.blocks()[0], "the data of docs/five_cases.md", "exec"), {})
        rows = measure()
    (out / "results.json").write_text(json.dumps({**provenance(), "rows": rows}, indent=1) + "\n")
    (out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
