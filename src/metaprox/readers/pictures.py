"""Pictures as inputs: of one size, in grey or colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metaprox import checks
from metaprox.data.preprocessing import Preprocessing, register
from metaprox.errors import InputError
from metaprox.readers.archives import Member


@register("pictures")
@dataclass(frozen=True)
class Pictures(Preprocessing):
    """Pictures [N, channels, size, size] in float32, from 0 (black) to 1 (white), or ``invert``-ed. Needs Pillow.

    An item is a path, a member of an archive as ``read_images`` gives them, the bytes of a file, or a picture of
    Pillow. Grey and colour become one another; what is transparent is white; a camera's orientation is followed; of
    several frames the first is taken. At most 64 MiB and 50 million pixels each.

    Args:
        size: height and width, to which every picture is brought.
        channels: 1 for grey, 3 for colour.
        invert: whether black is 1 and white 0, for ink on paper.
        fit: how a picture that is not square becomes so: squeezed, its middle cropped, or padded with white.
    """

    size: int = 28
    channels: int = 1
    invert: bool = False
    fit: Literal["squeeze", "crop", "pad"] = "squeeze"

    def __post_init__(self) -> None:
        checks.settle(self, size=checks.count, channels=checks.count, invert=checks.switch)
        checks.settle(self, fit=checks.one_of("squeeze", "crop", "pad"))
        if self.channels not in (1, 3):
            raise InputError(f"channels must be 1, for grey, or 3, for colour, got {self.channels}")

    def __call__(self, items: Sequence[Any] | Tensor) -> Tensor:
        """Of N pictures."""
        if not len(items):
            raise InputError("there are no pictures: give at least one")
        found = []
        for item in items:
            try:
                found.append(self.pixels(item))
            except ValueError as error:
                shown = str(item) if isinstance(item, (str, Path, Member)) else checks.shown(item)
                raise InputError(f"{shown}: {error}") from error
        return self.inputs(torch.stack(found))

    def pixels(self, item: Any) -> Tensor:
        """One picture, uint8 [channels, size, size], not inverted. Raises ValueError, saying why, where it is none."""
        from metaprox.readers.decoding import pixels_of  # needs Pillow

        return pixels_of(item, self.size, self.channels, self.fit)

    def inputs(self, pixels: Tensor) -> Tensor:
        """What ``pixels`` gave, uint8 [..., channels, size, size], as inputs."""
        values = pixels.to(torch.float32) / 255
        return 1 - values if self.invert else values
