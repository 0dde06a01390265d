"""metaprox compare: same tasks, same starts, honest budgets, paired differences, and nothing run twice."""

import json
from functools import partial

import pytest
import torch

import metaprox as mp
from metaprox import comparison, reports, training
from metaprox.cli import main
from metaprox.comparison import Cost, cost, measure, peak_memory
from metaprox.comparison.plan import Composed
from metaprox.models import mean_squared_error, mlp
from metaprox.reports.comparison import markdown
from metaprox.training import PRESETS

SHARED = training.Settings(
    "sinusoid",
    hidden=(8,),
    meta_steps=6,
    meta_batch=3,
    eval_every=3,
    eval_tasks=4,
    eval_split="test",
    test_tasks=5,
    steps=3,
)
VARIANTS = {name: PRESETS[name] for name in ("fobmaml", "maml", "fomaml")}


def plan(budget="steps", seeds=(0, 1), variants=VARIANTS, **changes):
    return comparison.Plan.of(SHARED.but(**changes), variants, seeds, budget)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "out"
    return out, comparison.compare(plan(), out)


@pytest.fixture(autouse=True)
def measured_here(done, monkeypatch):
    """Costs, which ``done`` has from a process of its own, as by default."""
    monkeypatch.setattr(comparison.runs, "measure", partial(cost._measure_here, rounds=1))


def values(out, label, seed):
    return training.RunFolder.open(out / label / f"seed_{seed}").read_test_values()["loss"]


def test_runs_differ_in_the_method_alone(done):
    out, results = done
    for label, method in results["methods"].items():
        for seed in (0, 1):
            composition = training.composition_of(training.RunFolder.open(out / label / f"seed_{seed}"))
            assert composition == SHARED.but(seed=seed).variant(PRESETS[label]).composition()
        first = method["curve"][0]
        assert first["step"] == 0
        assert first["loss"] == results["methods"]["fobmaml"]["curve"][0]["loss"]  # same tasks, same start


def test_statistics_are_those_of_the_runs(done):
    """Two seeds: Student's t with one degree of freedom is 12.706."""
    out, results = done
    mine = torch.tensor([values(out, "maml", seed) for seed in (0, 1)], dtype=torch.float64)
    first = torch.tensor([values(out, "fobmaml", seed) for seed in (0, 1)], dtype=torch.float64)
    method = results["methods"]["maml"]
    for found, expected in ((method["test"], mine), (method["minus_first"]["all"], mine - first)):
        assert (found["seeds"], found["tasks"]) == (2, 10)
        assert found["mean"] == pytest.approx(float(expected.mean()))
        assert found["over_seeds"] == pytest.approx(12.706 * float(expected.mean(1).std()) / 2**0.5, rel=1e-4)
        within = float((expected.var(1) / 5).sum().sqrt()) / 2
        assert found["over_tasks"] == pytest.approx(1.96 * within)
    assert method["minus_first"]["by_seed"]["1"]["mean"] == pytest.approx(float((mine - first)[1].mean()))
    assert results["methods"]["fobmaml"]["minus_first"] is None


def test_a_finished_comparison_is_counted_again_from_what_its_runs_left(done, tmp_path, capsys):
    out, results = done
    kept = tmp_path / "kept"
    for label in VARIANTS:
        for seed in (0, 1):
            place = kept / label / f"seed_{seed}"
            place.mkdir(parents=True)
            for name in ("config.json", "test_tasks.json"):
                (place / name).write_bytes((out / label / f"seed_{seed}" / name).read_bytes())
    old = json.loads((out / "comparison.json").read_text())
    for method in old["methods"].values():
        method["test"] = method["minus_first"] = None
    del old["sha256"]  # as of one from before there were checksums
    (kept / "comparison.json").write_text(json.dumps(old))
    main(["recount", str(kept)])
    assert "sinusoid, seeds 0, 1" in capsys.readouterr().out
    assert json.loads((kept / "comparison.json").read_text()) == json.loads((out / "comparison.json").read_text())
    assert (kept / "table.md").read_text() == _table(results)
    with pytest.raises(mp.RunFolderError, match=r"is not the folder of a finished comparison"):
        comparison.read(tmp_path)


def _table(results):
    return f"{markdown(reports.comparison_table(results))}\n{reports.legend(results)}\n"


def test_costs_are_counted(done):
    _, results = done
    costs = {label: method["cost"] for label, method in results["methods"].items()}
    counts = {label: cost["per_task_and_meta_step"] for label, cost in costs.items()}
    assert counts["fobmaml"] == {"support_gradients": 8, "query_gradients": 1, "hessian_vector_products": 0}
    assert counts["maml"] == {"support_gradients": 3, "query_gradients": 1, "hessian_vector_products": 3}
    evaluations = {label: cost["gradient_evaluations"] for label, cost in costs.items()}
    assert evaluations == {"fobmaml": 6 * 3 * 9, "maml": 6 * 3 * 10, "fomaml": 6 * 3 * 4}
    assert costs["fobmaml"]["time_to_first"] == 1.0


def test_comparison_goes_on_where_it_was_and_runs_nothing_twice(done, tmp_path, monkeypatch):
    out, _ = done
    again = tmp_path / "again"
    seen = []

    def stop_at_second(line):
        seen.append(line)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison.compare(plan(), again, say=stop_at_second)
    assert not (again / "comparison.json").exists()
    half = again / "fomaml" / "seed_0"
    half.mkdir(parents=True)
    label, seed, contender = plan().runs()[2]
    assert (label, seed) == ("fomaml", 0)
    (half / "config.json").write_text(json.dumps(contender.configuration(seed)))  # killed before its first checkpoint
    trained = []
    train = training.Trainer.train
    monkeypatch.setattr(
        training.Trainer,
        "train",
        lambda self, place, watch: trained.append(place.parent.name) or train(self, place, watch),
    )
    comparison.compare(plan(), again)
    assert trained == ["fobmaml", "maml", "fomaml"]  # and the first is resumed, though it had no checkpoint
    for label in VARIANTS:
        for seed in (0, 1):
            assert values(again, label, seed) == values(out, label, seed)


def test_several_jobs_give_the_same_numbers(done, tmp_path):
    out, _ = done
    comparison.compare(plan(seeds=(0,)), tmp_path / "two", jobs=2)
    for label in VARIANTS:
        assert values(tmp_path / "two", label, 0) == values(out, label, 0)


def test_equal_gradients_scale_the_meta_steps(tmp_path):
    results = comparison.compare(plan("gradients", seeds=(0,)), tmp_path / "out")
    steps = {label: method["meta_steps"] for label, method in results["methods"].items()}
    assert steps == {"fobmaml": 6, "maml": round(6 * 9 / 10), "fomaml": round(6 * 9 / 4)}
    folder = training.RunFolder.open(tmp_path / "out" / "fomaml" / "seed_0")
    assert training.composition_of(folder).pace.meta_steps == 14


def test_a_method_that_diverges_from_the_start_has_no_result(tmp_path):
    """Adapting with its settings diverges even before meta-training."""
    variants = VARIANTS | {"wild": {"method": "fomaml", "inner_lr": 1.0, "steps": 40}}
    results = comparison.compare(plan(seeds=(0,), variants=variants), tmp_path / "out")
    wild = results["methods"]["wild"]
    assert wild["test"] is None
    assert wild["minus_first"]["all"] is None
    assert "the gradient of the base solve became non-finite at step" in wild["failures"]["0"]
    page = reports.write_comparison(results, tmp_path / "out").read_text()
    assert "Runs that diverged" in page
    assert "wild, seed 0" in page
    assert "| wild | n/a (1 of 1 seeds diverged) | n/a | n/a | n/a |" in (tmp_path / "out" / "table.md").read_text()


def test_a_run_that_diverges_counts_as_its_initial_weights(tmp_path):
    """The branches diverge, so that nothing is trained, but adapting from the initial weights works."""
    variants = {
        "fomaml": PRESETS["fomaml"],
        "wild": {"method": "fobmaml", "branch_lr": 1e4, "branch_steps": 30, "lam": 1e-5},
    }
    results = comparison.compare(plan(variants=variants), tmp_path / "out")
    first, wild = results["methods"]["fomaml"], results["methods"]["wild"]
    before = [_initial_loss(tmp_path / "out", seed) for seed in (0, 1)]
    assert set(wild["failures"]) == {"0", "1"}
    assert wild["test"]["mean"] == pytest.approx(sum(before) / 2)
    assert wild["test"]["over_tasks"] is None
    difference = wild["minus_first"]["all"]
    assert difference["mean"] == pytest.approx(wild["test"]["mean"] - first["test"]["mean"])
    assert difference["over_seeds"] > 0
    again = comparison.recount(results, tmp_path / "out")
    assert again == results
    row = reports.comparison_table(results)[1]
    assert row["test"].endswith("(2 of 2 seeds diverged)")
    assert row["difference_tasks"] == "± n/a"
    assert "A seed on which a method diverged counts with its loss before meta-training" in reports.legend(results)


def test_tasks_that_were_skipped_are_counted_beside_the_result(tmp_path):
    """The branches of steep tasks diverge; a comparison made before there was such a setting has no count."""
    variants = {
        "fomaml": PRESETS["fomaml"],
        "some": {"method": "fobmaml", "nu": 0.1, "branch_lr": 0.2, "branch_steps": 20},
    }
    results = comparison.compare(plan(variants=variants, on_nonfinite="skip"), tmp_path / "out")
    runs = [training.RunFolder.open(tmp_path / "out" / "some" / f"seed_{seed}").read_metrics() for seed in (0, 1)]
    count = sum(int(row.get("tasks_skipped", 0)) for run in runs for row in run)
    assert 0 < count < 36
    first, some = reports.comparison_table(results)
    assert some["test"].endswith(f" ({count} of 36 training tasks skipped)")
    assert "skipped" not in first["test"]
    for method in results["methods"].values():
        del method["tasks_skipped"]
    assert "skipped" not in reports.comparison_table(results)[1]["test"]


def _initial_loss(out, seed):
    trainer = training.trainer_of(training.RunFolder.open(out / "wild" / f"seed_{seed}"))
    return trainer.evaluate("test", trainer.pace.test_tasks).loss.mean


def test_other_settings_and_strange_folders_are_refused_untouched(done, tmp_path):
    out, _ = done
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(mp.RunFolderError, match=r"with other settings \(lam: 0.5 there, 0.7 here\): choose another"):
        comparison.compare(plan(lam=0.7), out)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(mp.RunFolderError, match=r"holds mine.txt, which is not of this comparison"):
        comparison.compare(plan(), tmp_path)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variants": {"maml": PRESETS["maml"]}}, r"at least two methods, got \['maml'\]"),
        ({"seeds": ()}, r"seeds must be given, each once, got \[\]"),
        ({"seeds": (1, 1)}, r"seeds must be given, each once, got \[1, 1\]"),
        ({"budget": "time"}, "unknown budget 'time'; known: steps, gradients"),
        ({"variants": VARIANTS | {"a/b": {}}}, "'a/b' names a folder"),
        ({"variants": VARIANTS | {"x": {"seed": 3}}}, "x: seed and tasks are the same for all methods"),
        ({"variants": VARIANTS | {"x": {"colour": 3}}}, r"unknown setting 'colour'; known: tasks, shots"),
        ({"variants": VARIANTS | {"x": {"method": "sgd"}}}, "unknown method 'sgd'; known: fobmaml, fomaml, imaml"),
        ({"variants": VARIANTS | {"x": {"lam": 0.0}}}, "lam must be a finite number > 0"),
        ({"seed": 5}, "seed=5 can't be shared by all methods: give --seeds"),
        ({"method": "maml"}, "method='maml' can't be shared by all methods: name methods in --methods"),
    ],
)
def test_bad_plans_are_refused(settings, message):
    with pytest.raises(mp.InputError, match=message):
        plan(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "maml", "scheme": "forward"}, "scheme='forward' is a setting of fobmaml, but method='maml'"),
        ({"method": "fomaml", "branch_steps": 3}, "branch_steps=3 is a setting of fobmaml and tangent"),
        ({"cg_steps": 9}, "cg_steps=9 is a setting of imaml, but method='fobmaml'"),
    ],
)
def test_settings_of_another_method_are_refused(changes, message):
    with pytest.raises(mp.InputError, match=message):
        SHARED.but(**changes)


@pytest.mark.parametrize("label", ["comparison.json", "table.md", "report.html", "figures"])
def test_methods_are_not_called_as_the_files_beside_them(label):
    with pytest.raises(mp.InputError, match=f"'{label}' can't name a method: it is a file of the comparison"):
        plan(variants={"fobmaml": {}, label: {}})


def test_a_damaged_comparison_is_refused_by_name(done, tmp_path, capsys):
    out, results = done
    assert comparison.read(str(out)) == results
    assert comparison.recount(results, str(out))["methods"].keys() == results["methods"].keys()
    for text, message in (
        ("{", "is damaged: "),
        ("{}", "is not the comparison.json of a comparison"),
        ("[]", "is not"),
    ):
        (tmp_path / "comparison.json").write_text(text)
        with pytest.raises(SystemExit) as caught:
            main(["recount", str(tmp_path)])
        assert caught.value.code == 1
        printed = capsys.readouterr().err
        assert f"{tmp_path / 'comparison.json'} {message}" in printed
        assert printed.count("\n") == 1


def test_a_file_that_was_being_written_is_no_stranger(done, tmp_path):
    """As of a comparison that was killed while it wrote its results."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "comparison.json.partial").write_text("{")
    results = comparison.compare(plan(), out)
    assert results["methods"]["maml"]["test"] == done[1]["methods"]["maml"]["test"]
    assert not (out / "comparison.json.partial").exists()


def test_variants_drop_what_their_method_does_not_have():
    shared = SHARED.but(nu=0.02, branch_steps=2)
    assert shared.variant({"method": "maml"}) == SHARED.but(method="maml")
    center = shared.variant({"perturb": "center"}).composition().estimator
    assert (center.nu, center.branch_steps) == (None, 2)


def test_command_line_takes_variants_and_writes_the_report(tmp_path, capsys):
    (tmp_path / "variants.json").write_text(json.dumps({"soft": {"method": "maml", "lam": 0.1}}))
    small = ["--hidden", "8", "--meta-steps", "4", "--meta-batch", "2", "--eval-every", "2"]
    small += ["--eval-tasks", "3", "--test-tasks", "4", "--steps", "2", "--seeds", "0"]
    out = tmp_path / "out"
    main(
        [
            "compare",
            "sinusoid",
            "--out",
            str(out),
            "--methods",
            "fomaml",
            "soft",
            "--variants",
            str(tmp_path / "variants.json"),
            *small,
        ]
    )
    printed = capsys.readouterr().out
    assert "run 2 of 2: soft, seed 0: done" in printed
    results = json.loads((out / "comparison.json").read_text())
    assert results["methods"]["soft"]["settings"]["lam"] == 0.1
    table = (out / "table.md").read_text()
    assert table.splitlines()[0].startswith(
        "| method | unseen tasks, ± over seeds | ± over tasks | difference, ± over seeds | ± over tasks | support |"
    )
    assert "± n/a" in table.splitlines()[2]  # one seed
    assert "With one seed the interval over seeds is unknown (n/a)." in table
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2  # the panels of its figure
    assert "<code>lam</code>" in page  # among the settings that differ
    with pytest.raises(SystemExit) as caught:
        main(["compare", "sinusoid", "--out", str(out), "--methods", "fomaml", "harsh", *small])
    assert caught.value.code == 2
    assert "unknown method 'harsh'; known: fobmaml" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_memory_is_flat_in_the_inner_steps_and_that_of_maml_is_not(backend):
    """Deterministic: it is counted by the allocator, not read off the process."""
    trainer = SHARED.but(hidden=(64, 64), meta_batch=4).composition().trainer()
    tasks = trainer.batch("train", range(4))

    def peak(meta):
        trainer.optimizer.zero_grad()
        return peak_memory(lambda: meta.backward(trainer.problem, tasks), torch.device("cpu"))

    solver = mp.GradientDescent(0.01)
    flat = [peak(mp.FOBMAML(solver, steps, nu=0.05, backend=backend)) for steps in (4, 8, 40)]
    assert max(flat) <= 1.02 * min(flat)
    unrolled = [peak(mp.MAML(solver, steps, backend=backend)) for steps in (4, 8, 40)]
    growth = (unrolled[2] - unrolled[1]) / (unrolled[1] - unrolled[0])
    assert growth == pytest.approx(8, rel=0.1)  # linear in the steps
    assert unrolled[2] > 3 * flat[2]


@pytest.mark.parametrize(
    ("method", "while_evaluating", "at_most"),
    [
        (mp.FOMAML, 2, 1.1),
        (mp.FOBMAML, 6, 5.72),
        (partial(mp.FOBMAML, perturb="loss"), 5, 4.72),
        (partial(mp.FOBMAML, perturb="loss", estimate_error=False), 3, 3),
        (partial(mp.FOBMAML, perturb="loss", scheme="forward", estimate_error=False), 3, 3),
        (partial(mp.FOBMAML, scheme="forward", estimate_error=False), 4, 4),
        (partial(mp.FOBMAML, scheme="forward", residual_correction=True), 5, 4.72),
        (partial(mp.FOBMAML, scheme="forward", residual_correction=True, estimate_error=False), 4, 4),
    ],
)
def test_loop_backend_needs_few_vectors_beyond_a_plain_training_step(method, while_evaluating, at_most):
    """In vectors of P numbers: with many activations the peak lies in an evaluation, with few between evaluations.

    Below a megabyte of parameters there is one vector more. A plain step has ``.grad``. Fractions are the gradient of a
    parameter, all that a backward pass has of its own.
    """
    meta = method(mp.GradientDescent(0.01), 4, backend="loop")
    assert _vectors_beyond_plain_training(meta, [16, *[64] * 10, 1], 500) == pytest.approx(
        while_evaluating + 1, abs=0.1
    )
    assert _vectors_beyond_plain_training(meta, [16, *[256] * 6, 1], 2000) == pytest.approx(while_evaluating, abs=0.1)
    assert _vectors_beyond_plain_training(meta, [16, *[256] * 12, 1], 2) == pytest.approx(at_most, abs=0.1)


def _vectors_beyond_plain_training(meta, widths, examples):
    model = mlp(widths)
    data = torch.randn(1, examples, 16), torch.randn(1, examples, 1)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)

    def plain():
        mean_squared_error(model, tuple(leaf[0] for leaf in data)).backward()

    peaks = []
    for work in (plain, lambda: meta.backward(problem, mp.Task(data, data))):
        model.zero_grad()
        peaks.append(peak_memory(work, torch.device("cpu")))
    return (peaks[1] - peaks[0]) / (4 * sum(p.numel() for p in model.parameters()))


def test_measured_peak_is_what_was_allocated():
    def work():
        a = torch.empty(1_000_000)
        del a
        b, c = torch.empty(300_000), torch.empty(300_000)
        return b, c

    peak = peak_memory(work, torch.device("cpu"))
    assert 4_000_000 <= peak <= 4_001_000


def test_measuring_says_why_it_failed():
    with pytest.raises(mp.MetaproxError, match=r"failed:\n(.|\n)*device 'gpu9' can't be used here"):
        measure({"x": Composed(SHARED.but(device="gpu9").composition())})


def test_a_hessian_vector_product_counts_as_two_gradients():
    assert Cost(mp.Counts(3, 2, 4), 0, 0.0).gradients == 13
