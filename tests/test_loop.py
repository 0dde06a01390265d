"""The training loop people expect: clipping, accumulation, streams of tasks, callbacks, TensorBoard, DataLoaders."""

import itertools
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

import metaprox as mp
from conftest import interrupt_at, records
from metaprox import reports, training
from metaprox.models import mean_squared_error, mlp
from metaprox.training import Pace, Trainer, step

PACE = Pace(meta_steps=6, meta_batch=2, eval_every=3, eval_tasks=3, test_tasks=3, checkpoint_every=2)


def task(i, noise=0.0):
    source = torch.Generator().manual_seed(i)
    x = torch.randn(6, 1, generator=source) + noise
    y = x * torch.randn((), generator=source)
    return mp.Task((x[:3], y[:3]), (x[3:], y[3:]))


def by_ids(ids):
    return [task(i) for i in ids]


class Tasks(Dataset):
    """A map-style data set, of which each reading is noisy."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        return task(i, random.random() + np.random.rand() + float(torch.rand(())))


def endless(seed=0):
    source = np.random.default_rng(seed)
    while True:
        yield task(int(source.integers(1000)), random.random())


def trainer(train=by_ids, pace=PACE, **changes):
    torch.manual_seed(0)
    model = mlp([1, 4, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    made = Trainer(
        mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5),
        mp.FOBMAML(mp.GradientDescent(0.05), 2),
        optimizer,
        {"train": train, "validation": by_ids, "test": by_ids},
        pace,
        torch.optim.lr_scheduler.StepLR(optimizer, 2),
    )
    return replace(made, **changes)


def loader(shuffle=True, **settings):
    """Two tasks at once, and a pass ends in the middle of the run."""
    return DataLoader(Tasks(), batch_size=2, drop_last=True, shuffle=shuffle, **settings)


STREAMS = {
    "list": lambda: by_ids(range(5)),
    "shuffled loader": loader,
    "loader of lists": lambda: loader(collate_fn=list),
    "loader of its own generator": lambda: loader(generator=torch.Generator().manual_seed(3)),
    "single tasks": lambda: DataLoader(Tasks(), batch_size=None, shuffle=True),
    "endless": endless,
    "endless lists": lambda: ([a, b] for a, b in zip(endless(1), endless(2), strict=False)),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_run_on_a_stream_of_tasks_goes_on_bit_for_bit(tmp_path, name):
    straight = trainer(STREAMS[name]()).train(tmp_path / "straight")
    for stop in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            trainer(STREAMS[name]()).train(tmp_path / f"{stop}", interrupt_at(stop))
        random.seed(stop)
        torch.manual_seed(stop)
        resumed = trainer(STREAMS[name]()).resume(tmp_path / f"{stop}")
        assert resumed.weights.read_bytes() == straight.weights.read_bytes()
        assert records(resumed) == records(straight)


def test_a_stream_gives_the_tasks_that_it_holds(tmp_path):
    """A list is read again from its start: as tasks by number are, of which there are but five."""
    streamed = trainer(by_ids(range(5))).train(tmp_path / "streamed")
    numbered = trainer(lambda ids: [task(i % 5) for i in ids]).train(tmp_path / "numbered")
    assert streamed.weights.read_bytes()[8:] != b""
    assert records(streamed) == records(numbered)
    stacked = trainer(DataLoader(by_ids(range(20)), batch_size=2)).train(tmp_path / "stacked")
    assert records(stacked) == records(trainer().train(tmp_path / "by_ids"))


def test_a_stream_in_another_order_is_refused_when_it_is_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(endless(1)).train(tmp_path / "run", interrupt_at(3))
    made = trainer(endless(2))
    before = [p.clone() for p in made.model.parameters()]
    with pytest.raises(mp.RunFolderError, match=r"come in another order than in the run: item 4 .* a function of ids"):
        made.resume(tmp_path / "run")
    assert all(map(torch.equal, before, made.model.parameters()))
    assert trainer(endless(1)).resume(tmp_path / "run").weights.exists()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (
            lambda: iter(by_ids(range(4))),
            r"ends after 4 items of its pass: give what does not end, or can be read again",
        ),
        (
            lambda: DataLoader(by_ids(range(9)), 3),
            "yields 3 tasks at once, and a meta",
        ),
        (lambda: DataLoader(by_ids(range(7)), 2), "yields 1 tasks at once.*drop_last=True"),
        (lambda: iter([5]), "must yield mp.Task, or lists of them, got a int"),
        (lambda: (), "ends after 0 items of its pass"),
    ],
)
def test_streams_that_do_not_fit_are_refused(tmp_path, stream, message):
    with pytest.raises(mp.InputError, match=message):
        trainer(stream()).train(tmp_path / "run")


def test_streams_of_evaluation_are_tasks_by_number(tmp_path):
    tasks = {"train": by_ids, "validation": DataLoader(by_ids(range(4)), 2), "test": by_ids(range(3))}
    streamed = trainer(tasks=tasks).train(tmp_path / "streamed")
    assert records(streamed) == records(trainer().train(tmp_path / "by_ids"))
    short = trainer(tasks=tasks | {"test": by_ids(range(2))})
    with pytest.raises(mp.InputError, match=r"tasks\['test'\] yields 2 tasks, and task 2 is asked for"):
        short.train(tmp_path / "short")


@pytest.mark.parametrize("skip", [False, True])
def test_accumulated_batches_are_one_of_all_their_tasks(tmp_path, skip):
    """Also where a batch has fewer tasks left than another: every task has the same weight."""

    def some(ids):
        return [task(i, 1e25 if skip and i % 5 == 1 else 0.0) for i in ids]

    runs = []
    for meta_batch, accumulate in ((6, 1), (2, 3)):
        made = trainer(some, replace(PACE, meta_batch=meta_batch, accumulate=accumulate))
        made = replace(made, estimator=replace(made.estimator, on_nonfinite="skip"), configuration=None)
        runs.append(made.train(tmp_path / f"{accumulate}"))
    one, three = ([r for r in records(run) if r["kind"] == "step"] for run in runs)
    for a, b in zip(one, three, strict=True):
        assert b.get("tasks_skipped", 0) == a.get("tasks_skipped", 0)
        for name in ("loss", "gradient_norm", "support_gradients"):
            assert b[name] == pytest.approx(a[name], rel=2e-4), name
    assert bool(sum(r.get("tasks_skipped", 0) for r in one)) == skip
    assert reports.write_report(runs[1]).exists()


def test_a_long_meta_gradient_is_clipped_and_a_short_one_is_as_it_was(tmp_path):
    made = trainer(pace=replace(PACE, clip=0.01, meta_steps=1))
    before = torch.cat([p.detach().clone().flatten() for p in made.model.parameters()])
    record = made.train(tmp_path / "clipped").read_metrics()[1]
    moved = torch.cat([p.detach().flatten() for p in made.model.parameters()]) - before
    assert record["gradient_norm"] > 0.01
    assert float(moved.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)
    plain, loose = (trainer(pace=replace(PACE, clip=clip)).train(tmp_path / f"{clip}") for clip in (None, 1e6))
    assert records(plain) == records(loose)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_meta_gradient_is_clipped_to_its_length_in_any_units(size):
    """Squares of float32 numbers overflow from 1e19 on, and vanish."""
    made = trainer(pace=replace(PACE, clip=0.5 * size))
    params = list(made.model.parameters())
    for p in params:
        p.grad = size * torch.ones_like(p)
    step._clip(made, made.pace.clip)
    length = torch.cat([p.grad.double().flatten() for p in params]).norm()
    assert float(length) == pytest.approx(0.5 * size, rel=1e-5)


class Told(training.Callback):
    """Keeps what it is told."""

    def __init__(self):
        self.events = []

    def on_start(self, trainer, folder, step):
        self.events.append(("start", step))

    def on_step(self, trainer, record):
        self.events.append(("step", record["step"]))

    def on_evaluation(self, trainer, record):
        self.events.append((record["split"], record["step"]))

    def on_checkpoint(self, trainer, step):
        self.events.append(("checkpoint", step))

    def on_end(self, trainer, folder):
        self.events.append(("end", folder.weights.exists()))


def test_callbacks_are_told_what_happens(tmp_path):
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        trainer(callbacks=[told]).train(tmp_path / "run", interrupt_at(3))
    assert told.events == [
        ("start", 0), ("checkpoint", 0), ("test", 0),
        ("step", 1), ("step", 2), ("checkpoint", 2), ("step", 3), ("validation", 3),
    ]  # fmt: skip
    again = Told()
    trainer(callbacks=(again,)).resume(tmp_path / "run")
    assert again.events[:3] == [("start", 2), ("step", 3), ("validation", 3)]
    assert again.events[-3:] == [("checkpoint", 6), ("test", 6), ("end", True)]
    with pytest.raises(mp.InputError, match="callbacks must be a Callback, got 5"):
        trainer(callbacks=[5])
    with pytest.raises(mp.InputError, match="callbacks must be a Sequence"):
        trainer(callbacks=told)


def test_a_watcher_sees_the_validation(tmp_path):
    seen = []
    folder = trainer().train(tmp_path / "run", lambda now: seen.append(now.evaluated))
    validation = [r["loss"]["mean"] for r in records(folder) if r.get("split") == "validation"]
    assert seen == [{}] * 2 + [{"validation loss": validation[0]}] * 3 + [{"validation loss": validation[1]}]


def test_tensorboard_gets_every_number_once(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not there")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        trainer(callbacks=[training.TensorBoard()]).train(tmp_path / "run", interrupt_at(3))
    folder = trainer(callbacks=[training.TensorBoard()]).resume(tmp_path / "run")
    events = EventAccumulator(str(folder.path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    steps = [r for r in records(folder) if r["kind"] == "step"]
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(r["step"], pytest.approx(r["loss"])) for r in steps]
    assert [event.step for event in events.Scalars("test/loss")] == [0, 6]
    evaluated = [r for r in records(folder) if r.get("split") == "validation"]
    found = [(event.step, event.value) for event in events.Scalars("validation/loss_ci95")]
    assert found == [(r["step"], pytest.approx(r["loss"]["ci95"])) for r in evaluated]


def test_tensorboard_gets_health_and_warnings(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not there")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = training.TensorBoard(tmp_path)
    board.on_start(trainer(), training.RunFolder(tmp_path), 0)
    board.on_step(None, {"step": 25, "loss": 2.0, "health": {"ratio": 0.25}, "warnings": {"RatioWarning": "too long"}})
    board.on_end(None, training.RunFolder(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("train/health_ratio")] == [(25, 0.25)]
    assert [one.tensor_proto.string_val for one in events.Tensors("RatioWarning/text_summary")] == [[b"too long"]]


def test_without_the_package_tensorboard_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(mp.MissingExtraError, match=r"pip install 'metaprox\[tensorboard\]'"):
        training.TensorBoard()


def test_a_default_collated_loader_is_known_by_its_collate_function():
    assert DataLoader(Tasks(), 2).collate_fn is default_collate
    first = training.Stream(DataLoader(by_ids(range(4)), 2), 2, 0).take()
    assert torch.equal(first.support[0], torch.stack([one.support[0] for one in by_ids(range(2))]))
    assert len(list(itertools.islice(endless(), 2))) == 2
