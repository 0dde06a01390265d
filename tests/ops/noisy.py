"""What draws random numbers."""

import torch
from torch import distributions, nn
from torch.nn import functional as fn

from ops import function, layer
from ops.layers import IMAGE, VOLUME
from ops.sequences import SEQUENCE, Attend

NOISY = {
    "dropout": layer(lambda: nn.Dropout(0.5), (5, 4)),
    "dropout-function": function(lambda h: fn.dropout(h, 0.3), (5, 4)),
    "dropout-in-place": layer(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5, inplace=True)), (5, 4)),
    "dropout1d": layer(lambda: nn.Dropout1d(0.5), (5, 4, 3)),
    "dropout2d": layer(lambda: nn.Dropout2d(0.5), IMAGE),
    "dropout3d": layer(lambda: nn.Dropout3d(0.5), VOLUME),
    "alpha-dropout": layer(lambda: nn.AlphaDropout(0.5), (5, 4)),
    "feature-alpha-dropout": layer(lambda: nn.FeatureAlphaDropout(0.5), IMAGE),
    "rrelu": layer(nn.RReLU, (5, 4), vmap=False),
    "fractional-max-pool2d": layer(lambda: nn.FractionalMaxPool2d(2, output_size=4), IMAGE),
    "gumbel-softmax": function(fn.gumbel_softmax, (5, 4), vmap=False),
    "gumbel-softmax-hard": function(lambda h: fn.gumbel_softmax(h, hard=True) * h, (5, 4), vmap=False),
    "rand": function(lambda h: h * torch.rand(5, 4), (5, 4)),
    "rand-like": function(lambda h: h * torch.rand_like(h), (5, 4)),
    "randn": function(lambda h: (h + 0.1 * torch.randn(5, 4)).square(), (5, 4)),
    "randint": function(lambda h: h[torch.randint(5, (9,))], (5, 4)),
    "randperm": function(lambda h: h[torch.randperm(9)], (9, 4)),
    "bernoulli": function(lambda h: h * torch.bernoulli(torch.full((5, 4), 0.5)), (5, 4)),
    "multinomial": function(lambda h: h[torch.multinomial(torch.ones(5), 9, replacement=True)], (5, 4)),
    "multinomial-of-parameters": function(
        lambda h: h.gather(1, torch.multinomial(h.softmax(1), 2)), (5, 4), vmap=False
    ),
    "normal-in-place": function(lambda h: h * torch.empty(5, 4).normal_(), (5, 4), vmap=False),
    "reparametrized-sample": function(
        lambda m, s: distributions.Normal(m, s.exp(), validate_args=False).rsample(), (5, 4), (5, 4), vmap=False
    ),
    "lstm-dropout": layer(lambda: nn.LSTM(4, 3, num_layers=2, dropout=0.5, batch_first=True), SEQUENCE, vmap=False),
    "multihead-attention-dropout": layer(lambda: Attend(nn.MultiheadAttention(4, 2, 0.5, batch_first=True)), SEQUENCE),
    "multihead-attention-dropout-fused": layer(
        lambda: Attend(nn.MultiheadAttention(4, 2, 0.5, batch_first=True), need_weights=False), SEQUENCE, vmap=False
    ),
    "sdpa-dropout": function(
        lambda q, k, v: fn.scaled_dot_product_attention(q, k, v, dropout_p=0.5),
        (2, 5, 4),
        (2, 5, 4),
        (2, 5, 4),
        vmap=False,
    ),
    "transformer-encoder-layer-dropout": layer(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True), SEQUENCE, vmap=False
    ),
}
