"""A classifier's last layer, made for the task at hand: as many rows as the task has classes."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaprox import checks
from metaprox.checks import shown
from metaprox.checks.trees import kind
from metaprox.errors import InputError
from metaprox.modules.loss import ModelLoss, ModuleLoss, PrivateLoss
from metaprox.modules.replica import places
from metaprox.types import Params

Start = Literal["zeros", "means"]


@dataclass(frozen=True)
class Head:
    """The last layer of a classifier, of which each task has its own, with a row for each of its classes.

    Its weight [C, width] and bias [C] start a task, and are centred, at h_0; they adapt, and are not learned.

        zeros  h_0 = 0
        means  w_c = 2 m_c,  b_c = -||m_c||^2,  m_c the mean of what the layer gets of the support of class c, at x

    The logits of "means" are then those of the nearest mean, ||z||^2 - ||z - m_c||^2. What x gets of h_0(x) is in the
    meta-gradient: (dh_0/dx)^T times that of the head.

    A support is (inputs, labels), with labels 0 to C - 1, each at least once. C may differ from batch to batch, and in
    the loop from task to task.

    Args:
        module: path of the layer in the model, a ``torch.nn.Linear``: "head", "fc", "4" of an ``nn.Sequential``.
        start: "zeros" or "means".

    Raises:
        InputError: ``start`` is unknown.

    Source of "means": Triantafillou et al., Meta-Dataset (ProtoMAML), arXiv 1903.03096.
    """

    module: str
    start: Start = "zeros"

    def __post_init__(self) -> None:
        checks.settle(self, module=checks.text, start=checks.one_of("zeros", "means"))

    def layer(self, model: nn.Module) -> nn.Linear:
        """Returns the layer of ``model``.

        Raises:
            InputError: there is none, it is no linear layer, is tied to another, or has no bias and "means" needs one.
        """
        try:
            found = model.get_submodule(self.module)
        except AttributeError as error:
            known = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            raise InputError(f"head {self.module!r}: the model has no such layer; linear ones: {known}") from error
        if not isinstance(found, nn.Linear) or set(dict(found.named_parameters())) - {"weight", "bias"}:
            raise InputError(f"head {self.module!r} must be a torch.nn.Linear with a weight and a bias, got {found!r}")
        if self.start == "means" and found.bias is None:
            raise InputError(f"head {self.module!r} has no bias, which start='means' sets: give it one, or 'zeros'")
        own = places(model)
        if any(len(own.get(name, ())) != 1 for name in self.names(model)):
            raise InputError(f"head {self.module!r} is tied to another layer, which can't have a task's classes")
        return found

    def names(self, model: nn.Module) -> tuple[str, ...]:
        """The names of the layer's parameters in the model."""
        prefix = f"{self.module}." if self.module else ""
        return tuple(prefix + name for name, _ in model.get_submodule(self.module).named_parameters())


class ModuleHead:
    """h_0 of a ``Head`` of a model, as a function of parameters and one task's support.

    ``loss`` is evaluated on the support to see what the layer gets, on a replica of the model.
    """

    def __init__(self, head: Head, model: nn.Module, loss: ModelLoss) -> None:
        self.head, self.model, self.loss = head, model, loss
        self.layer = head.layer(model)
        self.names = head.names(model)
        self._seen = ModuleLoss(model, self._inputs)
        self._own: PrivateLoss | None = None
        self._read = False

    def private(self) -> "ModuleHead":
        """The same on a replica of the model as it is now."""
        own = ModuleHead(self.head, self.model, self.loss)
        own._own = PrivateLoss(own._seen)
        return own

    def __call__(self, params: Params, support: Any) -> dict[str, Tensor]:
        labels = labels_of(support)
        classes, width = int(labels.max()) + 1, self.layer.in_features
        dtypes = {value.dtype for value in params.values()}
        like = next(iter(params.values())) if len(dtypes) == 1 else self.layer.weight.detach()
        start = dict(zip(self.names, (like.new_zeros(classes, width), like.new_zeros(classes)), strict=False))
        if self.head.start == "means":
            features = self._features(params, start, support).to(like.dtype)
            start = dict(zip(self.names, nearest_mean(features, labels.to(features.device)), strict=True))
        return start

    def release(self) -> None:
        """After an evaluation whose graph is no longer needed: let go of its tensors."""
        if self._own is not None:
            self._own.release()

    def _features(self, params: Params, head: Params, support: Any) -> Tensor:
        """What the layer gets of the support [N, width]."""
        own = PrivateLoss(self._seen) if self._own is None else self._own
        given = {**params, **head}
        if not self._read:
            own.watched(lambda: own(given, support), given)
            self._read = True
        found: Any = own(given, support)
        count = len(support[1])
        if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].shape != (count, self.layer.in_features):
            got = ", ".join(kind(one) for one in found) or "nothing"
            raise InputError(
                f"head {self.head.module!r} must get a tensor of shape {(count, self.layer.in_features)} of a support "
                f"of {count} examples, once in an evaluation of the loss; it got {got}. start='zeros' needs none"
            )
        return found[0]

    def _inputs(self, model: nn.Module, support: Any) -> Any:
        """Of the layer, in an evaluation of the loss."""
        found: list[Any] = []
        hook = model.get_submodule(self.head.module).register_forward_pre_hook(
            lambda module, inputs: found.append(inputs[0])
        )
        try:
            self.loss(model, support)
        finally:
            hook.remove()
        return found


def labels_of(support: Any) -> Tensor:
    """Returns the labels [N] of a support (inputs, labels).

    Raises:
        InputError: it is another thing, its labels are not integers >= 0, or one of 0 to C - 1 is missing.
    """
    labels = support[1] if isinstance(support, (tuple, list)) and len(support) == 2 else None
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1 or not len(labels):
        got = shown(support) if labels is None else kind(labels) if isinstance(labels, Tensor) else shown(labels)
        raise InputError(
            "a head that is made for each task needs a support (inputs, labels), with a tensor of integer labels [N], "
            f"got {got}"
        )
    least, largest = int(labels.min()), int(labels.max())
    if least < 0:
        raise InputError(f"the labels of a support are 0 to C - 1, got {least}")
    present = torch.zeros(min(largest, len(labels)) + 1, dtype=torch.bool, device=labels.device)
    present[labels[labels < len(present)].long()] = True
    if not present.all():
        raise InputError(
            f"the support has labels up to {largest}, and no example of {int(present.int().argmin())}: number a task's "
            "classes from 0, and give an example of each"
        )
    return labels


def nearest_mean(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [C, width] and bias [C] of ||z||^2 - ||z - m_c||^2, m_c the class means of features [N, width]."""
    classes = int(labels.max()) + 1
    shares = nn.functional.one_hot(labels, classes).to(features.dtype)
    means = (shares / shares.sum(0)).T @ features
    return 2 * means, -means.square().sum(1)
