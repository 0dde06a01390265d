"""Folders of pictures by class, unpacked or in a zip archive."""

import sys
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from metaprox import checks
from metaprox.data.examples import Examples, Problem
from metaprox.errors import InputError
from metaprox.readers.archives import files
from metaprox.readers.hub import Part, pictures_of_hub

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")


def read_images(
    path: str | Path,
    *,
    labels: bool = True,
    image: str | None = None,
    label: str | None = None,
    subset: str | None = None,
    split: str | None = None,
) -> Examples:
    """Pictures below a folder, or in a zip archive of one; a class is a folder that holds pictures.

    A class is named by its folders, from where they part: ``cat``, ``dog``; or, nested, ``Greek/character01``, of the
    group ``Greek``. No picture is opened: those that turn out to be none are found by whoever does.

    Args:
        path: of the folder or archive. Without labels also of one picture. Or ``hf:`` and the name of a dataset on the
            HuggingFace hub, or of a folder as ``datasets`` leaves it.
        labels: whether the folders are classes. Else all pictures are taken, whatever folder they are in.
        image: of a dataset, the column with the pictures. None: the only one that has some.
        label: of a dataset, the column with the classes. None: the only one of classes, or that of the name label.
        subset: of a dataset, which of its configurations.
        split: of a dataset, its split, or several with a +. None: all.

    Returns:
        Examples whose items are paths, or members of the archive, in the order of their names.

    Raises:
        InputError: there is no folder, or there are no pictures in it, or none is in a folder of its class.
    """
    path, labels = checks.path("path", path), checks.switch("labels", labels)
    if (part := Part.of(path, subset, split)) is not None:
        return pictures_of_hub(part, image, label, labels=labels)
    if not labels and path.is_file() and path.suffix.lower() in SUFFIXES:
        return Examples(str(path), [str(path)])
    found = _Found.below(path)
    if not found.items:
        left_out = Examples(str(path), [], problems=tuple(found.problems)).report()
        raise InputError(left_out or f"{path} has no pictures in it: their names end in {', '.join(SUFFIXES)}")
    if not labels:
        return Examples(str(path), found.items, problems=tuple(found.problems))
    found.leave_out_strays()
    names = sorted(set(found.folders))
    if names == [()]:
        raise InputError(f"{path} has all its pictures in one folder: put those of each class into a folder of its own")
    place = {parts: i for i, parts in enumerate(names)}
    nested = max(map(len, names)) > 1
    return Examples(
        str(path),
        found.items,
        torch.tensor([place[parts] for parts in found.folders], device="cpu"),
        tuple("/".join(parts) for parts in names),
        ["/".join(parts[:-1] or parts) for parts in found.folders] if nested else None,
        problems=tuple(found.problems),
    )


@dataclass
class _Found:
    """Pictures, the folders that each is in, and what is none."""

    items: list[Any] = field(default_factory=list)
    folders: list[tuple[str, ...]] = field(default_factory=list)
    others: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def below(cls, path: Path) -> "_Found":
        found = cls()
        for one in files(path):
            if isinstance(one, Problem):
                found.problems.append(one)
            elif one[0].suffix.lower() in SUFFIXES:
                found.items.append(str(one[1]) if isinstance(one[1], Path) else one[1])
                found.folders.append(tuple(map(sys.intern, one[0].parts[:-1])))
            else:
                found.others.append((str(one[1]), one[0].parts[:-1]))
        return found

    def leave_out_strays(self) -> None:
        """Outer folders that all share are no part of a name; what lies beside the folders of classes is in none."""
        shared = _shared(set(self.folders))
        kept = [i for i, parts in enumerate(self.folders) if len(parts) > shared] or list(range(len(self.folders)))
        left = set(range(len(self.folders))) - set(kept)
        self.problems += [Problem(str(self.items[i]), "in no folder of a class") for i in sorted(left)]
        self.problems += [
            Problem(name, "no picture, by its name") for name, parts in self.others if len(parts) > shared
        ]
        self.items = [self.items[i] for i in kept]
        self.folders = [self.folders[i][shared:] for i in kept]


def _shared(folders: set[tuple[str, ...]]) -> int:
    """How many outer folders all of them have in common; of a single one all but the last."""
    if len(folders) == 1:
        return max(len(min(folders)) - 1, 0)
    return len(list(takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))))
