"""Layers."""

import torch
from torch import nn
from torch.nn import functional as fn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from ops import function, layer
from ops.data import uniform

SIGNAL, IMAGE, VOLUME = (2, 4, 6), (2, 4, 6, 6), (2, 4, 4, 4, 4)  # [N, C, ...]
SEQUENCE = (3, 5, 4)  # [N, L, E]


def seen(module, *shape):
    """``module`` as it is after a few batches, in eval mode."""
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(shape))
    return module.eval()


class Unpooled(nn.Module):
    """A pooling with indices, undone."""

    def __init__(self, pool, unpool):
        super().__init__()
        self.pool, self.unpool = pool, unpool

    def forward(self, x):
        return self.unpool(*self.pool(x))


ACTIVATIONS = (
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid Mish PReLU ReLU ReLU6 "
    "SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink"
)

LAYERS = {
    **{name: layer(getattr(nn, name), (5, 4)) for name in ACTIVATIONS.split()},
    "gelu-tanh": layer(lambda: nn.GELU("tanh"), (5, 4)),
    "relu-in-place": layer(lambda: nn.ReLU(inplace=True), (5, 4)),
    "prelu-channels": layer(lambda: nn.PReLU(4), (5, 4)),
    "rrelu-eval": layer(lambda: nn.RReLU().eval(), (5, 4), vmap=False),
    "threshold": layer(lambda: nn.Threshold(0.1, 2.0), (5, 4)),
    "softmax": layer(lambda: nn.Softmax(1), (5, 4)),
    "log-softmax": layer(lambda: nn.LogSoftmax(1), (5, 4)),
    "softmin": layer(lambda: nn.Softmin(1), (5, 4)),
    "softmax2d": layer(nn.Softmax2d, IMAGE),
    "dropout-eval": layer(lambda: nn.Dropout(0.5).eval(), (5, 4)),
    "dropout2d-eval": layer(lambda: nn.Dropout2d(0.5).eval(), IMAGE),
    "alpha-dropout-eval": layer(lambda: nn.AlphaDropout(0.5).eval(), (5, 4)),
    "dropout-of-nothing": layer(lambda: nn.Dropout(0.0), (5, 4)),
    "linear": layer(lambda: nn.Linear(4, 3), (5, 4)),
    "linear-without-bias": layer(lambda: nn.Linear(4, 3, bias=False), (5, 4)),
    "linear-of-sequences": layer(lambda: nn.Linear(4, 3), SEQUENCE),
    "linear-lazy": layer(lambda: seen(nn.LazyLinear(3), 5, 4), (5, 4)),
    "bilinear": layer(lambda: nn.Bilinear(4, 2, 3), (5, 4), (5, 2)),
    "flatten": layer(lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 3)), SIGNAL),
    "unflatten": layer(lambda: nn.Unflatten(1, (2, 2)), SIGNAL),
    "conv1d": layer(lambda: nn.Conv1d(4, 3, 3), SIGNAL),
    "conv1d-circular": layer(lambda: nn.Conv1d(4, 3, 3, padding=1, padding_mode="circular"), SIGNAL),
    "conv1d-same": layer(lambda: nn.Conv1d(4, 3, 4, padding="same"), SIGNAL),
    "conv1d-causal": layer(lambda: nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(4, 3, 3)), SIGNAL),
    "conv2d": layer(lambda: nn.Conv2d(4, 3, 3, stride=2, padding=1), IMAGE),
    "conv2d-depthwise": layer(lambda: nn.Conv2d(4, 8, 3, groups=4), IMAGE),
    "conv2d-dilated": layer(lambda: nn.Conv2d(4, 2, 3, dilation=2, groups=2, bias=False), IMAGE),
    "conv2d-reflect": layer(lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), IMAGE),
    "conv3d": layer(lambda: nn.Conv3d(4, 2, 3), VOLUME),
    "conv-transpose1d": layer(lambda: nn.ConvTranspose1d(4, 3, 3, stride=2), SIGNAL),
    "conv-transpose2d": layer(lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1), IMAGE),
    "conv-transpose2d-groups": layer(lambda: nn.ConvTranspose2d(4, 4, 3, groups=2, dilation=2), IMAGE),
    "conv-transpose3d": layer(lambda: nn.ConvTranspose3d(4, 2, 2), VOLUME),
    "unfold": layer(lambda: nn.Unfold(3, padding=1), IMAGE),
    "fold": layer(lambda: nn.Fold((4, 4), 2), (2, 8, 9)),
    "max-pool1d": layer(lambda: nn.MaxPool1d(2), SIGNAL),
    "max-pool2d": layer(lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), IMAGE),
    "max-pool2d-dilated": layer(lambda: nn.MaxPool2d(2, dilation=2), IMAGE),
    "max-pool3d": layer(lambda: nn.MaxPool3d(2), VOLUME),
    "max-unpool2d": layer(lambda: Unpooled(nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)), IMAGE),
    "avg-pool1d": layer(lambda: nn.AvgPool1d(2), SIGNAL),
    "avg-pool2d": layer(lambda: nn.AvgPool2d(3, padding=1, count_include_pad=False), IMAGE),
    "avg-pool3d": layer(lambda: nn.AvgPool3d(2), VOLUME),
    "lp-pool2d": layer(lambda: nn.LPPool2d(2, 2), IMAGE),
    "fractional-max-pool2d": function(
        lambda h, u: fn.fractional_max_pool2d(h, 2, output_size=4, _random_samples=u), IMAGE, uniform(2, 4, 2)
    ),
    "adaptive-avg-pool1d": layer(lambda: nn.AdaptiveAvgPool1d(4), SIGNAL),
    "adaptive-avg-pool2d": layer(lambda: nn.AdaptiveAvgPool2d((4, 1)), IMAGE),
    "adaptive-avg-pool3d": layer(lambda: nn.AdaptiveAvgPool3d(3), VOLUME),
    "adaptive-max-pool1d": layer(lambda: nn.AdaptiveMaxPool1d(4), SIGNAL),
    "adaptive-max-pool2d": layer(lambda: nn.AdaptiveMaxPool2d((4, 1)), IMAGE),
    "adaptive-max-pool3d": layer(lambda: nn.AdaptiveMaxPool3d(3), VOLUME),
    "reflection-pad1d": layer(lambda: nn.ReflectionPad1d(2), SIGNAL),
    "reflection-pad2d": layer(lambda: nn.ReflectionPad2d((1, 2, 0, 3)), IMAGE),
    "reflection-pad3d": layer(lambda: nn.ReflectionPad3d(1), VOLUME),
    "replication-pad1d": layer(lambda: nn.ReplicationPad1d(2), SIGNAL),
    "replication-pad2d": layer(lambda: nn.ReplicationPad2d(2), IMAGE),
    "replication-pad3d": layer(lambda: nn.ReplicationPad3d(1), VOLUME),
    "circular-pad2d": layer(lambda: nn.CircularPad2d(2), IMAGE),
    "zero-pad2d": layer(lambda: nn.ZeroPad2d((1, -1, 2, 0)), IMAGE),
    "constant-pad1d": layer(lambda: nn.ConstantPad1d(2, 0.7), SIGNAL),
    "batch-norm1d": layer(lambda: nn.BatchNorm1d(4), (5, 4)),
    "batch-norm1d-sequence": layer(lambda: nn.BatchNorm1d(4), SIGNAL),
    "batch-norm1d-eval": layer(lambda: seen(nn.BatchNorm1d(4), 5, 4), (5, 4)),
    "batch-norm2d": layer(lambda: nn.BatchNorm2d(4), IMAGE),
    "batch-norm2d-eval": layer(lambda: seen(nn.BatchNorm2d(4), *IMAGE), IMAGE),
    "batch-norm2d-without-statistics": layer(lambda: nn.BatchNorm2d(4, track_running_stats=False).eval(), IMAGE),
    "batch-norm2d-without-weights": layer(lambda: nn.BatchNorm2d(4, affine=False), IMAGE),
    "batch-norm2d-cumulative": layer(lambda: nn.BatchNorm2d(4, momentum=None), IMAGE, vmap=False),
    "batch-norm3d": layer(lambda: nn.BatchNorm3d(4), VOLUME),
    "batch-norm3d-eval": layer(lambda: seen(nn.BatchNorm3d(4), *VOLUME), VOLUME),
    "instance-norm1d": layer(lambda: nn.InstanceNorm1d(4), SIGNAL),
    "instance-norm2d": layer(lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "instance-norm2d-tracked": layer(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE),
    "instance-norm2d-eval": layer(lambda: seen(nn.InstanceNorm2d(4, track_running_stats=True), *IMAGE), IMAGE),
    "instance-norm3d": layer(lambda: nn.InstanceNorm3d(4), VOLUME),
    "layer-norm": layer(lambda: nn.LayerNorm(4), SEQUENCE),
    "layer-norm-2d": layer(lambda: nn.LayerNorm((5, 4), bias=False), SEQUENCE),
    "group-norm": layer(lambda: nn.GroupNorm(2, 4), IMAGE),
    "rms-norm": layer(lambda: nn.RMSNorm(4), SEQUENCE),
    "local-response-norm": layer(lambda: nn.LocalResponseNorm(2), IMAGE),
    "upsample-nearest": layer(lambda: nn.Upsample(scale_factor=2), IMAGE),
    "upsample-bilinear": layer(lambda: nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True), IMAGE),
    "interpolate-linear": function(lambda h: fn.interpolate(h, 9, mode="linear"), SIGNAL),
    "interpolate-bicubic": function(lambda h: fn.interpolate(h, (9, 4), mode="bicubic"), IMAGE),
    "interpolate-trilinear": function(lambda h: fn.interpolate(h, (5, 3, 4), mode="trilinear"), VOLUME),
    "interpolate-area": function(lambda h: fn.interpolate(h, (4, 4), mode="area"), IMAGE),
    "interpolate-nearest-exact": function(lambda h: fn.interpolate(h, (4, 9), mode="nearest-exact"), IMAGE),
    "interpolate-antialias": function(lambda h: fn.interpolate(h, (4, 4), mode="bilinear", antialias=True), IMAGE),
    "pixel-shuffle": layer(lambda: nn.PixelShuffle(2), IMAGE),
    "pixel-unshuffle": layer(lambda: nn.PixelUnshuffle(2), IMAGE),
    "channel-shuffle": layer(lambda: nn.ChannelShuffle(2), IMAGE),
    "grid-sample": function(lambda h, g: fn.grid_sample(h, g.tanh(), align_corners=False), IMAGE, (2, 3, 3, 2)),
    "affine-grid": function(
        lambda h, t: fn.grid_sample(h, fn.affine_grid(t, [2, 4, 3, 3], align_corners=True), align_corners=True),
        IMAGE,
        (2, 2, 3),
    ),
    "cosine-similarity": layer(nn.CosineSimilarity, (5, 4), (5, 4)),
    "pairwise-distance": layer(lambda: nn.PairwiseDistance(3), (5, 4), (5, 4)),
    "weight-norm": layer(lambda: parametrizations.weight_norm(nn.Linear(4, 3)), (5, 4)),
    "weight-norm-of-convolution": layer(lambda: parametrizations.weight_norm(nn.Conv2d(4, 3, 3)), IMAGE),
    "spectral-norm": layer(lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), (5, 4), vmap=False),
    "spectral-norm-eval": layer(lambda: parametrizations.spectral_norm(nn.Linear(4, 3)).eval(), (5, 4)),
    "orthogonal": layer(lambda: parametrizations.orthogonal(nn.Linear(4, 3)), (5, 4)),
    "orthogonal-cayley": layer(lambda: parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"), (5, 4)),
    "parametrized-cached": layer(lambda: Cached(parametrizations.weight_norm(nn.Linear(4, 4))), (5, 4)),
    "old-weight-norm": layer(lambda: weight_norm(nn.Linear(4, 3)), (5, 4)),
    "old-spectral-norm": layer(lambda: spectral_norm(nn.Linear(4, 3)), (5, 4), vmap=False),
    "old-spectral-norm-eval": layer(lambda: spectral_norm(nn.Linear(4, 3)).eval(), (5, 4)),
    "pruned": layer(lambda: prune.l1_unstructured(nn.Linear(4, 3), "weight", amount=5), (5, 4)),
}


class Cached(nn.Module):
    """A parametrized layer that is used twice, its weight computed once."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        with parametrize.cached():
            return self.layer(self.layer(x).tanh())
