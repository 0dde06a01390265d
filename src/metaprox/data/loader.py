"""What there is to know of a DataLoader without reading it, and how it is read with coupled noise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from metaprox.errors import InputError


def examples_of(loader: DataLoader[Any], *, reading: bool) -> int | None:
    """Returns how many examples a reading yields, by the lengths of datasets and samplers.

    A batch sampler of another kind is read for it, indices alone, while ``reading``; None before.

    Raises:
        InputError: nothing tells.
    """
    sampler = loader.batch_sampler
    try:
        if isinstance(loader.dataset, IterableDataset):
            return _whole(len(loader.dataset), loader.batch_size, loader.drop_last)  # type: ignore[arg-type]
        if type(sampler) is BatchSampler:
            return _whole(len(sampler.sampler), sampler.batch_size, sampler.drop_last)  # type: ignore[arg-type]
        if sampler is not None and not isinstance(sampler, Iterator):
            return sum(len(indices) for indices in sampler) if reading else None
    except TypeError:
        pass
    raise InputError(
        "the number of examples in a DataLoader can't be told without a length of its dataset or sampler, with "
        "batch_size=None, or where its batch_sampler can be read only once: give weights, each batch's share of them"
    )


def batches_of(loader: DataLoader[Any]) -> int | None:
    """How many batches a reading yields; None where a loader does not know, or only has the word of its dataset."""
    try:
        return None if isinstance(loader.dataset, IterableDataset) else len(loader)
    except TypeError:
        return None


def _whole(count: int, batch_size: int | None, drop_last: bool) -> int:
    if batch_size is None:
        raise TypeError
    return count - count % batch_size if drop_last else count


@contextmanager
def coupled_reading(batches: Any) -> Iterator[None]:
    """Generators of a DataLoader's own are seeded from torch's global one, and put back at the end."""
    own = own_generators(batches) if isinstance(batches, DataLoader) else []
    states = [generator.get_state() for generator in own]
    for generator in own:
        generator.manual_seed(int(torch.randint(2**63 - 1, (), device="cpu")))
    try:
        yield
    finally:
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)


def own_generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Those that it or its samplers were given, each once."""
    batch_sampler = loader.batch_sampler
    holders = (loader, loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = {id(g): g for g in (getattr(holder, "generator", None) for holder in holders) if g is not None}
    return list(found.values())
