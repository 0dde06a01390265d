"""What a person sets of a run: a family of tasks, and options by name. All else follows from the family."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from metaprox import checks
from metaprox.errors import InputError
from metaprox.tasks import Family
from metaprox.training.compile import worth_compiling
from metaprox.training.composition import Composition
from metaprox.training.names import FAMILIES, SOLVERS
from metaprox.training.options import CHOICES, DEFAULTS_OF_OWN, PREFIXES, Chosen, Option
from metaprox.training.pace import Pace
from metaprox.training.stored import fitted

# Settings that a part had in version 1, whether it was chosen or not.
VERSION_1 = {"ways", "scheme", "perturb", "residual_correction", "cg_steps", "damping", "momentum", "gamma"}
OPTIMIZER = DEFAULTS_OF_OWN["optimizer"]
STEPS, INNER_LR = 10, 0.1  # Where neither the family nor anybody else says something.


@dataclass(frozen=True, init=False)
class Settings:
    """Options of a run by name, as on the command line: ``Settings("mnist1d", ways=3, method="maml", lam=0.1)``.

    Which options there are depends on the family, the method, the solvers and the optimizer: their settings are the
    options, those of the inner solver with ``inner_`` before them and those of the branches' with ``branch_``.
    ``composition()`` makes the objects of the run; what is not given is as the family has it, or else as the part has
    it. None is the same, but where an option takes None and its part has another default, such as chunk_size.

    Raises:
        InputError: the choice of parts does not have an option; the message says which does.
    """

    given: dict[str, Any]

    def __init__(self, tasks: str | type[Family], **given: Any) -> None:
        name = FAMILIES.name_of(tasks) if isinstance(tasks, type) else tasks
        values = {"tasks": name, **{key: value for key, value in given.items() if value is not None}}
        known = Chosen.by(values).options()
        values |= {
            key: None for key, value in given.items() if value is None and key in known and known[key].takes_none
        }
        object.__setattr__(self, "given", values)
        for key in values:
            if key not in known and key != "tasks":
                raise InputError(_foreign(key, values))

    @classmethod
    def of_version_1(cls, values: Mapping[str, Any]) -> "Settings":
        """Of a configuration in which every setting of every part had a place, null where it had no meaning."""
        given = {name: value for name, value in values.items() if value is not None}
        if "tasks" not in given:
            raise InputError("not the configuration of a run of metaprox: it names no tasks")
        known = {"tasks", *Chosen.by(given).options()}
        if odd := sorted(given.keys() - known - VERSION_1):
            raise InputError(f"not the configuration of a run of metaprox: unknown {', '.join(odd)}")
        return cls(**{name: value for name, value in given.items() if name in known})

    def options(self) -> dict[str, Option]:
        """Every option of these parts, with its default as far as the parts say it."""
        return Chosen.by(self.given).options()

    def but(self, **changes: Any) -> "Settings":
        """The same with ``changes``; None takes back what was given."""
        kept = {name: value for name, value in self.given.items() if name not in changes}
        return Settings(**kept, **{name: value for name, value in changes.items() if value is not None})

    def variant(self, changes: Mapping[str, Any]) -> "Settings":
        """The same with ``changes``, without what the parts chosen by these do not have."""
        if not isinstance(changes, Mapping):
            raise InputError(f"changes must be a dict of settings, got {checks.shown(changes)}")
        for name in changes:
            if not isinstance(name, str):
                raise InputError(f"unknown setting {checks.shown(name)}: settings go by names")
        values = self.given | dict(changes)
        known = Chosen.by(values).options()
        for name in self.given.keys() - changes.keys() - {"tasks"}:
            if name not in known or not _has_meaning(known[name], values):
                del values[name]
        return Settings(**values)

    def defaults(self) -> dict[str, Any]:
        """Every option of these parts with the value that it has where it is not given."""
        chosen, known = Chosen.by(self.given), self.options()
        own = self._of_family(chosen, known)
        if self.given.get("optimizer", OPTIMIZER) != own.get("optimizer", OPTIMIZER):
            own.pop("lr", None)  # the family's is for another
        if self.given.get("steps") is not None:  # and not until a tolerance is met
            own = {name: value for name, value in own.items() if name not in ("tol", "max_steps")}
        step = own.pop("inner_lr", INNER_LR)
        found = {name: option.default for name, option in known.items()} | {"steps": STEPS}
        if "inner_lr" in known and not known["inner_lr"].optional:  # else the solver finds it
            found["inner_lr"] = step
        found |= _of_preset("solver", self.given.get("solver", own.get("solver")))
        beside = {name: one for name, one in own.items() if name == "perturb"} | self.given
        found |= {name: one for name, one in own.items() if name in known and _has_meaning(known[name], beside)}
        if self.given.get("steps") is None and self.given.get("tol", own.get("tol")) is not None:
            found["steps"] = None
        inner = found | self.given  # as which the branches are solved, where nothing else is said
        if chosen.branch_solver is chosen.solver:
            branch = {f"branch_{field.name}": inner.get(f"inner_{field.name}") for field in fields(chosen.solver)}
        else:
            branch = {"branch_lr": step if inner.get("inner_lr") is None else inner["inner_lr"]}
        branch |= _of_preset("branch_solver", self.given.get("branch_solver", own.get("branch_solver")))
        found |= {name: value for name, value in branch.items() if name not in own}
        return {name: value for name, value in found.items() if name in known}

    def _of_family(self, chosen: Chosen, known: Mapping[str, Option]) -> dict[str, Any]:
        """Its defaults. Raises InputError where one is an option of nothing."""
        own = dict(chosen.tasks.defaults)
        for name in own.keys() - known.keys():
            if owner(name, self.given) is None:
                raise InputError(f"defaults of {chosen.tasks.__name__} has {name!r}, which is no option of a run")
        return own

    def composition(self) -> Composition:
        """The parts of the run, made and checked. Raises InputError where a value is not one that its option takes."""
        chosen, known = Chosen.by(self.given), self.options()
        values = self.defaults() | {name: value for name, value in self.given.items() if name != "tasks"}
        part: dict[str, dict[str, Any]] = {name: {} for name in (*vars(chosen), "own", "run")}
        for name, option in known.items():
            part[option.part][option.field] = values[name]
        own = part["own"]
        pace: Pace = _made(Pace, part["run"])
        family = _made(chosen.tasks, part["tasks"] | {"seed": pace.seed})
        solvers = {"solver": _made(chosen.solver, part["solver"], "inner_")}
        if chosen.branch_solver is not None:
            branch = _made(chosen.branch_solver, part["branch_solver"], "branch_")
            solvers["branch_solver"] = None if branch == solvers["solver"] else branch
        estimator = _made(chosen.method, part["method"] | solvers)
        optimizer = _made(chosen.optimizer, part["optimizer"])
        made = Composition(family, estimator, own["lam"], optimizer, pace, own["inner_batch"], own["device"])
        return replace(made, estimator=replace(estimator, compile=_compiled(own["compile"], made)))


def _of_preset(part: str, name: str | None) -> dict[str, Any]:
    """What comes with the name of a solver."""
    return {f"{PREFIXES[part]}{field}": value for field, value in SOLVERS.preset(name).items()} if name else {}


def _made(kind: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A part of these settings. Where one is wrong, it is named as the option is."""
    default = {field.name: field.default for field in fields(kind)}
    given = {name: value for name, value in values.items() if value is not None or default[name] is not MISSING}
    for field in fields(kind):
        if field.init and field.default is field.default_factory is MISSING and field.name not in given:
            raise InputError(f"{prefix}{field.name} is needed: {kind.__name__} has no default for it")
    try:
        return kind(**fitted(kind, given))
    except InputError as error:
        named = str(error).split(" ")[0].split("[")[0].split("=")[0] in default
        raise type(error)(f"{prefix}{error}" if named else str(error)) from error
    except (ValueError, TypeError) as error:  # of a part of one's own
        raise InputError(f"{kind.__name__}: {error}") from error


def _has_meaning(option: Option, given: Mapping[str, Any]) -> bool:
    """Whether the option has a meaning beside the others that are given: of a step of FO-B-MAML, its perturbation."""
    return option.part != "method" or option.field not in Chosen.by(given).method.without_meaning(given)


def _compiled(wanted: Any, run: Composition) -> bool:
    if isinstance(wanted, bool):
        return wanted
    if checks.choice("compile", wanted, ("auto", "on", "off")) != "auto":
        return wanted == "on"
    return worth_compiling(run)


def owner(name: str, given: Mapping[str, Any]) -> str | None:
    """Which parts have the option that those chosen by ``given`` do not: ``imaml, but method='fobmaml'``."""
    chosen = Chosen.by(given)
    for part, parts in CHOICES.items():
        owners = [one for one in parts.known() if name in _names(part, one, given)]
        if owners:
            one = getattr(chosen, part) or chosen.solver
            listed = " and ".join([*filter(None, [", ".join(owners[:-1])]), owners[-1]])
            return f"{listed}, but {part}={parts.name_of(one)!r}"
    return None


def _foreign(name: str, given: Mapping[str, Any]) -> str:
    """Why there is no option of this name."""
    if why := owner(name, given):
        return f"{name}={checks.shown(given[name])} is a setting of {why}"
    known = ", ".join(["tasks", *Chosen.by(given).options()])
    return f"unknown setting {name!r}; known: {known}"


def _names(part: str, one: str, given: Mapping[str, Any]) -> set[str]:
    """The options that there would be with another part."""
    try:
        return set(Chosen.by({**given, part: one}).options())
    except InputError:
        return set()
