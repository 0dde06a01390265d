"""Runs: what the folder holds, bit-for-bit resumption, failures that say what and where, files not to be trusted."""

import json
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

import metaprox as mp
from conftest import interrupt_at, records
from metaprox import reports, training
from metaprox.training import weights

SMALL = training.Settings(
    "sinusoid",
    hidden=(8,),
    meta_steps=7,
    meta_batch=3,
    eval_every=3,
    eval_tasks=4,
    test_tasks=5,
    checkpoint_every=3,
    steps=3,
)


@pytest.mark.parametrize("stop", [1, 4, 6, 7])
@pytest.mark.parametrize("optimizer", ["normalized", "clipped", "adam", "sgd"])
def test_interrupted_and_resumed_equals_straight_bit_for_bit(tmp_path, optimizer, stop):
    config = SMALL.but(optimizer=optimizer)
    straight = training.train(config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        training.train(config, tmp_path / "stopped", interrupt_at(stop))
    resumed = training.resume(tmp_path / "stopped")
    assert resumed.weights.read_bytes() == straight.weights.read_bytes()
    assert records(resumed) == records(straight)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_when_it_is_resumed(tmp_path, monkeypatch):
    straight = training.train(SMALL, tmp_path / "straight")
    with monkeypatch.context() as patched:
        patched.setattr(training.checkpoint, "save", lambda *given: interrupt_at(0)(training.Progress(0, 7, 0.0, {})))
        with pytest.raises(KeyboardInterrupt):
            training.train(SMALL, tmp_path / "killed")
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"config.json", "checksums.json", "starts.jsonl"}
    resumed = training.resume(tmp_path / "killed")
    assert resumed.weights.read_bytes() == straight.weights.read_bytes()
    assert records(resumed) == records(straight)


def test_run_killed_by_a_signal_resumes_bit_for_bit(tmp_path):
    config = ["--hidden", "8", "--meta-steps", "200", "--meta-batch", "2", "--eval-every", "50"]
    config += ["--eval-tasks", "4", "--test-tasks", "5", "--checkpoint-every", "20", "--steps", "3"]
    command = [sys.executable, "-m", "metaprox.cli"]
    killed = tmp_path / "killed"
    run = [*command, "train", "sinusoid", *config, "--out"]
    process = subprocess.Popen([*run, str(killed)], stdout=subprocess.DEVNULL)
    metrics = killed / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 60) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "weights.safetensors").exists()  # it was still running
    subprocess.run([*command, "resume", str(killed)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*run, str(tmp_path / "straight")], check=True, stdout=subprocess.DEVNULL)
    a, b = (training.RunFolder.open(tmp_path / name) for name in ("killed", "straight"))
    assert a.weights.read_bytes() == b.weights.read_bytes()
    assert records(a) == records(b)
    assert (killed / "report.html").exists()


def test_metrics_log_every_step_with_median_and_worst(tmp_path):
    folder = training.train(SMALL, tmp_path / "run")
    rows = records(folder)
    steps = [r for r in rows if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 8))
    for row in steps:
        for name in ("base_residual", "gradient_ratio", "linear_residual"):
            assert 0 <= row[f"{name}_median"] <= row[f"{name}_worst"]
        assert row["base_step_size_median"] == pytest.approx(0.01)
        assert row["support_gradients"] == 3 * (3 + 1 + 2 * 2)
    evaluations = [(r["split"], r["step"]) for r in rows if r["kind"] == "evaluation"]
    assert evaluations == [("test", 0), ("validation", 3), ("validation", 6), ("validation", 7), ("test", 7)]
    assert [r["next_lr"] for r in steps][-1] == 0.0


def test_configuration_on_disk_is_resolved_and_reads_back(tmp_path):
    folder = training.train(SMALL, tmp_path / "run")
    written = json.loads((folder.path / "config.json").read_text())
    assert written["method"]["solver"]["lr"] == 0.01
    assert (written["method"]["perturb"], written["method"]["nu"]) == ("center", None)
    assert written["optimizer"]["lr"] == 0.1
    assert training.composition_of(folder) == SMALL.composition()


def test_equal_seeds_give_equal_runs_and_others_do_not(tmp_path):
    runs = [training.train(SMALL.but(seed=seed), tmp_path / name) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    a, b, c = (load_file(run.weights) for run in runs)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not any(torch.equal(a[k], c[k]) for k in a if "weight" in k)


def test_training_leaves_torch_as_it_was(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    training.train(SMALL.but(threads=2), tmp_path / "run")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected)


def test_divergence_names_meta_step_task_and_inner_step_and_keeps_the_checkpoint(tmp_path):
    config = SMALL.but(steps=40, branch_lr=3.0, test_tasks=1)
    with pytest.raises(mp.NonFiniteError, match=r"the gradient of the branch solve .* at step \d+ of 40") as caught:
        training.train(config, tmp_path / "run")
    assert caught.value.__notes__ == [f"at meta-step 1 of 7, training task {caught.value.task}"]
    assert (tmp_path / "run" / "checkpoint-00000000.safetensors").exists()
    assert [r["kind"] for r in records(training.RunFolder.open(tmp_path / "run"))] == ["evaluation"]


def test_sinusoid_dies_with_a_fixed_step_and_lives_with_the_adaptive_one(tmp_path):
    """The first meta-steps of a run with a long inner step."""
    config = training.Settings("sinusoid", inner_lr=0.05, nu=0.05, meta_steps=12, test_tasks=5, eval_tasks=5)
    with pytest.raises(
        mp.NonFiniteError, match=r"task \d+.* at step \d+ of 10 with GradientDescent\(lr=0.05\)"
    ) as caught:
        training.train(config, tmp_path / "fixed")
    assert caught.value.__notes__[0] == f"at meta-step 4 of 12, training task {75 + caught.value.task}"
    training.train(config.but(solver="adaptive", inner_lr=None), tmp_path / "adaptive")
    assert (tmp_path / "adaptive" / "weights.safetensors").exists()


def test_training_goes_on_over_tasks_that_diverge_where_it_is_told_to(tmp_path):
    """The run above: in meta-step 4 a task diverges, and the step is that of a batch without it."""
    config = training.Settings("sinusoid", inner_lr=0.05, nu=0.05, meta_steps=5, test_tasks=5, eval_tasks=5)
    folder = training.train(config.but(on_nonfinite="skip"), tmp_path / "run")
    steps = [row for row in records(folder) if row["kind"] == "step"]
    plain = config.composition().trainer()
    for row in steps:
        tasks = plain.batch("train", range(25 * (row["step"] - 1), 25 * row["step"]))
        kept = list(range(25))
        while True:  # the error names one task at a time
            plain.model.zero_grad()
            some = pytree.tree_map(lambda leaf, kept=kept: leaf[kept], tasks)
            try:
                out = plain.estimator.backward(plain.problem, some)
                break
            except mp.NonFiniteError as error:
                del kept[error.task]
        norm = torch.stack([p.grad.norm() for p in plain.model.parameters()]).norm()
        assert row.get("tasks_skipped", 0) == 25 - len(kept)
        assert row["loss"] == pytest.approx(float(out.query_loss.mean()), rel=1e-4)
        assert row["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
        assert row["base_step_size_least"] == pytest.approx(0.05, rel=1e-3)
        plain.optimizer.step()
        plain.schedule.step()
    skipped = int(sum(row.get("tasks_skipped", 0) for row in steps))
    assert 0 < skipped < 10
    assert folder.tasks_skipped() == skipped
    page = reports.write_report(folder).read_text()
    assert f"{skipped} of 125 training tasks diverged and were skipped." in page


def test_where_all_tasks_of_a_meta_step_diverge_the_run_ends_all_the_same(tmp_path):
    config = SMALL.but(steps=40, branch_lr=3.0, test_tasks=1, on_nonfinite="skip")
    with pytest.raises(mp.NonFiniteError, match=r"all 3 tasks diverged, .* leaves none") as caught:
        training.train(config, tmp_path / "run")
    assert caught.value.__notes__[0] == "at meta-step 1 of 7, training task 0"


def test_runs_from_before_a_setting_was_there_have_its_default(tmp_path):
    folder = training.train(SMALL, tmp_path / "run")
    place = folder.path / "config.json"
    written = json.loads(place.read_text())
    assert written["method"].pop("on_nonfinite") == "raise"
    place.write_text(json.dumps(written))
    (folder.path / "checksums.json").unlink()  # nor were there any
    assert training.composition_of(folder) == SMALL.composition()
    assert folder.tasks_skipped() == 0
    with pytest.raises(mp.RunFolderError, match="of a run with other settings: on_nonfinite: 'raise' there, None here"):
        reports.write_report(folder)  # the weights are not from before


def test_runs_of_version_1_read_and_go_on(tmp_path):
    """Every setting of every part had a place in them, which was null or a default where it had no meaning."""
    version_1 = json.loads((Path(__file__).parent / "config_of_version_1.json").read_text())
    small = SMALL.but(nu=0.05)
    straight = training.train(small, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        training.train(small, tmp_path / "stopped", interrupt_at(4))
    (tmp_path / "stopped" / "config.json").write_text(json.dumps(version_1))
    (tmp_path / "stopped" / "checksums.json").unlink()
    assert training.composition_of(training.RunFolder.open(tmp_path / "stopped")) == small.composition()
    resumed = training.resume(tmp_path / "stopped")
    assert resumed.weights.read_bytes() == straight.weights.read_bytes()
    assert records(resumed) == records(straight)
    assert reports.write_report(resumed).exists()
    (tmp_path / "stopped" / "checksums.json").unlink()
    del version_1["on_nonfinite"]  # of a run from before there was such a setting
    (tmp_path / "stopped" / "config.json").write_text(json.dumps(version_1))
    assert training.composition_of(resumed) == small.composition()


def test_too_stiff_a_lam_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(mp.UnstableError, match=r"lr \* lam = 3 > 2"):
        training.train(SMALL.but(lam=300.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folder_that_is_not_empty_is_refused_untouched(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(mp.RunFolderError, match="exists and is not an empty folder: choose another --out, or go on"):
        training.train(SMALL, tmp_path)
    with pytest.raises(mp.RunFolderError, match="exists and is not an empty folder"):
        training.train(SMALL, tmp_path / "mine.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_can_not_be_made_is_refused():
    with pytest.raises(mp.RunFolderError, match=r"/dev/null/run can't be made: Not a directory"):
        training.train(SMALL, "/dev/null/run")


class Float64:
    """Within it, tensors are float64 unless they say otherwise."""

    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *error):
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "enter",
    [Float64, torch.no_grad, torch.inference_mode, lambda: torch.device("meta")],
    ids=["float64", "no_grad", "inference_mode", "meta"],
)
def test_a_run_is_the_same_whatever_torch_is_set_to(tmp_path, enter):
    config = SMALL.but(meta_steps=2, meta_batch=2, eval_tasks=2, test_tasks=3)
    plain = training.train(config, tmp_path / "plain")
    with enter():
        other = training.train(config, tmp_path / "other")
    assert other.read_test_values() == plain.read_test_values()
    assert reports.write_report(other).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": "mnist1d", "ways": 11}, "11-way tasks need 11 classes"),
        ({"tasks": "mnist1d", "shots": 100}, "100 shots and 15 queries"),
        ({"lam": 0.0}, "lam must be a finite number > 0"),
        ({"lam": -1.0}, "lam must be a finite number >= 0"),
        ({"nu": 0.0}, "nu must be a finite number > 0"),
        ({"eps": 0.1, "perturb": "loss"}, "eps=0.1 is the step of perturb='center'"),
        ({"inner_lr": 0.0}, "inner_lr must be a finite number > 0"),
        ({"device": "gpu9"}, "device 'gpu9' can't be used here"),
    ],
)
def test_bad_settings_are_refused_before_the_folder_is_made(tmp_path, change, message):
    with pytest.raises(mp.InputError, match=message):
        training.train(SMALL.but(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tasks": "imagenet"},
            "unknown tasks 'imagenet'; known: banking77, images, mnist1d, omniglot, sinusoid, tables",
        ),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"meta_steps": 0}, "meta_steps must be an integer >= 1, got 0"),
        ({"hidden": (8, 0)}, r"hidden\[1\] must be an integer >= 1, got 0"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_configuration_checks_its_numbers(change, message):
    with pytest.raises(mp.InputError, match=message):
        SMALL.but(**change).composition()


class Malicious:
    """Unpickling this would make a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


def load(folder):
    trainer = training.trainer_of(folder)
    before = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    try:
        trainer.load_weights(folder)
    finally:
        same = all(torch.equal(p, before[name]) for name, p in trainer.model.state_dict().items())
        assert same or sys.exc_info()[0] is None  # an error leaves the model as it was


def test_weights_that_cannot_be_trusted_are_refused_and_never_unpickled(tmp_path):
    folder = training.train(SMALL, tmp_path / "run")
    good = folder.weights.read_bytes()
    load(folder)
    proof = tmp_path / "unpickled"
    folder.weights.write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises(mp.RunFolderError, match="corrupt or not a safetensors file"):
        load(folder)
    torch.save({"x": Malicious(proof)}, folder.weights)
    with pytest.raises(mp.RunFolderError, match="corrupt or not a safetensors file"):
        load(folder)
    assert not proof.exists()
    folder.weights.write_bytes(good[: len(good) // 2])
    with pytest.raises(mp.RunFolderError, match="corrupt or not a safetensors file"):
        load(folder)
    save_file({"0.weight": torch.zeros(8, 1)}, folder.weights)
    with pytest.raises(mp.RunFolderError, match="not weights written by metaprox"):
        load(folder)
    weights.save(folder.weights, "weights", {"0.weight": torch.zeros(8, 2), "9.bias": torch.zeros(1)}, {})
    with pytest.raises(mp.RunFolderError, match=r"does not fit the model: .*0.weight: model \(8, 1\), file \(8, 2\)"):
        load(folder)
    tensors = SMALL.composition().trainer().model.state_dict()
    weights.save(folder.weights, "weights", tensors | {"0.bias": torch.full((8,), torch.nan)}, {})
    with pytest.raises(mp.RunFolderError, match=r"non-finite values in 0.bias"):
        load(folder)
    folder.weights.unlink()
    with pytest.raises(mp.RunFolderError, match="is missing"):
        load(folder)


def test_folders_without_a_run_or_with_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(mp.RunFolderError, match=r"is not a run folder: it has no config\.json"):
        training.resume(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        training.train(SMALL, tmp_path / "run", interrupt_at(5))
    folder = training.RunFolder.open(tmp_path / "run")
    metrics = folder.metrics.read_bytes()
    folder.metrics.write_bytes(metrics[:10])
    with pytest.raises(mp.RunFolderError, match="is shorter than when the checkpoint was written"):
        training.resume(folder.path)
    folder.metrics.write_bytes(metrics)
    for checkpoint in folder.checkpoints():
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(mp.RunFolderError, match=r"corrupt or not a safetensors file.*to start the run over, delete"):
        training.resume(folder.path)
    (folder.path / "config.json").write_text('{"colour": "red"}')
    with pytest.raises(mp.RunFolderError, match=r"config.json is not as it was written.*delete checksums.json"):
        training.resume(folder.path)
    (folder.path / "checksums.json").unlink()
    (folder.path / "config.json").write_text('{"colour": "red"}')
    with pytest.raises(mp.RunFolderError, match="not the configuration of a run of metaprox: it names no tasks"):
        training.resume(folder.path)
    (folder.path / "config.json").write_text('{"tasks": "sinusoid", "colour": "red"}')
    with pytest.raises(mp.RunFolderError, match="not the configuration of a run of metaprox: unknown colour"):
        training.resume(folder.path)
    (folder.path / "config.json").write_text("{")
    with pytest.raises(mp.RunFolderError, match="not JSON"):
        training.resume(folder.path)


def test_long_runs_of_small_models_are_compiled_where_there_is_a_compiler(monkeypatch, tmp_path):
    def compiled(tasks, **settings):
        return training.Settings(tasks, **settings).composition().estimator.compile

    monkeypatch.setenv("CXX", "true")  # any program there is
    assert compiled("mnist1d")
    assert compiled("sinusoid", meta_steps=1000, method="reptile")
    assert not compiled("sinusoid", meta_steps=999)
    assert not compiled("mnist1d", inner_batch=5)
    assert not compiled("mnist1d", backend="loop")
    assert not compiled("mnist1d", method="maml")
    assert not compiled("mnist1d", compile="off")
    assert compiled("mnist1d", meta_steps=10, compile="on")
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert not compiled("mnist1d")


def test_reptile_as_its_authors_run_it_is_interpolation_towards_adapted_parameters():
    """x + lr (mean y_K - x), with y_K by Adam with beta1 = 0: a first step of length inner_lr in each coordinate."""
    config = training.Settings("sinusoid", hidden=(8,), method="reptile", solver="adam0", steps=1, lam=0.0)
    changes = {"inner_lr": 0.25, "optimizer": "sgd", "lr": 0.5, "meta_batch": 2, "meta_steps": 10}
    trainer = config.but(**changes).composition().trainer()
    x = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    tasks = trainer.batch("train", [0, 1])
    trainer.estimator.backward(trainer.problem, tasks)
    trainer.optimizer.step()
    supports = [tuple(leaf[task] for leaf in tasks.support) for task in (0, 1)]
    solver = mp.Adam(0.25, betas=(0.0, 0.999))
    first, second = (mp.adapt(trainer.evaluated, support, solver, 1, params=x) for support in supports)
    for name, p in trainer.model.named_parameters():
        assert torch.allclose(p, 0.5 * x[name] + 0.25 * (first[name] + second[name]), atol=1e-6)
        moved = (first[name] - x[name]).abs()
        assert torch.all(((moved - 0.25).abs() < 1e-3) | (moved == 0))


def test_more_support_examples_in_training_alone():
    trainer = training.Settings("mnist1d", hidden=(8,), train_shots=8).composition().trainer()
    shots = {split: len(trainer.batch(split, [0]).support[0][0]) for split in ("train", "validation", "test")}
    assert shots == {"train": 40, "validation": 25, "test": 25}


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_inner_steps_of_training_on_examples_drawn_anew_and_evaluation_on_all(backend):
    """With one of the two examples of a task, a step is along the gradient of one of them, and not always the first."""
    shared = training.Settings("sinusoid", hidden=(), shots=2, method="reptile", steps=1, lam=0.0)
    trainer = shared.but(inner_lr=1.0, inner_batch=1, backend=backend).composition().trainer()
    tasks = trainer.batch("train", range(40))
    x = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    slopes = []
    for task in range(40):
        inputs, targets = (leaf[task] for leaf in tasks.support)
        residual = 2 * (inputs * x["0.weight"] + x["0.bias"] - targets)
        slopes.append((residual * inputs).flatten())
    adapted = trainer.estimator(trainer.problem, x, tasks).adapted["0.weight"].flatten()
    moved = x["0.weight"].flatten() - adapted
    which = [int((moved[task] - slopes[task]).abs().argmin()) for task in range(40)]
    assert all(torch.isclose(moved[task], slopes[task][index], atol=1e-5) for task, index in enumerate(which))
    assert {0, 1} == set(which)
    plain = shared.but(inner_lr=1.0, backend=backend, compile="off").composition().trainer()
    assert trainer.evaluate("test", 5).loss == plain.evaluate("test", 5).loss


def test_what_a_finished_run_was_tested_with(tmp_path):
    run = training.train(SMALL, tmp_path / "run")
    tested = run.tested()
    assert tested["after"]["loss"] == mp.Statistic.of(torch.tensor(run.read_test_values()["loss"]))
    before = SMALL.composition().trainer().evaluate("test", SMALL.composition().pace.test_tasks)
    assert tested["before"]["loss"] == before.loss
    run.test_values.unlink()
    with pytest.raises(mp.RunFolderError, match=r"test_tasks\.json is missing, and was there"):
        run.tested()
    (run.path / "checksums.json").unlink()
    with pytest.raises(mp.RunFolderError, match="has not finished; resume it"):
        run.tested()
