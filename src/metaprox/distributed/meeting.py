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

PLACE, WAIT, POLL = "metaprox/meeting", 300.0, 0.01  # seconds


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

    Rank 0 gives each process the word in answer to a name of its own, and goes on when all have said the word: what
    earlier processes have left is no answer to new names. Costs 5 messages to the store for each process.

    Raises:
        PeerError: after ``wait`` seconds, naming the ranks that are missing.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"{PLACE}/asks/{rank}", own)
        word = _got(store, f"{PLACE}/answers/{own}", wait)
        store.set(f"{PLACE}/{word}/{rank}", "")
        return word
    missing, end = set(range(1, size)), time.monotonic() + wait
    while missing:
        for other in sorted(missing):
            if store.check([f"{PLACE}/{own}/{other}"]):
                missing.discard(other)
            elif store.check([f"{PLACE}/asks/{other}"]):
                store.set(f"{PLACE}/answers/{store.get(f'{PLACE}/asks/{other}').decode()}", own)
        if missing and time.monotonic() > end:
            raise PeerError(f"ranks {sorted(missing)} have not come within {wait:.0f} s", rank=min(missing))
        time.sleep(POLL)
    return own


def _got(store: Any, key: str, wait: float) -> str:
    try:
        store.wait([key], timedelta(seconds=wait))
    except RuntimeError as error:
        raise PeerError(f"rank 0 has not come within {wait:.0f} s", rank=0) from error
    return str(store.get(key).decode())
