"""What is being solved: losses and the proximal weight."""

import copy
import fnmatch
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from metaprox import checks
from metaprox.cache import BoundedCache
from metaprox.checks import signatures
from metaprox.errors import InputError
from metaprox.modules.head import Head, ModuleHead
from metaprox.modules.loss import ModelLoss, ModuleLoss, PrivateLoss
from metaprox.modules.replica import Replica
from metaprox.modules.sharded import ShardedLoss, is_fully_sharded, resharded
from metaprox.types import Loss, Params

PerTask = Callable[[Params, Any], Params]
OF_MODULES = (ModuleLoss, PrivateLoss, ShardedLoss)


def _cache() -> BoundedCache[Any, Any]:
    return BoundedCache(256)


@dataclass(frozen=True)
class ProximalProblem:
    """The B-MAML problem.

        F(x) = E_i [ f_i(y_i(x)) ],   y_i(x) = argmin_y  fhat_i(y) + (lam/2) ||y - x||^2

    Args:
        inner_loss: ``fhat(params, support) -> scalar`` on a dict of tensors, shaped as the parameters are, and the data
            of one task, without a task dimension.
        outer_loss: ``f(params, query)``: a scalar, or ``(scalar, {name: scalar})`` to report more, such as accuracy.
        lam: weight of the proximal term, in units of loss per squared parameter. 0 switches it off, which
            only estimators without a proximal solve accept.
        adapt: which parameters adapt: a name or pattern as in a shell ("head.*"), or several. None: all. All tasks
            share the others as they are, and these get their meta-gradient too.
        parameters: the live tensors x that ``.backward`` fills the gradients of; ``from_module`` sets it.
        transductive: whether a query example's prediction depends on the other ones; None where unknown.
        per_task: ``h(x, support) -> {name: tensor}``, of parameters that each task has of its own: with y it adapts
            these, from h(x, support) and centred there. They are not in x, which gets (dh/dx)^T times their
            meta-gradient, a product that counts as a support gradient. ``from_module`` makes it of ``head``. Names are
            those that the losses get them by.

    ``cache`` keeps what is known of the losses: what was seen of them, what a task of these shapes costs.

    Example:
        >>> import torch, metaprox as mp
        >>> def loss(params, data):
        ...     inputs, targets = data
        ...     return ((inputs @ params["w"] - targets) ** 2).mean()
        >>> problem = mp.ProximalProblem(loss, loss, lam=1.0)
    """

    inner_loss: Loss
    outer_loss: Loss
    lam: float
    adapt: str | Sequence[str] | None = None
    parameters: Callable[[], dict[str, Tensor]] | None = None
    transductive: Callable[[], bool] | None = None
    per_task: PerTask | None = None
    cache: BoundedCache[Any, Any] = field(default_factory=_cache, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        signatures.loss_of_parameters("inner_loss", self.inner_loss)
        signatures.loss_of_parameters("outer_loss", self.outer_loss)
        checks.settle(self, lam=checks.nonnegative, adapt=checks.optional(checks.patterns))
        for name in ("parameters", "transductive"):
            checks.settle(self, **{name: checks.optional(signatures.getter)})
        if self.per_task is not None:
            signatures.function("per_task", self.per_task, "params, support", "it makes a task's own parameters")

    @classmethod
    def from_module(
        cls,
        model: nn.Module,
        loss: ModelLoss,
        lam: float,
        outer_loss: ModelLoss | None = None,
        *,
        adapt: str | Sequence[str] | None = None,
        head: Head | None = None,
    ) -> "ProximalProblem":
        """Returns the problem of adapting ``model``: ``loss(model, batch)`` on the support and the query.

        ``outer_loss`` takes its place on the query. Parameters with ``requires_grad=False`` stay as they are; those
        that ``adapt`` leaves out stay as they are within a task; tied weights stay tied. Losses see a replica of the
        model, as it is when a call begins: what they write on its parameters, buffers or attributes is dropped after
        each evaluation. Train and eval mode are the model's own.

        ``head``: the layer that each task has of its own, with a row for each of its classes; it adapts whatever
        ``adapt`` says, and is none of the parameters that are learned.

        Raises:
            InputError: an argument is not of its kind, or the model is one that can't be given other weights
                (DistributedDataParallel, ...), or has no such head.
        """
        signatures.module("model", model, "the order is from_module(model, loss, lam)")
        signatures.loss_of_model("loss", loss)
        signatures.loss_of_model("outer_loss", loss if outer_loss is None else outer_loss)
        inner = ModuleLoss(model, loss)
        if is_fully_sharded(model):
            ShardedLoss(inner)  # refuses shards of other kinds
        else:
            Replica(model)  # refuses what can't be given other weights
        per_task = None if head is None else ModuleHead(checks.instance_of(Head)("head", head), model, loss)

        def parameters() -> dict[str, Tensor]:
            resharded(model)
            own = () if per_task is None else per_task.names
            found: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad and n not in own}
            if not found and not own:
                raise InputError("no parameter of the model requires gradients: nothing to adapt")
            return found

        outer = inner if outer_loss is None else ModuleLoss(model, outer_loss)
        return cls(inner, outer, lam, adapt, parameters, inner.uses_batch_statistics, per_task)

    def private(self) -> "ProximalProblem":
        """The same problem with losses of modules on replicas, as the modules are now: for the calls of one thread."""
        own = copy.copy(self)
        for name in ("inner_loss", "outer_loss"):
            loss = getattr(self, name)
            if isinstance(loss, ModuleLoss):
                object.__setattr__(own, name, loss.private())
        if isinstance(self.per_task, ModuleHead):
            object.__setattr__(own, "per_task", self.per_task.private())
        return own

    def modes(self) -> tuple[bool, ...]:
        """Which modules of the losses' models are in train mode: what was seen of a loss holds for them."""
        return tuple(mode for loss in self._of_models() for mode in loss.modes())

    def _of_models(self) -> list[Any]:
        """Its losses of models, one of each model."""
        losses: list[Any] = [loss for loss in (self.inner_loss, self.outer_loss) if isinstance(loss, OF_MODULES)]
        models = [(loss if isinstance(loss, ModuleLoss) else loss.source).model for loss in losses]
        return losses[:1] if len(losses) == 2 and models[0] is models[1] else losses

    def check_shards(self, given: bool) -> None:
        """Raise InputError unless parameters are ``given`` in shards where, and only where, the losses' model is."""
        losses: list[Any] = self._of_models()
        plain = [loss for loss in (self.inner_loss, self.outer_loss) if not isinstance(loss, OF_MODULES)]
        for loss in (*losses, *plain):
            if given == (isinstance(loss, ModuleLoss) and is_fully_sharded(loss.model)):
                continue
            raise InputError(
                "params are DTensors, but the losses are not those of a model in shards: make the problem by "
                "ProximalProblem.from_module(model, ...)"
                if given
                else "the model is in shards, but params are whole: give those of model.named_parameters(), after "
                "model.reshard()"
            )

    def adapted_names(self, names: Sequence[str], own: Collection[str] = ()) -> tuple[str, ...]:
        """Returns those of ``names`` that adapt; ``own``, those of them that are a task's own, do so always.

        Raises:
            InputError: a pattern fits none of them, or the model has no parameter of a name.
        """
        for loss in self._of_models():
            loss.check_names(names)
        if self.adapt is None:
            return tuple(names)
        patterns = (self.adapt,) if isinstance(self.adapt, str) else tuple(self.adapt)
        for pattern in patterns or (() if own else ("",)):
            if not fnmatch.filter(names, pattern):
                raise InputError(f"adapt={pattern!r} fits no parameter; there are: {', '.join(names)}")
        return tuple(n for n in names if n in own or any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns))

    def live_parameters(self) -> dict[str, Tensor]:
        """The tensors x that the problem was built on. Raises InputError where it was built from plain losses."""
        if self.parameters is None:
            raise InputError(
                "this problem was built from plain loss functions and has no parameters of its own: pass params=..., "
                "or build it with ProximalProblem.from_module"
            )
        return self.parameters()
