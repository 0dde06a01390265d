"""Which of several processes are alive, and what those say that fail: over the store of their process group."""

import atexit
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from queue import Empty, Queue
from typing import Any, TypeVar
from weakref import ref

Answer = TypeVar("Answer")
TOLD = "metaprox/told"  # how often a process has told something

BEAT = 0.5  # seconds between two signs of life
GONE = 6 * BEAT  # of silence, after which a process whose connection broke is taken for dead


class Pulse:
    """Of this process, which is ``rank`` of those that ``ranks`` names: a thread counts up in the store as it lives.

    It is one thread, of however many groups the process is. A process that is stopped, dead or cut off is one whose
    count stands still; one that computes for long is not.
    """

    def __init__(self, store: Any, rank: int, ranks: Sequence[int], patience: float) -> None:
        self._rank, self._ranks, self._patience = rank, ranks, patience
        self._store = _own_connection(store, patience)
        self._store.set(f"metaprox/{rank}/who", f"process {os.getpid()} on {socket.gethostname()}")
        self._heard = {other: (-1, time.monotonic()) for other in ranks}
        self._known: tuple[int, dict[int, str]] = (0, {})
        Heart.of(store, f"metaprox/{rank}/beats", patience)

    def silence(self) -> dict[int, float]:
        """Seconds since each other process was last seen to live. Costs two messages to the store, later on."""
        now = time.monotonic()
        counts = self._answer(self._counts)
        for rank, (count, _) in self._heard.items():
            if counts[rank] != count:
                self._heard[rank] = (counts[rank], now)
        return {rank: now - since for rank, (_, since) in self._heard.items() if rank != self._rank}

    def _counts(self) -> dict[int, int]:
        """The signs of life of each; of all in one message, where the store can, once there are such."""
        keys = {rank: f"metaprox/{rank}/beats" for rank in self._heard}
        if self._store.has_extended_api() and self._store.check(list(keys.values())):
            return dict(zip(keys, map(int, self._store.multi_get(list(keys.values()))), strict=True))
        return {rank: self._store.add(key, 0) for rank, key in keys.items()}

    def tell(self, what: str) -> None:
        """Leave a word for the others about why this process stops."""
        self._store.set(f"metaprox/{self._rank}/failed", what)
        self._store.add(TOLD, 1)

    def told(self) -> dict[int, str]:
        """What others have told. Costs a message to the store, and more of them where there is something new."""
        return self._answer(self._told)

    def _told(self) -> dict[int, str]:
        count = self._store.add(TOLD, 0)
        if count != self._known[0]:
            self._known = count, self._words()
        return self._known[1]

    def _words(self) -> dict[int, str]:
        found = {}
        for rank in self._ranks:
            key = f"metaprox/{rank}/failed"
            if rank != self._rank and self._store.check([key]) and (what := self._store.get(key).decode()):
                found[rank] = what
        return found

    def _answer(self, ask: Callable[[], Answer]) -> Answer:
        """What the store says. Raises RuntimeError where it says nothing for ``patience`` seconds, as a stopped one."""
        answers: Queue[Answer | Exception] = Queue()

        def wait() -> None:
            try:
                answers.put(ask())
            except Exception as error:
                answers.put(error)

        threading.Thread(target=wait, daemon=True).start()
        try:
            found = answers.get(timeout=self._patience)
        except Empty:
            raise RuntimeError(f"the store does not answer for {self._patience:.0f} s") from None
        if isinstance(found, Exception):
            raise found
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


class Heart:
    """The thread that counts up in a store. ``end``: it is over before the interpreter is.

    A thread that Python's end meets within the store is unwound through C++, which aborts the process.
    """

    beating: "Heart | None" = None

    def __init__(self, store: Any, key: str, patience: float) -> None:
        self._store, self._over = ref(store), threading.Event()
        own = _own_connection(store, patience)
        self._thread = threading.Thread(target=self._beat, args=(own, key), daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, store: Any, key: str, patience: float) -> None:
        """There is one for ``store``, and for no other."""
        if cls.beating is None or cls.beating._store() is not store or not cls.beating._thread.is_alive():
            cls.end()
            cls.beating = cls(store, key, patience)

    @classmethod
    def end(cls) -> None:
        """There is none."""
        if cls.beating is not None:
            cls.beating._over.set()
            cls.beating._thread.join(GONE)
            cls.beating = None

    def _beat(self, store: Any, key: str) -> None:
        while not self._over.is_set():
            try:
                store.add(key, 1)
            except Exception:  # the store is gone, and with it whoever could listen
                return
            self._over.wait(BEAT)


atexit.register(Heart.end)
