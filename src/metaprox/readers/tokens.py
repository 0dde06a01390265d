"""Texts as inputs: token ids of the sentence encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaprox import checks
from metaprox.data.preprocessing import Preprocessing, register
from metaprox.text import check_tokens, minilm_features, tokenize


@register("texts")
@dataclass(frozen=True)
class Texts(Preprocessing):
    """{"input_ids", "attention_mask"} [N, tokens] of MiniLM's tokenizer, or features [N, 384] of MiniLM as it is.

    Args:
        tokens: length of all token sequences; longer texts are cut.
        features: whether inputs are the features of the frozen encoder, for a head alone.
    """

    tokens: int = 32
    features: bool = False

    def __post_init__(self) -> None:
        checks.settle(self, tokens=check_tokens, features=checks.switch)

    def __call__(self, items: Sequence[Any] | Tensor) -> dict[str, Tensor] | Tensor:
        """Of N strings."""
        inputs = tokenize(list(items), self.tokens)
        return minilm_features(inputs) if self.features else inputs
