"""Meta-training, top to bottom."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from metaprox import checks
from metaprox.checks.trees import on_device
from metaprox.data.task import Task
from metaprox.errors import InputError, NonFiniteError
from metaprox.estimators import Estimator
from metaprox.evaluation import Evaluation
from metaprox.modules.loss import ModuleLoss
from metaprox.problem import ProximalProblem
from metaprox.tasks import Picture, TaskSource
from metaprox.training import ranks, weights
from metaprox.training.borrowed import borrowed
from metaprox.training.callbacks import Callback
from metaprox.training.fitting import check_parts
from metaprox.training.folder import RunFolder
from metaprox.training.loop import Loop, Watch, finished_weights
from metaprox.training.pace import Pace
from metaprox.training.script import configuration_of_script
from metaprox.training.stored import refuse_another
from metaprox.training.stream import Listed, Stream, is_stream

Source = TaskSource | Callable[[Sequence[int]], Task | Sequence[Task]] | Iterable[Task | Sequence[Task]]


@dataclass(frozen=True)
class Trainer:
    """Meta-trains a model and leaves a run folder: configuration, metrics, checkpoints, weights.

    The command line makes one from settings; a script gives its own objects and gets the same.

    Args:
        problem: from ``ProximalProblem.from_module``; its model is trained in place, on the device where it is.
        estimator: of the meta-gradient. Evaluation adapts by its ``solver`` and as many of its steps.
        optimizer: any optimizer of torch on parameters of the model.
        tasks: by split, "train", "test" and ``pace.eval_split``: a function of ids, or an object with ``batch(ids)``.
            Meta-step i takes the tasks of ids i * meta_batch and on; a task is to be a function of its id alone, or a
            resumed run is another. Or an iterable of tasks, such as a DataLoader, which may be endless: see ``Stream``
            for what a resumed run needs of it. Tensors are moved to the model's device.
        pace: how long, how often, and the seed of what is random in training.
        schedule: a scheduler of ``optimizer``, stepped after each meta-step. None: steps stay as they are.
        evaluated: the problem as evaluation has it, on the same model, where it is another.
        baseline: (model, tasks) -> {name: a number for each task [T]}, reported beside the results of adaptation.
        picture: how a task is drawn in the report.
        callbacks: what is told of the run while it goes on.
        configuration: what config.json holds; of a script's own objects what they say of themselves.
        contents: what data.json holds: checksums of the examples that tasks are made of, by class or group.

    Raises:
        InputError: a part is missing or another thing, before anything is done.

    Example:
        >>> import tempfile, torch, metaprox as mp
        >>> from metaprox.models import mean_squared_error, mlp
        >>> from metaprox.tasks import Sinusoid
        >>> from metaprox.training import Pace, Trainer
        >>> model = mlp([1, 8, 1])
        >>> trainer = Trainer(
        ...     mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5),
        ...     mp.FOBMAML(mp.GradientDescent(lr=0.01), steps=2),
        ...     mp.optim.NormalizedSGD(model.parameters(), lr=0.1),
        ...     {split: Sinusoid(split=split) for split in ("train", "validation", "test")},
        ...     Pace(meta_steps=2, meta_batch=2, eval_tasks=2, test_tasks=2),
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(trainer.train(folder).read_metrics())  # two steps, an evaluation, and the tests before and after
        5
    """

    problem: ProximalProblem
    estimator: Estimator
    optimizer: Optimizer
    tasks: Mapping[str, Source]
    pace: Pace = field(default_factory=Pace)
    schedule: LRScheduler | None = None
    evaluated: ProximalProblem | None = None
    baseline: Callable[[nn.Module, Any], dict[str, Tensor]] | None = None
    picture: Picture | None = None
    callbacks: Sequence[Callback] = ()
    configuration: Mapping[str, Any] | None = None
    contents: Mapping[str, str] | None = None
    stream: Stream | None = field(default=None, init=False, repr=False, compare=False)
    _listed: dict[str, Listed] = field(default_factory=dict, init=False, repr=False, compare=False)
    _runs: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_parts(self)
        streams: dict[str, Any] = {split: source for split, source in self.tasks.items() if is_stream(source)}
        if "train" in streams:
            object.__setattr__(self, "stream", Stream(streams.pop("train"), self.pace.meta_batch, self.pace.seed))
        self._listed.update({split: Listed(split, source) for split, source in streams.items()})
        if self.configuration is None:
            object.__setattr__(self, "configuration", configuration_of_script(self))

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        assert isinstance(self.problem.inner_loss, ModuleLoss)
        return self.problem.inner_loss.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def batch(self, split: str, ids: Sequence[int]) -> Task | Sequence[Task]:
        """Tasks ``ids`` of a split, on the model's device; of a stream of training tasks, those of its next batch."""
        if split == "train" and self.stream is not None:
            return self._here(self.stream.next_tasks(ids))
        source: Any = self._listed.get(split, self.tasks[split])
        return self._here(source(ids) if callable(source) else source.batch(ids))

    def training_batch(self, ids: Sequence[int]) -> Task | Sequence[Task]:
        """The training tasks ``ids``, or the next ones of a stream, on the model's device."""
        return self.batch("train", ids) if self.stream is None else self._here(self.stream.take())

    def _here(self, tasks: Task | Sequence[Task]) -> Task | Sequence[Task]:
        moved: Task | Sequence[Task] = on_device(tasks, self.device)
        return moved

    def evaluate(self, split: str, count: int, between: Callable[[], None] = lambda: None) -> Evaluation:
        """Adapt to tasks 0 to ``count`` - 1 of a split, as in training but for what ``evaluated`` says; all in here.

        ``between`` is called before each part of the tasks, and may raise.

        Returns:
            The mean over tasks, with intervals, and the tasks' own results.
        """
        checks.choice("split", split, self.tasks)
        return ranks.evaluation(self, split, checks.count("count", count), between, shared=False)

    @torch.inference_mode(False)
    def train(self, out: str | Path, watch: Watch = lambda progress: None) -> RunFolder:
        """Train from the start, in the new folder ``out``.

        Writes config.json, metrics.jsonl (a line for each meta-step and each evaluation; seconds count the meta-steps
        alone; ``tasks_skipped`` where a step left out tasks, ``health`` and ``warnings`` where these were looked at),
        checkpoints and, at the end, test_tasks.json (the result on each test task) and weights.safetensors. The global
        generators of torch, Python and numpy, which are the run's during it, and torch's thread count are put back
        afterwards. In the main thread the first SIGINT or SIGTERM ends the step, saves, and raises ``Stopped``, a
        SystemExit with status 130 or 143.

        Returns:
            The folder.

        Raises:
            RunFolderError: the folder is not empty, another process works there, or the disk refuses.
            InputError: a loss or the tasks are not as they should be, or the trainer has trained before; no folder is
                made then.
            NonFiniteError: a solve diverged, and is not skipped, or all of a meta-step did, or one of an evaluation; a
                note names the meta-step and the task, and the last checkpoint stays.
        """
        out = checks.path("out", out)
        if self._runs:
            raise InputError(f"this trainer has trained in {self._runs[0]}, and goes on from there: make another")
        ranks.refuse_stream(self)
        self._look(watch)
        assert self.configuration is not None
        configuration = self.configuration
        folder = ranks.made_by_first(lambda: RunFolder.claimed(out))
        with ranks.telling(), ranks.locked(folder):
            ranks.by_first(lambda: RunFolder.claimed(out).configure(configuration, self.contents))
            self._runs.append(str(out))
            self._go_on(folder, watch)
        return folder

    @torch.inference_mode(False)
    def resume(self, out: str | Path, watch: Watch = lambda progress: None) -> RunFolder:
        """Go on with the run in ``out`` from its last checkpoint: the result is that of a run that was never stopped.

        A finished run is left as it is, with its weights in the model.

        Returns:
            The folder.

        Raises:
            RunFolderError: there is no run, or one of another configuration, or its checkpoint is missing or corrupt;
                and what ``train`` raises.
        """
        folder = ranks.made_by_first(lambda: RunFolder.open(checks.path("out", out)))
        with ranks.telling(), ranks.locked(folder):
            assert self.configuration is not None
            there = folder.configuration()
            if there.get("version", 1) > 1:
                refuse_another(folder.path, "is a run", there, self.configuration, "")
            return self.go_on(folder, watch)

    def go_on(self, folder: RunFolder, watch: Watch) -> RunFolder:
        """``resume`` with a folder whose configuration is known to be that of this trainer."""
        ranks.refuse_stream(self)
        with ranks.locked(folder):
            self._runs.append(str(folder.path))
            if folder.weights.exists():
                self.load_weights(folder)
            else:
                self._go_on(folder, watch)
            return folder

    def load_weights(self, folder: RunFolder) -> None:
        """Put the meta-learned weights of a finished run into the model. Raises RunFolderError where it has none."""
        assert self.configuration is not None
        tensors = finished_weights(folder, self.configuration)
        weights.load_into(self.model, tensors, folder.weights)

    def _go_on(self, folder: RunFolder, watch: Watch) -> None:
        """From the last checkpoint, or from the start where there was none yet."""
        with borrowed(self.device, self.pace.threads):
            Loop(self, folder, watch).run()

    def _look(self, watch: Watch) -> None:
        """Take a task of each split, and adapt to one: whatever can't be is refused before there is a folder."""
        if not callable(watch):
            raise InputError(f"watch must be a function of training.Progress, got {checks.shown(watch)}")
        with borrowed(self.device, self.pace.threads):
            for split in ("train", self.pace.eval_split):
                self.batch(split, [0])
            with suppress(NonFiniteError):  # the run will tell, and say where
                self.evaluate("test", 1)
