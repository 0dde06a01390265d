"""What a configuration is to be cited by."""

import functools
import re
from pathlib import Path

import pytest
import torch

import metaprox as mp
from metaprox.citing import SOURCES
from metaprox.estimators import __all__ as estimators
from metaprox.references import BIBTEX
from metaprox.solvers import __all__ as solvers

GD = mp.GradientDescent(0.1)
X = [torch.zeros(1, requires_grad=True)]
CASES = {
    mp.FOBMAML: (lambda: mp.FOBMAML(GD, 5), ["chayti2024fobmaml"]),
    mp.Tangent: (lambda: mp.Tangent(GD, 5), ["chayti2024fobmaml"]),
    mp.MAML: (lambda: mp.MAML(GD, 5), ["finn2017maml"]),
    mp.FOMAML: (lambda: mp.FOMAML(GD, 5), ["finn2017maml"]),
    mp.IMAML: (lambda: mp.IMAML(GD, 5), ["rajeswaran2019imaml"]),
    mp.Reptile: (lambda: mp.Reptile(GD, 5), ["nichol2018reptile"]),
    mp.GradientDescent: (lambda: GD, []),
    mp.Nesterov: (lambda: mp.Nesterov(0.1), ["nesterov2004lectures"]),
    mp.Adam: (lambda: mp.Adam(0.1), ["kingma2015adam"]),
    mp.Anderson: (lambda: mp.Anderson(0.1), ["walker2011anderson"]),
    mp.ConjugateGradient: (lambda: mp.ConjugateGradient(0.1), ["hestenes1952methods", "polak1969note"]),
    mp.AdaptiveGradientDescent: (mp.AdaptiveGradientDescent, ["malitsky2020adaptive", "barzilai1988twopoint"]),
    mp.TorchOptimizer: (lambda: mp.TorchOptimizer(functools.partial(torch.optim.SGD, lr=0.1)), []),
    mp.optim.NormalizedSGD: (lambda: mp.optim.NormalizedSGD(X, lr=0.1), ["cutkosky2020momentum"]),
    mp.optim.ClippedSGD: (lambda: mp.optim.ClippedSGD(X, lr=0.1, gamma=1.0), ["zhang2020clipping"]),
}


def keys(capsys, *parts):
    """The entries that are printed, in order, without the software's own at the end."""
    mp.citation(*parts)
    found = re.findall(r"^@\w+\{(\w+),$", capsys.readouterr().out, re.MULTILINE)
    assert found.pop() == "metaprox"
    return found


@pytest.mark.parametrize("kind", CASES)
def test_every_estimator_solver_and_optimizer_has_its_source(capsys, kind):
    make, expected = CASES[kind]
    assert keys(capsys, make()) == expected


def test_none_is_left_out():
    ours = {getattr(mp, name) for name in estimators if issubclass(getattr(mp, name), mp.Estimator)} - {mp.Estimator}
    ours |= {getattr(mp, name) for name in solvers if hasattr(getattr(mp, name, None), "step")} - {mp.InnerSolver}
    assert ours | {mp.optim.NormalizedSGD, mp.optim.ClippedSGD} == SOURCES.keys() == CASES.keys()
    assert {key for found in SOURCES.values() for key in found} | {"chen2026faster", "metaprox"} == BIBTEX.keys()


def test_a_configuration_is_cited_with_all_of_its_parts_each_once(capsys):
    meta = mp.FOBMAML(mp.AdaptiveGradientDescent(), 5, branch_solver=mp.Anderson(0.1), scheme="central4")
    assert keys(capsys, meta, mp.optim.NormalizedSGD(X, lr=0.1), mp.Anderson(0.2)) == [
        "chayti2024fobmaml",
        "chen2026faster",
        "malitsky2020adaptive",
        "barzilai1988twopoint",
        "walker2011anderson",
        "cutkosky2020momentum",
    ]
    assert "chen2026faster" not in keys(capsys, mp.FOBMAML(GD, 5, scheme="symmetric"))


def test_parts_of_ones_own(capsys):
    class Own:
        def init(self, y):
            return None

        def step(self, grad, y, state):
            return y - 0.1 * grad, state

    class Kin(mp.MAML):
        pass

    mp.citation(mp.FOBMAML(Own(), 5))
    assert re.search(r"^% .*Own: no source is known of it$", capsys.readouterr().out, re.MULTILINE)
    assert keys(capsys, Kin(GD, 5)) == ["finn2017maml"]


@pytest.mark.parametrize("parts", [(), (3,), (mp.FOBMAML,), (torch.nn.Linear(1, 1),)])
def test_what_is_no_part_is_refused(capsys, parts):
    with pytest.raises(mp.InputError, match="cite"):
        mp.citation(*parts)
    assert capsys.readouterr().out == ""


def test_entries_are_bibtex_and_say_what_the_docstrings_do():
    for key, entry in BIBTEX.items():
        assert re.fullmatch(r"@\w+\{(\w+),\n(  \w+ = \{.*\},?\n)+\}", entry), key
        assert entry.count("{") == entry.count("}")
        assert re.match(r"@\w+\{(\w+),", entry)[1] == key
    for kind, found in SOURCES.items():
        for number in re.findall(r"arXiv (\d{4}\.\d{5})", kind.__doc__ or ""):
            if kind is not mp.optim.NormalizedSGD or number != "2409.03682":
                assert any(number in BIBTEX[key] for key in (*found, "chen2026faster")), (kind, number)
    cited = (Path(__file__).parent.parent / "CITATION.cff").read_text()
    assert "2409.03682" in cited
    assert "name: The metaprox authors" in cited
