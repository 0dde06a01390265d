"""From a run to answers for new classes: its learner, a support and items in files, predictions."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaprox.data.examples import Examples, Problem
from metaprox.errors import InputError, TransductiveWarning
from metaprox.serving import Adapted, Learner, Prediction
from metaprox.tasks import families
from metaprox.tasks.own import tell
from metaprox.training.composition import Composition
from metaprox.training.doors import served
from metaprox.training.folder import RunFolder
from metaprox.training.names import FAMILIES

AT_ONCE, TOGETHER = 64, 256


def learner_of(path: str | Path) -> Learner:
    """Returns the learner of the finished run in a folder: its meta-learned weights, adapted as evaluation does.

    Raises:
        RunFolderError: there is no run, or one that has not finished, or that of a script.
    """
    return _learner(RunFolder.open(path))[0]


def _learner(folder: RunFolder) -> tuple[Learner, Composition]:
    composition, trainer = served(folder)
    family = composition.family
    trainer.load_weights(folder)
    more = {"names": family.answers, "preprocessing": family.preprocessing(), "blueprint": family.blueprint()}
    return Learner.of(trainer.evaluated or trainer.problem, trainer.estimator, **more), composition


def adapt_run(run: str | Path, support: str | Path, **columns: str) -> tuple[Adapted, Examples]:
    """Adapt what a run has learned to the examples in a file or folder, read as the run reads its own.

    Args:
        run: the run folder.
        support: labelled examples of one task.
        columns: in place of the run's, of those that its family reads by.

    Returns:
        The adapted model, and the examples.

    Raises:
        InputError: the family makes its own data, or the support can't be read, or is of several groups.
        RunFolderError: there is no run, or one that has not finished.
    """
    learner, composition = _learner(RunFolder.open(run))
    family = composition.family.of_one(support).reading(**columns)
    examples = _usable(family.examples(support), learner.preprocessing)
    groups = sorted(set(examples.groups or ()))
    if family.one_group and len(groups) > 1:
        some = ", ".join(groups[:5])
        raise InputError(f"{support} holds {len(groups)} groups ({some}), and a task is one: give that of one alone")
    adapted = learner.adapt(examples)
    words = {name: value for name in family.reads if isinstance(value := getattr(family, name), str)}
    return replace(adapted, source={"family": FAMILIES.name_of(type(family)), **words}), examples


def items_of(adapted: Adapted, path: str | Path, **columns: str) -> Examples:
    """Returns what is to be predicted for, in a file or folder, read as the run read its own; labels are not looked at.

    Args:
        adapted: by ``adapt_run``.
        path: of the items.
        columns: in place of those that the support was read by.

    Raises:
        InputError: the adapted model does not say how files are read, or by a class of one's own; or they can't be.
    """
    words = dict(adapted.source or {})
    family = families().get(words.pop("family", ""))
    if family is None:
        raise InputError(
            "this adapted model does not say which of metaprox's families reads its files: it was adapted in Python, "
            "or by a family of one's own. Predict there, by mp.load(folder).predict(items)"
        )
    if odd := sorted(columns.keys() - {*family.reads, *family.reads_once}):
        raise InputError(f"{family.__name__} reads files by {', '.join(family.reads) or 'nothing'}, not {odd[0]}")
    return tell(family.items(path, adapted.preprocessing, **{**words, **columns}))


def predictions(adapted: Adapted, examples: Examples) -> Iterator[tuple[list[Any], Prediction]]:
    """Yields items and predictions for them, in batches of at most 64, of nearly equal sizes, in their order.

    Where predictions depend on those made with them, batches are of at most 256, and a warning says so. What
    can't be made inputs is left out, with one that names it.

    Raises:
        InputError: nothing is left.
    """
    most, total, count = TOGETHER if adapted.transductive else AT_ONCE, len(examples), 0
    batches = math.ceil(total / most)
    if adapted.transductive:
        here = "one alone" if total == 1 else f"{total} together"
        here = f"{total} in {batches} batches, in their order" if batches > 1 else here
        by = f" (by {adapted.transductive_by})" if adapted.transductive_by else ""
        text = (
            f"what the model predicts for an item depends on the others that it is given with{by}; here {here}. "
            "Evaluations have as many of each class together: of single items, or of one class, expect less than they "
            "say. Where each is to be by itself, train without batch norms in train mode (images: not --norm batch)"
        )
        warnings.warn(text, TransductiveWarning, stacklevel=2)
    for batch in range(batches):
        some = replace(examples.where(range(batch * total // batches, (batch + 1) * total // batches)), problems=())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TransductiveWarning)  # which was said
            try:
                found = adapted.predict(some.items)
            except InputError:
                some = _usable(some, adapted.preprocessing)
                if not len(some):
                    continue
                found = adapted.predict(some.items)
        count += len(some)
        yield list(some.items), found
    if not count:
        raise InputError(f"{examples.source} has nothing to predict for")


def _usable(examples: Examples, preprocessing: Callable[[Any], Any] | None) -> Examples:
    """Those that the preprocessing takes; warns of the others, by name."""
    if preprocessing is None or not len(examples):
        return tell(examples)
    try:
        preprocessing(examples.items)
    except InputError:
        kept, problems = [], list(examples.problems)
        for index in range(len(examples)):
            try:
                preprocessing(examples.where([index]).items)
            except InputError as error:
                problems.append(Problem(str(examples.items[index]), str(error)))
            else:
                kept.append(index)
        examples = replace(examples.where(kept), problems=tuple(problems)).with_names_in_use()
    return tell(examples)
