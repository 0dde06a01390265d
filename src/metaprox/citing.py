"""What to cite: the papers that a configuration is made of, as BibTeX."""

from collections.abc import Iterator
from typing import Any

from metaprox.errors import InputError
from metaprox.estimators import FOBMAML, FOMAML, IMAML, MAML, Estimator, Reptile, Tangent
from metaprox.optim import ClippedSGD, NormalizedSGD
from metaprox.references import BIBTEX
from metaprox.solvers import (
    Adam,
    AdaptiveGradientDescent,
    Anderson,
    ConjugateGradient,
    GradientDescent,
    Nesterov,
    TorchOptimizer,
)

SOURCES: dict[type, tuple[str, ...]] = {
    FOBMAML: ("chayti2024fobmaml",),
    Tangent: ("chayti2024fobmaml",),  # the derivative that its difference stands for
    MAML: ("finn2017maml",),
    FOMAML: ("finn2017maml",),
    IMAML: ("rajeswaran2019imaml",),
    Reptile: ("nichol2018reptile",),
    GradientDescent: (),
    Nesterov: ("nesterov2004lectures",),
    Adam: ("kingma2015adam",),
    Anderson: ("walker2011anderson",),
    ConjugateGradient: ("hestenes1952methods", "polak1969note"),
    AdaptiveGradientDescent: ("malitsky2020adaptive", "barzilai1988twopoint"),
    TorchOptimizer: (),  # whose source torch's own documentation gives
    NormalizedSGD: ("cutkosky2020momentum",),
    ClippedSGD: ("zhang2020clipping",),
}
HIGHER_ORDER = ("central4", "central6")


def citation(*parts: Any) -> None:
    """Print the BibTeX of what a configuration uses: of its parts, each once, and of this software.

    Args:
        *parts: an estimator, whose solvers are cited with it; further solvers and outer optimizers.

    Raises:
        InputError: nothing is given, or what is no part of a configuration; a part of one's own has no source here, and
            a line says so, unless its class is made of one that has.

    Example:
        >>> import metaprox as mp
        >>> mp.citation(mp.FOBMAML(mp.GradientDescent(0.1), steps=10))  # doctest: +ELLIPSIS
        @article{chayti2024fobmaml,
          title = {A New First-Order Meta-Learning Algorithm with Convergence Guarantees},
          ...
    """
    if not parts:
        raise InputError("nothing to cite: give an estimator, a solver or an outer optimizer")
    found = dict.fromkeys(key for part in parts for key in _keys(part))
    print("\n\n".join([BIBTEX.get(key, key) for key in found] + [BIBTEX["metaprox"]]))


def _keys(part: Any) -> Iterator[str]:
    """The sources of a part, and of those that it holds."""
    if isinstance(part, type) or not (hasattr(part, "step") or isinstance(part, Estimator)):
        raise InputError(f"an estimator, a solver or an outer optimizer can be cited, got {part!r}")
    kind = next((known for known in type(part).__mro__ if known in SOURCES), None)
    if kind is None:
        yield f"% {type(part).__module__}.{type(part).__qualname__}: no source is known of it"
    else:
        yield from SOURCES[kind]
    if isinstance(part, FOBMAML) and part.scheme in HIGHER_ORDER:
        yield "chen2026faster"
    for solver in (getattr(part, "solver", None), getattr(part, "branch_solver", None)):
        if solver is not None:
            yield from _keys(solver)
