"""The schemes are data: their moments are what makes them schemes."""

import pytest

import metaprox as mp
from metaprox.estimators.stencil import STENCILS, stencil


@pytest.mark.parametrize("scheme", STENCILS.values(), ids=lambda s: s.name)
def test_moments_are_those_of_a_first_derivative(scheme):
    for power in range(scheme.order + 1):
        moment = sum(w * n**power for n, w in zip(scheme.nodes, scheme.weights, strict=True))
        assert moment == pytest.approx(1.0 if power == 1 else 0.0, abs=1e-14)
    following = sum(w * n ** (scheme.order + 1) for n, w in zip(scheme.nodes, scheme.weights, strict=True))
    assert abs(following) > 0.1  # the stated order is the true one, not a lower bound


def test_default_step_balances_truncation_and_rounding():
    for scheme in STENCILS.values():
        step = scheme.default_step(1e-16)
        assert step**scheme.order == pytest.approx(1e-16 / step)


def test_unknown_scheme_lists_the_known_ones():
    with pytest.raises(mp.InputError, match="unknown scheme 'foward'; known: forward, symmetric, central4, central6"):
        stencil("foward")
