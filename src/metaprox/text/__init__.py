"""Texts: a pretrained sentence encoder with a linear head on it. Needs the extra ``metaprox[text]``."""

from metaprox.text.encoder import EncoderClassifier, WithoutPadding, mean_pooled
from metaprox.text.minilm import (
    LEARNED,
    LORA_TARGETS,
    MINILM_WIDTH,
    Learned,
    check_tokens,
    head_classifier,
    minilm,
    minilm_classifier,
    minilm_features,
    tokenize,
    with_lora,
)
from metaprox.text.nearest import nearest_mean_accuracy

__all__ = [
    "LEARNED",
    "LORA_TARGETS",
    "MINILM_WIDTH",
    "EncoderClassifier",
    "Learned",
    "WithoutPadding",
    "check_tokens",
    "head_classifier",
    "mean_pooled",
    "minilm",
    "minilm_classifier",
    "minilm_features",
    "nearest_mean_accuracy",
    "tokenize",
    "with_lora",
]
