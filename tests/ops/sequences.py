"""Embeddings, recurrent layers, attention."""

import torch
from torch import nn
from torch.nn import functional as fn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ops import function, layer
from ops.data import labels, mask, normal

SEQUENCE = (3, 5, 4)  # [N, L, E]


class Packed(nn.Module):
    """A recurrent net on sequences of unequal lengths."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        packed = pack_padded_sequence(x, [5, 3, 2], batch_first=True)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


class With(nn.Module):
    """A module called with these arguments beside the inputs."""

    def __init__(self, module, **options):
        super().__init__()
        self.module, self.options = module, options

    def forward(self, *inputs):
        return self.module(*inputs, **self.options)


class Attend(With):
    """A module on a sequence as query, key and value."""

    def forward(self, x):
        return self.module(x, x, x, **self.options)


class Masked(With):
    """A module on a sequence, and a padding mask."""

    def forward(self, x, padding):
        return self.module(x, src_key_padding_mask=padding, **self.options)


class AttendMasked(With):
    def forward(self, x, padding):
        return self.module(x, x, x, key_padding_mask=padding, **self.options)


def heads():
    return nn.MultiheadAttention(4, 2, batch_first=True)


def encoder(**options):
    return nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, **options)


def causal():
    return nn.Transformer.generate_square_subsequent_mask(5)


def sdpa(*inputs, **options):
    return fn.scaled_dot_product_attention(*inputs, **options)


def through_weight(q, k, v):
    return fn.scaled_dot_product_attention(q, k, v, attn_mask=(q @ k.mT).tanh())


class Gated(nn.Module):
    """A net whose weights autograd has saved when the embedding writes on its own."""

    def __init__(self, embedding):
        super().__init__()
        self.net, self.embedding = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), embedding

    def forward(self, x, ids):
        return self.net(x) * self.embedding(ids)


class WeightedBag(nn.Module):
    def __init__(self, bag):
        super().__init__()
        self.bag = bag

    def forward(self, ids, weights):
        return self.bag(ids, per_sample_weights=weights)


SEQUENCES = {
    "embedding": layer(lambda: nn.Embedding(6, 4), labels(3, 5, classes=6)),
    "embedding-padding": layer(lambda: nn.Embedding(6, 4, padding_idx=0), labels(3, 5, classes=6)),
    "embedding-max-norm": layer(lambda: nn.Embedding(6, 4, max_norm=1.0), labels(3, 5, classes=6)),
    "embedding-max-norm-late": layer(lambda: Gated(nn.Embedding(6, 4, max_norm=0.5)), (3, 4), labels(3, classes=6)),
    "embedding-by-frequency": layer(lambda: nn.Embedding(6, 4, scale_grad_by_freq=True), labels(3, 5, classes=6)),
    "embedding-sparse": layer(
        lambda: nn.Embedding(6, 4, sparse=True), labels(3, 5, classes=6), vmap=False, twice=False
    ),
    "embedding-bag": layer(lambda: nn.EmbeddingBag(6, 4), labels(3, 5, classes=6)),
    "embedding-bag-sum": layer(lambda: nn.EmbeddingBag(6, 4, mode="sum"), labels(3, 5, classes=6)),
    "embedding-bag-max": layer(lambda: nn.EmbeddingBag(6, 4, mode="max"), labels(3, 5, classes=6)),
    "embedding-bag-offsets": layer(
        lambda: With(nn.EmbeddingBag(6, 4), offsets=torch.tensor([0, 2, 5])), labels(9, classes=6)
    ),
    "embedding-bag-weights": layer(
        lambda: WeightedBag(nn.EmbeddingBag(6, 4, mode="sum")), labels(3, 5, classes=6), (3, 5)
    ),
    "rnn": layer(lambda: nn.RNN(4, 3, batch_first=True), SEQUENCE),
    "rnn-relu": layer(lambda: nn.RNN(4, 3, nonlinearity="relu", batch_first=True), SEQUENCE),
    "lstm": layer(lambda: nn.LSTM(4, 3, batch_first=True), SEQUENCE),
    "lstm-deep": layer(lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True), SEQUENCE),
    "lstm-projected": layer(lambda: nn.LSTM(4, 3, proj_size=2, batch_first=True), SEQUENCE),
    "lstm-packed": layer(lambda: Packed(nn.LSTM(4, 3, batch_first=True)), SEQUENCE, vmap=False),
    "gru": layer(lambda: nn.GRU(4, 3, batch_first=True), SEQUENCE),
    "gru-state": layer(lambda: nn.GRU(4, 3, num_layers=2, batch_first=True), SEQUENCE, (2, 3, 3)),
    "gru-packed": layer(lambda: Packed(nn.GRU(4, 3, batch_first=True, bidirectional=True)), SEQUENCE, vmap=False),
    "rnn-cell": layer(lambda: nn.RNNCell(4, 3), (5, 4), (5, 3)),
    "lstm-cell": layer(lambda: nn.LSTMCell(4, 3), (5, 4)),
    "gru-cell": layer(lambda: nn.GRUCell(4, 3), (5, 4), (5, 3)),
    "multihead-attention": layer(lambda: Attend(heads()), SEQUENCE),
    "multihead-attention-without-weights": layer(lambda: Attend(heads(), need_weights=False), SEQUENCE),
    "multihead-attention-causal": layer(
        lambda: Attend(heads(), attn_mask=causal().double(), is_causal=True, need_weights=False), SEQUENCE
    ),
    "multihead-attention-padded": layer(lambda: AttendMasked(heads()), SEQUENCE, mask(3, 5)),
    "multihead-attention-eval": layer(lambda: Attend(heads().eval()), SEQUENCE),
    "multihead-attention-cross": layer(
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True), SEQUENCE, (3, 6, 3), (3, 6, 2)
    ),
    "multihead-attention-bias": layer(
        lambda: Attend(nn.MultiheadAttention(4, 2, add_bias_kv=True, add_zero_attn=True)), SEQUENCE
    ),
    "sdpa": function(sdpa, (2, 2, 5, 4), (2, 2, 6, 4), (2, 2, 6, 3)),
    "sdpa-causal": function(lambda q, k, v: sdpa(q, k, v, is_causal=True), (2, 5, 4), (2, 5, 4), (2, 5, 4)),
    "sdpa-mask": function(lambda q, k, v, m: sdpa(q, k, v, attn_mask=~m), (2, 5, 4), (2, 6, 4), (2, 6, 4), mask(5, 6)),
    "sdpa-float-mask": function(
        lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), (2, 2, 5, 4), (2, 2, 6, 4), (2, 2, 6, 4), normal(5, 6)
    ),
    "sdpa-grouped": function(lambda q, k, v: sdpa(q, k, v, enable_gqa=True), (2, 4, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)),
    "sdpa-scale": function(lambda q, k, v: sdpa(q, k, v, scale=2.0), (2, 5, 4), (2, 5, 4), (2, 5, 4)),
    "sdpa-learned-mask": function(through_weight, (2, 5, 4), (2, 6, 4), (2, 6, 4)),
    "transformer-encoder-layer": layer(encoder, SEQUENCE),
    "transformer-encoder-layer-first": layer(lambda: encoder(norm_first=True, activation="gelu"), SEQUENCE),
    "transformer-encoder-layer-eval": layer(lambda: encoder().eval(), SEQUENCE),
    "transformer-encoder-layer-causal": layer(
        lambda: With(encoder(), src_mask=causal().double(), is_causal=True), SEQUENCE
    ),
    "transformer-encoder-layer-padded": layer(lambda: Masked(encoder()), SEQUENCE, mask(3, 5)),
    "transformer-encoder-layer-padded-eval": layer(lambda: Masked(encoder()).eval(), SEQUENCE, mask(3, 5)),
    "transformer-encoder": layer(lambda: nn.TransformerEncoder(encoder(), 2), SEQUENCE),
    "transformer-encoder-padded-eval": layer(
        lambda: Masked(nn.TransformerEncoder(encoder(), 2)).eval(), SEQUENCE, mask(3, 5), vmap=False
    ),
    "transformer-decoder-layer": layer(
        lambda: nn.TransformerDecoderLayer(4, 2, 8, 0.0, batch_first=True), SEQUENCE, (3, 6, 4)
    ),
    "transformer": layer(lambda: nn.Transformer(4, 2, 1, 1, 8, 0.0, batch_first=True), SEQUENCE, (3, 2, 4)),
}
