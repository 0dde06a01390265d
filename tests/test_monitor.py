"""Each warning fires where its fault is, once, with numbers and the remedy; healthy runs hear nothing."""

import re
import warnings
from contextlib import suppress

import pytest
import torch

import metaprox as mp
from metaprox import reports, training
from metaprox.cli import main
from metaprox.estimators import monitor as looking
from metaprox.estimators.monitor import RULES, Monitor

GD = mp.GradientDescent(0.2)
WINDOW, ENOUGH = 5, 3


@pytest.fixture
def quick(monkeypatch):
    """Looks more often than every 25 meta-steps."""
    monkeypatch.setattr(looking, "WINDOW", WINDOW)


def quadratic(curvature=1.0, query=1.0, lam=0.5, dtype=torch.float64):
    """fhat = curvature (y - s)^2 / 2, f = query (y - q)^2 / 2 in three dimensions; four tasks."""
    inner = lambda p, s: 0.5 * (curvature * (p["y"] - s).square()).sum()  # noqa: E731
    outer = lambda p, q: 0.5 * query * (p["y"] - q).square().sum()  # noqa: E731
    rng = torch.Generator().manual_seed(0)
    s, q = (torch.randn(4, 3, generator=rng, dtype=torch.float64).to(dtype) for _ in range(2))
    return mp.ProximalProblem(inner, outer, lam), {"y": torch.full((3,), 0.3, dtype=dtype)}, mp.Task(s, q + 2)


def heard(meta, problem, params, tasks, times=WINDOW):
    """What ``backward`` warns of in so many calls: class -> texts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            meta.backward(problem, tasks, {name: p.clone() for name, p in params.items()})
    assert all(one.filename == __file__ for one in caught)  # the place is the user's
    found = {}
    for one in caught:
        found.setdefault(one.category, []).append(str(one.message))
    return found


SPREAD = torch.tensor([1e-4, 0.1, 1.0], dtype=torch.float64)
FAULTS = [
    (mp.UnmovedWarning, mp.FOBMAML(mp.GradientDescent(1e-5), 3), quadratic(), r"has some \S+ times that way to go"),
    (mp.InaccurateWarning, mp.FOBMAML(GD, 3), quadratic(SPREAD, lam=1e-4), r"g is \d+% error .* from the branches"),
    (
        mp.RatioWarning,
        mp.FOBMAML(GD, 60, perturb="center"),
        quadratic(-0.4),
        r"100% of the tasks have .*median ratio 3.5\).*shorter",
    ),
    (mp.AstrayWarning, mp.FOBMAML(GD, 30, nu=0.9), quadratic(query=2.0), r"for 100% of the tasks .*smaller nu"),
    (
        mp.RoundingWarning,
        mp.FOBMAML(GD, 40, nu=1e-7),
        quadratic(dtype=torch.float32),
        r"error of 100% of the tasks: .* nu = 1e-07",
    ),
    (mp.IndefiniteWarning, mp.FOBMAML(GD, 3), quadratic(-0.7), r"along the last steps of 100% of the tasks"),
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("kind", "meta", "case", "words"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_each_fault_is_told_once_with_numbers_and_the_remedy(kind, meta, case, words):
    found = heard(meta, *case, times=2 * WINDOW)
    assert len(found[kind]) == 1
    assert re.search(words, found[kind][0])
    assert found[kind][0].startswith(f"meta-steps 1 to {WINDOW}: ")
    assert Monitor.of(case[0]).said[kind.__name__] == found[kind][0]


@pytest.mark.parametrize("kind", [kind for kind, *_ in FAULTS], ids=lambda kind: kind.__name__)
def test_each_limit_is_where_it_says(kind):
    """The faults are faults by the rule that is theirs, and well solved problems are by none."""
    rule = next(rule for rule in RULES if rule.warning is kind)
    _, meta, (problem, params, tasks), _ = next(fault for fault in FAULTS if fault[0] is kind)
    monitor, healthy = Monitor(), Monitor()
    monitor.see(meta(problem, params, tasks))
    healthy.see(mp.FOBMAML(GD, 60, perturb=meta.perturb)(*quadratic()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mp.HealthWarning)
        monitor.look()
        healthy.look()
    assert monitor.numbers[rule.number] > rule.limit
    assert healthy.numbers[rule.number] < 0.5 * rule.limit
    assert healthy.said == {}


@pytest.mark.usefixtures("quick")
def test_a_loss_that_triples_is_told_by_what_it_was():
    problem, params, tasks = quadratic()
    meta = mp.FOBMAML(GD, 20)
    assert heard(meta, problem, params, tasks) == {}
    far = mp.Task(tasks.support, tasks.query + 6)
    found = heard(meta, problem, params, far)
    assert list(found) == [mp.LossWarning]
    numbers = Monitor.of(problem).numbers
    assert numbers["rise"] == pytest.approx(numbers["loss"] / numbers["least"])
    assert f"{numbers['rise']:.1f} times what it has been ({numbers['least']:.3g})" in found[mp.LossWarning][0]
    assert heard(meta, problem, params, far) == {}


def test_the_numbers_are_medians_and_shares_of_the_tasks_that_were_kept():
    problem, params, tasks = quadratic()
    outs = [mp.FOBMAML(GD, steps)(problem, params, tasks) for steps in (2, 4, 6)]
    monitor = Monitor()
    for out in outs:
        monitor.see(out)
    monitor.look()
    for name, of in (("relative_error", "relative_error"), ("ratio", "gradient_ratio"), ("nu", "nu")):
        values = torch.cat([getattr(out.info, of) for out in outs])
        assert monitor.numbers[name] == pytest.approx(float(values.median()))
    info = outs[0].info
    skipped = torch.tensor([False, True, False, False])
    one = mp.MetaGradient({}, outs[0].query_loss, {}, None, mp.Info(**vars_of(info) | {"skipped": skipped}))
    alone = Monitor()
    alone.see(one)
    alone.look()
    assert alone.numbers["relative_error"] == pytest.approx(float(info.relative_error[~skipped].median()))
    assert alone.numbers["loss"] == pytest.approx(float(outs[0].query_loss[~skipped].mean()))


def vars_of(info):
    return {name: getattr(info, name) for name in info.__dataclass_fields__}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", [mp.MAML, mp.FOMAML, mp.Reptile, mp.IMAML], ids=lambda m: m.__name__)
def test_methods_that_know_less_say_less(method):
    problem, params, tasks = quadratic()
    assert heard(method(GD, 30), problem, params, tasks, WINDOW) == {}
    assert Monitor.of(problem).numbers["loss"] > 0


@pytest.mark.usefixtures("quick")
def test_nothing_is_computed_between_the_looks():
    """A call keeps a few numbers a task, and no vector; a run that ends early is judged if there is enough."""
    problem, params, tasks = quadratic()
    monitor = Monitor.anew(problem)
    meta = mp.FOBMAML(mp.GradientDescent(1e-5), 3)
    assert heard(meta, problem, params, tasks, ENOUGH - 1) == {}
    assert all(out.grad == {} and out.adapted is None for out in monitor._window)
    monitor.end(ENOUGH)
    assert monitor.numbers == {}  # and they are forgotten
    monitor = Monitor.anew(problem)
    assert heard(meta, problem, params, tasks, ENOUGH) == {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor.end(ENOUGH)
    assert f"meta-steps 1 to {ENOUGH}: " in str(caught[0].message)
    assert monitor._window == []
    Monitor.anew(problem)
    assert mp.UnmovedWarning in heard(meta, problem, params, tasks)  # another run hears it again


@pytest.mark.usefixtures("quick")
def test_a_run_that_goes_on_knows_what_was():
    monitor = Monitor()
    monitor.goes_on(60, [4.0, 2.0, 3.0], {"RatioWarning": "told"})
    assert monitor.said == {"RatioWarning": "told"}
    monitor.see(mp.FOBMAML(mp.GradientDescent(0.2), 60, perturb="center")(*quadratic(-0.4)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor.look()
    assert mp.RatioWarning not in [one.category for one in caught]
    assert monitor.numbers["least"] == 2.0


@pytest.mark.parametrize("tasks", ["sinusoid", "mnist1d"])
def test_short_runs_of_the_defaults_are_healthy(tasks, tmp_path):
    """Warnings are errors here."""
    run = training.Settings(tasks=tasks, meta_steps=25, meta_batch=2, eval_tasks=2, test_tasks=2, compile="off")
    folder = training.train(run, tmp_path / "run")
    assert not any("warnings" in record for record in folder.read_metrics())
    page = reports.write_report(folder).read_text()
    assert "Nothing was seen that training should be warned of" in page
    assert "relative error of g" in page


@pytest.mark.usefixtures("quick")
def test_a_run_keeps_what_it_was_warned_of(tmp_path, capsys):
    """In metrics.jsonl at its step, in the report, on the progress line."""
    options = {"meta-steps": 10, "meta-batch": 2, "eval-tasks": 2, "test-tasks": 2, "inner-lr": 1e-6, "compile": "off"}
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with pytest.warns(mp.HealthWarning):
        main(["train", "sinusoid", "--out", str(tmp_path / "run"), *given])
    records = training.RunFolder.open(tmp_path / "run").read_metrics()
    told = {record["step"]: record["warnings"] for record in records if "warnings" in record}
    assert list(told) == [WINDOW]
    assert "UnmovedWarning" in told[WINDOW]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "UnmovedWarning" in page
    assert "Nothing was seen" not in page
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("meta-step")]
    assert "ratio" in lines[0]
    assert "UnmovedWarning" not in lines[0]
    assert "UnmovedWarning" in lines[-1]


@pytest.mark.usefixtures("quick")
def test_a_resumed_run_says_nothing_twice(tmp_path):
    run = training.Settings(
        tasks="sinusoid", meta_steps=12, meta_batch=1, eval_tasks=1, test_tasks=1, inner_lr=1e-6, compile="off",
        checkpoint_every=6, eval_every=12,
    )  # fmt: skip

    def stop(now):
        if now.step == 8:
            raise KeyboardInterrupt

    with warnings.catch_warnings(), suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore", mp.HealthWarning)
        training.train(run, tmp_path / "run", stop)
    folder = training.resume(tmp_path / "run")  # warnings are errors
    told = [name for record in folder.read_metrics() for name in record.get("warnings", {})]
    assert told == ["UnmovedWarning", "InaccurateWarning"]


@pytest.mark.usefixtures("quick")
def test_a_state_that_is_none_is_refused():
    """What a damaged or hostile checkpoint may hold, by name."""
    problem, params, tasks = quadratic()
    monitor = Monitor()
    monitor.see(mp.FOBMAML(GD, 5)(problem, params, tasks))
    state = monitor.state()
    Monitor.check_state(state)
    Monitor.check_state({})
    for name, value in state.items():
        gone = {key: one for key, one in state.items() if key != name}
        for bad in (
            gone,
            state | {name: value[None]},
            state | {name: value.to(torch.complex64)},
            gone | {"odd": value},
        ):
            if name in ("loss", "lam", "steps") and bad.get(name) is not None and bad[name].dim() == value.dim():
                continue
            with pytest.raises(mp.InputError):
                Monitor.check_state(bad)
    with pytest.raises(mp.InputError, match="no such state"):
        Monitor.check_state(state | {"steps": torch.tensor(WINDOW)})
