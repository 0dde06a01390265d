"""Every setting of a meta-training run, with a sentence of help each."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from metaprox import checks
from metaprox.errors import InputError
from metaprox.tasks import Split
from metaprox.text import Learned
from metaprox.training.kinds import checks_of
from metaprox.training.options import (
    FAMILY_DEFAULTS,
    FAMILY_OPTIONS,
    LENGTHS,
    METHOD_OPTIONS,
    OUTER_STEPS,
    foreign,
    foreign_options,
    has_compiler,
)

SolverName = Literal["gd", "nesterov", "adam", "adam0", "anderson", "adaptive"]
TasksName = Literal["mnist1d", "sinusoid", "banking77"]
MethodName = Literal["fobmaml", "tangent", "imaml", "maml", "fomaml", "reptile"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. What is not given follows from the family of tasks."""

    tasks: TasksName = "mnist1d"
    """Family of tasks. mnist1d: few-shot classification; sinusoid: few-shot regression; banking77: few-shot
    classification of questions by intent, with a pretrained sentence encoder."""
    ways: int = 5
    """Classes per task (not sinusoid)."""
    shots: int | None = None
    """Support examples per class (mnist1d, default 5; banking77, default 1), or per task (sinusoid, default 10)."""
    queries: int | None = None
    """Query examples per class (mnist1d, default 15; banking77, default 5), or per task (sinusoid, default 10)."""
    train_shots: int | None = None
    """The same as --shots, but for training tasks alone (reptile, whose authors train with more examples than they test
    with, for it learns from support examples only). Default: the same as --shots."""
    data: str | None = None
    """Folder with train.csv and test.csv (banking77 only). Default: banking77 in the folder that the environment
    variable METAPROX_DATA names."""
    encoder: Learned | None = None
    """What of the encoder is meta-learned (banking77 only): nothing, LoRA adapters, or all its weights. The head starts
    every task at 0; with a frozen encoder its start is what is learned. Default: lora."""
    adapt: Literal["head", "all"] | None = None
    """What adapts to a task (banking77 only): the head alone, or also what of the encoder is meta-learned. Default:
    head."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden layers of the MLP. Default: mnist1d 128 128, sinusoid 40 40."""
    seed: int = 0
    """Seed of the initial weights, the tasks and any noise. Equal seeds give equal runs."""

    method: MethodName = "fobmaml"
    """Estimator of the meta-gradient. All take the same tasks, inner solves and outer steps."""
    lam: float | None = None
    """Weight of the proximal term that holds adapted parameters near the meta-parameters. Default: mnist1d 0.1,
    others 0.5."""
    solver: SolverName = "gd"
    """Inner solver. adam0: Adam with beta1 = 0, as Reptile's authors take it. adaptive: gradient descent with a
    safeguarded step of its own for each task."""
    inner_lr: float | None = None
    """Inner step size; the first one of solver adaptive. Default: mnist1d 0.1, sinusoid 0.01,
    banking77 0.3."""
    steps: int = 10
    """Inner steps K, in training and in evaluation."""
    inner_batch: int | None = None
    """Support examples that an inner step of training sees, drawn anew for each step (not banking77; reptile learns
    little without). Default: all. Evaluation takes all."""
    branch_solver: SolverName | None = None
    """Solver of the perturbed branches. Default: the same as --solver."""
    branch_lr: float | None = None
    """Step size of the branch solver. Default: the same as --inner-lr."""
    branch_steps: int | None = None
    """Steps of each perturbed branch. Default: the same as --steps."""
    scheme: Literal["forward", "symmetric", "central4", "central6"] = "symmetric"
    """Finite-difference scheme, of order 1, 2, 4, 6."""
    perturb: Literal["loss", "center"] = "loss"
    """Where the perturbation enters: the paper's query loss, or the centre of the proximal term."""
    nu: float | None = None
    """Finite-difference step of --perturb loss. Default: sinusoid 0.05, others 0.1."""
    eps: float | None = None
    """Finite-difference step of --perturb center, a distance. Default: mnist1d 1.0, banking77 0.1, sinusoid by
    precision and order."""
    residual_correction: bool = False
    """Make the base solution exactly stationary for the branches."""
    cg_steps: int = 5
    """Steps of conjugate gradients (imaml only)."""
    damping: float = 0.0
    """Added to lam in the linear system (imaml only). A bias, for ill-conditioned problems."""

    optimizer: Literal["normalized", "clipped", "adam", "sgd"] = "normalized"
    """Outer optimizer: normalized SGD with momentum, clipped SGD, Adam, or plain SGD, which for reptile is the
    interpolation of its authors. Its step decays linearly to 0."""
    lr: float | None = None
    """Outer step: a length for normalized SGD. Default: normalized 0.4 (mnist1d) or 0.1 (others), clipped 0.1, adam
    0.001, sgd 1."""
    momentum: float = 0.9
    """Momentum of normalized SGD."""
    gamma: float = 0.1
    """Longest step of clipped SGD."""
    meta_steps: int | None = None
    """Meta-training steps. Default: mnist1d 1000, sinusoid 4000, banking77 100."""
    meta_batch: int | None = None
    """Tasks per meta-step. Default: mnist1d 16, sinusoid 25, banking77 4."""

    eval_every: int = 100
    """Meta-steps between evaluations during training."""
    eval_tasks: int = 200
    """Tasks of each evaluation during training."""
    eval_split: Split = "validation"
    """Split of the evaluations during training. Nothing is chosen by them."""
    test_tasks: int = 600
    """Test tasks of the evaluations before and after training."""
    checkpoint_every: int = 100
    """Meta-steps between checkpoints, from which a stopped run goes on."""

    backend: Literal["auto", "vmap", "loop"] = "auto"
    """vmap: all tasks and branches at once. loop: one after another. auto: vmap for small models that it can take."""
    chunk_size: int | None = None
    """Tasks that the vmap backend takes at once. Default: as many as fit a quarter of the memory."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the vmapped steps: takes a minute, then they are twice as fast. auto: small models, 1000 meta-steps."""
    on_nonfinite: Literal["raise", "skip"] = "raise"
    """What happens where a training task diverges. raise: the run ends. skip: the meta-step is the mean over its other
    tasks, and how many were left out is recorded; where all diverge, or a task of an evaluation does, the run ends."""
    device: str = "cpu"
    """Device of the model and the tasks, such as cpu or cuda:0."""
    threads: int = 1
    """Threads of torch on the CPU. One is fastest for small models."""

    def __post_init__(self) -> None:
        checks.settle(self, **checks_of(TrainConfig))
        if self.tasks == "banking77" and self.backend == "vmap":
            raise InputError("backend='vmap' can't take the encoder of tasks='banking77': use backend='loop'")
        self._refuse_foreign("tasks", FAMILY_OPTIONS)
        self._refuse_foreign("method", METHOD_OPTIONS)

    def _refuse_foreign(self, kind: str, options: Mapping[str, tuple[str, ...]]) -> None:
        """A setting that the chosen family or method does not have must be left at its default."""
        chosen = getattr(self, kind)
        for name in foreign(options, chosen):
            if getattr(self, name) != DEFAULTS[name]:
                owners = " and ".join(owner for owner, own in options.items() if name in own)
                raise InputError(f"{name}={getattr(self, name)!r} is a setting of {owners}, but {kind}={chosen!r}")

    def resolved(self) -> "TrainConfig":
        """The same run with every family default written out."""
        optimizer_lr = ({"normalized": LENGTHS[self.tasks]} | OUTER_STEPS)[self.optimizer]
        defaults = FAMILY_DEFAULTS[self.tasks] | {"lr": optimizer_lr}
        for name, perturb in (("nu", "loss"), ("eps", "center")):
            if self.perturb != perturb or self.method != "fobmaml":
                defaults.pop(name, None)
        plain = replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})
        return replace(plain, compile="on" if plain._worth_compiling() else "off") if self.compile == "auto" else plain

    def _worth_compiling(self) -> bool:
        """For first-order methods, where there is a compiler; the resolved configuration keeps the answer."""
        assert self.meta_steps is not None  # resolved
        small = self.tasks in ("mnist1d", "sinusoid") and self.backend != "loop" and not self.inner_batch
        first_order = self.method in ("fobmaml", "fomaml", "reptile")
        return small and first_order and self.meta_steps >= 1000 and has_compiler(self.device)

    def variant(self, changes: Mapping[str, Any]) -> "TrainConfig":
        """The same run with ``changes``; settings that the method or perturbation then does not have are dropped."""
        if not isinstance(changes, Mapping):
            raise InputError(f"changes must be a dict of settings, got {checks.shown(changes)}")
        unknown = sorted(changes.keys() - DEFAULTS.keys(), key=str)
        if unknown:
            raise InputError(f"unknown settings {unknown}; known: {', '.join(DEFAULTS)}")
        method, perturb = changes.get("method", self.method), changes.get("perturb", self.perturb)
        dropped = {*foreign_options(method), "nu" if perturb == "center" else "eps"}
        return replace(self, **({name: DEFAULTS[name] for name in dropped} | _tuples(changes)))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Raises InputError where the text is not the JSON of a configuration."""
        try:
            values = json.loads(checks.text("text", text))
        except json.JSONDecodeError as error:
            raise InputError(f"not JSON: {error}") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not values.keys() <= known:
            unknown = sorted(values.keys() - known) if isinstance(values, dict) else type(values).__name__
            raise InputError(f"not the configuration of a run of this version of metaprox: unknown {unknown}")
        return cls(**_tuples(values))


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainConfig)}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where settings have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
