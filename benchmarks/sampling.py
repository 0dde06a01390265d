"""What drawing tasks costs: its share of a meta-step, and the memory of reading many small pictures."""

import argparse
import io
import json
import random
import resource
import tempfile
import time
import zipfile
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from metaprox.data import FewShot
from metaprox.readers import Pictures, read_images
from metaprox.readers.pixels import decoded
from metaprox.training import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {"reading": reading(given.pictures), "sampling": sampling(given.rounds)}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "sampling.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def reading(count: int) -> dict[str, float]:
    """Peak memory of the process, and time, of reading pictures of 28 x 28 from an archive of a thousand classes."""
    with tempfile.TemporaryDirectory() as folder:
        path = archive(Path(folder) / "many.zip", count)
        began = time.process_time()
        found, pixels, _ = decoded(read_images(path), Pictures(28))
        seconds = time.process_time() - began
    FewShot((pixels, found.targets), 5, 1, 5).batch(range(4))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"pictures": len(found), "processor seconds": seconds, "peak GB of the process": peak}


def archive(path: Path, count: int, classes: int = 1000) -> Path:
    source = random.Random(0)
    with zipfile.ZipFile(path, "w") as members:
        for i in range(count):
            file = io.BytesIO()
            Image.frombytes("L", (28, 28), source.randbytes(784)).save(file, "PNG")
            members.writestr(f"{i % classes}/{i}.png", file.getvalue())
    return path


def sampling(rounds: int) -> dict[str, dict[str, float]]:
    """Processor time of drawing a batch, and of a meta-step with it, in turns; medians."""
    with tempfile.TemporaryDirectory() as folder:
        path = archive(Path(folder) / "some.zip", 3000, 100)
        cases = {
            "mnist1d": Settings("mnist1d", compile="off"),
            "images": Settings("images", data=path, size=28, channels=1),
        }
        return {name: shares(settings, rounds) for name, settings in cases.items()}


def shares(settings: Settings, rounds: int) -> dict[str, float]:
    trainer = settings.composition().trainer()
    drawn, steps = [], []
    for round_ in range(rounds + 1):
        size = trainer.pace.meta_batch
        began = time.process_time()
        tasks = trainer.batch("train", range(size * round_, size * (round_ + 1)))
        between = time.process_time()
        trainer.estimator.backward(trainer.problem, tasks)
        trainer.optimizer.step()
        if round_:  # the first has a look at the losses
            drawn.append(between - began)
            steps.append(time.process_time() - began)
    share = median(one / whole for one, whole in zip(drawn, steps, strict=True))
    return {"drawing ms": 1e3 * median(drawn), "meta-step ms": 1e3 * median(steps), "share": share}


if __name__ == "__main__":
    main()
