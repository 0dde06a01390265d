"""``metaprox tune``: the same search for each of several methods."""

from collections.abc import Callable, Sequence
from pathlib import Path

from metaprox import checks
from metaprox.errors import InputError, MetaproxError
from metaprox.evaluation import evaluate
from metaprox.solvers import GradientDescent
from metaprox.training import Trainer
from metaprox.tuning import kept
from metaprox.tuning.kept import Found
from metaprox.tuning.search import Search

TINY = 1e-12  # an inner step that diverges nowhere


def tune(
    searches: Sequence[Search],
    out: str | Path,
    trials: int = 24,
    *,
    storage: str | None = None,
    study: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Found]:
    """Search one after another until each has ``trials`` candidates, and keep the best settings in ``out``.

    Each is an Optuna study: its sampler is TPE, its pruner asynchronous successive halving (Li et al., arXiv
    1810.05934). A search that was stopped goes on with the candidates that were running, each from its last checkpoint.
    Several processes, on several machines, may work on the same ``out``, or with an ``out`` of their own on one
    ``storage``.

    Args:
        searches: of each method.
        out: folder with search.json, the journal of the studies, trials.csv, best.json, and the runs in LABEL/NUMBER.
        trials: candidates of each search, those of other processes and of earlier calls among them.
        storage: an Optuna storage by its URL, in place of the journal in ``out``.
        study: of whose name, followed by the label, the studies are; that of the tasks unless given.
        say: gets a line after each candidate.

    Returns:
        What was found of each.

    Raises:
        MissingExtraError: there is no Optuna.
        InputError: an argument is not of its kind, or the storage can't be opened.
        RunFolderError: ``out`` or the storage holds another search.
        MetaproxError: all candidates of a search diverged.
    """
    from metaprox.tuning.study import place  # which imports Optuna

    checks.count("trials", trials)
    out = checks.path("out", out)
    labels = [one.label for one in searches]
    if len(set(labels)) < len(labels) or not labels:
        raise InputError(f"searches must be given, each with a label of its own, got {labels}")
    measures = [measured(one.run({}).trainer()) for one in searches]
    owner = kept.opened(out, searches)
    found: list[Found] = []
    for one, measure in zip(searches, measures, strict=True):
        name = f"{study or one.settings.given['tasks']}-{one.label}"
        there = place(one, out, owner, storage, name, measure)
        for line in there.run(trials):
            kept.write(out, [*found, there.found()])
            say(line)
        found.append(there.found())
    kept.write(out, found)
    for done in found:
        if done.trials and all(trial.state == "diverged" for trial in done.trials):
            raise MetaproxError(
                f"all {len(done.trials)} candidates for {done.search.label} diverged; the first: "
                f"{done.trials[0].reason} Give --space inner_lr=LOW:HIGH with shorter steps"
            )
    return found


def measured(trainer: Trainer) -> str:
    """By what the tasks of a run are judged: "accuracy", where their loss returns it, or else "loss"."""
    problem = trainer.evaluated or trainer.problem
    seen = evaluate(problem, lambda ids: trainer.batch("validation", ids), [0], GradientDescent(TINY), 1)
    return "accuracy" if "accuracy" in seen.metrics else "loss"
