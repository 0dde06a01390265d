"""Whatever is read of what metaprox keeps is as it was written, or named: each file, damaged, under each command."""

import csv
import json
import shutil
from functools import partial

import pytest
import torch

import metaprox as mp
from conftest import interrupt_at
from metaprox import comparison, reports, training, tuning
from metaprox.cli import main
from metaprox.comparison import cost
from metaprox.training import starts

QUICK = [
    "--meta-steps",
    "3",
    "--meta-batch",
    "2",
    "--eval-tasks",
    "2",
    "--test-tasks",
    "2",
    "--steps",
    "2",
    "--compile",
    "off",
]
SMALL = training.Settings(
    "sinusoid", hidden=(4,), meta_steps=6, meta_batch=2, eval_every=3, eval_tasks=2, test_tasks=3, checkpoint_every=2,
    steps=2, compile="off",
)  # fmt: skip


def rows(path, groups):
    source = torch.Generator().manual_seed(len(groups))
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["group", "a", "b", "y"])
        for group in groups:
            for a, b in torch.randn(8, 2, generator=source).tolist():
                out.writerow([group, f"{a:.4f}", f"{b:.4f}", f"{a - 2 * b:.4f}"])
    return path


AXES = ["lam=0.2:0.4"]
BOTH = {"a": {"method": "fomaml"}, "b": {"method": "reptile"}}


def compare(out):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            comparison.runs, "measure", partial(cost._measure_here, rounds=1)
        )  # not in a process of its own
        return comparison.compare(comparison.Plan.of(SMALL, BOTH, (0,)), out)


def tune(out, trials=1):
    settings = training.Settings(
        "sinusoid", hidden=(4,), meta_steps=4, meta_batch=2, eval_tasks=2, steps=2, compile="off"
    )
    return tuning.tune([tuning.Search("fobmaml", settings, tuning.axes_of(settings, AXES), 1, 3)], out, trials)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One of each folder that metaprox keeps things in."""
    place = tmp_path_factory.mktemp("whole")
    few = rows(place / "few.csv", ["new"])
    table = ["--data", str(rows(place / "all.csv", [f"g{i}" for i in range(20)])), "--target", "y", "--by", "group"]
    main(["train", "tables", *table, "--queries", "3", "--hidden", "4", *QUICK, "--out", str(place / "run")])
    main(["adapt", str(place / "run"), "--support", str(few), "--out", str(place / "adapted")])
    mp.load(place / "run").save(place / "learner")
    with pytest.raises(KeyboardInterrupt):
        training.train(SMALL, place / "half", interrupt_at(5))
    compare(place / "both")
    tune(place / "search")
    return place


def words(*given):
    return lambda place: main([str(place / one) if one in ALL else one.format(place) for one in given])


ALL = ("run", "half", "both", "search", "adapted", "learner")
TUNED = ["train", "sinusoid", "--tuned", "search", "--meta-steps", "1", "--out", "{0}/new"]
VARIANTS = [
    "compare",
    "sinusoid",
    "--variants",
    "{0}/search/best.json",
    "--methods",
    "fobmaml",
    "maml",
    "--out",
    "{0}/n",
]
COMMANDS = {
    "report": words("report", "run"),
    "report side by side": words("report", "run", "half", "--out", "{0}/page.html"),
    "report unfinished": words("report", "half"),
    "evaluate": words("evaluate", "run", "--count", "3"),
    "adapt": words("adapt", "run", "--support", "{0}/few.csv", "--out", "{0}/new"),
    "predict": words("predict", "adapted", "{0}/few.csv"),
    "load": lambda place: mp.load(place / "learner"),
    "resume": words("resume", "run"),
    "resume unfinished": words("resume", "half"),
    "report of a comparison": words("report", "both"),
    "recount": words("recount", "both"),
    "compare": lambda place: compare(place / "both"),
    "tune": lambda place: tune(place / "search", 2),
    "train tuned": words(*TUNED),
    "variants": words(*VARIANTS),
}
RUN = ("config.json", "checksums.json", "metrics.jsonl", "test_tasks.json", "starts.jsonl", "weights.safetensors")
READ = {
    **{key: [f"run/{name}" for name in (*RUN, "data.json")] for key in ("report", "report side by side", "resume")},
    "report unfinished": [
        f"half/{name}" for name in ("config.json", "checksums.json", "metrics.jsonl", "starts.jsonl")
    ],
    **{key: [f"run/{name}" for name in ("config.json", "weights.safetensors")] for key in ("evaluate", "adapt")},
    "predict": ["adapted/adapted.json", "adapted/weights.safetensors"],
    "load": ["learner/learner.json", "learner/weights.safetensors"],
    "resume unfinished": [f"half/{name}" for name in ("config.json", "checksums.json", "metrics.jsonl")],
    "report of a comparison": ["both/comparison.json", "both/starts.jsonl"],
    "recount": ["both/comparison.json", "both/b/seed_0/test_tasks.json"],
    "compare": [f"both/a/seed_0/{name}" for name in RUN if name != "starts.jsonl"],
    "tune": ["search/search.json", "search/best.json"],
    "train tuned": ["search/search.json", "search/best.json"],
    "variants": ["search/best.json"],
}


def flipped(content, at):
    """A bit is another, in a digit or letter."""
    place = next(i for i in range(int(at * len(content)), len(content)) if chr(content[i]).isalnum())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    "flipped early": lambda content: flipped(content, 0.3),
    "flipped late": lambda content: flipped(content, 0.6),
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_file_is_named_by_every_command_that_reads_it(made, tmp_path, capsys, command):
    for name in READ[command]:
        for how, damage in DAMAGES.items():
            place = tmp_path / f"{name.replace('/', '-')} {how}"
            shutil.copytree(made, place)
            file = place / name
            file.write_bytes(damage(file.read_bytes()))
            said = refusal(lambda place=place: COMMANDS[command](place), capsys)
            assert (file.name if file.name == "checksums.json" else str(file)) in said, (name, how, said)
            shutil.rmtree(place)


def refusal(act, capsys):
    """What is said where ``act`` ends in a line that says why; "" where it does not end so."""
    try:
        act()
    except SystemExit:
        said = capsys.readouterr().err
        return said if said.count("metaprox: error: ") == said.count("\n") == 1 else ""
    except mp.MetaproxError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["metrics.jsonl", "test_tasks.json", "starts.jsonl", "data.json"])
def test_a_file_that_is_lost_is_named_and_left_out_once_the_checksums_are(made, tmp_path, capsys, name):
    shutil.copytree(made / "run", run := tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(mp.RunFolderError, match=rf"{name} is missing, and was there when checksums.json was written"):
        reports.write_report(training.RunFolder.open(run))
    (run / "checksums.json").unlink()
    if name in ("starts.jsonl", "data.json"):
        assert reports.write_report(training.RunFolder.open(run)).exists()


def test_a_list_of_checksums_that_names_other_files_is_damaged(made, tmp_path):
    shutil.copytree(made / "run", run := tmp_path / "run")
    for name in ("config.json", "data.json"):
        sums = json.loads((made / "run" / "checksums.json").read_text())
        sums[name + "n"] = sums.pop(name)
        (run / "checksums.json").write_text(json.dumps(sums))
        with pytest.raises(mp.RunFolderError, match=r"checksums.json is damaged: it is not a list of checksums"):
            mp.load(run)


def test_what_was_damaged_during_a_run_is_not_sealed_as_right(made, tmp_path):
    """And a configuration that is made again leaves the sums of the other files."""
    shutil.copytree(made / "run", run := tmp_path / "run")
    for name in ("weights.safetensors", "config.json", "test_tasks.json"):  # as of a run that goes on
        (run / name).unlink()
    sums = json.loads((run / "checksums.json").read_text())
    (run / "checksums.json").write_text(json.dumps({name: sums[name] for name in ("config.json", "data.json")}))
    (run / "data.json").write_bytes(flipped((run / "data.json").read_bytes(), 0.5))
    with pytest.warns(UserWarning, match="config.json was missing: it is made again"):
        training.resume(run)
    with pytest.raises(mp.RunFolderError, match=r"data.json is not as it was written"):
        reports.write_report(training.RunFolder.open(run))


def test_a_damaged_checkpoint_of_a_run_that_goes_on_is_warned_of(made, tmp_path):
    shutil.copytree(made / "half", tmp_path / "half")
    folder = training.RunFolder.open(tmp_path / "half")
    newest = folder.checkpoint
    newest.write_bytes(flipped(newest.read_bytes(), 0.5))
    with pytest.warns(UserWarning, match=rf"{newest.name} .*the run can go on from the checkpoint before"):
        page = reports.write_report(folder)
    assert page.exists()


def test_lines_of_starts_that_are_damaged_are_left_out_when_a_run_goes_on(made, tmp_path):
    shutil.copytree(made / "half", tmp_path / "half")
    folder = training.RunFolder.open(tmp_path / "half")
    line = folder.starts.read_text()
    assert len(starts.read(folder.starts)) == 1
    folder.starts.write_text(line.replace('"step": 0', '"step": 1') + "{\n" + line)
    with pytest.warns(UserWarning, match=r"starts.jsonl, line [12], was damaged, and is left out") as said:
        training.resume(folder.path)
    assert len([one for one in said if "starts.jsonl" in str(one.message)]) == 2
    assert [one["step"] for one in starts.read(folder.starts)] == [0, 4]


def test_what_was_kept_before_there_were_checksums_is_read(made, tmp_path):
    shutil.copytree(made, place := tmp_path / "all")
    for name in ("both/comparison.json", "search/search.json", "search/best.json", "learner/learner.json"):
        values = json.loads((place / name).read_text())
        del values["sha256"]
        values.pop("weights_sha256", None)
        (place / name).write_text(json.dumps(values))
    assert comparison.read(place / "both") == comparison.read(made / "both")
    assert tuning.with_best(SMALL, place / "search") == tuning.with_best(SMALL, made / "search")
    assert mp.load(place / "learner").lam == mp.load(made / "learner").lam
