"""Processes that torchrun has started anew find each other, and not those that were there before.

Torchrun keeps the store in which processes leave their addresses. After a restart it still holds the addresses of
processes that have ended, and torch's own start takes them for those of the new ones: "connection refused", whenever
one process comes a moment later than another (torch 2.13).
"""

import os
import time
import uuid
from datetime import timedelta
from typing import Any

import torch

from metaprox.errors import PeerError

PLACE, WAIT, POLL = "metaprox/meeting", 300.0, 1.0  # seconds
FIRST = f"{PLACE}/first"


def outlives_processes() -> bool:
    """Whether the store of the process group is torchrun's own."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def fresh_store(rank: int, size: int, wait: float = WAIT) -> Any:
    """Returns torchrun's store without what is left in it of processes from before a restart. All come here."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    dist: Any = torch.distributed
    store = dist.TCPStore(host, port, size, is_master=False, timeout=timedelta(seconds=wait))
    return dist.PrefixStore(met(store, rank, size, wait), store)


def met(store: Any, rank: int, size: int, wait: float = WAIT) -> str:
    """Returns a word that these processes have in common, and that none from before had. All come here.

    Rank 0 leaves a word, each other rank a name of its own under that word, and rank 0 an answer to each name: what
    earlier processes have left is no answer to new names, and who finds an old word looks until there is a new one.
    Costs 4 messages to the store of each of the others, and of rank 0 two and two for each; after more than a second
    of waiting for an answer, 2 a second.

    Raises:
        PeerError: after ``wait`` seconds, naming the ranks that are missing.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + wait
    if rank > 0:
        return _answered(store, rank, own, end, wait)
    store.set(FIRST, own)
    names = [f"{PLACE}/{own}/{other}" for other in range(1, size)]
    if not _there(store, names, wait):
        missing = [other for other, name in enumerate(names, start=1) if not store.check([name])]
        raise PeerError(f"ranks {missing} have not come within {wait:.0f} s", rank=missing[0] if missing else None)
    for name in names:
        store.set(f"{PLACE}/answers/{store.get(name).decode()}", "")
    return own


def _answered(store: Any, rank: int, own: str, end: float, wait: float) -> str:
    """The word of the rank 0 that answers to ``own``."""
    word = ""
    if _there(store, [FIRST], wait):
        while time.monotonic() < end:
            if (found := str(store.get(FIRST).decode())) != word:
                word = found
                store.set(f"{PLACE}/{word}/{rank}", own)
            if _there(store, [f"{PLACE}/answers/{own}"], POLL):
                return word
    raise PeerError(f"rank 0 has not come within {wait:.0f} s", rank=0)


def _there(store: Any, keys: list[str], wait: float) -> bool:
    """Whether these keys are in the store, or come within ``wait`` seconds."""
    try:
        store.wait(keys, timedelta(seconds=wait))
    except RuntimeError:
        return False
    return True
