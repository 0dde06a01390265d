"""Which of several processes are alive, and what those say that fail: over the store of their process group."""

import os
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

BEAT = 0.5  # seconds between two signs of life
GONE = 6 * BEAT  # of silence, after which a process whose connection broke is taken for dead


class Pulse:
    """Of this process, which is ``rank`` of those that ``ranks`` names: a thread counts up in the store as it lives.

    A process that is stopped, dead or cut off is one whose count stands still; one that computes for long is not.
    """

    def __init__(self, store: Any, rank: int, ranks: Sequence[int], patience: float) -> None:
        self._rank, self._ranks = rank, ranks
        self._store = _own_connection(store, patience)
        self._store.set(f"metaprox/{rank}/who", f"process {os.getpid()} on {socket.gethostname()}")
        self._heard = {other: (-1, time.monotonic()) for other in ranks}
        beating = _own_connection(store, patience)
        threading.Thread(target=_beat, args=(beating, f"metaprox/{rank}/beats"), daemon=True).start()

    def silence(self) -> dict[int, float]:
        """Seconds since each other process was last seen to live. Costs a message to the store for each."""
        now = time.monotonic()
        for rank, (count, _) in self._heard.items():
            new = self._store.add(f"metaprox/{rank}/beats", 0)
            if new != count:
                self._heard[rank] = (new, now)
        return {rank: now - since for rank, (_, since) in self._heard.items() if rank != self._rank}

    def tell(self, what: str) -> None:
        """Leave a word for the others about why this process stops."""
        self._store.set(f"metaprox/{self._rank}/failed", what)

    def told(self) -> dict[int, str]:
        """What others have told."""
        found = {}
        for rank in self._ranks:
            key = f"metaprox/{rank}/failed"
            if rank != self._rank and self._store.check([key]) and (what := self._store.get(key).decode()):
                found[rank] = what
        return found

    def name(self, rank: int) -> str:
        """Of a process, for messages."""
        key = f"metaprox/{rank}/who"
        who = f" ({self._store.get(key).decode()})" if self._store.check([key]) else ""
        return f"rank {rank}{who}"


def _own_connection(store: Any, patience: float) -> Any:
    """So that a thread that waits in the store keeps no other one waiting."""
    own = store.clone() if hasattr(store, "clone") else store
    own.set_timeout(timedelta(seconds=patience))
    return own


def _beat(store: Any, key: str) -> None:
    while True:
        try:
            store.add(key, 1)
        except Exception:  # the store is gone, and with it whoever could listen
            return
        time.sleep(BEAT)
