"""Processes that are killed, stopped by signals, or not alone."""

import os
import time

import torch

from faults.runs import KINDS, contents, ended, in_fork

MOST = 8  # stops of one run, after which it goes on to its end


class Undisturbed:
    """Every kind of run, once, as it is: what it ends with, and how long it takes."""

    def __init__(self, folder):
        self.folder, self.contents, self.seconds = folder, {}, {}
        torch.set_num_threads(1)
        for name in (
            "settings",
            "data",
            "script",
        ):  # what every process would import and look up anew is in this one then
            KINDS[name].work(folder / f"{name} here")
        for name, kind in KINDS.items():
            began = time.monotonic()
            status = ended(in_fork(lambda kind=kind, name=name: kind.work(folder / name), folder / f"{name}.log"))
            assert status == 0, (folder / f"{name}.log").read_text()
            self.contents[name], self.seconds[name] = contents(folder / name), time.monotonic() - began


def stopped(name, numbers, rng, place, undisturbed):
    """A run of a kind that is stopped by signals at random moments until it ends.

    Returns how often it was, and what is wrong with what it ended with, if anything is.
    """
    stops, log = 0, place.with_suffix(".log")
    while True:
        pid = in_fork(lambda: KINDS[name].work(place), log)
        status = ended(pid, rng.uniform(0, undisturbed.seconds[name]) if stops < MOST else None)
        if status is None:
            number = rng.choice(numbers)
            os.kill(pid, number)
            status = ended(pid)
            stops += 1
            said = log.read_text()
            if status == 128 + number and (said.count("metaprox: ") > 2 or not ("go on:" in said or "goes on" in said)):
                return stops, f"{status} with {said}"
            if status in (-number, 128 + number):
                continue
        if status != 0:
            return stops, f"status {status}: {log.read_text()}"
        found, wanted = contents(place), undisturbed.contents[name]
        return stops, None if found == wanted else f"ended with other results: {_difference(found, wanted)}"


def _difference(found, wanted):
    """Which parts are not the same, and how."""
    return [(i, repr(a)[:1500], repr(b)[:1500]) for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b]


def together(name, count, rng, place, undisturbed):
    """Several processes that go on with one run at once: what is wrong with what it ends with, if anything is."""
    logs = [place.with_suffix(f".log{i}") for i in range(count)]
    pids = [in_fork(lambda: KINDS[name].work(place), log) for log in logs]
    statuses = [ended(pid) for pid in pids]
    for status, log in zip(statuses, logs, strict=True):
        said = log.read_text()
        if status not in (0, 1) or (status == 1 and not _is_told(said)):
            return f"status {status}: {said}"
    if 0 not in statuses:
        return "none could go on"
    return None if contents(place) == undisturbed.contents[name] else "ended with other results"


def _is_told(said):
    return said.count("\n") == 1 and ("is in use by" in said or "exists and is not an empty folder" in said)
