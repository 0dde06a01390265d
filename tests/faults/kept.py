"""Pages that are damaged and made anew; comparisons, searches, learners and adapted models, damaged or lost."""

import re
import shutil

import metaprox as mp
from faults.damage import TEXTS, told
from faults.runs import command, copied, done
from metaprox import comparison, training, tuning
from metaprox.training import starts

DATE = re.compile(rb"20\d\d-\d\d-\d\d[T ]\d\d:\d\d")  # of a page, to the minute


def changed(content, rng):
    """Another content for a file: a bit flipped, a part of it, or something else altogether."""
    flipped = bytearray(content)
    place = rng.randrange(8 * len(content))
    flipped[place // 8] ^= 1 << place % 8
    other = rng.choice([text.encode() for text in TEXTS] + [bytes(len(content)), b"\xff\xfe" + content])
    return rng.choice([bytes(flipped), bytes(flipped), content[: rng.randrange(len(content))], other])


def page(folders, name, rng):
    """The page of a run, or a figure, is damaged, lost or a folder: report makes it as it was, or names it."""
    folder = folders.copy("finished")
    known = folders.place / "pages"
    if not known.exists():
        assert done(command("report", folder), folders.place / "l")[0] == 0
        shutil.copytree(folder, known)
    file = rng.choice(sorted(folder.glob(name)))
    content = file.read_bytes()
    file.unlink()
    how = rng.choice(["changed", "changed", "gone", "a folder"])
    if how == "changed":
        file.write_bytes(changed(content, rng))
    if how == "a folder":
        (file / "notes").mkdir(parents=True)
    status, said = done(command("report", folder), folders.place / "l")
    if status != 0:
        return told(status, said, [file.name])
    pages = [DATE.sub(b"", (place / file.relative_to(folder)).read_bytes()) for place in (folder, known)]
    return None if pages[0] == pages[1] else f"{file.name}, {how}: is another than before"


class Kept:
    """One of each folder that is not a run's, and what is read of it."""

    def __init__(self, folders):
        self.folders, self.comparison = folders, folders.finished.parent / "comparison"
        self.place = folders.place / "kept"
        if not self.place.exists():
            status, said = done(lambda: self._make(folders.finished), folders.place / "l")
            assert status == 0, said

    def _make(self, run):
        few = self.place / "few.csv"
        self.place.mkdir()
        few.write_text("".join((run.parent / "lines.csv").read_text().splitlines(keepends=True)[:9]))
        mp.load(run).save(self.place / "learner")
        training.adapt_run(run, few)[0].save(self.place / "adapted")
        shutil.copytree(self.comparison, self.place / "comparison")
        shared = training.Settings(
            "sinusoid", hidden=(4,), meta_steps=2, meta_batch=1, eval_tasks=2, steps=1, compile="off"
        )
        search = tuning.Search("fobmaml", shared, tuning.axes_of(shared, ["lam=0.2:0.4"]), 1, 3)
        tuning.tune([search], self.place / "search", 1)


def _read(kind, folder):
    """All that is read of it, as text."""
    if kind == "comparison":
        return repr((comparison.read(folder), starts.read(folder / "starts.jsonl")))
    if kind == "search":
        return repr(tuning.with_best(training.Settings("sinusoid"), folder).given)
    found = mp.load(folder)
    model = found.model if kind == "learner" else found._module
    values = {
        name: value for name, value in vars(found).items() if not isinstance(value, type(model)) and name[0] != "_"
    }
    return repr((sorted(model.state_dict().items()), values))


FILES = {
    "comparison": ("comparison.json", "starts.jsonl"),
    "search": ("search.json", "best.json"),
    "learner": ("learner.json", "weights.safetensors"),
    "adapted": ("adapted.json", "weights.safetensors"),
}


def kept(folders, kind, name, rng):
    """A file of a folder that is not a run's is damaged or lost: it is named, or what is read is as it was."""
    source = Kept(folders).place / kind
    read, log = folders.place / "trial.read", folders.place / "l"
    known = source.with_name(f"{kind}.read")
    if not known.exists():
        assert done(lambda: known.write_text(_read(kind, source)), log)[0] == 0
    folder = copied(source, folders.place / "trial")
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    gone = rng.random() < 0.1 and name != "starts.jsonl"
    if not gone:
        file.write_bytes(changed(content, rng))
    status, said = done(lambda: read.write_text(_read(kind, folder)), log)
    if status != 0:
        return told(status, said, [file.name, str(folder)] if gone else [file.name])
    return None if read.read_text() == known.read_text() else f"{file.name} was taken: {read.read_text()[:600]}"
