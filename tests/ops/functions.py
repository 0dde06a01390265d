"""Functions of tensors."""

import torch
from torch import fft, linalg
from torch.nn import functional as fn

from ops import function
from ops.data import labels, mask, normal, permutation

EYE = torch.eye(4, dtype=torch.float64)


def positive(h):
    """Symmetric and positive definite."""
    return h @ h.mT + EYE


def symmetric(h):
    return h + h.mT


def in_place(h):
    h = h.clone()
    h[:, 0] = h[:, 1].exp()
    h.mul_(2).add_(0.3)
    h[:, 1:] += h[:, :1]
    return h


def filled(h):
    """Into a tensor that is made anew, as written by hand."""
    out = torch.zeros(5, 4, dtype=h.dtype)
    for i in range(5):
        out[i] = h[i].cumsum(0)
    return out


def filled_like(h):
    out = torch.zeros_like(h)
    for i in range(5):
        out[i] = h[i].cumsum(0)
    return out


def scanned(h):
    state = torch.zeros_like(h[0])
    for row in h:
        state = torch.tanh(0.5 * state + row)
    return state


MATRIX = (4, 4)

FUNCTIONS = {
    "einsum": function(lambda a, b: torch.einsum("nij,njk->nik", a, b), (3, 4, 2), (3, 2, 5)),
    "einsum-of-data": function(lambda a, b: torch.einsum("ni,ij,nj->n", b, a, b), MATRIX, normal(3, 4)),
    "matmul": function(torch.matmul, (3, 4, 2), (2, 5)),
    "bmm": function(torch.bmm, (3, 4, 2), (3, 2, 5)),
    "baddbmm": function(lambda c, a, b: torch.baddbmm(c, a, b, alpha=0.5), (3, 4, 5), (3, 4, 2), (3, 2, 5)),
    "addmm": function(torch.addmm, (5,), (4, 2), (2, 5)),
    "tensordot": function(lambda a, b: torch.tensordot(a, b, dims=2), (3, 4, 2), (4, 2, 5)),
    "outer": function(torch.outer, (4,), (3,)),
    "kron": function(torch.kron, (2, 3), (3, 2)),
    "cdist": function(torch.cdist, (5, 3), (4, 3)),
    "cdist-l1": function(lambda a, b: torch.cdist(a, b, p=1.0), (5, 3), (4, 3)),
    "cdist-of-data": function(torch.cdist, (5, 3), normal(4, 3)),
    "pdist": function(fn.pdist, (5, 3)),
    "normalize": function(fn.normalize, (5, 3)),
    "gather": function(lambda h, i: h.gather(1, i), (5, 4), labels(5, 2, classes=4)),
    "take-along-dim": function(lambda h: h.take_along_dim(h.argsort(1), 1), (5, 4)),
    "scatter": function(
        lambda h, i: torch.zeros_like(h).scatter(1, i, h), (5, 4), lambda: torch.arange(20).view(5, 4) % 4
    ),
    "scatter-add": function(lambda h, i: torch.zeros(5, 3).to(h).scatter_add(1, i, h), (5, 4), labels(5, 4, classes=3)),
    "scatter-add-in-place": function(
        lambda h, i: torch.zeros(5, 3, dtype=h.dtype).scatter_add_(1, i, h), (5, 4), labels(5, 4, classes=3), vmap=False
    ),
    "scatter-mean": function(
        lambda h, i: torch.zeros_like(h).scatter_reduce(0, i, h, "mean"), (5, 4), labels(5, 4, classes=3)
    ),
    "scatter-amax": function(
        lambda h, i: torch.zeros_like(h).scatter_reduce(0, i, h, "amax"), (5, 4), labels(5, 4, classes=3)
    ),
    "index-select": function(lambda h, i: h.index_select(0, i), (5, 4), labels(3, classes=5)),
    "index": function(lambda h, i: h[i], (5, 4), labels(3, classes=5)),
    "index-pairs": function(lambda h, i: h[torch.arange(5), i], (5, 4), labels(5, classes=4)),
    "index-add": function(lambda h, i: torch.zeros_like(h).index_add(0, i, h), (5, 4), labels(5, classes=5)),
    "index-put": function(lambda h, i: torch.zeros_like(h).index_put((i,), h), (5, 4), permutation(5)),
    "index-put-add": function(
        lambda h, i: torch.zeros_like(h).index_put((i,), h, accumulate=True), (5, 4), labels(5, classes=5)
    ),
    "index-copy": function(lambda h, i: torch.zeros_like(h).index_copy(0, i, h), (5, 4), permutation(5)),
    "index-fill": function(lambda h, i: h.index_fill(1, i, 0.3), (5, 4), labels(2, classes=4)),
    "one-hot": function(lambda h, i: fn.one_hot(i, 4).to(h) * h, (5, 4), labels(5, classes=4), vmap=False),
    "masked-fill": function(lambda h, m: h.masked_fill(m, -1e9).softmax(1), (5, 4), mask(5, 4)),
    "masked-fill-infinite": function(lambda h, m: h.masked_fill(m, -torch.inf).softmax(1), (5, 4), mask(5, 4)),
    "masked-scatter": function(lambda h, g, m: h.masked_scatter(m, g), (5, 4), (5, 4), mask(5, 4)),
    "where": function(lambda h, g, m: torch.where(m, h.sin(), g.cos()), (5, 4), (5, 4), mask(5, 4)),
    "where-of-itself": function(lambda h: torch.where(h > 0, h.square(), h.sin()), (5, 4)),
    "nonzero": function(lambda h: h[h > 0].square().sum(), (5, 4), vmap=False),
    "item": function(lambda h: h * (2 if h.sum().item() > 0 else 3), (5, 4), vmap=False),
    "unique": function(lambda h, i: h[torch.unique(i)], (5, 4), permutation(5), vmap=False),
    "bincount": function(lambda h, i: h * torch.bincount(i, minlength=4), (5, 4), labels(9, classes=4)),
    "prototypes": function(
        lambda h, i: -torch.cdist(h, torch.stack([(h * (i == c).to(h)[:, None]).sum(0) for c in range(3)])),
        (5, 4),
        labels(5, classes=3),
    ),
    "cumsum": function(lambda h: h.cumsum(0), (5, 4)),
    "cumprod": function(lambda h: h.cumprod(1), (5, 4)),
    "cummax": function(lambda h: h.cummax(1).values, (5, 4)),
    "logcumsumexp": function(lambda h: h.logcumsumexp(1), (5, 4)),
    "logsumexp": function(lambda h: h.logsumexp(1), (5, 4)),
    "sort": function(lambda h: h.sort(1, descending=True).values, (5, 4)),
    "sort-all": function(lambda h: h.sort().values, (7,)),
    "topk": function(lambda h: h.topk(2, 1).values, (5, 4)),
    "kthvalue": function(lambda h: h.kthvalue(2, 1).values, (5, 4)),
    "median": function(lambda h: h.median(1).values, (5, 4)),
    "median-of-all": function(lambda h: h.median() * h, (5, 3)),
    "quantile": function(lambda h: h.quantile(0.3, 1), (5, 4)),
    "max": function(lambda h: h.max(1).values, (5, 4)),
    "max-of-all": function(lambda h: h.max() * h, (5, 4)),
    "amax": function(lambda h: h.amax((0, 1)) * h, (5, 4)),
    "aminmax": function(lambda h: torch.stack(list(torch.aminmax(h, dim=1))), (5, 4)),
    "minimum": function(torch.minimum, (5, 4), (5, 4)),
    "clamp": function(lambda h: h.clamp(-0.5, 0.7), (5, 4)),
    "clamp-to-data": function(lambda h, low: h.clamp(min=low), (5, 4), normal(5, 4)),
    "nan-to-num": function(lambda h: h.log().nan_to_num(0.0), (5, 4)),
    "mean-std": function(lambda h: (h - h.mean(0)) / h.std(0), (5, 4)),
    "var-mean": function(lambda h: torch.stack(torch.var_mean(h, 1, correction=0)), (5, 4)),
    "prod": function(lambda h: h.prod(1), (5, 4)),
    "norm": function(lambda h: h.norm(dim=1), (5, 4)),
    "norm-p": function(lambda h: h.norm(p=3, dim=1), (5, 4)),
    "diff": function(lambda h: h.diff(dim=1), (5, 4)),
    "trapezoid": function(lambda h: torch.trapezoid(h, dx=0.1), (5, 4)),
    "cross": function(linalg.cross, (5, 3), (5, 3)),
    "cov": function(torch.cov, (4, 6)),
    "corrcoef": function(torch.corrcoef, (4, 6)),
    "stack": function(lambda a, b: torch.stack([a, b, a.sin()], 1), (5, 4), (5, 4)),
    "cat": function(lambda a, b: torch.cat([a, b], 1), (5, 4), (5, 2)),
    "split": function(lambda h: h.split(2, 1)[0] * h.chunk(2, 1)[1], (5, 4)),
    "unbind": function(lambda h: torch.stack(h.unbind(1)[::-1]), (5, 4)),
    "roll": function(lambda h: h.roll(1, 0) * h, (5, 4)),
    "flip": function(lambda h: h.flip(0) * h, (5, 4)),
    "rot90": function(torch.rot90, (5, 4)),
    "tril": function(lambda h: h.tril() + h.triu(1) ** 2, (5, 4)),
    "diag-embed": function(lambda h: torch.diag_embed(h), (5, 4)),
    "repeat": function(lambda h: h.repeat(2, 3), (5, 4)),
    "repeat-interleave": function(lambda h: h.repeat_interleave(2, 0), (5, 4)),
    "repeat-interleave-counts": function(
        lambda h, n: h.repeat_interleave(n, 0), (5, 4), labels(5, classes=4), vmap=False
    ),
    "expand": function(lambda h: h[:, None].expand(-1, 3, -1), (5, 4)),
    "tensor-unfold": function(lambda h: h.unfold(1, 3, 1), (5, 6)),
    "as-strided": function(lambda h: h.as_strided((3, 2), (1, 5)), (5, 4)),
    "movedim": function(lambda h: h.movedim(0, -1).reshape(4, -1), (5, 4, 2)),
    "pad": function(lambda h: fn.pad(h, (1, 2), value=0.3), (5, 4)),
    "in-place": function(in_place, (5, 4)),
    "filled": function(filled, (5, 4), vmap=False),
    "filled-like": function(filled_like, (5, 4)),
    "scanned": function(scanned, (5, 4)),
    "fft": function(lambda h: fft.fft(h), (5, 4)),
    "rfft": function(lambda h: fft.rfft(h).abs(), (5, 6)),
    "irfft": function(lambda h: fft.irfft(torch.complex(h, h.sin()), 6), (5, 4)),
    "fft2": function(fft.fft2, (5, 4)),
    "fftshift": function(lambda h: fft.fftshift(fft.fftn(h)), (5, 4)),
    "spectral-convolution": function(lambda h, w: fft.irfft(fft.rfft(h) * fft.rfft(w), 6), (5, 6), (6,)),
    "stft": function(
        lambda h: torch.stft(h, 8, window=torch.hann_window(8, dtype=h.dtype), return_complex=True), (2, 24)
    ),
    "complex": function(lambda a, b: torch.polar(a.exp(), b).angle() * torch.complex(a, b).abs(), (5, 4), (5, 4)),
    "inv": function(lambda h: linalg.inv(positive(h)), MATRIX),
    "solve": function(lambda h, b: linalg.solve(positive(h), b), MATRIX, (4, 2)),
    "solve-data": function(lambda h, b: linalg.solve(positive(h), b), MATRIX, normal(4)),
    "solve-of-data": function(lambda a, b: linalg.solve(positive(a), b), normal(4, 4), (4, 2)),
    "solve-triangular": function(
        lambda h, b: linalg.solve_triangular(h.tril() + 3 * EYE, b, upper=False), MATRIX, (4, 2)
    ),
    "lstsq": function(lambda h, b: linalg.lstsq(h, b).solution, (6, 3), (6, 2)),
    "ridge": function(lambda h, b: linalg.solve(h.mT @ h + EYE, h.mT @ b), (6, 4), normal(6, 2)),
    "det": function(linalg.det, MATRIX),
    "slogdet": function(lambda h: linalg.slogdet(positive(h)).logabsdet, MATRIX),
    "logdet": function(lambda h: torch.logdet(positive(h)), MATRIX),
    "cholesky": function(lambda h: linalg.cholesky(positive(h)), MATRIX),
    "cholesky-solve": function(lambda h, b: torch.cholesky_solve(b, linalg.cholesky(positive(h))), MATRIX, (4, 2)),
    "cholesky-inverse": function(lambda h: torch.cholesky_inverse(linalg.cholesky(positive(h))), MATRIX),
    "eigh": function(lambda h: linalg.eigh(symmetric(h)).eigenvalues, MATRIX),
    "eigvalsh": function(lambda h: linalg.eigvalsh(symmetric(h)), MATRIX),
    "eigvals": function(lambda h: linalg.eigvals(h).abs(), MATRIX),
    "qr": function(lambda h: linalg.qr(h), (5, 3)),
    "svdvals": function(linalg.svdvals, (5, 3)),
    "svd": function(lambda h: linalg.svd(h, full_matrices=False)[0].abs(), (5, 3)),
    "pinv": function(linalg.pinv, (5, 3)),
    "lu": function(lambda h: linalg.lu(h), MATRIX),
    "lu-solve": function(lambda h, b: linalg.lu_solve(*linalg.lu_factor(positive(h)), b), MATRIX, (4, 2), vmap=False),
    "matrix-exp": function(linalg.matrix_exp, MATRIX),
    "matrix-power": function(lambda h: linalg.matrix_power(h, 3), MATRIX),
    "nuclear-norm": function(lambda h: linalg.matrix_norm(h, "nuc"), (5, 3)),
    "spectral-norm-of-matrix": function(lambda h: linalg.matrix_norm(h, 2), (5, 3)),
    "trace": function(lambda h: torch.trace(h @ h), MATRIX),
    "erf": function(torch.erf, (5, 4)),
    "lgamma": function(lambda h: torch.lgamma(h.exp()), (5, 4)),
    "digamma": function(lambda h: torch.digamma(h.exp()), (5, 4)),
    "xlogy": function(lambda a, b: torch.xlogy(a, b.exp()), (5, 4), (5, 4)),
    "atan2": function(torch.atan2, (5, 4), (5, 4)),
    "hypot": function(torch.hypot, (5, 4), (5, 4)),
    "logaddexp": function(torch.logaddexp, (5, 4), (5, 4)),
    "remainder": function(lambda h: h.remainder(0.7), (5, 4)),
    "lerp": function(torch.lerp, (5, 4), (5, 4), (5, 4)),
    "sinc": function(torch.sinc, (5, 4)),
    "log1p": function(lambda h: h.exp().log1p(), (5, 4)),
    "i0e": function(torch.special.i0e, (5, 4)),
    "searchsorted": function(
        lambda h, v: h * torch.searchsorted(torch.linspace(-1, 1, 5, dtype=h.dtype), v), (5, 4), normal(5, 4)
    ),
    "sparse-matmul": function(lambda h: torch.sparse.mm(EYE.flip(0).to_sparse(), h), MATRIX, vmap=False),
    "sparse-csr-matmul": function(lambda h: EYE.flip(0).to_sparse_csr() @ h, MATRIX, vmap=False),
    "to-dense": function(lambda h: h.to_sparse().to_dense(), MATRIX, vmap=False),
    "straight-through": function(lambda h: h.round().detach() + h - h.detach(), (5, 4)),
    "gumbel-of-data": function(lambda h, g: ((h + g) / 0.5).softmax(1), (5, 4), normal(5, 4)),
    "narrowed": function(lambda h: h.float().square().double(), (5, 4)),
    "contiguous": function(lambda h: h.mT.contiguous().view(-1)[::2], (5, 4)),
    "meshgrid": function(lambda a, b: torch.stack(torch.meshgrid(a, b, indexing="ij")).prod(0), (4,), (3,)),
    "block-diag": function(torch.block_diag, (2, 3), (3, 2)),
    "combinations": function(lambda h: torch.combinations(h).prod(1), (4,)),
    "cartesian": function(lambda a, b: torch.cartesian_prod(a, b).prod(1), (4,), (3,)),
    "bucketed-embedding": function(
        lambda table, v: table[torch.bucketize(v, torch.linspace(-1, 1, 5).to(v))], (6, 3), normal(4)
    ),
    "grad-inside": function(lambda h: torch.func.grad(lambda z: z.sin().prod())(h), (4,)),
    "jacobian-inside": function(lambda h: torch.func.jacrev(lambda z: z.sin().outer(z))(h), (3,)),
    "vmap-inside": function(lambda h: torch.func.vmap(lambda z: z.sin().prod())(h), (5, 4)),
    "vjp-inside": function(lambda h: torch.func.vjp(lambda z: z.sin() * z[0], h)[1](h)[0], (4,)),
}
