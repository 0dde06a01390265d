"""Few-shot classification of pictures: from a folder with a folder for each class to five new classes.

It draws 60 signs as PNG and JPEG files of unequal sizes, grey and in colour, and trains the usual conv net on 36 of
them by one call, which keeps a run folder as ``metaprox train images --data FOLDER`` does. Then it adapts to one
picture each of five further signs, and names the sign on other pictures of them. It prints the accuracy on 5-way
1-shot tasks of signs that were held out, of

    the nearest mean of the pixels, for which nothing is learned
    the conv net as it is made, adapted to the task
    the conv net as it was meta-learned, adapted likewise

Needs metaprox[data]. About a minute: python examples/image_folder.py
"""

import argparse
import random
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import metaprox as mp
from metaprox import training
from metaprox.readers import read_images


def draw(sign: random.Random, hand: random.Random) -> Image.Image:
    """A sign of three strokes, as one hand draws it: shifted, sheared, in its own size, ink and paper."""
    width, height = hand.randint(40, 90), hand.randint(40, 90)
    paper, ink = (tuple(hand.randint(low, low + 60) for _ in range(3)) for low in (190, 0))
    picture = Image.new("RGB", (width, height), paper)
    turn, scale, x, y = hand.gauss(0, 0.15), hand.uniform(0.75, 1.1), hand.gauss(0.5, 0.06), hand.gauss(0.5, 0.06)
    for _ in range(3):
        points = []
        for _ in range(3):
            across, down = (sign.uniform(-0.4, 0.4) + hand.gauss(0, 0.03) for _ in range(2))
            points.append((width * (x + scale * (across - turn * down)), height * (y + scale * (down + turn * across))))
        ImageDraw.Draw(picture).line(points, fill=ink, width=max(2, width // 14), joint="curve")
    return picture.convert("L") if hand.random() < 0.3 else picture


def write(folder: Path, signs: range, pictures: int) -> None:
    """Folders of ``pictures`` of each sign."""
    for sign in signs:
        (folder / f"sign {sign}").mkdir(parents=True)
        for i in range(pictures):
            picture = draw(random.Random(f"sign {sign}"), random.Random(f"hand {sign} {i}"))
            picture.save(folder / f"sign {sign}" / f"{i}.{('png', 'jpg')[i % 2]}")


def nearest_mean(tasks: mp.Task) -> float:
    """The accuracy of the rule that gives a picture the class whose mean of support pictures is nearest."""
    right = []
    for inputs, labels, query, query_labels in zip(*tasks.support, *tasks.query, strict=True):
        means = torch.stack([inputs[labels == c].mean(0) for c in range(5)]).flatten(1)
        right.append((torch.cdist(query.flatten(1), means).argmin(1) == query_labels).float().mean())
    return float(torch.stack(right).mean())


def main(place: Path, meta_steps: int, tasks: int) -> None:
    write(place / "pictures", range(60), 20)
    settings = training.Settings(
        "images",
        data=place / "pictures",
        ways=5,
        shots=1,
        queries=10,
        size=28,
        channels=1,
        invert=True,
        width=32,
        meta_steps=meta_steps,
        eval_every=meta_steps,
        eval_tasks=10,
        test_tasks=tasks,
    )
    run = training.train(settings, place / "run")
    held_out = settings.composition().trainer().batch("test", range(tasks))
    print(f"nearest mean of the pixels  {100 * nearest_mean(held_out):.1f} %")
    for when, found in run.tested().items():
        print(f"{when} meta-training  {100 * found['accuracy'].mean:.1f} ± {100 * found['accuracy'].ci95:.1f} %")

    write(place / "new", range(60, 65), 1)  # one picture of each of five new signs
    adapted = mp.load(run.path).adapt(read_images(place / "new"))
    write(place / "unknown", range(60, 65), 5)
    unknown = read_images(place / "unknown")
    for item, found in list(zip(unknown.items, adapted.predict(unknown.items).labels, strict=True))[::6]:
        print(f"{Path(item).relative_to(place)}: {found}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and tasks")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder), *((20, 15) if quick else (80, 100)))
