"""Ctrl-C and SIGTERM: a run finishes its step, saves, and says how to go on; the second signal stops at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_outermost: "Stop | None" = None


class Asked(BaseException):
    """Raised where a run that was asked to stop can be left: between two meta-steps, or two parts of an evaluation."""


class Stopped(SystemExit):
    """A run was stopped by a signal, and saved. Uncaught it ends the process with status 130, or 143 for SIGTERM.

    Attributes:
        signal: the number of the signal.
        where: what had been done.
        said: whether a line on standard error has said so.
    """

    said = False

    def __init__(self, number: int, where: str) -> None:
        super().__init__(128 + number)
        self.signal = number
        self.where = where

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signal).name} {self.where}"

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.signal, self.where)


class Stop:
    """Whether a signal has asked to stop. ``forward``: is called with its number when it comes."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.forward: Callable[[int], None] = lambda number: None

    def check(self, agreed: Callable[[int | None], int | None] = lambda number: number) -> None:
        """Whether to go on. A signal within ``agreed`` counts the next time: else it might stop one process alone.

        Raises:
            Asked: a stop was asked for, here or, by what ``agreed`` returns, in another process.
        """
        asked = agreed(self.asked)
        if asked is not None:
            self.asked = asked
            raise Asked


def at_once(number: int, frame: FrameType | None) -> None:
    """What a program does with a signal while no run goes on. Raises Stopped."""
    raise Stopped(number, "at once")


@contextmanager
def stoppable(go_on: str) -> Iterator[Stop]:
    """Within, the first SIGINT or SIGTERM asks to stop, and puts the handlers from before back for the next.

    The outermost one prints the line that says how to go on. Handlers of a program's own stay as they are, and so
    does a signal that is ignored; in another thread than the main one nothing is changed.

    Yields:
        What knows whether a stop was asked for.

    Raises:
        Stopped: that of what is done within.
    """
    global _outermost
    if threading.current_thread() is not threading.main_thread():
        yield Stop()
        return
    if _outermost is not None:
        yield _outermost
        return
    stop = _outermost = Stop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = (signal.SIG_DFL, signal.default_int_handler, at_once)
    taken = {number: handler for number, handler in before.items() if handler in ours}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = number
        _put_back(taken)
        _say("metaprox: stopping as soon as the state is saved; the same signal again stops at once")
        stop.forward(number)

    try:
        for number in taken:
            signal.signal(number, ask)
        yield stop
    except Stopped as stopped:
        if go_on:
            _say(f"metaprox: {stopped}; go on: {go_on}")
            stopped.said = True
        raise
    finally:
        _outermost = None
        _put_back(taken)


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _say(line: str) -> None:
    """On standard error, also from within a signal handler that interrupts a print."""
    sys.stderr.flush()
    os.write(2, f"{line}\n".encode(errors="backslashreplace"))
