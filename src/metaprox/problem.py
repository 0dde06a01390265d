"""What is being solved: tasks, losses and the proximal weight."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from metaprox import checks, signatures
from metaprox.errors import InputError

Params = Mapping[str, Tensor]
LossValue = Tensor | tuple[Tensor, Mapping[str, Tensor]]
Loss = Callable[[Params, Any], LossValue]
Metrics = dict[str, Any]  # of scalar tensors; internally, of any tree of tensors


class Task(NamedTuple):
    """One task, or a batch of T tasks: the data to adapt on and the data to be judged on.

    Both are pytrees of tensors. A batch has a leading dimension T on every tensor.
    """

    support: Any
    query: Any

    @staticmethod
    def stack(tasks: Sequence["Task"]) -> "Task":
        """T single tasks of equal shapes -> one batch with a leading dimension T."""
        if not tasks:
            raise InputError("an empty list of tasks can't be stacked")
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *tasks)


@dataclass(frozen=True)
class ProximalProblem:
    """The B-MAML problem.

        F(x) = E_i [ f_i(y_i(x)) ],   y_i(x) = argmin_y  fhat_i(y) + (lam/2) ||y - x||^2

    Args:
        inner_loss: ``fhat(params, support) -> scalar`` on a dict of tensors.
        outer_loss: ``f(params, query)``: a scalar, or ``(scalar, {name: scalar})`` to report more, such as accuracy.
        lam: weight of the proximal term, in units of loss per squared parameter. 0 switches it off, which
            only estimators without a proximal solve accept.
        adapt: which parameters adapt: a name or pattern as in a shell ("head.*"), or several. None: all. All tasks
            share the others as they are, and these get their meta-gradient too.
        parameters: the live tensors x that ``.backward`` fills the gradients of; ``from_module`` sets it.
        transductive: whether a query example's prediction depends on the other ones; None where unknown.

    ``cache`` keeps what estimators have compiled of the losses, and what a task of these shapes costs.

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
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        signatures.loss_of_parameters("inner_loss", self.inner_loss)
        signatures.loss_of_parameters("outer_loss", self.outer_loss)
        checks.settle(self, lam=checks.nonnegative, adapt=checks.optional(checks.patterns))
        checks.settle(
            self, parameters=checks.optional(signatures.getter), transductive=checks.optional(signatures.getter)
        )

    @classmethod
    def from_module(
        cls,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], LossValue],
        lam: float,
        outer_loss: Callable[[nn.Module, Any], LossValue] | None = None,
        *,
        adapt: str | Sequence[str] | None = None,
    ) -> "ProximalProblem":
        """The problem of adapting ``model``: ``loss(model, batch)`` on the support and the query.

        ``outer_loss`` takes its place on the query. Parameters with ``requires_grad=False`` stay as they are; those
        that ``adapt`` leaves out stay as they are within a task; tied weights stay tied; buffers are copied for every
        evaluation, so that nothing leaks into the model. Train and eval mode are the model's own.
        """
        signatures.module("model", model, "the order is from_module(model, loss, lam)")
        signatures.loss_of_model("loss", loss)
        signatures.loss_of_model("outer_loss", loss if outer_loss is None else outer_loss)

        def parameters() -> dict[str, Tensor]:
            adapted: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
            if not adapted:
                raise InputError("no parameter of the model requires gradients: nothing to adapt")
            return adapted

        return cls(
            ModuleLoss(model, loss),
            ModuleLoss(model, outer_loss or loss),
            lam,
            adapt,
            parameters,
            lambda: _uses_batch_statistics(model),
        )

    def adapted_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of ``names`` that adapt.

        Raises InputError where a pattern fits none of them, or where the model has no parameter of a name.
        """
        for loss in (self.inner_loss, self.outer_loss):
            if isinstance(loss, ModuleLoss):
                loss.check_names(names)
        if self.adapt is None:
            return tuple(names)
        patterns = (self.adapt,) if isinstance(self.adapt, str) else tuple(self.adapt)
        for pattern in patterns or ("",):
            if not fnmatch.filter(names, pattern):
                raise InputError(f"adapt={pattern!r} fits no parameter; there are: {', '.join(names)}")
        return tuple(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))

    def live_parameters(self) -> dict[str, Tensor]:
        """The tensors x that the problem was built on. Raises InputError where it was built from plain losses."""
        if self.parameters is None:
            raise InputError(
                "this problem was built from plain loss functions and has no parameters of its own: pass params=..., "
                "or build it with ProximalProblem.from_module"
            )
        return self.parameters()


class _LossOf(nn.Module):
    """A loss of a model as a module, so that ``functional_call`` can give it other parameters."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], LossValue]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> LossValue:
        return self.loss(self.model, batch)


class ModuleLoss:
    """``loss(model, batch)`` as a function of the model's parameters and a batch.

    A call finds the model as it is, in operations that torch.compile can trace and guard; ``fixed`` is faster.
    """

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], LossValue]) -> None:
        self.wrapped = _LossOf(model, loss)

    def check_names(self, names: Sequence[str]) -> None:
        """Raise InputError where the model has no parameter, or buffer, of a name; a call would not miss it."""
        places = _places(self.wrapped)
        for name in names:
            if _inside(name) not in places:
                raise InputError(f"the model has no parameter {name!r}")

    def __call__(self, params: Params, batch: Any) -> LossValue:
        return functional_call(self.wrapped, _state(dict(self.wrapped.named_buffers()), params), (batch,))

    def fixed(self) -> Loss:
        """The same function for as long as the model's modules, ties and buffers stay what they are now.

        It looks up once where tensors go, which on small models takes as long as a forward pass.
        """
        places = _places(self.wrapped)
        buffers = dict(self.wrapped.named_buffers())

        def call(params: Params, batch: Any) -> LossValue:
            before = []
            try:
                for name, tensor in _state(buffers, params).items():
                    for held, key in places[name]:
                        before.append((held, key, held[key]))
                        held[key] = tensor
                result: LossValue = self.wrapped(batch)
            finally:
                for held, key, own in reversed(before):
                    held[key] = own
            return result

        return call


def _state(buffers: dict[str, Tensor], params: Params) -> dict[str, Tensor]:
    """What a ``_LossOf`` is evaluated with: copies of ``buffers``, and ``params`` by their names in it."""
    like = next(iter(params.values()))
    copies = {name: _copy(buffer, like) for name, buffer in buffers.items()}
    return copies | {_inside(name): value for name, value in params.items()}


def _inside(name: str) -> str:
    """What a ``_LossOf`` calls the model's parameter of that name."""
    return f"model.{name}"


def _places(module: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Each name of a parameter or buffer -> the dictionaries of modules, and the keys, where its tensor is found."""
    of_tensor: dict[int, dict[tuple[int, str], tuple[dict[str, Any], str]]] = {}
    names: dict[str, int] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for held in (owner._parameters, owner._buffers):
            for key, tensor in held.items():
                if tensor is None:
                    continue
                names[f"{path}.{key}"] = id(tensor)
                of_tensor.setdefault(id(tensor), {})[id(held), key] = (held, key)
    return {name: list(of_tensor[tensor].values()) for name, tensor in names.items()}


def _copy(buffer: Tensor, like: Tensor) -> Tensor:
    """A copy that under vmap has the batch dimension of ``like``, so that a module may update it in place."""
    return like.detach().new_empty(buffer.shape, dtype=buffer.dtype, device=buffer.device).copy_(buffer)


def _uses_batch_statistics(model: nn.Module) -> bool:
    norms = (m for m in model.modules() if isinstance(m, _BatchNorm))
    return any(m.training or m.running_mean is None for m in norms)
