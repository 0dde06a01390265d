"""Short training with what ``mp.suggest`` says of four training tasks, beside the defaults of the family.

Both take the same tasks, weights, outer steps and meta-steps; only inner step, lam and K differ, and so what a
meta-step costs: gradients are counted. Seeds 20 to 22, which nothing else uses. Test tasks
are adapted to with each run's own K.

Writes results.json and table.md. A minute or two of one core.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import metaprox as mp
from measures import provenance
from metaprox.errors import NonFiniteError
from metaprox.reports import style
from metaprox.training import Settings, train

META_STEPS = {"sinusoid": 120, "mnist1d": 60}
META_BATCH = 4
SEEDS = (20, 21, 22)
TASKS, TEST_TASKS = 4, 200
NAMES = ("inner_lr", "lam", "steps")


def suggested(settings: Settings) -> tuple[dict[str, Any], int]:
    """The settings that four training tasks suggest, and the support gradients that it took."""
    trainer = settings.composition().trainer()
    found = mp.suggest(trainer.problem, trainer.batch("train", range(TASKS)))
    return {name: getattr(found, name) for name in NAMES}, found.support_gradients


def result(settings: Settings) -> dict[str, Any]:
    """The test tasks' mean accuracy, or loss, and gradient evaluations of the training; None where it diverged."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            records = train(settings, Path(folder) / "run").read_metrics()
        except NonFiniteError as error:
            return {"test": None, "gradients": None, "failure": str(error)}
    steps = [record for record in records if record["kind"] == "step"]
    last = records[-1].get("accuracy", records[-1]["loss"])
    gradients = sum(record["support_gradients"] + record["query_gradients"] for record in steps)
    return {"test": last["mean"], "over_tasks": last["ci95"], "gradients": gradients}


def rows() -> list[dict[str, Any]]:
    """A row for each family, seed and choice of settings."""
    found = []
    for family, meta_steps in META_STEPS.items():
        for seed in SEEDS:
            shared = Settings(
                family,
                seed=seed,
                meta_steps=meta_steps,
                meta_batch=META_BATCH,
                eval_every=meta_steps,
                eval_tasks=2,
                test_tasks=TEST_TASKS,
            )
            defaults = {name: shared.defaults()[name] for name in NAMES}
            own, cost = suggested(shared)
            for label, settings in (("defaults", defaults), ("suggested", own)):
                row = {"family": family, "seed": seed, "settings": label, **settings, **result(shared.but(**settings))}
                found.append(row | ({"suggestion_gradients": cost} if label == "suggested" else {}))
                print(found[-1], flush=True)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Accuracies in percent, losses as they are; Markdown."""
    lines = []
    for row in found:
        value = "diverged" if row["test"] is None else f"{row['test']:.3f} ± {row['over_tasks']:.3f}"
        if row["family"] == "mnist1d" and row["test"] is not None:
            value = f"{100 * row['test']:.1f} ± {100 * row['over_tasks']:.1f} %"
        numbers = [f"{row[name]:.2g}" for name in NAMES]
        cost = "" if row["gradients"] is None else f"{row['gradients'] / 1000:.0f}"
        lines.append([row["family"], str(row["seed"]), row["settings"], *numbers, value, cost])
    header = ["family", "seed", "settings", "inner step", "lam", "K", "test, ± over tasks", "thousand gradients"]
    return style.markdown(header, lines)


def main() -> None:
    """Train, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = rows()
    results = {
        **provenance(),
        "meta_steps": META_STEPS,
        "meta_batch": META_BATCH,
        "test_tasks": TEST_TASKS,
        "rows": found,
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(table(found))


if __name__ == "__main__":
    main()
