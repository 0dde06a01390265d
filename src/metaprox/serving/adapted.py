"""A model that was adapted to a task: its predictions, and itself."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.checks.trees import describe, kind, on_device
from metaprox.errors import InputError, MetaproxError, TransductiveWarning
from metaprox.modules.head import Head
from metaprox.modules.loss import ModuleLoss, PrivateLoss
from metaprox.serving import disk
from metaprox.serving.blueprint import Blueprint
from metaprox.serving.copies import copied, in_modes, modes_of, with_head
from metaprox.serving.parts import model_of, names_of, preprocessing_from, preprocessing_json, read_as, texts
from metaprox.serving.state import device_of, freeze, frozen_in, kept, load_into, state_of

NAME = "adapted"


@dataclass(frozen=True)
class Prediction:
    """Of N examples. outputs: the model's. names: of the C classes; () where outputs are no logits.

    Example:
        >>> import torch, metaprox as mp
        >>> found = mp.serving.Prediction(torch.tensor([[0.0, 2.0]]), ("cat", "dog"))
        >>> found.labels, found.probabilities.round(decimals=2)
        (('dog',), tensor([[0.1200, 0.8800]]))
    """

    outputs: Tensor
    names: tuple[str, ...] = ()

    @property
    def probabilities(self) -> Tensor:
        """softmax(outputs) [N, C]. Raises InputError where there are no classes."""
        if not self.names:
            raise InputError("the model gives numbers and no classes: they are .outputs")
        return self.outputs.softmax(-1)

    @property
    def indices(self) -> Tensor:
        """The most probable class of each [N]. Raises InputError where there are no classes."""
        return self.probabilities.argmax(-1)

    @property
    def labels(self) -> tuple[str, ...]:
        """Its name, of each. Raises InputError where there are no classes."""
        return tuple(self.names[i] for i in self.indices.tolist())

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True, eq=False)
class Adapted:
    """What ``Learner.adapt`` found for one task.

    Args:
        names: of the classes, in the order of the outputs; () for regression.
        preprocessing: of what ``predict`` is given; None: that is inputs of the model.
        residual: ||grad fhat(y) + lam (y - x)||, the gradient that the inner solve left.
        converged: whether the solve reached ``tol``; True where it was a number of steps that was asked for.
        steps: how many it took.
        transductive: whether the predictions for examples depend on those that they are given with, as with batch norms
            in train mode; of which the first ``predict`` warns. ``adapt`` asks for examples of the support alone.
        transductive_by: the first module by which they do, where that is known.
        head: path of the layer that was made for the task; None: the model's own.
        blueprint: how the model is made anew; None: ``load`` has to be given one.
        source: which family reads what is predicted for, and by which columns: words, for the command line.
    """

    _module: nn.Module = field(repr=False)
    _: KW_ONLY
    names: tuple[str, ...] = ()
    preprocessing: Callable[[Sequence[Any]], Any] | None = None
    residual: float
    converged: bool
    steps: int
    transductive: bool = False
    transductive_by: str = ""
    head: str | None = None
    blueprint: Blueprint | None = None
    source: Mapping[str, str] | None = None
    _seen: dict[str, Collection[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.settle(self, _module=checks.instance_of(nn.Module), residual=checks.nonnegative)
        checks.settle(self, converged=checks.switch, transductive=checks.switch, steps=partial(checks.count, least=0))
        if self.source is not None:
            for name, value in checks.instance_of(Mapping)("source", self.source).items():
                checks.text(f"{name} of source", value)
        checks.settle(self, names=names_of, head=checks.optional(checks.text))

    def module(self) -> nn.Module:
        """A copy of the adapted model, an ordinary module in the modes of the learner's."""
        return copied(self._module)

    @torch.no_grad()
    def predict(self, items: Any) -> Prediction:
        """Predict for N examples: items for ``preprocessing``, or inputs of the model where there is none.

        Evaluated as ``mp.evaluate`` does, in the modes of the learner's model, and writing on nothing. Batches of any
        size give the same, unless ``transductive``, of which the first call warns (``TransductiveWarning``).

        Returns:
            Outputs, and for classification probabilities and the names of the most probable classes.

        Raises:
            InputError: the items are not ones that the preprocessing or the model takes, or it gives NaN for one.
        """
        inputs = items if self.preprocessing is None else self.preprocessing(items)
        inputs = on_device(inputs, device_of(self._module))
        if self.transductive and "told" not in self._seen:
            self._seen["told"] = ()
            by = f" (by {self.transductive_by})" if self.transductive_by else ""
            text = (
                f"what the model predicts for an example depends on the others that it is given with{by}: the same "
                "example gets another answer alone, or in another batch"
            )
            warnings.warn(text, TransductiveWarning, stacklevel=3)
        return Prediction(self._checked(evaluated(self._module, inputs, self._seen), inputs).clone(), self.names)

    def _checked(self, outputs: Any, inputs: Any) -> Tensor:
        first = next((leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
        count = len(first) if first is not None and first.dim() else None
        wanted = "[N, ...]" if not self.names else f"[N, {len(self.names)}], a logit for each class"
        good = isinstance(outputs, Tensor) and outputs.dim() > 0 and count in (None, len(outputs))
        if not good or (self.names and outputs.shape[1:] != (len(self.names),)):
            raise InputError(
                f"for inputs of {describe(inputs)} the model gives {kind(outputs)}, not a tensor {wanted}; one example "
                "goes in as a batch of one: inputs[None]"
            )
        assert isinstance(outputs, Tensor)
        if bool((odd := outputs.isnan().flatten(1).any(1) if outputs.dim() > 1 else outputs.isnan()).any()):
            raise InputError(f"example {int(odd.int().argmax())}: the model gives NaN; are its inputs finite?")
        return outputs

    def save(self, folder: str | Path) -> Path:
        """Keep it in a folder that is missing or empty: adapted.json and weights.safetensors, all or nothing.

        Returns:
            The folder.

        Raises:
            InputError: the preprocessing is one that can't be kept.
            RunFolderError: the folder can't be written.
        """
        made = () if self.head is None else Head(self.head).names(self._module)
        tensors, built = kept(self._module, self.blueprint, made)
        values = {
            "names": list(self.names),
            "preprocessing": preprocessing_json(self.preprocessing),
            "residual": self.residual,
            "converged": self.converged,
            "steps": self.steps,
            "transductive": self.transductive,
            "transductive_by": self.transductive_by,
            "head": self.head,
            "source": None if self.source is None else dict(self.source),
            "model": None if self.blueprint is None else self.blueprint.to_json(),
            "training": modes_of(self._module),
            "frozen": frozen_in(self._module),
            "built": built,
        }
        return disk.write(folder, NAME, values, tensors)

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module | None = None) -> "Adapted":
        """Returns what ``save`` kept; it predicts the same to the last bit. No code of the folder's is run.

        Args:
            folder: that it was saved to.
            model: of the same architecture, which is copied; needed where the model was one of your own.

        Raises:
            InputError: a model is needed, and not given.
            RunFolderError: the folder is damaged, of another version or of another model.
        """
        place = checks.path("folder", folder)
        values, tensors = disk.read(place, NAME)
        blueprint, made = model_of(values, model, place, tensors)
        with read_as(place / f"{NAME}.json"):
            head, names = values.get("head"), names_of("names", values.pop("names"))
            made = made if head is None else with_head(made, checks.text("head", head), len(names))
            load_into(made, tensors, texts("built", values.pop("built")), place)
            in_modes(made, texts("training", values.pop("training")))
            freeze(made, texts("frozen", values.pop("frozen")))
            preprocessing = preprocessing_from(values.pop("preprocessing"))
            return cls(made, names=names, preprocessing=preprocessing, blueprint=blueprint, **values)


def evaluated(module: nn.Module, inputs: Any, seen: dict[str, Collection[str]]) -> Any:
    """Returns ``module(inputs)``, on copies of what it writes on, which ``seen`` keeps the names of.

    Raises:
        InputError: the module does not take such inputs.
        MetaproxError: it wrote on what it did not before.
    """
    loss = PrivateLoss(ModuleLoss(module, lambda model, batch: model(batch)))
    given = {name: tensor.detach().clone() for name, tensor in islice(state_of(module).items(), 1)}
    try:
        if "written" in seen:
            loss.written = seen["written"]
        else:
            loss.watched(lambda: loss(given, inputs), given)
        outputs: Any = loss(given, inputs)
        seen.setdefault("written", loss.seen_to_write())
    except MetaproxError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        alone = "more than 1 value per channel" in str(error)
        more = ": its batch norms need several examples together" if alone else ""
        raise InputError(f"the model can't take inputs of {describe(inputs)}: {error}{more}") from error
    finally:
        loss.release()
    return outputs


@torch.no_grad()
def check_outputs(module: nn.Module, inputs: Any, classes: int, *, named: bool = False) -> None:
    """Look whether a model has as many outputs as there are classes, where that can be told; else its loss will tell.

    ``named``: the classes are the names of the learner's, not those of the support.

    Raises:
        InputError: it has another number.
    """
    found = None
    with suppress(InputError):
        outputs = evaluated(module, inputs, {})
        found = outputs.shape[-1] if isinstance(outputs, Tensor) and outputs.dim() > 1 else None
    if found is not None and found != classes and named:
        raise InputError(f"the learner has {classes} names, and its model {found} outputs: give a name for each output")
    if found is not None and found != classes:
        raise InputError(
            f"the support has {classes} classes, and the model {found} outputs, which are learned for as many: give a "
            f"support of {found}, or the learner a head that is made for the classes of a task, head=mp.Head(...) "
            "(metaprox train: --head)"
        )
