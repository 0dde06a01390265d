"""Meta-training, top to bottom."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.data.task import Task
from metaprox.errors import InputError, NonFiniteError, RunFolderError
from metaprox.estimators import Estimator, MetaGradient
from metaprox.evaluation import Evaluation
from metaprox.modules.loss import ModuleLoss
from metaprox.problem import ProximalProblem
from metaprox.tasks import Picture, TaskSource
from metaprox.training import checkpoint, ranks, weights
from metaprox.training.borrowed import borrowed_torch
from metaprox.training.fitting import check_parts
from metaprox.training.folder import RunFolder
from metaprox.training.health import Health
from metaprox.training.pace import Pace
from metaprox.training.records import Progress, evaluation_record, progress, step_record
from metaprox.training.script import configuration_of_script
from metaprox.training.stored import different

Source = TaskSource | Callable[[Sequence[int]], Task | Sequence[Task]]
WEIGHTS = "weights"
Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Trainer:
    """Meta-trains a model and leaves a run folder: configuration, metrics, checkpoints, weights.

    The command line makes one from settings; a script gives its own objects and gets the same. In a process group of
    torch all processes train one model, each on its part of the tasks, and rank 0 writes (docs/processes.md).

    Args:
        problem: from ``ProximalProblem.from_module``; its model is trained in place, on the device where it is.
        estimator: of the meta-gradient. Evaluation adapts by its ``solver`` and as many of its steps.
        optimizer: any optimizer of torch on parameters of the model.
        tasks: by split, "train", "test" and ``pace.eval_split``: a function of ids, or an object with ``batch(ids)``.
            Meta-step i takes the tasks of ids i * meta_batch and on; a task is to be a function of its id alone, or a
            resumed run is another. Tensors are moved to the model's device.
        pace: how long, how often, and the seed of what is random in training.
        schedule: a scheduler of ``optimizer``, stepped after each meta-step. None: steps stay as they are.
        evaluated: the problem as evaluation has it, on the same model, where it is another.
        baseline: (model, tasks) -> {name: a number for each task [T]}, reported beside the results of adaptation.
        picture: how a task is drawn in the report.
        configuration: what config.json holds; of a script's own objects what they say of themselves.

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
    configuration: Mapping[str, Any] | None = None
    _runs: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_parts(self)
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
        """Tasks ``ids`` of a split, on the model's device."""
        source = self.tasks[split]
        tasks = source(ids) if callable(source) else source.batch(ids)
        device = self.device
        return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tasks)

    def evaluate(self, split: str, count: int) -> Evaluation:
        """Adapt to tasks 0 to ``count`` - 1 of a split, as in training but for what ``evaluated`` says; all in here."""
        checks.choice("split", split, self.tasks)
        return ranks.evaluation(self, split, checks.count("count", count), shared=False)

    @torch.inference_mode(False)
    def train(self, out: str | Path, watch: Watch = lambda progress: None) -> RunFolder:
        """Train from the start, in the new folder ``out``.

        Writes config.json, metrics.jsonl (a line for each meta-step and each evaluation; seconds count the meta-steps
        alone; ``tasks_skipped`` where a step left out tasks, ``health`` and ``warnings`` where these were looked at),
        checkpoint.safetensors and, at the end, test_tasks.json (the result on each test task) and weights.safetensors.
        Torch's global generators and thread count are put back afterwards.

        Returns:
            The folder.

        Raises:
            RunFolderError: the folder is not empty.
            InputError: a loss or the tasks are not as they should be, or the trainer has trained before; no folder is
                made then.
            NonFiniteError: a solve diverged, and is not skipped, or all of a meta-step did, or one of an evaluation; a
                note names the meta-step and the task, and the last checkpoint stays.
        """
        out = checks.path("out", out)
        if self._runs:
            raise InputError(f"this trainer has trained in {self._runs[0]}, and goes on from there: make another")
        self._look(watch)
        assert self.configuration is not None
        configuration = self.configuration
        folder = ranks.made_by_first(lambda: RunFolder.create(out, configuration))
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
            RunFolderError: there is no run, or one of another configuration, or its checkpoint is missing or corrupt.
            And what ``train`` raises.
        """
        folder = ranks.made_by_first(lambda: RunFolder.open(checks.path("out", out)))
        assert self.configuration is not None
        there = folder.configuration()
        if there.get("version", 1) > 1 and (odd := different(there, self.configuration)):
            raise RunFolderError(f"{folder.path} is a run with other settings: {'; '.join(odd)}")
        self._runs.append(str(out))
        if folder.weights.exists():
            self.load_weights(folder)
            return folder
        self._go_on(folder, watch)
        return folder

    def load_weights(self, folder: RunFolder) -> None:
        """Put the meta-learned weights of a finished run into the model. Raises RunFolderError where it has none."""
        if not folder.weights.exists():
            raise RunFolderError(f"{folder.weights} is missing: the run in {folder.path} has not finished; resume it")
        tensors, _ = weights.load(folder.weights, WEIGHTS)
        weights.load_into(self.model, tensors, folder.weights)

    def _go_on(self, folder: RunFolder, watch: Watch) -> None:
        """From the last checkpoint, or from the start where there was none yet."""
        with borrowed_torch(self.device, self.pace.threads), ranks.telling():
            if ranks.by_first(lambda: not folder.checkpoint.exists() and not folder.metrics.exists()):
                torch.manual_seed(self.pace.seed)
                ranks.by_first(lambda: checkpoint.save(folder, self, 0, 0.0))
            self._run(folder, *checkpoint.load(folder, self), watch)

    def _look(self, watch: Watch) -> None:
        """Take a task of each split, and adapt to one: whatever can't be is refused before there is a folder."""
        if not callable(watch):
            raise InputError(f"watch must be a function of training.Progress, got {checks.shown(watch)}")
        with borrowed_torch(self.device, self.pace.threads):
            for split in ("train", self.pace.eval_split):
                self.batch(split, [0])
            with suppress(NonFiniteError):  # the run will tell, and say where
                self.evaluate("test", 1)

    def _run(self, folder: RunFolder, start: int, seconds: float, watch: Watch) -> None:
        pace, health = self.pace, Health(self.problem, self.pace, folder.read_metrics() if start else [], start)
        if start == 0:
            before = ranks.evaluation(self, "test", pace.test_tasks, shared=True)
            folder.append_metrics(evaluation_record(0, "test", before))
        for step in range(start, pace.meta_steps):
            began = time.perf_counter()
            out = self._meta_step(step)
            seconds += time.perf_counter() - began
            done = step + 1
            record = step_record(done, out, float(self.optimizer.param_groups[0]["lr"]), seconds)
            folder.append_metrics(health.kept_in(record))
            if done % pace.eval_every == 0 or done == pace.meta_steps:
                result = ranks.evaluation(self, pace.eval_split, pace.eval_tasks, shared=True)
                folder.append_metrics(evaluation_record(done, pace.eval_split, result))
            if done % pace.checkpoint_every == 0 and ranks.writes():
                checkpoint.save(folder, self, done, seconds)
            watch(progress(done, pace.meta_steps, record, out, health.said))
        final = ranks.evaluation(self, "test", pace.test_tasks, shared=True)
        folder.append_metrics(evaluation_record(pace.meta_steps, "test", final))
        folder.write_test_values({name: values.tolist() for name, values in final.values.items()})
        learned, meta = weights.learned(self.model), {"config": self.configuration}
        ranks.by_first(lambda: weights.save(folder.weights, WEIGHTS, learned, meta))

    def _meta_step(self, step: int) -> MetaGradient:
        size = self.pace.meta_batch
        ids = range(size * step, size * (step + 1))
        self.model.zero_grad()
        try:
            out = ranks.summing(self.estimator).backward(self.problem, ranks.own_batch(self, ids))
            self.optimizer.step()
        except NonFiniteError as error:
            task = "" if error.task is None else f", training task {ids[error.task]}"
            error.add_note(f"at meta-step {step + 1} of {self.pace.meta_steps}{task}")
            raise
        if self.schedule is not None:
            self.schedule.step()
        return out
