"""A model and how it adapts, in one object."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaprox import checks
from metaprox.checks.trees import on_device
from metaprox.errors import InputError
from metaprox.estimators import Estimator
from metaprox.evaluation import solved
from metaprox.inner.solve import Stopping
from metaprox.modules.company import company
from metaprox.modules.head import Head, ModuleHead
from metaprox.modules.loss import ModelLoss, ModuleLoss
from metaprox.problem import ProximalProblem
from metaprox.serving import disk
from metaprox.serving.adapted import Adapted, check_outputs
from metaprox.serving.blueprint import Blueprint
from metaprox.serving.copies import copied, in_modes, modes_of, with_head
from metaprox.serving.parts import (
    loss_json,
    loss_of,
    model_of,
    names_of,
    preprocessing_from,
    preprocessing_json,
    read_as,
    solver_from,
    solver_json,
    texts,
)
from metaprox.serving.state import device_of, freeze, frozen_in, kept, load_into, state_of
from metaprox.serving.support import batch_of
from metaprox.solvers.protocol import InnerSolver, check_solver
from metaprox.solvers.stability import check_stable
from metaprox.vectors.shards import refuse_shards

NAME = "learner"


@dataclass(frozen=True, eq=False)
class Learner:
    """A model that adapts to a task from a few examples, as in training and evaluation.

        y = argmin_y  fhat(y) + (lam/2) ||y - x||^2,   x the model's weights, by so many steps of the solver

    Args:
        model: the model, whose weights are x; nothing is ever written on it.
        loss: ``loss(model, batch)`` of a support, as of ``ProximalProblem.from_module``.
        lam: weight of the proximal term.
        solver: the inner solver.
        steps: inner steps. Or ``tol`` with ``max_steps``.
        tol: in place of ``steps``: it stops once the gradient norm is <= tol.
        max_steps: the most steps that are taken with ``tol``.
        adapts: which parameters adapt, as ``adapt`` of ``ProximalProblem``.
        head: the layer that is made for each task, for any number of classes. None: the model's own.
        names: of the classes that the model's own outputs stand for, in their order, which labels are put in. None:
            each support has classes of its own.
        preprocessing: of what a person has, N items, to inputs of the model; kept where it is a ``Preprocessing`` of
            ``metaprox.data.preprocessing``. None: inputs are given.
        blueprint: how the model is made anew when it is loaded; None: ``load`` has to be given one.

    Raises:
        InputError: an argument is not of its kind, or out of range.

    Example:
        >>> import torch, metaprox as mp
        >>> from metaprox.models import cross_entropy, mlp
        >>> model, solver = mlp([2, 8, 5]), mp.GradientDescent(0.5)
        >>> learner = mp.Learner(model, cross_entropy, lam=0.1, solver=solver, steps=20, head=mp.Head("2"))
        >>> inputs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]])
        >>> adapted = learner.adapt((inputs, ["north", "east", "south-west"]))
        >>> adapted.predict(torch.tensor([[0.1, 0.9]])).labels
        ('north',)
    """

    model: nn.Module
    loss: ModelLoss
    lam: float
    solver: InnerSolver
    steps: int | None = None
    _: KW_ONLY
    tol: float | None = None
    max_steps: int | None = None
    adapts: str | Sequence[str] | None = None
    head: Head | None = None
    names: Sequence[str] | None = None
    preprocessing: Callable[[Sequence[Any]], Any] | None = None
    blueprint: Blueprint | None = None

    def __post_init__(self) -> None:
        checks.settle(self, solver=check_solver, blueprint=checks.optional(checks.instance_of(Blueprint)))
        problem = self.problem
        object.__setattr__(self, "lam", problem.lam)
        object.__setattr__(self, "adapts", problem.adapt)
        refuse_shards(self.model.parameters(), "mp.Learner")
        check_stable(self.solver, self.lam, self._stopping.max_steps)
        checks.settle(self, names=checks.optional(names_of))
        if self.names is not None and self.head is not None:
            raise InputError("names are of the model's own outputs, but head is made for the classes of each support")
        if self.preprocessing is not None and not callable(self.preprocessing):
            raise InputError(f"preprocessing must be a function of items, got {checks.shown(self.preprocessing)}")

    @classmethod
    def of(cls, problem: ProximalProblem, estimator: Estimator, **more: Any) -> "Learner":
        """Returns the learner of what was meta-learned: as ``problem`` and the ``estimator``'s base solve have it.

        ``more``: names, preprocessing, blueprint.

        Raises:
            InputError: the problem is not one of a model.
        """
        loss, head = problem.inner_loss, problem.per_task
        if not isinstance(loss, ModuleLoss) or not (head is None or isinstance(head, ModuleHead)):
            raise InputError("a learner is of a model: of a problem by ProximalProblem.from_module")
        return cls(
            loss.model,
            loss.loss,
            problem.lam,
            estimator.solver,
            estimator.steps,
            tol=estimator.tol,
            max_steps=estimator.max_steps,
            adapts=problem.adapt,
            head=None if head is None else head.head,
            **more,
        )

    @property
    def problem(self) -> ProximalProblem:
        """What is solved."""
        return ProximalProblem.from_module(self.model, self.loss, self.lam, adapt=self.adapts, head=self.head)

    @property
    def _stopping(self) -> Stopping:
        return Stopping.of(self.steps, self.tol, self.max_steps)

    def adapt(self, support: Any, names: Sequence[str] | None = None, *, compile: bool = False) -> Adapted:  # noqa: A002
        """Adapt to one task.

        Args:
            support: its data: (items, labels), with items for ``preprocessing`` or, where there is none, inputs; or
                ``Examples`` of a reader; or whatever else the loss takes. Labels are integers 0 to C - 1, names of
                classes, or for regression numbers.
            names: of the C classes, in the order of their labels; where labels are names, all that there are. None:
                the learner's, those of the labels, sorted, or "0", "1", ...; (): labels are numbers.
            compile: as of ``mp.adapt``.

        Returns:
            The adapted model, a copy.

        Raises:
            InputError: the support is none for the loss, labels are not among the names, these not among the learner's,
                or the model has other outputs than there are classes.
            NonFiniteError: the solve diverged.
        """
        head, read = self.head, self.preprocessing
        batch, known = batch_of(support, names, read, needs_classes=head is not None, fixed=self.names)
        problem, module, batch = self.problem, copied(self.model), on_device(batch, device_of(self.model))
        if head is not None:
            module = with_head(module, head.module, len(known))
        elif known:
            check_outputs(module, batch[0], len(known), named=self.names is not None)
        found = solved(problem, batch, self.solver, self._stopping, residual=True, compiles=compile)
        state = state_of(module)
        with torch.no_grad():
            for name, value in found.y.items():
                state[name].copy_(value)
        others = company(ModuleLoss(module, self.loss), {**state, **found.y}, batch)
        return Adapted(
            module,
            names=known,
            preprocessing=self.preprocessing,
            residual=found.residual,
            converged=found.converged,
            steps=found.steps,
            transductive=others.depends,
            transductive_by=others.by if others.depends else "",
            head=None if head is None else head.module,
            blueprint=self.blueprint,
        )

    def save(self, folder: str | Path) -> Path:
        """Keep it in a folder that is missing or empty: learner.json and weights.safetensors, all or nothing.

        Returns:
            The folder.

        Raises:
            InputError: the solver or the preprocessing is one that can't be kept.
            RunFolderError: the folder can't be written.
        """
        tensors, built = kept(self.model, self.blueprint)
        values = {
            "loss": loss_json(self.loss),
            "lam": self.lam,
            "solver": solver_json(self.solver),
            "steps": self.steps,
            "tol": self.tol,
            "max_steps": self.max_steps,
            "adapts": self.adapts if self.adapts is None or isinstance(self.adapts, str) else list(self.adapts),
            "head": None if self.head is None else {"module": self.head.module, "start": self.head.start},
            "names": self.names if self.names is None else list(self.names),
            "preprocessing": preprocessing_json(self.preprocessing),
            "model": None if self.blueprint is None else self.blueprint.to_json(),
            "training": modes_of(self.model),
            "frozen": frozen_in(self.model),
            "built": built,
        }
        return disk.write(folder, NAME, values, tensors)

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module | None = None, loss: ModelLoss | None = None) -> "Learner":
        """Returns what ``save`` kept; it adapts the same to the last bit. No code of the folder's is run.

        Args:
            folder: that it was saved to.
            model: of the same architecture, which is copied; needed where the model was one of your own.
            loss: needed where the loss was one of your own.

        Raises:
            InputError: a model or a loss is needed, and not given.
            RunFolderError: the folder is damaged, of another version or of another model.
        """
        place = checks.path("folder", folder)
        values, tensors = disk.read(place, NAME)
        blueprint, made = model_of(values, model, place, tensors)
        with read_as(place / f"{NAME}.json"):
            name = values.pop("loss")
        loss = loss_of(name, loss, place)
        with read_as(place / f"{NAME}.json"):
            load_into(made, tensors, texts("built", values.pop("built")), place)
            in_modes(made, texts("training", values.pop("training")))
            freeze(made, texts("frozen", values.pop("frozen")))
            solver, head = solver_from(values.pop("solver")), values.pop("head")
            return cls(
                made,
                loss,
                values.pop("lam"),
                solver,
                head=None if head is None else Head(**head),
                preprocessing=preprocessing_from(values.pop("preprocessing")),
                blueprint=blueprint,
                **values,
            )
