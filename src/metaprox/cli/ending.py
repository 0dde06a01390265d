"""How a command ends that does not end well: in one line that says why and what to do, with a status."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from metaprox.distributed.start import several
from metaprox.errors import InputError, MetaproxError, NonFiniteError, UnstableError
from metaprox.storage.files import explained
from metaprox.training.stopping import Stopped, at_once

ADVICE = (
    "on the command line: lr is --inner-lr, or --branch-lr of a branch_solver; lam is --lam, nu --nu, and "
    "mp.AdaptiveGradientDescent --solver adaptive"
)
GO_ON = "metaprox resume goes on with a run, and compare, given again, with its own"


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Around a command: what metaprox or the disk refuses, and signals, end it in one line on standard error.

    Raises:
        SystemExit: with status 2 for bad input, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM.
        Stopped: one of these, by a signal, of which a run has said what there is to say.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        if before is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, at_once)
        _print_what_there_is()
        yield
        sys.stdout.flush()
        if several():
            _end(0, "")
    except MetaproxError as error:
        solve = isinstance(error, NonFiniteError) and (error.task is not None or isinstance(error, UnstableError))
        notes = [*getattr(error, "__notes__", ()), *([ADVICE] if solve else ())]
        _end(2 if isinstance(error, InputError) else 1, "\n  ".join([f"metaprox: error: {error}", *notes]))
    except BrokenPipeError:  # whoever read the output has seen enough
        _end(1, "")
    except OSError as error:
        place = error.filename if error.filename is not None else "the output"
        _end(1, f"metaprox: error: {os.fsdecode(place) if not isinstance(place, int) else place}: {explained(error)}")
    except RecursionError:
        _end(1, "metaprox: error: something that was read is nested too deeply")
    except MemoryError as error:
        _end(1, f"metaprox: error: not enough memory: {error or 'give smaller sizes, such as --meta-batch'}")
    except KeyboardInterrupt:
        _end(130, f"metaprox: stopped. {GO_ON}")
    except Stopped as stopped:
        if stopped.said:
            raise
        _end(128 + stopped.signal, f"metaprox: stopped. {GO_ON}")
    finally:
        if before is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, before)


def _print_what_there_is() -> None:
    """Names of files that are not in the encoding of the terminal are printed as ``\\udcff``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _end(status: int, line: str) -> None:
    if line:
        with suppress(OSError):
            print(line, file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # nor would it be flushed at the end of the process
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if several():  # Python would wait for what a stopped process was to send, or abort in a thread of torch's
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
