"""Losses."""

import torch
from torch import distributions, nn
from torch.nn import functional as fn

from ops import function, layer
from ops.data import counts, ignored, labels, mask, normal, probabilities, signs, uniform

WEIGHT = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def ctc(logits, targets, **options):
    return fn.ctc_loss(logits.log_softmax(-1), targets, (6, 5), (2, 3), **options)


LOSSES = {
    "l1": function(fn.l1_loss, (5, 3), normal(5, 3)),
    "mse": function(fn.mse_loss, (5, 3), normal(5, 3)),
    "mse-both": function(fn.mse_loss, (5, 3), (5, 3)),
    "mse-sum": function(lambda h, t: fn.mse_loss(h, t, reduction="sum"), (5, 3), normal(5, 3)),
    "mse-none": function(lambda h, t: fn.mse_loss(h, t, reduction="none"), (5, 3), normal(5, 3)),
    "mse-weight": function(lambda h, t, w: fn.mse_loss(h, t, weight=w), (5, 3), normal(5, 3), uniform(5, 3)),
    "smooth-l1": function(fn.smooth_l1_loss, (5, 3), normal(5, 3)),
    "smooth-l1-beta": function(lambda h, t: fn.smooth_l1_loss(h, t, beta=0.3), (5, 3), normal(5, 3)),
    "huber": function(fn.huber_loss, (5, 3), normal(5, 3)),
    "huber-delta": function(lambda h, t: fn.huber_loss(h, t, delta=0.3), (5, 3), normal(5, 3)),
    "cross-entropy": function(fn.cross_entropy, (5, 3), labels(5, classes=3)),
    "cross-entropy-ignored": function(fn.cross_entropy, (5, 3), ignored(5, classes=3)),
    "cross-entropy-ignore-index": function(
        lambda h, t: fn.cross_entropy(h, t, ignore_index=0), (9, 3), labels(9, classes=3)
    ),
    "cross-entropy-smoothing": function(
        lambda h, t: fn.cross_entropy(h, t, label_smoothing=0.1), (5, 3), labels(5, classes=3)
    ),
    "cross-entropy-weight": function(lambda h, t: fn.cross_entropy(h, t, weight=WEIGHT), (5, 3), labels(5, classes=3)),
    "cross-entropy-all": function(
        lambda h, t: fn.cross_entropy(h, t, weight=WEIGHT, label_smoothing=0.1), (5, 3), ignored(5, classes=3)
    ),
    "cross-entropy-module": layer(lambda: nn.CrossEntropyLoss(WEIGHT), (5, 3), labels(5, classes=3)),
    "cross-entropy-sum": function(lambda h, t: fn.cross_entropy(h, t, reduction="sum"), (5, 3), labels(5, classes=3)),
    "cross-entropy-none": function(lambda h, t: fn.cross_entropy(h, t, reduction="none"), (5, 3), labels(5, classes=3)),
    "cross-entropy-pixels": function(fn.cross_entropy, (2, 3, 4, 4), labels(2, 4, 4, classes=3)),
    "cross-entropy-probabilities": function(fn.cross_entropy, (5, 3), probabilities(5, 3)),
    "cross-entropy-probabilities-smoothing": function(
        lambda h, t: fn.cross_entropy(h, t, weight=WEIGHT, label_smoothing=0.1), (5, 3), probabilities(5, 3)
    ),
    "nll": function(lambda h, t: fn.nll_loss(h.log_softmax(1), t), (5, 3), labels(5, classes=3)),
    "nll-weight": function(lambda h, t: fn.nll_loss(h.log_softmax(1), t, WEIGHT), (5, 3), ignored(5, classes=3)),
    "nll-pixels": function(lambda h, t: fn.nll_loss(h.log_softmax(1), t), (2, 3, 4, 4), labels(2, 4, 4, classes=3)),
    "kl-div": function(lambda h, t: fn.kl_div(h.log_softmax(1), t, reduction="batchmean"), (5, 3), probabilities(5, 3)),
    "kl-div-log-target": function(
        lambda h, t: fn.kl_div(h.log_softmax(1), t.log_softmax(1), log_target=True, reduction="sum"), (5, 3), (5, 3)
    ),
    "binary-cross-entropy": function(lambda h, t: fn.binary_cross_entropy(h.sigmoid(), t), (5, 3), uniform(5, 3)),
    "binary-cross-entropy-weight": function(
        lambda h, t, w: fn.binary_cross_entropy(h.sigmoid(), t, weight=w), (5, 3), uniform(5, 3), uniform(5, 3)
    ),
    "bce-with-logits": function(fn.binary_cross_entropy_with_logits, (5, 3), uniform(5, 3)),
    "bce-with-logits-pos-weight": function(
        lambda h, t: fn.binary_cross_entropy_with_logits(h, t, pos_weight=WEIGHT), (5, 3), uniform(5, 3)
    ),
    "poisson-nll": function(fn.poisson_nll_loss, (5, 3), counts(5, 3)),
    "poisson-nll-full": function(
        lambda h, t: fn.poisson_nll_loss(h.exp(), t, log_input=False, full=True), (5, 3), counts(5, 3)
    ),
    "gaussian-nll": function(
        lambda h, t, v: fn.gaussian_nll_loss(h, t, v.exp()), (5, 3), normal(5, 3), (5, 3), vmap=False
    ),
    "gaussian-nll-full": function(
        lambda h, t, v: fn.gaussian_nll_loss(h, t, v.exp(), full=True), (5, 3), normal(5, 3), (5, 1), vmap=False
    ),
    "hinge-embedding": function(fn.hinge_embedding_loss, (5, 3), signs(5, 3)),
    "margin-ranking": function(lambda a, b, t: fn.margin_ranking_loss(a, b, t, margin=0.3), (5,), (5,), signs(5)),
    "cosine-embedding": function(
        lambda a, b, t: fn.cosine_embedding_loss(a, b, t, margin=-0.5), (9, 3), (9, 3), signs(9)
    ),
    "triplet-margin": function(fn.triplet_margin_loss, (5, 3), (5, 3), (5, 3)),
    "triplet-margin-swap": function(lambda a, p, n: fn.triplet_margin_loss(a, p, n, swap=True), (5, 3), (5, 3), (5, 3)),
    "triplet-margin-with-distance": function(fn.triplet_margin_with_distance_loss, (5, 3), (5, 3), (5, 3)),
    "multi-margin": function(fn.multi_margin_loss, (5, 3), labels(5, classes=3)),
    "multi-margin-squared": function(
        lambda h, t: fn.multi_margin_loss(h, t, p=2, weight=WEIGHT), (5, 3), labels(5, classes=3)
    ),
    "multilabel-margin": function(fn.multilabel_margin_loss, (4, 3), lambda: torch.tensor([[2, 0, -1]] * 4)),
    "multilabel-soft-margin": function(fn.multilabel_soft_margin_loss, (5, 3), uniform(5, 3)),
    "soft-margin": function(fn.soft_margin_loss, (5, 3), signs(5, 3)),
    "ctc": function(ctc, (6, 2, 4), lambda: torch.randint(1, 4, (2, 3)), vmap=False),
    "ctc-zero-infinity": function(
        lambda h, t: ctc(h, t, zero_infinity=True, reduction="sum"), (6, 2, 4), lambda: torch.tensor([[1, 1, 2]] * 2)
    ),
    "ctc-concatenated": function(ctc, (6, 2, 4), lambda: torch.randint(1, 4, (5,)), vmap=False),
    "ctc-lengths": function(
        lambda h, t, n: fn.ctc_loss(h.log_softmax(-1), t, torch.full_like(n, 6), n),
        (6, 2, 4),
        lambda: torch.randint(1, 4, (2, 3)),
        lambda: torch.tensor([2, 3]),
    ),
    "adaptive-log-softmax": layer(
        lambda: Second(nn.AdaptiveLogSoftmaxWithLoss(16, 6, [2, 4], div_value=2.0)),
        (5, 16),
        labels(5, classes=6),
        vmap=False,
    ),
    "focal": function(
        lambda h, t: ((1 - (-fn.cross_entropy(h, t, reduction="none")).exp()) ** 2 * fn.cross_entropy(h, t)).mean(),
        (5, 3),
        labels(5, classes=3),
    ),
    "dice": function(
        lambda h, t: 1 - 2 * (h.sigmoid() * t).sum() / (h.sigmoid() + t).sum(), (2, 4, 4), uniform(2, 4, 4)
    ),
    "contrastive": function(
        lambda a, b: fn.cross_entropy(fn.normalize(a) @ fn.normalize(b).mT / 0.1, torch.arange(5)), (5, 3), (5, 3)
    ),
    "masked-mean": function(lambda h, m: (h.square() * m).sum() / (m.sum() + 1), (5, 3), mask(5, 3)),
    "masked-select": function(lambda h, m: h[m].square().sum(), (5, 3), mask(5, 3), vmap=False),
    "normal-log-prob": function(
        lambda h, s, t: -distributions.Normal(h, s.exp()).log_prob(t).mean(), (5, 3), (5, 3), normal(5, 3)
    ),
    "categorical-log-prob": function(
        lambda h, t: -distributions.Categorical(logits=h).log_prob(t).mean(), (5, 3), labels(5, classes=3)
    ),
    "multivariate-normal-log-prob": function(
        lambda h, t: -distributions.MultivariateNormal(h, torch.eye(3, dtype=h.dtype)).log_prob(t).mean(),
        (5, 3),
        normal(5, 3),
    ),
    "kl-divergence": function(
        lambda m, s: distributions.kl_divergence(
            distributions.Normal(m, s.exp()), distributions.Normal(torch.zeros_like(m), torch.ones_like(s))
        ).mean(),
        (5, 3),
        (5, 3),
    ),
    "reparametrized-sample": function(
        lambda m, s, e: (distributions.Normal(m, s.exp()).rsample() * 0 + m + s.exp() * e).square().mean(),
        (5, 3),
        (5, 3),
        normal(5, 3),
        vmap=False,
    ),
}


class Second(nn.Module):
    """The second output, a loss."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)[1]
