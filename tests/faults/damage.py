"""Files that are damaged, cut, mixed up or hostile, and disks that refuse."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal

import torch

from faults.runs import KINDS, command, contents, copied, done, ended, in_fork, settings_of_data
from metaprox import reports, training
from metaprox.training import starts, weights, whole

DEEP = "[" * 100_000
TEXTS = (
    "",
    "{",
    "[]",
    "null",
    "5",
    '{"a": 1}',
    DEEP,
    '{"version": 2, "run": ' + DEEP,
    '{"kind": "step"}\n',
    "\0",
    "9" * 9000,
)


class Folders:
    """A run that was stopped in its middle, and one that has finished, with what the undisturbed one ends with.

    Both are of data of one's own, which leave most files; the finished one has its page.
    """

    def __init__(self, place, undisturbed):
        self.place, self.finished = place, undisturbed.folder / "data"
        self.contents = undisturbed.contents["data"]
        assert done(lambda: reports.write_report(training.RunFolder.open(self.finished)), place / "l")[0] == 0
        self.half = place / "half"
        log = place / "half.log"
        while True:  # until a stop comes in the middle
            shutil.rmtree(self.half, ignore_errors=True)
            pid = in_fork(lambda: KINDS["data"].work(self.half), log)
            while ended(pid, 0.001) is None:
                if len(list(self.half.glob("checkpoint-0000001*"))) == 2:
                    os.kill(pid, signal.SIGKILL)
                    ended(pid)
                    return

    def read(self):
        """What is read of the finished run as it is."""
        place = self.place / "undisturbed.read"
        if not place.exists():
            done(read_all(copied(self.finished, self.place / "undisturbed")), self.place / "l")
        return place

    def copy(self, which):
        return copied(getattr(self, which), self.place / "trial")


def told(status, said, names):
    """None where it ended in one line that names one of ``names``, and else what is wrong."""
    lines = [line for line in said.splitlines() if line.startswith("metaprox: error: ")]
    if status in (1, 2) and len(lines) == 1 and "Traceback" not in said and any(str(name) in said for name in names):
        return None
    return f"status {status}: {said[-600:]}"


def read_all(folder):
    """Everything of a finished run is read."""

    def work():
        found = training.RunFolder.open(folder)
        whole.check(found)
        trainer = training.trainer_of(found)
        trainer.load_weights(found)
        values = [found.read_metrics(), found.read_test_values(), trainer.model.state_dict(), starts.read(found.starts)]
        torch.save(values, folder.with_suffix(".read"))

    return work


def flipped(folders, which, name, rng):
    """One bit of a file is another: noticed, or without any consequence."""
    folder = folders.copy(which)
    file = rng.choice(sorted(folder.glob(name)))
    before = file.read_bytes()
    content = bytearray(before)
    place = rng.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)
    what, log = f"bit {place} of {file.name}: ", folders.place / "trial.log"
    if which == "finished":
        status, said = done(read_all(folder), log)
        if status != 0:
            return (told(status, said, [file.name]) or "") and what + said
        found, wanted = (torch.load(path, weights_only=True) for path in (folder.with_suffix(".read"), folders.read()))
        return None if repr(found) == repr(wanted) else what + "other numbers were taken"
    status, said = done(lambda: training.resume(folder), log)
    if status != 0:
        if wrong := told(status, said, [file.name]):
            return what + wrong
        file.write_bytes(before)
        status, said = done(lambda: training.resume(folder), log)
    return None if status == 0 and contents(folder) == folders.contents else f"{what}ended with other results: {said}"


def cut(folders, which, name, rng):
    """A file is cut short, empty, filled with zeros, or another kind of file."""
    folder = folders.copy(which)
    file = rng.choice(sorted(folder.glob(name)))
    content = file.read_bytes()
    file.write_bytes(
        rng.choice(
            [
                content[: rng.randrange(len(content))],
                b"",
                bytes(len(content)),
                b"\xff\xfe" + content,
                b"PK\3\4" + content,
            ]
            + [text.encode() for text in TEXTS]
        )
    )
    status, said = done(
        read_all(folder) if which == "finished" else lambda: training.resume(folder), folders.place / "l"
    )
    if status == 0:
        same = which == "half" and contents(folder) == folders.contents
        same = same or (which == "finished" and said == "" and file.read_bytes() == content)
        return None if same else f"{file.name} was taken: {said}"
    wrong = told(status, said, [file.name])
    file.write_bytes(content)
    if which == "half" and not wrong:
        status, said = done(lambda: training.resume(folder), folders.place / "l")
        wrong = None if status == 0 and contents(folder) == folders.contents else f"after the remedy: {said}"
    return wrong


def lost(folders, which, name, rng):
    """A file is gone: that is said, or nothing is lost with it."""
    folder = folders.copy(which)
    file = rng.choice(sorted(folder.glob(name)))
    file.unlink()
    work = read_all(folder) if which == "finished" else lambda: training.resume(folder)
    status, said = done(work, folders.place / "l")
    if status != 0:
        return told(status, said, [file.name])
    if which == "half":
        return None if contents(folder) == folders.contents else f"without {file.name}, ended with other results"
    found, wanted = (torch.load(path, weights_only=True) for path in (folder.with_suffix(".read"), folders.read()))
    return None if repr(found) == repr(wanted) else f"without {file.name}, other numbers were taken"


def hostile(folders, rng):
    """A checkpoint that somebody made, with checksums that are right: no traceback, and no code of theirs is run."""
    folder = folders.copy("half")
    for path in training.RunFolder.open(folder).checkpoints():
        tensors, meta = weights.load(path, "a checkpoint")
        odd = rng.choice([None, -1, 10**12, 1e400, "x", [], {}, [[]], {"kind": "eval", "items": []}, {"tensor": "no"}])
        where = rng.choice(["meta", "meta", "tensors", "inner", "groups"])
        if where == "meta":
            meta[rng.choice(sorted(meta))] = odd
        elif where == "tensors":
            name = rng.choice(sorted(tensors))
            change = rng.choice(["gone", "shape", "dtype", "nan", "more"])
            tensors |= {name: torch.full((2, 2), torch.nan)} if change == "nan" else {}
            tensors |= {name: tensors[name].double()[None]} if change == "shape" else {}
            tensors |= {name: tensors[name].to(torch.float64)} if change == "dtype" else {}
            tensors |= {"model.other": torch.zeros(3)} if change == "more" else {}
            tensors = {key: one for key, one in tensors.items() if change != "gone" or key != name}
        else:
            items = meta["optimizer_state" if where == "groups" else "schedule_state"]["items"]
            items[rng.randrange(len(items))] = odd
        weights.save(path, "a checkpoint", tensors, meta)
    status, said = done(lambda: training.resume(folder), folders.place / "l")
    if status == 0 and "Traceback" not in said:
        return None  # of numbers that are possible nobody can tell
    return told(status, said, ["checkpoint-", "metrics.jsonl"])


def another(folders, name, rng):
    """A checkpoint, weights or configuration of a run with other settings is in the place of its own."""
    folder = folders.copy("half" if name != "weights.safetensors" else "finished")
    place = folders.place / "other"
    if not place.exists():
        assert (
            done(lambda: training.train(settings_of_data(folders.place).but(lr=0.05), place), folders.place / "l")[0]
            == 0
        )
    if name == "checkpoint":
        for path in training.RunFolder.open(folder).checkpoints():
            shutil.copy(training.RunFolder.open(place).checkpoint, path)
    elif name == "edited config.json":
        file = folder / "config.json"
        file.write_text(file.read_text().replace('"lr": 0.1', f'"lr": {rng.choice([0.2, 0.05, 1])}'))
    elif name == "edited config.json without checksums":
        file = folder / "config.json"
        file.write_text(file.read_text().replace('"lr": 0.1', '"lr": 0.05'))
        (folder / "checksums.json").unlink()
    else:
        shutil.copy(place / name, folder / name)
    status, said = done(lambda: training.resume(folder), folders.place / "l")
    return told(status, said, ["lr: 0.05", "lr: 0.1"])


def refusing_disk(folders, number, rng):
    """From some write on, the disk refuses each; after that it does not, and the run goes on."""
    folder, left = folders.place / "refused", rng.randrange(60)
    shutil.rmtree(folder, ignore_errors=True)

    def work():
        calls = 0

        def refused(real):
            def call(*given, **named):
                nonlocal calls
                calls += 1
                if calls > left:
                    raise OSError(number, os.strerror(number))
                return real(*given, **named)

            return call

        os.fsync = refused(os.fsync)
        for name in ("write_bytes", "replace", "mkdir"):
            setattr(pathlib.Path, name, refused(getattr(pathlib.Path, name)))
        opened = pathlib.Path.open
        pathlib.Path.open = lambda path, mode="r", *more, **named: (refused(opened) if mode[0] in "aw" else opened)(
            path, mode, *more, **named
        )
        KINDS["data"].work(folder)

    status, said = done(work, folders.place / "l")
    if wrong := status and told(status, said, [folder]):
        return f"after {left} writes: {wrong}"
    status, said = done(lambda: KINDS["data"].work(folder), folders.place / "l")
    return None if status == 0 and contents(folder) == folders.contents else f"after {left} writes, again: {said}"


def removed(folders, rng):
    """The folder of a run is removed while it goes on."""
    folder = folders.place / "removed"
    shutil.rmtree(folder, ignore_errors=True)
    pid = in_fork(lambda: KINDS["data"].work(folder), folders.place / "l")
    while len(list(folder.glob("checkpoint-*"))) < 2:
        pass
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
    status = ended(pid)
    return told(status, (folders.place / "l").read_text(), [folder]) if status else None


ODD_NAMES = (
    "[/bold]", "[red]x", "x" * 300, "/".join(["y" * 200] * 25), "a\nb", ":smile:", "$x$ _{", "\udcff\udcfe", "a\0b",
    "é日本", "-", "%s{}", "/dev/null/x", "/proc/x", " ", "nul\x01",
)  # fmt: skip


def odd_path(folders, name, rng):
    """A run in a folder with an odd name, from the start to its report, by the command line."""
    folder = folders.place / "odd" / name if not name.startswith("/") else pathlib.Path(name)
    words = [
        "train",
        "sinusoid",
        "--meta-steps",
        2,
        "--meta-batch",
        1,
        "--eval-tasks",
        1,
        "--test-tasks",
        2,
        "--steps",
        1,
    ]
    status, said = done(command(*words, "--compile", "off", "--out", folder), folders.place / "l")
    if status == 0:
        return None if (folder / "report.html").exists() else "no report"
    return told(status, said, ["path", "can't be", "exists"])


ODD_LABELS = ("$x", "$\\frac{$", "_hidden", "[/b]", "a|b", "<script>", "é日本", "x" * 150, ":smile:", "{x}", "%s")


def odd_label(folders, label, rng):
    """A comparison of a variant with an odd name, to its report, by the command line."""
    folder, file = folders.place / "labels" / str(rng.random()), folders.place / "variants.json"
    file.write_text(json.dumps({label: {"method": "fomaml"}, "other": {"method": "reptile"}}))
    words = ["compare", "sinusoid", "--methods", label, "other", "--variants", file, "--seeds", 0, "--meta-steps", 2]
    words += ["--meta-batch", 1, "--eval-every", 1, "--eval-tasks", 1, "--test-tasks", 2, "--steps", 1]
    status, said = done(command(*words, "--compile", "off", "--out", folder), folders.place / "l")
    if status == 0:
        return None if (folder / "report.html").exists() else "no report"
    return told(status, said, ["names a folder"])


def full_output(folders, rng):
    """Standard output is a full disk."""
    work = command("evaluate", folders.finished, "--count", 2)

    def onto_full():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        work()

    status, said = done(onto_full, folders.place / "l")
    return told(status, said, [os.strerror(errno.ENOSPC)])
