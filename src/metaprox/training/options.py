"""The options of a run: the fields of the parts that are chosen, by name. No table of them is kept."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args, get_type_hints

import docstring_parser

from metaprox import checks
from metaprox.errors import InputError
from metaprox.estimators import Estimator
from metaprox.tasks import Family
from metaprox.training.names import FAMILIES, METHODS, OPTIMIZERS, SOLVERS, Parts
from metaprox.training.outer import Outer
from metaprox.training.pace import Pace

Group = Literal["data", "method", "outer step", "run"]
GROUPS: tuple[Group, ...] = ("data", "method", "outer step", "run")


@dataclass(frozen=True)
class Own:
    """What a run has beside the settings of its parts."""

    method: str = "fobmaml"
    """Estimator of the meta-gradient. All take the same tasks, inner solves and outer steps."""
    lam: float = 0.5
    """Weight of the proximal term that holds adapted parameters near the meta-parameters."""
    solver: str = "gd"
    """Inner solver. adam0: Adam with beta1 = 0, as Reptile's authors take it. adaptive: gradient descent that finds a
    step of its own for each task, without --inner-lr; with it, none is longer."""
    inner_batch: int | None = None
    """Support examples that an inner step of training sees, drawn anew for each step (Reptile learns little without).
    Default: all. Evaluation takes all."""
    branch_solver: str | None = None
    """Solver of the perturbed branches. Default: the same as --solver."""
    optimizer: str = "normalized"
    """Outer optimizer: normalized SGD with momentum, clipped SGD, Adam, or plain SGD, which for Reptile is the
    interpolation of its authors. Its step decays linearly to 0."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the vmapped steps: takes a minute, then they are twice as fast. auto: small models, 1000 meta-steps."""
    device: str = "cpu"
    """Device of the model and the tasks, such as cpu or cuda:0."""


CHOICES: dict[str, Parts] = {
    "tasks": FAMILIES,
    "method": METHODS,
    "branch_solver": SOLVERS,  # before the solver, which brings its options too where it is that of the branches
    "solver": SOLVERS,
    "optimizer": OPTIMIZERS,
}
PREFIXES = {"solver": "inner_", "branch_solver": "branch_"}
# Fields that are parts of a run themselves, or settled elsewhere.
NOT_OPTIONS = {"tasks": {"seed", "split"}, "method": {"solver", "branch_solver", "compile", "reduce"}}
OF_THE_RUN = {"compile", "device", "backend", "chunk_size", "on_nonfinite"}


@dataclass(frozen=True)
class Option:
    """A setting by the name that it has among all of a run; ``part`` and ``field``: what it sets."""

    name: str
    group: Group
    part: str
    field: str
    hint: Any
    default: Any
    help: str

    @property
    def place(self) -> str:
        """The field, for messages."""
        part = {"tasks": "family of tasks", "own": "run"}.get(self.part, self.part.replace("_", " "))
        return f"the field {self.field!r} of the {part}"

    @property
    def optional(self) -> bool:
        """Whether None is among its values."""
        return type(None) in get_args(self.hint)

    @property
    def takes_none(self) -> bool:
        """Whether None is a value of its own, and not the same as no value."""
        return self.default is not None and self.optional


@dataclass(frozen=True)
class Chosen:
    """The classes of a run's parts. branch_solver: None where the method has no branches."""

    tasks: type[Family]
    method: type[Estimator]
    solver: type
    branch_solver: type | None
    optimizer: type[Outer]

    @classmethod
    def by(cls, given: Mapping[str, Any]) -> "Chosen":
        """Those that ``given`` names, and the default ones. Raises InputError where there is no such part."""
        family: type[Family] = FAMILIES.of(given.get("tasks"))
        if not isinstance(family.defaults, Mapping):
            raise InputError(f"defaults of {family.__name__} must be a dict, got {checks.shown(family.defaults)}")
        own = {name: given.get(name, family.defaults.get(name, default)) for name, default in DEFAULTS_OF_OWN.items()}
        method: type[Estimator] = METHODS.of(own["method"])
        branched = "branch_solver" in {field.name for field in fields(method)}
        solver = SOLVERS.of(own["solver"])
        branch = SOLVERS.of(own["branch_solver"], "branch_solver") if own["branch_solver"] is not None else solver
        return cls(family, method, solver, branch if branched else None, OPTIMIZERS.of(own["optimizer"]))

    def options(self) -> dict[str, Option]:
        """Every option there is with these parts, with its default."""
        own = {option.name: option for option in _options("own", Own)}
        listed: list[Option] = []
        for part, kind in vars(self).items():  # each choice before what it brings
            listed += [own.pop(part)] if part in own else []
            listed += _options(part, kind) if kind else ()
        found: dict[str, Option] = {}
        for option in [*listed, *_options("run", Pace), *own.values()]:
            if option.name == "tasks":
                raise InputError(f"{option.place} has the name of the option for the family: give it another")
            if option.name in found:
                both = f"{option.place} and {found[option.name].place}"
                raise InputError(f"{both} are both the option {option.name}: give your own another name")
            found[option.name] = option
        if self.branch_solver is None:
            del found["branch_solver"]
        return found


def _options(part: str, kind: type) -> Iterable[Option]:
    """The options of one part."""
    hints, helps, prefix = hints_of(kind), help_of(kind), PREFIXES.get(part, "")
    for field in sorted(fields(kind), key=lambda one: bool(one.kw_only)):  # what most families have, after their own
        if not field.init or field.name in NOT_OPTIONS.get(part, ()):
            continue
        default = None if field.default is MISSING else field.default
        name = f"{prefix}{field.metadata.get('option', field.name)}"
        text = " ".join(helps.get(field.name, "").replace("``", "").split())
        text = text[:1].upper() + text[1:]
        yield Option(name, _group(part, field.name), part, field.name, hints[field.name], default, text)


def hints_of(kind: type) -> dict[str, Any]:
    """Field -> its type. Raises InputError where one names what its module does not have."""
    try:
        return get_type_hints(kind)
    except NameError as error:
        raise InputError(f"the types of the fields of {kind.__qualname__} can't be read: {error}") from error


def _group(part: str, field: str) -> Group:
    if part == "tasks":
        return "data"
    if part == "run" or (part in ("own", "method") and field in OF_THE_RUN):
        return "run"
    return "outer step" if part == "optimizer" or field == "optimizer" else "method"


@lru_cache(maxsize=64)
def help_of(kind: type) -> dict[str, str]:
    """Returns field -> what the docstring of the class, or of one that it inherits from, says of it.

    A line of its own goes before one for several fields together.
    """
    alone: dict[str, str] = {}
    together: dict[str, str] = {}
    for base in kind.__mro__:
        for param in docstring_parser.parse_from_object(base).params if _has_source(base) else ():
            names = [name.strip() for name in param.arg_name.split(",")]
            for name in names:
                (alone if len(names) == 1 else together).setdefault(name, param.description or "")
    return together | alone


def _has_source(kind: type) -> bool:
    try:
        return kind is not object and bool(inspect.getsource(kind))
    except (OSError, TypeError):
        return False


DEFAULTS_OF_OWN = {field.name: field.default for field in fields(Own)}
