"""The examination: what is tried, and what follows from what."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from metaprox.call import Call
from metaprox.checking import losses, reference, solves
from metaprox.checking.field import ASYMMETRY, SLOPE, Field, field_at
from metaprox.checking.field import finding as of_field
from metaprox.checking.findings import Finding
from metaprox.checking.native import Native, natives
from metaprox.checking.reference import Judged
from metaprox.checking.solves import Solved
from metaprox.checking.subject import Subject
from metaprox.checking.watched import Run, run
from metaprox.data.task import Task
from metaprox.errors import InputError, MetaproxError, NonFiniteError
from metaprox.estimators import FOMAML, Estimator, Reptile
from metaprox.estimators.branched import Branched
from metaprox.losses.look import Look

OF_SOLVES = ("steps", "base", "branches", "nu", "meta-gradient")
ALL = ("losses", "repeats", "writes", "backends", "precision", "field", *OF_SOLVES)
RISE, RISE_OF_NOISE = 0.01, 0.2  # of the objective, which a base solve is to lower


@dataclass
class Examination:
    """Of a subject; ``unseen``: its tasks, as no loss has seen them. ``found``: findings by name."""

    subject: Subject
    unseen: Task | list[Task]
    found: dict[str, Finding] = field(default_factory=dict)
    look: Look | None = None

    def make(self) -> None:
        """Find whatever can be found."""
        estimator = self.subject.estimator
        too_long = estimator and solves.steps_for_lam(estimator, self.subject.problem.lam)
        if too_long:
            self.add(too_long)
        values: list[float] = []
        with self._blaming("losses"):
            values = self._losses()
        if all(name in self.found and self.found[name].verdict == "ok" for name in ("losses", "repeats")):
            with self._blaming("meta-gradient"):
                self._field_and_solves(values, None if too_long else estimator)

    @contextmanager
    def _blaming(self, name: str) -> Iterator[None]:
        """Around what may raise: a finding of that ``name``, or of what the losses write on, in place of an error."""
        try:
            yield
        except (InputError, NonFiniteError) as error:
            self.add(Finding(name, "wrong", str(error)))
        except MetaproxError as error:
            self.add(Finding("writes", "wrong", str(error)))

    def complete(self) -> tuple[Finding, ...]:
        """All findings, in their order; of what was not looked at, why."""
        wrong = [finding.name for finding in self.found.values() if finding.verdict == "wrong"]
        for name in ALL:
            no_solver = self.subject.estimator is None and name in OF_SOLVES
            why = "no solver was given" if no_solver else f"first mend what is wrong ({', '.join(wrong)})"
            self.add(Finding.not_checked(name, why))
        return tuple(self.found[name] for name in ALL)

    def add(self, finding: Finding) -> None:
        """Keep a finding, unless there is one of its name."""
        self.found.setdefault(finding.name, finding)

    def _losses(self) -> list[float]:
        """Look at the losses as they are; their values."""
        subject = self.subject
        with subject.call() as call:
            self.look = call.look
            values = subject.values(call)
            self.add(losses.finite(values, call.batch))
            self.add(losses.repeats(call, subject.roles))
            self.add(losses.backends(call, subject.roles, subject.choice, subject.at_once, twice=subject.twice))
        return values

    def _field_and_solves(self, values: list[float], estimator: Estimator | None) -> None:
        """What needs derivatives along directions, in float64 where that can be had; on solves where they end."""
        given = None
        if estimator is not None and self.found["backends"].verdict != "wrong":
            given = self._natives(estimator)
        precise = self.subject.in_float64(self.unseen, values)
        subject = precise if isinstance(precise, Subject) else self.subject
        self.add(_precision(subject, precise))
        with subject.call() as call:
            solved = None if given is None else self._solved(call, given)
            ends = [one.y0 for one, _ in solved] if solved else [call.x(task) for task in range(call.batch.size)]
            query = "outer_loss" in subject.roles
            fields = [field_at(call, task, y, query=query) for task, y in enumerate(ends)]
            self.add(of_field(fields, "x" if solved is None else "y_0"))
            if solved is not None and given is not None:
                self._solves(call, given, solved, fields)

    def _natives(self, estimator: Estimator) -> list[Native] | None:
        try:
            return natives(self.subject, estimator)
        except NonFiniteError as error:
            self._blame_solve(estimator, error)
        return None

    def _solved(self, call: Call, given: Sequence[Native]) -> list[tuple[Run, Solved]] | None:
        """Each task's run, without the points on its way, and what was seen of them."""
        found = []
        try:
            for task, one in enumerate(given):
                ran = run(call, one.estimator, task)
                found.append((ran.without_records(), solves.solved(call, one.estimator, ran, task)))
        except NonFiniteError as error:
            self._blame_solve(given[0].estimator, error)
            return None
        return found

    def _blame_solve(self, estimator: Estimator, error: NonFiniteError) -> None:
        """Of an overflow: the branches, where the base has a solution by itself."""
        found = Finding("base", "wrong", str(error))
        if isinstance(estimator, Branched):
            alone = FOMAML(estimator.solver, estimator.steps, tol=estimator.tol, max_steps=estimator.max_steps)
            with suppress(NonFiniteError):
                natives(self.subject, alone)
                why = "The base solve is finite: if nu is large, a branch at -nu has no minimum, so take a smaller nu"
                found = Finding("branches", "wrong", f"{error} {why}, or perturb='center'")
        self.add(found)

    def _solves(
        self, call: Call, given: Sequence[Native], solved: Sequence[tuple[Run, Solved]], fields: Sequence[Field]
    ) -> None:
        estimator = self.subject.estimator
        assert estimator is not None
        runs, found = zip(*solved, strict=True)
        self.add(solves.steps(estimator, call.problem.lam, found))
        valued = all(one.slope <= SLOPE and one.asymmetry <= ASYMMETRY for one in fields)
        rise = (RISE_OF_NOISE if self._drawn else RISE) if valued else None
        self.add(solves.base(estimator, found, self.subject.precision, rise))
        self.add(solves.branches(estimator, found, call.problem.lam))
        if isinstance(estimator, Reptile):
            for name in ("nu", "meta-gradient"):
                self.add(Finding.not_checked(name, "Reptile's x - y_K is no estimate of the gradient of F"))
            return
        limits = [reference.limit(call, given[k].estimator, k, fields[k], ran) for k, ran in enumerate(runs)]
        own = [None if self._drawn else one.g.to(runs[0].g.dtype) for one in given]  # other precisions draw others
        rows = zip(range(len(runs)), runs, found, fields, limits, own, strict=True)
        judged = [Judged(*row) for row in rows]
        self.add(reference.difference(judged, self.subject.precision, call.problem.lam))
        self.add(reference.meta_gradient(call, estimator, judged))

    @property
    def _drawn(self) -> bool:
        return self.look is None or self.look.draws


def _precision(subject: Subject, precise: Subject | str) -> Finding:
    if isinstance(precise, str):
        dtype = next(iter(subject.x.values())).dtype
        return Finding("precision", "note", f"looked at in {dtype}, which shows less, and not in float64: {precise}")
    return Finding("precision", "ok", "field, solves and meta-gradient were looked at in float64, on copies")
