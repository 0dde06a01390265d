"""An ``nn.Module`` as a loss of named tensors."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from metaprox.data.inference import normal
from metaprox.errors import InputError, MetaproxError
from metaprox.modules.replica import Replica, has_tensor, modules_of
from metaprox.modules.sharded import ShardedLoss, is_fully_sharded
from metaprox.modules.watch import Unwritten, WouldWriteError
from metaprox.types import LossValue, Params

ModelLoss = Callable[[nn.Module, Any], LossValue]


class ModuleLoss:
    """``loss(model, batch)`` as a function of the model's parameters and a batch.

    A call finds the live model, in operations that torch.compile can trace and guard: for compiled graphs alone, which
    write on no module. Everything else evaluates ``private()``.
    """

    def __init__(self, model: nn.Module, loss: ModelLoss) -> None:
        self.model = model
        self.loss = loss
        self._wrapped = _LossOf(model, loss)

    def check_names(self, names: Sequence[str]) -> None:
        """Raise InputError where the model has no parameter, or buffer, of a name; a call would not miss it."""
        for name in names:
            if not has_tensor(self.model, name):
                raise InputError(f"the model has no parameter {name!r}")

    def __call__(self, params: Params, batch: Any) -> LossValue:
        return self.prepared()(params, batch)

    def prepared(self) -> Callable[[Params, Any], LossValue]:
        """Returns the same function, for several calls in a graph: what these have in common is found here, once.

        For torch takes 50 us to trace an operation of Python, and what is found within a loop is guarded for each loop.
        """
        found = _held(self.model, "model.", set())
        numbers: dict[Tensor, int] = {}
        for _, tensor, _, _ in found:  # ties are found here, in fewer operations than torch takes for it
            numbers.setdefault(tensor, len(numbers))
        held = [(name, numbers[tensor]) for name, tensor, _, again in found if not again]
        number_of = {name: numbers[tensor] for name, tensor, _, _ in found}
        buffers = {numbers[tensor]: tensor for _, tensor, is_buffer, _ in found if is_buffer}

        def evaluate(params: Params, batch: Any) -> LossValue:
            given = {number_of[f"model.{name}"]: value for name, value in params.items()}
            if buffers:
                like = _like(params)
                copies = {number: _copy(buffer, like) for number, buffer in buffers.items()}
                given = {**copies, **given}  # torch 2.7 compiles no | of dicts
            parts = {name: given[number] for name, number in held if number in given}
            return functional_call(self._wrapped, parts, (batch,), tie_weights=False)

        return evaluate

    def private(self) -> "PrivateLoss | ShardedLoss":
        """The same function, as the model is now (in shards, or on a replica): for one evaluation at a time."""
        return ShardedLoss(self) if is_fully_sharded(self.model) else PrivateLoss(self)

    def state(self) -> dict[str, Tensor]:
        """All parameters and buffers of the live model, tied ones under the first of their names."""
        return dict(self.model.named_parameters()) | dict(self.model.named_buffers())

    def modes(self) -> tuple[bool, ...]:
        """Of each module, whether it is in train mode."""
        return tuple([module.training for module in modules_of(self.model)])

    def uses_batch_statistics(self) -> bool:
        """Whether predictions for the examples of a batch depend on each other, by a batch norm."""
        return any(map(self.takes_batch_statistics, self.model.modules()))

    @staticmethod
    def takes_batch_statistics(module: nn.Module) -> bool:
        """Whether it is a batch norm in train mode, or one without running statistics."""
        return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


class PrivateLoss:
    """A ``ModuleLoss`` on a replica of its model, as that is at the first evaluation; ``release`` ends an evaluation.

    Parameters that are not given, and buffers, are the model's own: aliases of them where a loss was seen to only read
    them, and else copies, fresh for every evaluation. ``written``: the names of those that are written on; None: not
    known yet, so that all are copied, but for the frozen parameters that ``watched`` has seen to be only read.
    """

    def __init__(self, source: ModuleLoss, written: Collection[str] | None = None) -> None:
        self.source = source
        self.written = written
        self._read: Collection[str] = ()  # frozen parameters that are only read
        self._known: Any = None  # what the next four rest on
        self._aliases: dict[str, Tensor] | None = None
        self._versions: dict[str, int] = {}
        self._own: dict[str, Tensor] = {}
        self._copies: dict[str, tuple[Tensor, int]] = {}
        self._holds = False

    @cached_property
    def replica(self) -> Replica:
        return Replica(self.source.model)

    @cached_property
    def _live(self) -> dict[str, Tensor]:
        return {name: normal(_initialized(name, tensor).detach()) for name, tensor in self.source.state().items()}

    def __call__(self, params: Params, batch: Any) -> LossValue:
        if self._holds:
            self.replica.reset()
        self._holds = True
        self.replica.hold(self._others(params))
        self.replica.hold(params)
        return self.source.loss(self.replica.module, batch)

    def watched(self, evaluate: Callable[[], object], given: Collection[str]) -> None:
        """Find out, by evaluations with the parameters ``given``, which of the others are only read.

        So that a large frozen backbone is not copied to find out. Buffers, which batch norms write on without a word,
        are copied all the same. One evaluation, and one more for each parameter that is written on; none where there
        are no others. Where torch can't watch, all are copied.
        """
        frozen = {n: self._live[n] for n, _ in self.source.model.named_parameters() if n not in given}
        self._read = set(frozen)
        while self._read:
            try:
                with Unwritten({name: frozen[name] for name in self._read}):
                    evaluate()
                return
            except WouldWriteError as error:
                self._read = self._read - {error.name}
            except Exception:  # also what the loss raises, which is said where it is not watched
                self._read = ()
            finally:
                self.release()

    def release(self) -> None:
        """Let go of the tensors of the last evaluation, if there is one, whose graph is no longer needed.

        Raises:
            MetaproxError: it wrote on a tensor of the live model.
        """
        if not self._holds:
            return
        self.replica.reset()
        self._holds = False
        self._copies = {}
        for name, version in self._versions.items():
            if self._live[name]._version != version:
                raise MetaproxError(
                    f"{name!r} of the model itself was written on during the call: by the loss, which did not when it "
                    "was first looked at, or by another thread. Write on a copy in the loss, or let the parameter adapt"
                )

    def check_names(self, names: Sequence[str]) -> None:
        self.source.check_names(names)

    def modes(self) -> tuple[bool, ...]:
        return self.source.modes()

    def fork(self) -> "PrivateLoss":
        """Another one, for an evaluation whose graph outlives the next."""
        return PrivateLoss(self.source, self.written)

    def seen_to_write(self) -> set[str]:
        """Names of what the last evaluation, all on copies, wrote on."""
        return {
            name
            for name, (copy, version) in self._copies.items()
            if copy._version != version or not _same(copy, self._live[name])
        }

    def _others(self, params: Params) -> dict[str, Tensor]:
        """What is not given: copies of what is written on, and aliases."""
        known = (self.written, self._read)
        if self._aliases is None or known != self._known:
            self._known = known
            self._split(params)
        assert self._aliases is not None
        if not self._own:
            return self._aliases
        like = _like(params)
        copies = {name: _copy(tensor, like) for name, tensor in self._own.items()}
        self._copies = {name: (tensor, tensor._version) for name, tensor in copies.items()}
        return self._aliases | copies

    def _split(self, params: Params) -> None:
        others = {name: tensor for name, tensor in self._live.items() if name not in params}
        written = others.keys() - set(self._read) if self.written is None else self.written
        self._own = {name: tensor for name, tensor in others.items() if name in written}
        self._aliases = {name: tensor for name, tensor in others.items() if name not in self._own}
        self._versions = {name: tensor._version for name, tensor in self._aliases.items()}


class _LossOf(nn.Module):
    """A loss of a model as a module, so that ``functional_call`` can give it other parameters. It has no hooks."""

    def __init__(self, model: nn.Module, loss: ModelLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def __call__(self, batch: Any) -> LossValue:
        return self.loss(self.model, batch)


def _held(module: nn.Module, path: str, seen: set[nn.Module]) -> list[tuple[str, Tensor, bool, bool]]:
    """Name, tensor, whether it is a buffer, and whether its module is one of ``seen``, for each name that one has."""
    found, again = [], module in seen
    seen.add(module)
    for tensors, are_buffers in ((module._parameters, False), (module._buffers, True)):
        found += [(path + key, tensor, are_buffers, again) for key, tensor in tensors.items() if tensor is not None]
    for name, child in module._modules.items():
        if child is not None:
            found += _held(child, f"{path}{name}.", seen)
    return found


def _initialized(name: str, tensor: Tensor) -> Tensor:
    if is_lazy(tensor):
        raise InputError(f"{name!r} is not initialized, as in lazy modules: call the model once on data")
    return tensor


def _like(params: Params) -> Tensor:
    """A tensor that under vmap has a batch dimension if any of ``params`` has, some of which tasks may share."""
    return torch.cat([value.detach().reshape(-1)[:1] for value in params.values()])


def _copy(buffer: Tensor, like: Tensor) -> Tensor:
    """A copy that under vmap has the batch dimension of ``like``, so that a module may update it in place."""
    if buffer.layout != torch.strided:
        return buffer.clone()
    return like.new_empty(buffer.shape, dtype=buffer.dtype, device=buffer.device).copy_(buffer)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
