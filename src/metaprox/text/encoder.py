"""A sentence encoder with a linear head on it, for any encoder that is called as a ``transformers`` model."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from metaprox import checks
from metaprox.checks import signatures
from metaprox.errors import InputError

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
    """Returns features [N, width]: the mean of the encoder's last hidden states over the tokens that are no padding.

    Padding that all N texts have at their end is cut, for speed. Inputs that are features already are returned as they
    are.

    Raises:
        InputError: inputs are of other kinds, or a text has no tokens.
    """
    if isinstance(inputs, Tensor):
        return inputs
    check_texts(inputs)
    real = inputs["attention_mask"].bool()
    if not real.any(1).all():
        raise InputError(f"text {int(real.any(1).int().argmin())} has no tokens: its attention_mask is 0 throughout")
    longest = int(real.any(0).nonzero().max()) + 1
    mask = inputs["attention_mask"][:, :longest]
    states = encoder(input_ids=inputs["input_ids"][:, :longest], attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def check_texts(inputs: Any) -> None:
    """Raise InputError unless ``inputs`` are token ids and a mask."""
    found = inputs if isinstance(inputs, Mapping) else {}
    ids, mask = (found.get(name) for name in ("input_ids", "attention_mask"))
    if ids is None or mask is None or ids.shape != mask.shape or ids.dim() != 2 or not ids.numel():
        raise InputError(
            f"texts are input_ids and attention_mask [N, L], as tokenize gives them, got {checks.shown(inputs)}"
        )
