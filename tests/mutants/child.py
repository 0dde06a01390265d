"""pytest in a child of a process that has torch loaded, on a copy of the package."""

import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mutants.targets import ROOT

POLL = 0.02
OPTIONS = (*("-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-W", "ignore:Module already imported"),)


def load() -> None:
    """Import, once, what every test needs, without a thread: what is forked has none but its own."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    import hypothesis
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import torch._dynamo  # noqa: F401
    import torch._inductor.compile_fx  # noqa: F401

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    hypothesis.settings.register_profile("same", derandomize=True)
    hypothesis.settings.load_profile("same")
    gc.collect()
    gc.freeze()  # pytest collects garbage at its end, which takes half a second of what is in here
    assert "metaprox" not in sys.modules


def in_child(work: Callable[[], Any], source: Path, seconds: float, scratch: Path) -> Any:
    """What ``work`` returns with ``source`` first on the path; None where it died or took too long."""
    answer = scratch / "answer.json"
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _work(work, source, answer, seconds)
    deadline = time.monotonic() + seconds
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(POLL)
    return json.loads(answer.read_text()) if answer.exists() else None


def _work(work: Callable[[], Any], source: Path, answer: Path, seconds: float) -> None:
    """The child's whole life."""
    try:
        os.setsid()  # its own children end with it
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 5, int(seconds) + 10))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os.chdir(ROOT)
        os.environ["PYTHONPATH"] = str(source)
        sys.path.insert(0, str(source))
        result = work()
        part = answer.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.rename(answer)
    finally:
        os._exit(0)


def run_pytest(files: Sequence[str], plugin: Any, *options: str) -> int:
    import pytest

    return int(pytest.main([*OPTIONS, *options, *files], plugins=[plugin]))
