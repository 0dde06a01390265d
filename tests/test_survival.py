"""Runs that survive: signals, two at once, damaged and hostile files, disks that refuse. ``make faults`` does more."""

import errno
import json
import os
import signal
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

import metaprox as mp
from conftest import interrupt_at, records
from metaprox import comparison, reports, training
from metaprox.cli import main
from metaprox.storage import files
from metaprox.storage.lock import locked
from metaprox.training import ranks, weights
from metaprox.training.stopping import Asked, Stop, Stopped, stoppable

SMALL = training.Settings(
    "sinusoid", hidden=(4,), meta_steps=8, meta_batch=2, eval_every=3, eval_tasks=2, test_tasks=3, checkpoint_every=2,
    steps=2, compile="off", chunk_size=1,
)  # fmt: skip


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return training.train(SMALL, tmp_path_factory.mktemp("survival") / "straight")


@pytest.fixture
def half(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        training.train(SMALL, tmp_path / "half", interrupt_at(5))
    return training.RunFolder.open(tmp_path / "half")


def same(one, other):
    assert one.weights.read_bytes() == other.weights.read_bytes()
    assert records(one) == records(other)
    assert one.read_test_values() == other.read_test_values()


def sending(number, at, times=1):
    """A watcher that sends this process a signal."""

    def watch(progress):
        if progress.step == at:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return watch


@pytest.fixture(autouse=True)
def interruptible():
    """A shell starts what goes on in the background with SIGINT ignored, and so would the tests have it then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(straight, tmp_path, capfd, number, status):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as caught:
        training.train(SMALL, tmp_path / "run", sending(number, 5))
    assert caught.value.code == status
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    *_, said = capfd.readouterr().err.splitlines()
    assert said.startswith(f"metaprox: stopped by {number.name} after meta-step 5 of 8, which is saved in ")
    assert said.endswith(f"; go on: metaprox resume {tmp_path / 'run'}")
    assert training.RunFolder.open(tmp_path / "run").checkpoint.name == "checkpoint-00000005.safetensors"
    same(training.resume(tmp_path / "run"), straight)


@contextmanager
def signal_in_evaluation(number):
    """Within, SIGTERM comes in that evaluation after the first part of its tasks; none after the look before a run."""
    real, seen = ranks.evaluation, []

    def evaluation(trainer, split, count, between=lambda: None, *more, **how):
        parts = []
        seen.append(split)

        def asked():
            parts.append(len(seen))
            if parts == [number + 2] * 2:
                os.kill(os.getpid(), signal.SIGTERM)
            between()

        return real(trainer, split, count, asked, *more, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ranks, "evaluation", evaluation)
        yield


@pytest.mark.parametrize("evaluation", [0, 2, 4], ids=["before", "during", "after"])
def test_a_signal_during_an_evaluation_leaves_it_and_it_is_done_again(straight, tmp_path, evaluation):
    with signal_in_evaluation(evaluation), pytest.raises(Stopped):
        training.train(SMALL, tmp_path / "run")
    same(training.resume(tmp_path / "run"), straight)


# Steps so short that the monitor warns, of windows of 25 meta-steps, and at the end of the 14 left.
WARNED = SMALL.but(meta_steps=64, eval_every=16, checkpoint_every=10, inner_lr=1e-6, keep_weights="best", clip=0.5)


@pytest.mark.filterwarnings("ignore::metaprox.HealthWarning")
def test_a_run_that_is_stopped_between_checkpoints_keeps_what_its_monitor_saw(tmp_path):
    """SIGTERM after meta-steps that no checkpoint is due at, in and right after a window, and within evaluations."""
    whole = training.train(WARNED, tmp_path / "whole")
    assert [record["step"] for record in whole.read_metrics() if "health" in record] == [25, 50, 64]
    assert sum("warnings" in record for record in whole.read_metrics()) >= 1
    run, going = tmp_path / "run", partial(training.train, WARNED)
    for at in (13, 24, 25, 26, 51):
        with pytest.raises(Stopped):
            going(run, sending(signal.SIGTERM, at))
        assert training.RunFolder.open(run).checkpoint.name == f"checkpoint-{at:08d}.safetensors"
        going = training.resume
    for evaluation in (0, 1):  # that of the last meta-step, and then the test
        with signal_in_evaluation(evaluation - 1), pytest.raises(Stopped):
            training.resume(run)
        assert training.RunFolder.open(run).checkpoint.name == "checkpoint-00000064.safetensors"
    same(training.resume(run), whole)


def test_the_second_signal_stops_at_once(straight, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        training.train(SMALL, tmp_path / "run", sending(signal.SIGINT, 5, times=2))
    assert training.RunFolder.open(tmp_path / "run").checkpoint.name == "checkpoint-00000004.safetensors"
    same(training.resume(tmp_path / "run"), straight)


def test_a_signal_while_processes_agree_counts_the_next_time():
    """Another process has not been told of it yet; it must neither be lost nor stop one process alone."""
    with stoppable("") as stop:
        stop.check(lambda number: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Asked):
            stop.check(lambda number: number)
    assert stop.asked == signal.SIGTERM
    with pytest.raises(Asked):
        Stop().check(lambda number: signal.SIGTERM)  # that of another one


def test_signals_are_left_to_a_program_that_has_taken_them(tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        training.train(SMALL, tmp_path / "run", sending(signal.SIGTERM, 5))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_a_comparison_that_was_stopped_goes_on(tmp_path, capfd, monkeypatch):
    plan = comparison.Plan.of(SMALL, {"a": {"method": "fomaml"}, "b": {"method": "reptile"}}, (0,))
    monkeypatch.setattr(comparison.runs, "measure", lambda contenders, seed: {})
    with pytest.raises(Stopped) as caught:
        comparison.compare(plan, tmp_path / "out", say=lambda line: os.kill(os.getpid(), signal.SIGINT))
    assert caught.value.code == 130
    assert "go on: give the same comparison again" in capfd.readouterr().err
    (tmp_path / "out" / ".DS_Store").write_text("not ours")
    (tmp_path / "out" / "a" / "seed_0" / "notes.txt").write_text("mine")
    lines = []
    comparison.compare(plan, tmp_path / "out", say=lines.append)
    assert len(lines) == 2
    other = comparison.Plan.of(SMALL, {"a": {"method": "fomaml"}, "c": {"method": "reptile"}}, (0,))
    with pytest.raises(mp.RunFolderError, match="holds b, which is not of this comparison"):
        comparison.compare(other, tmp_path / "out")


def test_who_comes_second_is_told_who_works_there(half):
    with half.locked():
        pid = os.fork()
        if pid == 0:
            try:
                training.resume(half.path)
            except mp.RunFolderError as error:
                os._exit(7 if f"in use by process {os.getppid()} on " in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        found = []
        thread = threading.Thread(target=lambda: found.append(_refusal(half)))
        thread.start()
        thread.join()
        assert "in use by another thread" in found[0]
    assert not (half.path / ".lock").exists()


def _refusal(folder):
    try:
        with folder.locked():
            return "taken"
    except mp.RunFolderError as error:
        return str(error)


def test_a_lock_ends_with_its_process(tmp_path):
    pid = os.fork()
    if pid == 0:
        with locked(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path), locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("where", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_flipped_bit_in_a_checkpoint_is_noticed_and_the_one_before_is_taken(half, straight, where):
    newest, before = half.checkpoints()
    flip(newest, int(8 * where * newest.stat().st_size))
    with pytest.warns(UserWarning, match=f"{newest.name} .*goes on from the checkpoint before, {before.name}"):
        resumed = training.resume(half.path)
    same(resumed, straight)
    assert (half.path / f"{newest.name}.damaged").exists()


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "test_tasks.json", "metrics.jsonl"])
def test_a_flipped_bit_in_what_a_run_leaves_is_noticed(tmp_path, straight, name):
    folder = training.RunFolder(tmp_path)
    for path in straight.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for where in (0.05, 0.5, 0.95):
        place = tmp_path / name
        bit = int(8 * where * place.stat().st_size)
        flip(place, bit)
        with pytest.raises(mp.RunFolderError, match=rf"{name}.* (is not as it was written|corrupt)"):
            _read_all(folder)
        flip(place, bit)


def _read_all(folder):
    training.latest(folder)
    return folder.read_metrics(), folder.read_test_values()


def test_an_edited_configuration_and_the_checkpoint_of_another_run_are_refused_and_what_differs_is_named(
    half, straight
):
    place = half.path / "config.json"
    before = place.read_text()
    place.write_text(before.replace('"lr": 0.1', '"lr": 0.05'))
    with pytest.raises(mp.RunFolderError, match=r"not as it was written.*What differs: lr: 0\.1 there, 0\.05 here"):
        training.resume(half.path)
    sums = (half.path / "checksums.json").read_bytes()
    (half.path / "checksums.json").unlink()
    with pytest.raises(mp.RunFolderError, match=r"is a checkpoint of a run with other settings: lr: 0\.1 there, 0\.05"):
        training.resume(half.path)
    place.unlink()
    (half.path / "checksums.json").write_bytes(sums)
    with pytest.warns(UserWarning, match=r"config.json was missing: it is made again from checkpoint-00000004"):
        resumed = training.resume(half.path)
    assert place.read_text() == before
    same(resumed, straight)
    place.write_text(before.replace('"lam": 0.5', '"lam": 0.6'))
    (half.path / "checksums.json").unlink()
    with pytest.raises(mp.RunFolderError, match=r"has the weights of a run with other settings: lam: 0\.5 there, 0\.6"):
        training.latest(half)


def test_a_log_that_was_changed_is_refused_and_a_run_can_go_on_without(half, straight):
    text = half.metrics.read_text()
    half.metrics.write_text(text.replace("1", "2", 1))
    with pytest.raises(mp.RunFolderError, match=r"metrics.jsonl was changed since the checkpoint was written: put it"):
        training.resume(half.path)
    half.metrics.unlink()
    resumed = training.resume(half.path)
    assert resumed.weights.read_bytes() == straight.weights.read_bytes()
    assert reports.final_table(resumed.read_metrics())[0]["before"] == "n/a"
    assert reports.write_report(resumed).exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("left", [0, 3, 6, 9])
def test_a_disk_that_refuses_is_named_and_what_was_trained_is_kept(straight, tmp_path, monkeypatch, number, left):
    calls, real = [], os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > left:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(mp.RunFolderError, match=rf"can't be written: {os.strerror(number)}: (make|choose)"):
            training.train(SMALL, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))
    begun = (tmp_path / "run" / "config.json").exists()
    same(training.resume(tmp_path / "run") if begun else training.train(SMALL, tmp_path / "run"), straight)


def test_a_process_that_is_killed_while_it_writes_leaves_what_the_next_one_clears(tmp_path):
    """Whatever is in the folder at any moment of a save is the file, or known as a leftover."""
    path, ended = tmp_path / "weights.safetensors", threading.Event()

    def save():
        for _ in range(5):
            weights.save(path, "weights", LARGE, {})
        ended.set()

    saving = threading.Thread(target=save)
    seen = set()
    saving.start()
    while not ended.is_set():
        seen |= {one for one in tmp_path.iterdir() if one != path}
    saving.join()
    assert seen
    assert all(map(files.is_leftover, seen))
    with pytest.raises(mp.RunFolderError, match=r"can't be written: No such file or directory: the file or its folder"):
        weights.save(tmp_path / "gone" / "weights.safetensors", "weights", {"a": torch.ones(1)}, {})


LARGE = {"a": torch.ones(2**20)}


def test_leftovers_are_cleared_and_never_block(tmp_path, straight):
    (tmp_path / ".config.json.12-ab.partial").write_text("{")
    (tmp_path / "checksums.json").write_text("{}")
    (tmp_path / ".lock").write_text("")
    run = training.train(SMALL, tmp_path)
    same(run, straight)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in straight.path.iterdir()}


@pytest.mark.parametrize("text", ["", "[" * 100_000, "\x00", "nul", "[1, 2]", "9" * 9000], ids=range(6))
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "test_tasks.json", "checksums.json"])
def test_broken_and_deep_json_is_one_line(straight, tmp_path, capsys, name, text):
    for path in straight.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if name != "checksums.json":
        (tmp_path / "checksums.json").unlink()
    (tmp_path / name).write_text(f"{text}\n")
    with pytest.raises(SystemExit) as caught:
        main(["resume", str(tmp_path)])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert name in said


def _junk(meta, tensors, name):
    """A checkpoint as somebody might have made it."""
    return {
        "step": lambda: meta.update(step=10**9),
        "size": lambda: meta.update(metrics_size="x"),
        "no optimizer": lambda: meta.pop("optimizer_state"),
        "a class": lambda: meta.update(optimizer_state={"kind": "eval", "items": ["1"]}),
        "no tensor": lambda: meta.update(optimizer_state={"tensor": "none"}),
        "a group": lambda: meta["optimizer_state"]["items"].pop(),
        "the schedule": lambda: meta.update(schedule_state={"kind": "dict", "items": [["get_lr", "x"]]}),
        "a generator": lambda: tensors.update({"generator.cpu": torch.zeros(3, dtype=torch.uint8)}),
        "a shape": lambda: tensors.update({"optimizer.state.0.momentum": torch.zeros(9, 9)}),
        "a dtype": lambda: tensors.update({"model.0.bias": torch.zeros(4, dtype=torch.float64)}),
        "a name": lambda: tensors.update({"model.9.bias": torch.zeros(4)}),
        "nan": lambda: tensors["model.0.bias"].fill_(torch.nan),
    }[name]()


JUNK = ["step", "size", "no optimizer", "a class", "no tensor", "a group", "the schedule", "a generator", "a shape"]


@pytest.mark.parametrize("name", [*JUNK, "a dtype", "a name", "nan"])
def test_a_hostile_checkpoint_is_one_line_and_changes_nothing(half, name):
    for path in half.checkpoints():
        tensors, meta = weights.load(path, "a checkpoint")
        tensors["optimizer.state.0.momentum"] = tensors.get("optimizer.state.0.momentum", torch.zeros(4, 1))
        _junk(meta, tensors, name)
        if name == "a shape":
            tensors = {key: torch.zeros(9, 9) if key.startswith("optimizer.") else one for key, one in tensors.items()}
        weights.save(path, "a checkpoint", tensors, meta)
    trainer = training.trainer_of(half)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    log = half.metrics.read_bytes()
    with pytest.raises(mp.RunFolderError, match=r"checkpoint-00000004.safetensors") as caught:
        trainer.resume(half.path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in trainer.model.state_dict().items())
    assert half.metrics.read_bytes() == log


@pytest.mark.parametrize("name", ["[/bold]", ":smile: [red] $x_{$"])
def test_odd_names_of_folders_are_printed_as_they_are(straight, tmp_path, capsys, name):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    for path in straight.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    main(["resume", str(folder)])
    assert str(folder) in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\udcff"])
def test_names_that_can_not_be_are_one_line(tmp_path, capsys, name):
    with pytest.raises(SystemExit) as caught:
        main(["train", "sinusoid", "--out", str(tmp_path / name)])
    assert caught.value.code in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("label", ["a\nb", " a", "x" * 201, "\udcff", ""])
def test_labels_that_name_no_folder_are_refused(label):
    with pytest.raises(mp.InputError, match="names a folder: it can't be empty"):
        comparison.Plan.of(SMALL, {"a": {}, label: {}}, (0,))


def test_odd_labels_are_drawn(tmp_path):
    method = {
        "curve": [{"step": 0, "loss": 1.0}], "meta_steps": 1, "test": None, "failures": {},
        "cost": {"gradient_evaluations": 1, "time_to_first": 1.0},
    }  # fmt: skip
    labels = ["$\\frac{$", "_hidden", "日本", "[/b]"]
    figure = reports.comparison.draw({"metric": "loss", "seeds": [0], "methods": dict.fromkeys(labels, method)})
    reports.style.save(figure, tmp_path / "figure.png")
    shown = [text.get_text().strip() for text in figure.axes[1].get_legend().get_texts()]
    assert shown == ["\\$\\frac{\\$", "_hidden", "日本", "[/b]"]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_write_that_fails_leaves_the_file_and_no_other(tmp_path):
    place = tmp_path / "file"
    files.write_text(place, "old")

    def fail(path):
        path.write_text("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole(place, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert place.read_text() == "old"
    files.write_text(place, "a name \udcff")
    assert place.read_text() == "a name \\udcff"


def test_the_best_weights_are_kept_and_a_run_ends_when_they_get_no_better(tmp_path):
    """With steps so long that the validation gets worse, the weights are those of the first evaluation."""
    settings = SMALL.but(lr=3.0, keep_weights="best", patience=1, meta_steps=20, eval_tasks=4)
    with pytest.raises(KeyboardInterrupt):
        training.train(settings, tmp_path / "run", interrupt_at(4))
    folder = training.resume(tmp_path / "run")
    validation = {r["step"]: r["loss"]["mean"] for r in records(folder) if r.get("split") == "validation"}
    best = min(validation, key=validation.get)
    assert best < max(validation) < 20
    trainer = training.latest(folder)
    assert trainer.evaluate("validation", 4).loss.mean == pytest.approx(validation[best])
    same(folder, training.train(settings, tmp_path / "straight"))
    with pytest.raises(mp.InputError, match="keep_weights='best' chooses by eval_split='test'"):
        settings.but(eval_split="test").composition()


def test_a_checkpoint_of_another_version_of_torch_is_said(half):
    tensors, meta = weights.load(half.checkpoint, "a checkpoint")
    meta["versions"]["torch"] = "1.0"
    weights.save(half.checkpoint, "a checkpoint", tensors, meta)
    with pytest.warns(UserWarning, match=r"was written with torch 1\.0, and this is .*: the run goes on, but not bit"):
        training.resume(half.path)


def test_nothing_of_the_program_is_left_changed(tmp_path):
    import random

    import numpy as np

    random.seed(1)
    np.random.seed(1)
    training.train(SMALL.but(meta_steps=2), tmp_path / "run")
    found = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    assert found == (random.random(), np.random.random())


def test_paths_are_read_and_refused_by_name(tmp_path):
    with pytest.raises(mp.RunFolderError, match="can't be made: File name too long"):
        training.train(SMALL, tmp_path / "a" / ("x" * 300))
    with pytest.raises(mp.RunFolderError, match=r"can't be read: (File name too long|Is a dir)"):
        training.RunFolder.open(Path("x" * 300))
