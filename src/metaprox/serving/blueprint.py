"""How a model is made anew, as the name of one of the library's own functions and its arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from metaprox import checks
from metaprox.checks import shown
from metaprox.errors import InputError, MetaproxError

# Functions of numbers, words and lists of them to a model. Nothing else is ever called by a file.
BUILDERS = {
    "conv_net": "metaprox.models:conv_net",
    "mlp": "metaprox.models:mlp",
    "rescaled_mlp": "metaprox.models:rescaled_mlp",
    "head_classifier": "metaprox.text:head_classifier",
    "minilm_classifier": "metaprox.text:minilm_classifier",
}


@dataclass(frozen=True)
class Blueprint:
    """``builder(**arguments)``, a function of ``BUILDERS`` that makes a model, and sets what is not learned.

    Raises:
        InputError: there is no such function, or the arguments are not numbers, words or lists of them.
    """

    builder: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.choice("builder", self.builder, BUILDERS)
        checks.settle(self, arguments=checks.instance_of(Mapping))
        for name, value in self.arguments.items():
            for one in value if isinstance(value, (list, tuple)) else (value,):
                if not isinstance(one, (bool, int, float, str)) and one is not None:
                    raise InputError(
                        f"{name}={shown(value)} of {self.builder} must be a number, a word, or a list of them"
                    )
        object.__setattr__(self, "arguments", {name: _listed(value) for name, value in self.arguments.items()})

    def build(self) -> nn.Module:
        """The model. Raises InputError where the arguments are not the function's, or make none."""
        module, _, name = BUILDERS[self.builder].partition(":")
        try:
            model = getattr(import_module(module), name)(**self.arguments)
        except MetaproxError:
            raise
        except (TypeError, RuntimeError, MemoryError, OverflowError) as error:
            raise InputError(f"{self.builder} makes no model of {shown(dict(self.arguments))}: {error}") from error
        assert isinstance(model, nn.Module)
        return model

    def to_json(self) -> dict[str, Any]:
        return {"builder": self.builder, "arguments": dict(self.arguments)}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
