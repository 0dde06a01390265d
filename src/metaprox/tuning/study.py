"""A search as an Optuna study, which several processes and machines may share, and which goes on after a kill."""

import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaprox.errors import InputError, InUseError, RunFolderError, needs_extra

with needs_extra("metaprox tune", "tune"):
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.pruners import SuccessiveHalvingPruner
    from optuna.samplers import BaseSampler, TPESampler
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState

from metaprox.training import RunFolder
from metaprox.tuning import kept
from metaprox.tuning.candidate import COST, Judged, judged_after
from metaprox.tuning.kept import Found, State, Trial
from metaprox.tuning.search import Search
from metaprox.tuning.space import Axis, shown

JOURNAL = "journal.log"


class ByNumber(BaseSampler):
    """Optuna's TPE, whose random numbers are functions of the seed, the trial's number and the setting's name.

    So a search that was killed goes on to the same end, and all methods begin at the same points of the unit cube.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        own = TPESampler(seed=zlib.crc32(f"{self._seed} {trial.number} {param_name}".encode()))
        return own.sample_independent(study, trial, param_name, param_distribution)


@dataclass(frozen=True)
class Place:
    """Where the candidates of a search are trained, by what they are judged, and the study.

    owner: whose trials go on here; None: all of the study, which lies in the same folder.
    """

    search: Search
    measure: str
    folder: Path
    study: optuna.Study
    owner: str | None

    def found(self) -> Found:
        """What became of the trials so far."""
        trials = [_trial(one) for one in self.study.get_trials(deepcopy=False) if one.state != TrialState.FAIL]
        return Found(self.search, self.measure, trials)

    def run(self, count: int) -> Iterator[str]:
        """Go on with trials that were stopped, and begin others until the study has ``count``; a line after each."""
        while (said := self._go_on() or self._begin(count)) is not None:
            yield said

    def _go_on(self) -> str | None:
        """With a trial that was stopped here; None where there is none."""
        for one in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self.owner in (None, one.user_attrs.get("owner")):
                with self._held(one.number) as free:
                    if free and self.study.get_trials(deepcopy=False)[one.number].state == TrialState.RUNNING:
                        return self._run(optuna.trial.Trial(self.study, one._trial_id))
        return None

    def _begin(self, count: int) -> str | None:
        """A new trial; None where there are enough."""
        if len(self.found().trials) >= count:
            return None
        trial = self.study.ask()
        with self._held(trial.number) as free:
            if not free:
                return f"another process goes on with trial {trial.number}"
            if self.owner is not None:
                trial.set_user_attr("owner", self.owner)
            if sum(one.number < trial.number for one in self.found().trials) >= count:  # others began theirs just now
                self.study.tell(trial, state=TrialState.FAIL)
                return None
            return self._run(trial)

    def _run(self, trial: optuna.trial.Trial) -> str:
        """From where it is to where it stops."""
        drawn = {axis.name: axis.setting(_drawn(trial, axis)) for axis in self.search.axes}
        trial.set_user_attr("found", drawn)
        path, rungs = self._path(trial.number), self.search.rungs()
        reason: str | None = None
        for rung in rungs:
            judged = judged_after(self.search.run(drawn), path, rung)
            reason = self._told(trial, judged, rung, last=rung == rungs[-1])
            if reason is not None:
                break
        for leftover in RunFolder(path).checkpoints():
            leftover.unlink()
        value = f"{self.measure} {judged.values[self.measure]:.4g}" if judged.values else "diverged"
        return f"{self.search.label}, trial {trial.number}, {shown(drawn)}: {value} after {judged.meta_steps}; {reason}"

    def _told(self, trial: optuna.trial.Trial, judged: Judged, rung: int, *, last: bool) -> str | None:
        """Tell the study; returns why the trial ends here, and None where it goes on."""
        for name in COST:
            trial.set_user_attr(name, getattr(judged, name))
        if judged.failure is not None:
            trial.set_user_attr("diverged", judged.failure)
            self.study.tell(trial, state=TrialState.PRUNED)
            return judged.failure
        value = judged.values[self.measure]
        if rung not in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(value, rung)
        if last:
            self.study.tell(trial, value)
            return "finished"
        if trial.should_prune():
            reason = f"not among the best 1/{self.search.reduction} of those that came so far"
            trial.set_user_attr("pruned", reason)
            self.study.tell(trial, state=TrialState.PRUNED)
            return reason
        return None

    def _path(self, number: int) -> Path:
        """Of a trial's run."""
        return self.folder / f"{number:04}"

    @contextmanager
    def _held(self, number: int) -> Iterator[bool]:
        """Whether the trial is this process's alone; the system lets go of it where the process is killed."""
        with ExitStack() as stack:
            try:
                stack.enter_context(RunFolder(self._path(number)).made().locked())
            except InUseError:
                yield False
            else:
                yield True


def place(search: Search, out: Path, owner: str, url: str | None, name: str, measure: str) -> Place:
    """Returns where a search goes on: in the study ``name`` of the storage at ``url``, or of the journal in ``out``.

    ``measure``: what is judged.

    Raises:
        InputError: there is no such storage.
        RunFolderError: the study is another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(url, out)
    own: dict[str, Any] = {
        "study_name": name,
        "storage": storage,
        "sampler": ByNumber(search.run({}).pace.seed),
        "pruner": SuccessiveHalvingPruner(min_resource=search.first, reduction_factor=search.reduction),
    }
    names = [one.study_name for one in optuna.get_all_study_summaries(storage, include_best_trial=False)]
    study = optuna.load_study(**own) if name in names else None
    if study is None or not (study.user_attrs.get("search") or study.get_trials(deepcopy=False)):
        direction: Any = "minimize" if measure == "loss" else "maximize"
        study = optuna.create_study(**own, direction=direction, load_if_exists=True)
        study.set_user_attr("search", kept.described(search))
    there = study.user_attrs.get("search")
    odd = ["it is none of metaprox"] if there is None else kept.differences(there, kept.described(search))
    if odd:
        raise RunFolderError(f"the study {name!r} is another search ({'; '.join(odd)}): give it another --study")
    return Place(search, measure, out / search.label, study, None if url is None else owner)


def _storage(url: str | None, out: Path) -> Any:
    if url is None:
        return JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # of a database, or of its driver
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--storage {url!r} can't be opened: {why}; such as sqlite:///search.db") from error


def _drawn(trial: optuna.trial.Trial, axis: Axis) -> Any:
    """What was drawn for the trial, or is now."""
    if axis.bounds is None:
        return trial.suggest_categorical(axis.name, axis.choices)
    low, high = axis.bounds
    if axis.whole:
        return trial.suggest_int(axis.name, int(low), int(high), log=True)
    return trial.suggest_float(axis.name, low, high, log=True)


def _trial(one: FrozenTrial) -> Trial:
    """For people."""
    states: dict[TrialState, State] = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}
    own = one.user_attrs
    return Trial(
        one.number,
        "diverged" if "diverged" in own else states.get(one.state, "running"),
        one.intermediate_values[max(one.intermediate_values)] if one.intermediate_values else None,
        **{name: own.get(name, 0) for name in COST},
        found=own.get("found", {}),
        reason=own.get("diverged", own.get("pruned", "")),
    )
