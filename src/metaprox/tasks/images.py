"""N-way K-shot classification of pictures of one's own."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from metaprox import checks
from metaprox.data.examples import Examples
from metaprox.data.sources import Source
from metaprox.models import NORMS
from metaprox.readers import Pictures, read_images
from metaprox.readers.pixels import decoded
from metaprox.serving import Blueprint
from metaprox.tasks.labelled import Labelled, Pool, class_groups
from metaprox.tasks.own import stamp, tell

TURNS = ("", ", turned 90", ", turned 180", ", turned 270")


@dataclass(frozen=True)
class Images(Labelled):
    """Few-shot classification of pictures in a folder for each class.

    Tasks of ``ways`` classes with ``shots`` support and ``queries`` query pictures each. Support is (pictures
    [T, ways * shots, channels, size, size] from 0 to 1, labels [T, ways * shots]), in random order; query likewise. A
    class is a folder that holds pictures; where folders are nested, the one around it is its group, and groups are not
    shared between splits. All pictures are read once in a process, a byte for each pixel. The model is the field's conv
    net of four blocks, the loss cross-entropy.

    Args:
        data: folder with a folder for each class, or a zip archive of one; or a dataset of HuggingFace, hf:NAME.
        ways: classes of a task.
        shots: support pictures of each class.
        queries: query pictures of each class.
        train_shots: support pictures of each class in training tasks, where they are not as many.
        size: height and width to which all pictures are brought.
        channels: 1 for grey, 3 for colour.
        invert: whether black is 1 and white 0, for ink on paper.
        fit: how a picture that is not square becomes so: squeezed, its middle cropped, or padded with white.
        rotations: whether in training each class, turned by 90, 180 and 270 degrees, is three more classes.
        width: channels of the conv net's blocks.
        norm: of the conv net's blocks. instance, group: of each channel, or of 8, of each picture for itself; instance
            takes away what is the same at every pixel, such as a shade, and group less of it. batch: over the pictures
            that are classified together, as MAML's authors have it, so that what one gets depends on the others
            (transductive): evaluations promise more than single pictures get.
        image_column: of a dataset of HuggingFace, the column with the pictures. Default: the only one that has some.
        label_column: of such a dataset, the column with the classes. Default: the only one of classes, or label.
        seed: of the tasks and weights.
        split: which classes.

    Raises:
        InputError: there are no pictures, or too few classes or pictures.
    """

    queries: int = 15
    size: int = 32
    channels: int = 3
    invert: bool = False
    fit: Literal["squeeze", "crop", "pad"] = "squeeze"
    rotations: bool = False
    width: int = 64
    norm: Literal["instance", "group", "batch"] = "instance"
    image_column: str | None = field(default=None, kw_only=True)
    label_column: str | None = field(default=None, kw_only=True)

    defaults: ClassVar[dict[str, Any]] = {
        "meta_batch": 4,
        "meta_steps": 500,
        "inner_lr": 0.05,
        "lam": 0.5,
        "backend": "loop",  # as fast as vmap for conv nets, in a T-th of the memory
        "lr": 0.3,
    }
    of_datasets: ClassVar[tuple[str, ...]] = ("image_column", "label_column", "subset", "data_split")
    reads: ClassVar[tuple[str, ...]] = ("image_column", "label_column")
    wanted: ClassVar[str] = "give the folder with a folder of pictures for each class (--data FOLDER)"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.settle(self, rotations=checks.switch, width=checks.count, norm=checks.one_of(*NORMS))
        self.preprocessing()
        self.look()

    def pool(self, path: Path) -> Pool:
        pictures = self.preprocessing()
        columns = tuple(getattr(self, name) for name in self.of_datasets)
        found, pixels, sums = _pixels(path, stamp(path), pictures, columns)
        count, names, turns = len(found), found.names, 4 if self.rotations and self.split == "train" else 1
        labels = found.targets
        labels = torch.cat([labels + turn * len(names) for turn in range(turns)])
        names = tuple(f"{name}{TURNS[turn]}" for turn in range(turns) for name in names)

        def take(rows: list[int]) -> Tensor:
            chosen = torch.tensor(rows, device="cpu")
            upright = pixels[chosen % count]
            for turn in range(1, turns):
                these = chosen // count == turn
                upright[these] = upright[these].rot90(turn, (-2, -1))
            return pictures.inputs(upright)

        groups = class_groups(found)
        source = Source(turns * count, labels.tolist(), take, names.__getitem__)
        return Pool(source, names, groups and groups * turns, sums, lambda row: str(found.items[row]))

    def preprocessing(self) -> Pictures:
        """Pictures of this size."""
        return Pictures(self.size, self.channels, self.invert, self.fit)

    def examples(self, path: str | Path, *, labels: bool = True) -> Examples:
        """Pictures; the folders are their classes, or a column of a dataset is."""
        return _read(path, tuple(getattr(self, name) for name in self.of_datasets), labels=labels)

    @classmethod
    def items(cls, path: str | Path, preprocessing: Any, **columns: Any) -> Examples:
        """Pictures, in whatever folders; or one picture."""
        return _read(path, tuple(columns.get(name) for name in cls.of_datasets), labels=False)

    def model(self) -> nn.Module:
        return self.made(outputs=self.ways, channels=self.channels, size=self.size)

    def blueprint(self) -> Blueprint | None:
        if self.network is not None:
            return None
        sizes = {"size": self.size, "channels": self.channels, "outputs": self.ways, "width": self.width}
        return Blueprint("conv_net", {**sizes, "norm": self.norm, "seed": self.seed})


@lru_cache(maxsize=4)
def _pixels(
    path: Path, stamp: Any, pictures: Pictures, columns: tuple[str | None, ...]
) -> tuple[Examples, Tensor, list[int]]:
    """Every picture, decoded, and the checksums of their files."""
    found, pixels, sums = decoded(_read(path, columns), pictures)
    return tell(found), pixels, sums


def _read(path: str | Path, columns: tuple[str | None, ...], *, labels: bool = True) -> Examples:
    image, label, subset, split = columns
    return read_images(path, labels=labels, image=image, label=label, subset=subset, split=split)
