"""A script's own model, loss, tasks, optimizer and schedule: the same folder, resumption, report and comparison."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.optim import lr_scheduler as schedulers

import metaprox as mp
from conftest import interrupt_at, records
from metaprox import comparison, reports, training
from metaprox.cli import main
from metaprox.models import mean_squared_error, mlp
from metaprox.reports.comparison import comparison_table, draw, markdown
from metaprox.tasks import Sinusoid
from metaprox.tasks.pictures import curve
from metaprox.training import Pace, Trainer, weights
from metaprox.training.packed import unpack

PACE = Pace(meta_steps=7, meta_batch=3, eval_every=3, eval_tasks=4, test_tasks=5, checkpoint_every=3)
SPLITS = ("train", "validation", "test")


class Net(torch.nn.Module):
    """A model of somebody's own, with noise and a buffer."""

    def __init__(self, width=6):
        super().__init__()
        self.inner = torch.nn.Linear(1, width)
        self.norm = torch.nn.BatchNorm1d(width, track_running_stats=False)
        self.drop = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(width, 1)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.scale * self.head(self.drop(torch.relu(self.norm(self.inner(x)))))


def loss(model, batch):
    inputs, targets = batch
    found = (model(inputs) - targets).square().mean()
    return found, {"root": found.sqrt()}


def lines(split):
    """Tasks that nothing of ours made: a slope each."""

    def batch(ids):
        made = []
        for i in ids:
            source = torch.Generator().manual_seed(1000 * i + SPLITS.index(split))
            inputs = torch.randn(8, 1, generator=source)
            targets = inputs * torch.randn((), generator=source)
            made.append(mp.Task((inputs[:4], targets[:4]), (inputs[4:], targets[4:])))
        return made

    return batch


def trainer(seed=0, optimizer="adam", method=mp.FOBMAML, pace=PACE, **changes):
    torch.manual_seed(seed)
    model = Net()
    made = {
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.99)),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
        "rmsprop": lambda: torch.optim.RMSprop(model.parameters(), lr=0.01, centered=True),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True),
        "adagrad": lambda: torch.optim.Adagrad(model.parameters(), lr=0.01),
        "normalized": lambda: mp.optim.NormalizedSGD(model.parameters(), lr=0.1),
    }.get(optimizer, lambda: optimizer)()
    parts = {
        "problem": mp.ProximalProblem.from_module(model, loss, lam=0.5),
        "estimator": method(mp.GradientDescent(0.05), 3),
        "optimizer": made,
        "tasks": {split: lines(split) for split in SPLITS},
        "pace": replace(pace, seed=seed) if pace is PACE else pace,
        "schedule": torch.optim.lr_scheduler.CosineAnnealingLR(made, T_max=7) if optimizer != made else None,
    }
    return Trainer(**parts | changes)


def fomaml(seed):
    return trainer(seed, method=mp.FOMAML)


@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop", "adamw", "adagrad", "normalized"])
def test_a_script_that_was_stopped_goes_on_bit_for_bit(tmp_path, optimizer, stop):
    straight = trainer(optimizer=optimizer).train(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        trainer(optimizer=optimizer).train(tmp_path / "stopped", interrupt_at(stop))
    resumed = trainer(seed=0, optimizer=optimizer).resume(tmp_path / "stopped")
    assert resumed.weights.read_bytes() == straight.weights.read_bytes()
    assert records(resumed) == records(straight)
    assert {path.name for path in straight.path.iterdir()} == {
        "config.json", "metrics.jsonl", "checkpoint-00000003.safetensors", "checkpoint-00000006.safetensors",
        "test_tasks.json", "weights.safetensors", "checksums.json", "starts.jsonl",
    }  # fmt: skip


SCHEDULES = {
    "milestones": lambda one: schedulers.MultiStepLR(one, [2, 5, 5], gamma=0.5),
    "one cycle": lambda one: schedulers.OneCycleLR(one, 0.1, total_steps=8),
    "of a function": lambda one: schedulers.LambdaLR(one, lambda step: 0.9**step),
    "restarts": lambda one: schedulers.CosineAnnealingWarmRestarts(one, 3),
    "one after another": lambda one: schedulers.SequentialLR(
        one, [schedulers.LinearLR(one, 0.1, total_iters=3), schedulers.MultiStepLR(one, [1, 2])], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_schedule_goes_on_bit_for_bit(tmp_path, name):
    def made():
        one = trainer(schedule=None)
        return replace(one, schedule=SCHEDULES[name](one.optimizer), configuration=None)

    straight = made().train(tmp_path / "straight")
    for stop in (3, 4, 6):
        with pytest.raises(KeyboardInterrupt):
            made().train(tmp_path / f"{stop}", interrupt_at(stop))
        resumed = made().resume(tmp_path / f"{stop}")
        assert resumed.weights.read_bytes() == straight.weights.read_bytes()
        assert records(resumed) == records(straight)


class Peculiar(torch.optim.SGD):
    """Its steps depend on what it keeps: of every kind, in another dtype, nested, and of no parameter."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                slot = self.state[p]
                slot["sum"] = slot.get("sum", torch.zeros((), dtype=torch.float64)) + p.grad.double().sum()
                slot["seen"] = [*slot.get("seen", ()), p.detach().mean().clone()][-2:]
                slot["at"] = {("pair", len(slot["seen"])): slot["sum"] > 0, 1: (1, slot["sum"].clone())}
                count = self.state.setdefault("all", {"of": 0})
                count["of"] += 1
                assert (slot["sum"].dtype, slot["at"]["pair", len(slot["seen"])].dtype) == (torch.float64, torch.bool)
                p.grad.mul_(1 / (1 + 0.01 * count["of"] + slot["sum"].abs() + slot["seen"][0].abs()).to(p.dtype))
        return super().step(closure)


def test_an_optimizer_with_any_state_goes_on_bit_for_bit(tmp_path):
    def made():
        torch.manual_seed(0)
        model = Net()
        groups = [{"params": model.inner.parameters(), "lr": torch.tensor(0.05)}, {"params": model.head.parameters()}]
        one = Peculiar(groups, lr=0.01)
        return trainer(problem=mp.ProximalProblem.from_module(model, loss, lam=0.5), optimizer=one, schedule=None)

    straight = made().train(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        made().train(tmp_path / "stopped", interrupt_at(5))
    resumed = made().resume(tmp_path / "stopped")
    assert resumed.weights.read_bytes() == straight.weights.read_bytes()
    assert records(resumed) == records(straight)


@pytest.mark.parametrize("optimizer", ["adam", "normalized"])
def test_a_checkpoint_of_before_configurations_had_a_version_is_read(tmp_path, optimizer):
    """It had the tensors of the optimizer by their places, and its numbers and groups as JSON."""
    made = lambda: training.Settings(  # noqa: E731
        "sinusoid", optimizer=optimizer, hidden=(8,), steps=3, compile="off", **_of(PACE)
    ).composition()
    straight = training.train(made(), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        training.train(made(), tmp_path / "stopped", interrupt_at(4))
    folder = training.RunFolder.open(tmp_path / "stopped")
    tensors, meta = weights.load(folder.checkpoint, "a checkpoint")
    state, schedule = (unpack(meta.pop(f"{part}_state"), tensors) for part in ("optimizer", "schedule"))
    kept = {name: one for name, one in tensors.items() if not name.startswith("optimizer.")}
    kept |= {f"optimizer.{i}.{name}": one for i, slot in state["state"].items() for name, one in slot.items()}
    meta |= {"param_groups": state["param_groups"], "optimizer": {}, "scheduler": schedule}
    weights.save(folder.checkpoint, "a checkpoint", kept, meta)
    resumed = training.resume(folder.path)
    assert resumed.weights.read_bytes() == straight.weights.read_bytes()
    assert records(resumed) == records(straight)


def test_the_schedule_and_the_metrics_are_the_scripts_own(tmp_path):
    made = trainer()
    folder = made.train(tmp_path / "run")
    steps = [r for r in records(folder) if r["kind"] == "step"]
    expected = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(expected, T_max=7)
    for row in steps:
        expected.step()
        schedule.step()
        assert row["next_lr"] == schedule.get_last_lr()[0]
        assert row["root"] > 0
    kept = load_file(folder.weights)
    assert all(torch.equal(kept[name], value) for name, value in made.model.state_dict().items())


def test_both_doors_lead_to_the_same_training(tmp_path):
    settings = training.Settings("sinusoid", hidden=(8,), steps=3, compile="off", **_of(PACE))
    composed = training.train(settings, tmp_path / "composed")
    model = mlp([1, 8, 1])
    optimizer = mp.optim.NormalizedSGD(model.parameters(), lr=0.1)
    scripted = Trainer(
        mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5),
        mp.FOBMAML(mp.GradientDescent(0.01), 3),
        optimizer,
        {split: Sinusoid(split=split) for split in SPLITS},
        PACE,
        torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=7),
    ).train(tmp_path / "scripted")
    a, b = (load_file(folder.weights) for folder in (composed, scripted))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert records(composed) == records(scripted)


def _of(pace):
    return {name: value for name, value in vars(pace).items() if name != "seed"}


def test_other_objects_are_refused_and_what_differs_is_named(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer().train(tmp_path / "run", interrupt_at(4))
    for other, message in (
        (trainer(method=mp.FOMAML), r"method: 'FOBMAML' there, 'FOMAML' here"),
        (trainer(pace=replace(PACE, meta_batch=4)), "meta_batch: 3 there, 4 here"),
        (trainer(optimizer="sgd"), "optimizer: 'Adam' there, 'SGD' here"),
        (trainer(schedule=None), "schedule: 'CosineAnnealingLR' there, None here"),
        (trainer(seed=1), "seed: 0 there, 1 here"),
    ):
        with pytest.raises(mp.RunFolderError, match=message):
            other.resume(tmp_path / "run")
    with pytest.raises(mp.RunFolderError, match="run with other settings"):
        training.Settings("sinusoid").composition().trainer().resume(tmp_path / "run")


def test_what_differs_beyond_the_first_settings_is_named_too(tmp_path):
    """Other groups of the optimizer, settings of the schedule, tasks of the test, losses and what is evaluated."""

    def made(lr=0.2, milestone=2, test="test", loss=loss, outer=None, lam=0.7):
        torch.manual_seed(0)
        model = Net()
        one = torch.optim.SGD(
            [{"params": model.inner.parameters()}, {"params": model.head.parameters(), "lr": lr}], 0.1
        )
        problem = mp.ProximalProblem.from_module(model, loss, lam=0.5, outer_loss=outer)
        return trainer(
            problem=problem,
            optimizer=one,
            schedule=schedulers.MultiStepLR(one, [milestone]),
            tasks={"train": lines("train"), "validation": Sinusoid(split="validation"), "test": Sinusoid(split=test)},
            evaluated=mp.ProximalProblem.from_module(model, loss, lam=lam),
        )

    with pytest.raises(KeyboardInterrupt):
        made().train(tmp_path / "run", interrupt_at(4))
    for other, message in (
        (made(lr=0.3), r"other_groups: \[\{'lr': 0.2\}\] there, \[\{'lr': 0.3\}\] here"),
        (made(milestone=3), r"schedule_milestones: \[2\] there, \[3\] here"),
        (made(test="train"), "test: \"Sinusoid.*split='test'.* there, \"Sinusoid.*split='train'.* here"),
        (made(outer=_other_loss), "query_loss: 'loss' there, '_other_loss' here"),
        (made(lam=0.8), "evaluated: .*'lam 0.7'.* there, .*'lam 0.8'.* here"),
    ):
        with pytest.raises(mp.RunFolderError, match=message):
            other.resume(tmp_path / "run")
    made().resume(tmp_path / "run")


def _other_loss(model, batch):
    return loss(model, batch)


def test_a_trainer_trains_once(tmp_path):
    """A second run would start where the first ended, at the end of its schedule."""
    made = trainer()
    made.train(tmp_path / "one")
    with pytest.raises(mp.InputError, match=r"this trainer has trained in .*one, and goes on from there: make another"):
        made.train(tmp_path / "two")
    assert not (tmp_path / "two").exists()
    resumed = trainer()
    resumed.resume(tmp_path / "one")
    with pytest.raises(mp.InputError, match="has trained"):
        resumed.train(tmp_path / "two")


def test_what_is_reported_beside_is_a_number_for_each_task(tmp_path):
    for baseline, message in (
        (lambda model, tasks: {"loss": torch.ones(len(tasks))}, "there is a metric 'loss' already"),
        (lambda model, tasks: {"root": torch.ones(len(tasks))}, "there is a metric 'root' already"),
        (lambda model, tasks: {"chance": 0.5}, "metric 'chance' must be a tensor of a number for each of 1 tasks"),
        (lambda model, tasks: {"chance": torch.ones(2)}, "metric 'chance' must be a tensor of a number for each of 1"),
        (lambda model, tasks: 3, "what baseline returns must be a Mapping, got 3"),
    ):
        with pytest.raises(mp.InputError, match=message):
            trainer(baseline=baseline).train(tmp_path / "run")
        assert not (tmp_path / "run").exists()
    folder = trainer(baseline=lambda model, tasks: {"chance": torch.arange(float(len(tasks)))}).train(tmp_path / "run")
    assert folder.read_metrics()[-1]["chance"]["mean"] == 2.0


def test_an_unfinished_run_has_no_weights_and_its_report_says_how_far_it_is(tmp_path):
    made = trainer()
    with pytest.raises(KeyboardInterrupt):
        made.train(tmp_path / "run", interrupt_at(4))
    folder = training.RunFolder.open(tmp_path / "run")
    page = reports.write_report(folder).read_text()
    assert "Not finished</strong>: meta-step 4 of 7, last heard of" in page
    assert "nobody works there" in page
    assert not folder.figures.exists()
    with pytest.raises(mp.RunFolderError, match=r"weights\.safetensors is missing: the run in .* has not finished"):
        made.load_weights(folder)


def test_a_finished_run_puts_its_weights_into_the_model(tmp_path):
    folder = trainer().train(tmp_path / "run")
    again = trainer()
    again.resume(folder.path)
    kept = load_file(folder.weights)
    assert all(torch.equal(kept[name], value) for name, value in again.model.state_dict().items())
    assert again.evaluate("test", 5).values["loss"].shape == (5,)


def test_the_command_line_says_that_a_scripts_run_is_the_scripts(tmp_path, capsys):
    folder = trainer().train(tmp_path / "run")
    for command in ("evaluate", "check"):
        with pytest.raises(SystemExit) as caught:
            main([command, str(folder.path)])
        assert caught.value.code == 1
        assert "is the run of a script, with a model and tasks of its own" in capsys.readouterr().err


def test_report_of_a_script(tmp_path):
    folder = trainer().train(tmp_path / "run")
    page = reports.write_report(folder).read_text()
    assert "FO-B-MAML" in page
    assert "Net of 31 parameters" in page
    assert page.count("data:image/png") == 1 + 3
    pictured = reports.write_report(folder, trainer(picture=curve("A line", -2.0, 2.0))).read_text()
    assert pictured.count("data:image/png") == 1 + 3 + 2
    assert "<h2>A line</h2>" in pictured


@pytest.mark.parametrize("jobs", [1, 2])
def test_scripts_are_compared_by_functions_of_the_seed(tmp_path, jobs):
    plan = comparison.Plan.of_trainers({"ours": trainer, "first order": fomaml}, (0, 1))
    results = comparison.compare(plan, tmp_path / "out", jobs)
    assert results["metric"] == "loss"
    runs = {
        (label, seed): training.RunFolder.open(tmp_path / "out" / label / f"seed_{seed}").read_test_values()["loss"]
        for label in results["methods"]
        for seed in (0, 1)
    }
    for seed, values in ((0, runs["first order", 0]), (1, runs["first order", 1])):
        assert values == fomaml(seed).train(tmp_path / f"alone{seed}").read_test_values()["loss"]
    gained = [torch.tensor(runs["first order", s]).sub(torch.tensor(runs["ours", s])).mean() for s in (0, 1)]
    assert results["methods"]["first order"]["minus_first"]["all"]["mean"] == pytest.approx(float(sum(gained)) / 2)
    page = reports.write_comparison(results, tmp_path / "out").read_text()
    assert "<code>method</code>" in page
    assert results["methods"]["ours"]["cost"]["per_task_and_meta_step"]["support_gradients"] == 3 + 1 + 2 * 2


def test_functions_that_only_this_process_knows_are_compared_in_it(tmp_path):
    plan = comparison.Plan.of_trainers({"a": lambda seed: trainer(seed), "b": lambda seed: fomaml(seed)}, (0, 1))
    assert set(comparison.compare(plan, tmp_path / "out")["methods"]) == {"a", "b"}
    with pytest.raises(mp.InputError, match="jobs=2 makes runs in other processes, which can't get"):
        comparison.compare(plan, tmp_path / "other", jobs=2)
    with pytest.raises(mp.InputError, match="a is made by a script, which alone can give it other numbers"):
        comparison.compare(replace(plan, budget="gradients"), tmp_path / "more")


def _only(value):
    """A loss of its own, of any sign, and perhaps an accuracy."""

    def found(model, batch):
        mean = (model(batch[0]) - batch[1]).square().mean()
        return (mean - 9, {"accuracy": (mean < 1).float()}) if value == "accuracy" else mean - 9

    return found


def _of_loss(one, **changes):
    def made(seed):
        torch.manual_seed(seed)
        model = Net()
        problem = mp.ProximalProblem.from_module(model, one, lam=0.5)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        pace = replace(PACE, **{"seed": seed} | changes)
        return trainer(problem=problem, optimizer=optimizer, pace=pace, schedule=None)

    return made


def test_what_all_methods_report_is_compared(tmp_path):
    """An accuracy, where all have one; losses of any sign are drawn."""
    some = {name: _of_loss(_only(name)) for name in ("accuracy", "loss")}
    results = comparison.compare(comparison.Plan.of_trainers(some, (0,)), tmp_path / "some")
    assert results["metric"] == "loss"
    both = comparison.Plan.of_trainers(dict.fromkeys(("a", "b|c"), some["accuracy"]), (0,))
    assert comparison.compare(both, tmp_path / "both")["metric"] == "accuracy"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports.write_comparison(results, tmp_path / "some")
        reports.write_report(training.RunFolder.open(tmp_path / "some" / "loss" / "seed_0"))
    left = draw(results).axes[0]
    assert left.get_yscale() == "linear"
    assert left.get_ylim()[0] < 0
    assert "b\\|c" in markdown(comparison_table(comparison.read(tmp_path / "both")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda seed: trainer(0), "b: the function makes a run of seed 0 where it was asked for 1"),
        (lambda seed: trainer(seed) if seed == 0 else 5, "b: the function must make a training.Trainer, got 5"),
        (lambda seed: _of_loss(loss, meta_steps=7 + seed)(seed), "b: the pace of seed 1 is not that of seed 0"),
        (_of_loss(loss, test_tasks=4), "test_tasks must be the same for all methods, .*'a': 5, 'b': 4"),
    ],
)
def test_functions_that_make_other_runs_than_asked_are_refused_before_any_is(make, message):
    with pytest.raises(mp.InputError, match=message):
        comparison.Plan.of_trainers({"a": trainer, "b": make}, (0, 1))
    with pytest.raises(mp.InputError, match="test_tasks must be the same for all methods"):
        comparison.Plan.of(training.Settings("sinusoid"), {"maml": {"method": "maml"}, "b": {"test_tasks": 4}}, (0,))


def _other_model():
    return torch.optim.SGD(Net().parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": mp.ProximalProblem(lambda p, d: d, lambda p, d: d, 1.0)}, "problem must be of a model"),
        ({"problem": Net()}, "problem must be a ProximalProblem, got"),
        ({"estimator": mp.FOBMAML}, "estimator must be an Estimator, got the class FOBMAML"),
        ({"optimizer": _other_model()}, "optimizer moves parameters that are not those of the problem's model"),
        ({"schedule": torch.optim.lr_scheduler.StepLR(_other_model(), 3)}, "is not one of the optimizer"),
        ({"tasks": {"train": lines("train")}}, r"tasks\['validation'\] must be a function of ids"),
        ({"tasks": {split: [1, 2] for split in SPLITS}}, r"tasks\['train'\] must be a function of ids.*got \[1, 2\]"),
        ({"tasks": lines("train")}, "tasks must be a Mapping"),
        ({"evaluated": mp.ProximalProblem.from_module(Net(), loss, 0.5)}, "evaluated must be a problem of the model"),
        ({"pace": 7}, "pace must be a Pace, got 7"),
        ({"tasks": dict.fromkeys(SPLITS, Sinusoid)}, r"tasks\['train'\] must .* got the class Sinusoid"),
        ({"baseline": 3}, "baseline must be a Callable, got 3"),
        ({"picture": "a line"}, "picture must be a Picture, got 'a line'"),
        ({"configuration": {"a": print}}, "configuration must be what config.json can hold"),
        ({"problem": mp.ProximalProblem.from_module(torch.nn.LazyLinear(1), loss, 0.5)}, "'weight' of the model has"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(mp.InputError, match=message):
        trainer(**changes)


def test_what_can_not_be_resumed_is_refused_at_once():
    made = trainer()
    parts = {name: getattr(made, name) for name in ("problem", "estimator", "tasks", "pace")}
    with pytest.raises(mp.InputError, match="LBFGS evaluates the loss several times a step"):
        Trainer(optimizer=torch.optim.LBFGS(made.model.parameters()), **parts)
    sgd = torch.optim.SGD(made.model.parameters(), lr=0.1)
    with pytest.raises(mp.InputError, match="ReduceLROnPlateau waits for a metric"):
        Trainer(optimizer=sgd, schedule=torch.optim.lr_scheduler.ReduceLROnPlateau(sgd), **parts)
    odd = torch.optim.Adam(made.model.parameters(), lr=0.1)
    odd.param_groups[0]["when"] = print
    with pytest.raises(mp.InputError, match=r"the state of optimizer Adam can't be kept.*param_groups.0.when is the"):
        Trainer(optimizer=odd, **parts)

    class Odd:
        def __call__(self, step):
            return 0.5**step

        def __getstate__(self):
            return {"f": print}

    odd = Odd()
    odd.when = print
    with pytest.raises(mp.InputError, match="the state of schedule LambdaLR can't be kept, so that"):
        Trainer(optimizer=sgd, schedule=torch.optim.lr_scheduler.LambdaLR(sgd, odd), **parts)


def test_a_loss_or_tasks_that_fail_leave_no_folder(tmp_path):
    made = trainer()
    bad = mp.ProximalProblem.from_module(made.model, lambda model, batch: "five", lam=0.5)
    with pytest.raises(mp.InputError, match="must return a scalar tensor, got a str"):
        replace(made, problem=bad, configuration=None).train(tmp_path / "run")
    with pytest.raises(mp.InputError, match="tasks"):
        replace(made, tasks={split: lambda ids: None for split in SPLITS}).train(tmp_path / "run")
    with pytest.raises(KeyError, match="gone"):
        replace(made, tasks=made.tasks | {"train": _gone}).train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _gone(ids):
    raise KeyError("gone")


def test_configuration_of_a_script_says_what_it_is(tmp_path):
    folder = trainer().train(tmp_path / "run")
    written = json.loads((folder.path / "config.json").read_text())
    assert written["version"] == 2
    assert written["made_by"] == "script"
    assert written["method"]["solver"] == {"class": "GradientDescent", "lr": 0.05}
    assert written["optimizer"]["class"] == "Adam"
    assert written["optimizer"]["lr"] == 0.01
    assert written["run"]["meta_steps"] == 7
