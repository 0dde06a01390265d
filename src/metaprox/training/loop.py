"""From one checkpoint to the end of a run: meta-steps, evaluations, checkpoints, and what a run leaves."""

import shlex
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metaprox.evaluation import Evaluation
from metaprox.storage.files import damaged
from metaprox.training import checkpoint, ranks, starts, weights
from metaprox.training.borrowed import generators, seed_generators, set_generators
from metaprox.training.folder import RunFolder
from metaprox.training.health import Health
from metaprox.training.records import Progress, evaluation_record, progress, step_record
from metaprox.training.script import SCRIPT
from metaprox.training.standing import Standing
from metaprox.training.step import meta_step
from metaprox.training.stopping import Asked, Stop, Stopped, stoppable
from metaprox.training.stored import refuse_another

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer

Watch = Callable[[Progress], None]


def finished_weights(folder: RunFolder, configuration: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those that a run ended with. Raises RunFolderError where it has none, or they are of other settings."""
    if not folder.weights.exists():
        raise folder.unfinished(folder.weights)
    tensors, meta = weights.load(folder.weights, weights.WEIGHTS)
    with damaged(folder.weights, "the weights of a run"):
        there = meta.get("config", {})
        if there.get("version", 1) > 1 and "version" in configuration:
            remedy = f": put {folder.path / 'config.json'} back as it was"
            refuse_another(folder.weights, "has the weights of a run", there, configuration, remedy)
    return tensors


class Loop:
    """A run in its folder. All that it writes goes through ``folder``, ``checkpoint`` and ``weights``."""

    def __init__(self, trainer: "Trainer", folder: RunFolder, watch: Watch) -> None:
        self.trainer = trainer
        self.folder = folder
        self.watch = watch
        self.saved: tuple[int, bool] | None = None
        self.seen: dict[str, float] = {}
        self.health: Health

    def run(self) -> None:
        """From the last checkpoint, or from the start where there is none yet, to the end.

        Raises:
            Stopped: a signal came; the state is saved.
        """
        with stoppable(self._go_on()) as stop:
            at = self._start()
            self.health = self._health(at)
            try:
                self._evaluate(at, stop)
                while not self._is_over(at):
                    self._advance(at, stop)
                self._finish(at, stop)
            except Asked:
                self._save(at)
                assert stop.asked is not None
                total = self.trainer.pace.meta_steps
                where = f"after meta-step {at.step} of {total}, which is saved in {self.folder.path}"
                raise Stopped(stop.asked, where) from None

    def _go_on(self) -> str:
        assert self.trainer.configuration is not None
        if self.trainer.configuration.get("made_by") == SCRIPT:
            return f"run the script again, with trainer.resume({str(self.folder.path)!r})"
        return f"metaprox resume {shlex.quote(str(self.folder.path))}"

    def _start(self) -> Standing:
        folder = self.folder
        folder.unseal()
        if ranks.by_first(lambda: bool(folder.checkpoints()) or folder.metrics.exists()):
            at = ranks.first_then_others(lambda: checkpoint.load(folder, self.trainer))
            self.saved = at.step, at.evaluated
            self._begin(at.step)
            self._tell("on_start", folder, at.step)
            return at
        self._begin(0)
        seed_generators(self.trainer.pace.seed)
        self._tell("on_start", folder, 0)
        self._save(at := Standing())
        return at

    def _begin(self, step: int) -> None:
        if ranks.writes():
            starts.append(self.folder.starts, step)

    def _health(self, at: Standing) -> Health:
        records = self.folder.read_metrics() if at.step else []
        return Health(self.trainer.problem, self.trainer.pace.meta_steps, at.step, records, at.health)

    def _is_over(self, at: Standing) -> bool:
        return at.ended or at.step == self.trainer.pace.meta_steps

    def _advance(self, at: Standing, stop: Stop) -> None:
        """One meta-step, and what is due after it."""
        trainer, began = self.trainer, time.perf_counter()
        out = meta_step(trainer, at.step)
        at.seconds += time.perf_counter() - began
        at.step, at.evaluated = at.step + 1, False
        lr = float(trainer.optimizer.param_groups[0]["lr"])
        record = self.health.kept_in(step_record(at.step, out, lr, at.seconds))
        self.folder.append_metrics(record)
        self._tell("on_step", record)
        self._evaluate(at, stop)
        if at.step % trainer.pace.checkpoint_every == 0 or at.ended:
            self._save(at)
        self.watch(progress(trainer.pace.meta_steps, record, out, self.health.said, self.seen))
        stop.check(ranks.agreed)

    def _evaluate(self, at: Standing, stop: Stop) -> None:
        """What is due after a meta-step, and before the first."""
        pace = self.trainer.pace
        if at.evaluated:
            return
        if at.step == 0:
            self._log(0, "test", self._on(stop, "before", "test", pace.test_tasks))
        elif at.step % pace.eval_every == 0 or at.step == pace.meta_steps:
            result = self._on(stop, "during", pace.eval_split, pace.eval_tasks)
            means = {"loss": result.loss} | result.metrics
            self.seen = {f"{pace.eval_split} {name}": one.mean for name, one in means.items()}
            self._log(at.step, pace.eval_split, result)
            self._judge(at, result)
        at.evaluated = True

    def _on(self, stop: Stop, when: str, split: str, count: int) -> Evaluation:
        """An evaluation. Where a stop is asked for, it is left with the generators as they were before it."""
        before = generators(self.trainer.device)
        try:
            tell = partial(self._tell, "on_evaluating", when, split)
            return ranks.evaluation(self.trainer, split, count, stop.check, tell, shared=True)
        except Asked:
            set_generators(before, self.trainer.device)
            raise

    def _log(self, step: int, split: str, result: Evaluation) -> None:
        record = evaluation_record(step, split, result)
        self.folder.append_metrics(record)
        self._tell("on_evaluation", record)

    def _tell(self, event: str, *what: Any) -> None:
        for callback in self.trainer.callbacks if ranks.writes() else ():
            getattr(callback, event)(self.trainer, *what)

    def _judge(self, at: Standing, result: Evaluation) -> None:
        """Whether this is the best evaluation, or there has been none for long, as far as the run depends on that."""
        pace = self.trainer.pace
        if not pace.chooses:
            return
        accuracy = result.metrics.get("accuracy")
        value = -accuracy.mean if accuracy else result.loss.mean
        if at.best is None or value < at.best:
            at.best, at.best_step = value, at.step
            if pace.keep_weights == "best":
                at.best_weights = weights.copied(self.trainer.model)
        assert at.best_step is not None
        waited = -(-at.step // pace.eval_every) - -(-at.best_step // pace.eval_every)
        at.ended = pace.patience is not None and waited >= pace.patience

    def _save(self, at: Standing) -> None:
        if self.saved != (at.step, at.evaluated):
            at.health = self.health.state() if at.step else {}
            if ranks.writes():
                checkpoint.save(self.folder, self.trainer, at)
            self.saved = at.step, at.evaluated
            self._tell("on_checkpoint", at.step)

    def _finish(self, at: Standing, stop: Stop) -> None:
        """The test, and the weights, whose file says that the run has finished."""
        trainer, folder = self.trainer, self.folder
        last = weights.copied(trainer.model) if at.best_weights else None
        if last:
            trainer.model.load_state_dict(at.best_weights, strict=False)
        try:
            final = self._on(stop, "after", "test", trainer.pace.test_tasks)
        except Asked:
            if last:
                trainer.model.load_state_dict(last, strict=False)
            raise
        self._log(at.step, "test", final)
        folder.write_test_values({name: values.tolist() for name, values in final.values.items()})
        folder.seal()
        learned, meta = weights.learned(trainer.model), {"config": trainer.configuration}
        ranks.by_first(lambda: weights.save(folder.weights, weights.WEIGHTS, learned, meta))
        self._tell("on_end", folder)
