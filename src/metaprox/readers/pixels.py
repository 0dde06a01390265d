"""Many pictures decoded once, in memory or, where they are large, in a file that is mapped into it."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from metaprox.data.contents import checksum
from metaprox.data.examples import Examples, Problem
from metaprox.errors import InputError
from metaprox.readers.archives import content_of
from metaprox.readers.pictures import Pictures

IN_MEMORY = 512 * 2**20  # bytes of pixels
AT_ONCE = 256  # pictures that are being decoded


def decoded(examples: Examples, pictures: Pictures) -> tuple[Examples, Tensor, list[int]]:
    """Decode every picture, once.

    Costs a byte for each pixel and channel; above 512 MiB they are in a temporary file, which the system removes with
    the process.

    Returns:
        The examples that are pictures, in their order, with what is none among their problems; their pixels, uint8
        [N, channels, size, size]; and the checksum of each one's file.

    Raises:
        InputError: none is one.
    """
    shape = (pictures.channels, pictures.size, pictures.size)
    pixels = _empty(len(examples), shape)
    problems = list(examples.problems)
    kept: list[int] = []
    sums: list[int] = []

    def one(index: int) -> tuple[Tensor, int] | str:
        try:
            content = content_of(examples.items[index])
            return pictures.pixels(content), checksum(content)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(examples), AT_ONCE):
            some = range(start, min(start + AT_ONCE, len(examples)))
            for index, found in zip(some, threads.map(one, some), strict=True):
                if isinstance(found, str):
                    problems.append(Problem(str(examples.items[index]), found))
                else:
                    pixels[len(kept)] = found[0]
                    kept.append(index)
                    sums.append(found[1])
    pictured = replace(examples.where(kept), problems=tuple(problems)).with_names_in_use()
    if not kept:
        raise InputError(pictured.report())
    return pictured, pixels[: len(kept)], sums


def _empty(count: int, shape: tuple[int, ...]) -> Tensor:
    size = count * prod(shape)
    if size <= IN_MEMORY:
        return torch.empty(count, *shape, dtype=torch.uint8, device="cpu")
    handle, name = tempfile.mkstemp(prefix="metaprox-")
    try:
        os.ftruncate(handle, size)
        return torch.from_file(name, shared=True, size=size, dtype=torch.uint8).view(count, *shape)
    finally:
        os.close(handle)
        os.unlink(name)  # it lives for as long as it is mapped
