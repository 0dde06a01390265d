"""Which settings suit each method on MNIST-1D? The same grid for all, judged on validation classes.

Every method of ``metaprox compare`` meta-trains with every pair of a proximal weight lam and an outer step (normalized
SGD of three lengths, and Adam), K = 10 inner steps, 400 meta-steps of 16 tasks, from the seed 10, which no other
experiment uses. It is judged by its accuracy on 400 tasks of the validation classes; neither the test digits nor their
tasks are looked at. The tangent estimator takes the settings of FO-B-MAML, whose limit it is. Writes tuning.json (every
result) and variants.json (the best settings of each method) for ``metaprox compare --variants``. A stopped search goes
on where it was. Takes about 50 minutes on one core.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from metaprox.errors import NonFiniteError
from metaprox.training import TrainConfig, resume, train
from metaprox.training.methods import PRESETS

LABELS = [label for label in PRESETS if label != "tangent"]
LAMS = (0.1, 0.5)
OUTER = (("normalized", 0.05), ("normalized", 0.1), ("normalized", 0.2), ("adam", 0.001))
CANDIDATES = [{"lam": lam, "optimizer": name, "lr": lr} for lam, (name, lr) in product(LAMS, OUTER)]


def accuracy(label: str, candidate: dict[str, Any], meta_steps: int, place: Path) -> float:
    """Accuracy on the validation tasks at the end of a run; 0 for one that diverged."""
    shared = TrainConfig(
        tasks="mnist1d", seed=10, meta_steps=meta_steps, eval_every=meta_steps, eval_tasks=400, test_tasks=1
    )
    try:
        if (place / "checkpoint.safetensors").exists():
            folder = resume(place)
        else:
            folder = train(shared.variant(PRESETS[label] | candidate), place)
    except NonFiniteError:
        return 0.0
    (found,) = [r for r in folder.read_metrics() if r.get("split") == "validation"]
    return float(found["accuracy"]["mean"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for tuning.json and variants.json")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs, which may be deleted afterwards")
    parser.add_argument("--meta-steps", type=int, default=400, help="meta-steps of each run (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one core each (default: %(default)s)")
    arguments = parser.parse_args()
    trials = [(label, candidate) for candidate in CANDIDATES for label in LABELS]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        futures = []
        for label, candidate in trials:
            place = arguments.runs / "_".join([label, *map(str, candidate.values())])
            futures.append(pool.submit(accuracy, label, candidate, arguments.meta_steps, place))
        rows = []
        for (label, candidate), future in zip(trials, futures, strict=True):
            rows.append({"method": label, **candidate, "validation_accuracy": future.result()})
            print(json.dumps(rows[-1]), flush=True)
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: r["validation_accuracy"]):
        best[row["method"]] = row
    best["tangent"] = best["fobmaml"]
    variants = {
        label: PRESETS[label] | {name: best[label][name] for name in ("lam", "optimizer", "lr")} for label in PRESETS
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"seed": 10, "meta_steps": arguments.meta_steps, "rows": rows}
    (arguments.out / "tuning.json").write_text(json.dumps(record, indent=2) + "\n")
    (arguments.out / "variants.json").write_text(json.dumps(variants, indent=2) + "\n")


if __name__ == "__main__":
    main()
