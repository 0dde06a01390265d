"""The norms of the conv net for pictures: what a picture gets together with the others of its task, and alone.

On Omniglot, and on a folder of textures that is made here. Each norm has the same grid of inner steps, of which the
best by validation accuracy of one seed is taken, and then the same training with other seeds. Test tasks are adapted
to once; their query pictures are predicted together, as evaluations do, and one by one, as those who ask do.

Writes results.json and table.md. Some twenty minutes of one core.
"""

import argparse
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from PIL import Image

import metaprox as mp
from measures import provenance
from metaprox import training
from metaprox.models import NORMS
from metaprox.reports import style
from metaprox.tasks.own import below_data_variable

INNER_LR = (0.03, 0.1)
SEARCH, SEEDS = 100, (0, 1, 2)
EVAL_TASKS = 60
TEST_TASKS = 60
SHARED = {"ways": 5, "shots": 1, "queries": 5, "width": 16, "meta_steps": 40, "meta_batch": 4, "test_tasks": 2}


def textures(folder: Path, classes: int = 40, pictures: int = 12, size: int = 24) -> Path:
    """Classes of stripes of two colours, directions and widths of their own, each picture shifted and with noise."""
    source = random.Random(0)
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    noise = torch.Generator().manual_seed(0)
    for kind in range(classes):
        (folder / f"class {kind:02}").mkdir(parents=True)
        direction = torch.tensor([source.uniform(-1, 1), source.uniform(-1, 1)])
        colours = torch.tensor([[source.random() for _ in range(3)] for _ in range(2)])
        for i in range(pictures):
            wave = ((direction[:, None, None] * grid).sum(0) + source.uniform(0, 6)).sin()[..., None]
            pixels = (1 + wave) / 2 * colours[0] + (1 - wave) / 2 * colours[1]
            pixels = (pixels + 0.35 * torch.randn(size, size, 3, generator=noise)).clamp(0, 1)
            Image.fromarray((255 * pixels).to(torch.uint8).numpy()).save(folder / f"class {kind:02}" / f"{i}.png")
    return folder


def trained(settings: training.Settings, place: Path) -> training.RunFolder:
    """A run of these settings."""
    return training.train(settings.but(eval_every=settings.given["meta_steps"]), place)


def validation(settings: training.Settings) -> float:
    """The accuracy on validation tasks after training."""
    with tempfile.TemporaryDirectory() as place:
        records = trained(settings.but(eval_tasks=EVAL_TASKS), Path(place) / "run").read_metrics()
    found = [record for record in records if record["kind"] == "evaluation" and record["split"] == "validation"]
    return float(found[-1]["accuracy"]["mean"])


def accuracies(settings: training.Settings) -> dict[str, float]:
    """On test tasks, of query pictures that are predicted together, and alone."""
    with tempfile.TemporaryDirectory() as place:
        folder = trained(settings.but(eval_tasks=2), Path(place) / "run")
        learner = mp.load(folder.path)
    assert isinstance(learner, mp.Learner)
    learner = replace(learner, preprocessing=None)  # tasks have tensors already
    family = settings.composition().family.of_split("test")
    found: dict[str, list[float]] = {"together": [], "alone": []}
    for i in range(TEST_TASKS):
        task = family.drawn[i]  # type: ignore[attr-defined]
        with torch.no_grad():
            module = learner.adapt(task.support).module()
            inputs, labels = task.query
            found["together"].append(_accuracy(module(inputs), labels))
            found["alone"].append(_accuracy(torch.cat([module(one[None]) for one in inputs]), labels))
    return {name: mean(values) for name, values in found.items()}


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits.argmax(-1) == labels).double().mean())


def row(data: str, norm: str, settings: training.Settings) -> dict[str, Any]:
    """A norm on some data."""
    settings = settings.but(norm=norm)
    grid = {lr: validation(settings.but(inner_lr=lr, seed=SEARCH)) for lr in INNER_LR}
    print(data, norm, grid, flush=True)
    chosen = max(grid, key=lambda lr: grid[lr])
    seeds = [accuracies(settings.but(inner_lr=chosen, seed=seed)) for seed in SEEDS]
    found = {"data": data, "norm": norm, "validation": grid, "inner_lr": chosen, "seeds": seeds}
    print(found, flush=True)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    lines = []
    for one in rows:
        columns = ([100 * seed[name] for seed in one["seeds"]] for name in ("together", "alone"))
        shown = [f"{mean(column):.1f} ± {stdev(column):.1f} %" for column in columns]
        lines.append([one["data"], one["norm"], f"{one['inner_lr']:g}", *shown])
    return style.markdown(["data", "norm", "inner step", "together", "one by one"], lines)


def main() -> None:
    """Train, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", choices=("omniglot", "textures"), nargs="+", default=("omniglot", "textures"))
    parser.add_argument("--norms", choices=NORMS, nargs="+", default=NORMS)
    given = parser.parse_args()
    out = given.out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    below_data_variable("omniglot", "Omniglot's pictures")
    with tempfile.TemporaryDirectory() as place:
        cases = {
            "omniglot": training.Settings("omniglot", **SHARED),
            "textures": training.Settings("images", data=textures(Path(place) / "textures"), size=24, **SHARED),
        }
        rows = [
            row(data, norm, settings) for data, settings in cases.items() if data in given.data for norm in given.norms
        ]
    results = {**provenance(), "shared": SHARED, "test_tasks": TEST_TASKS, "rows": rows}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(table(rows))


if __name__ == "__main__":
    main()
