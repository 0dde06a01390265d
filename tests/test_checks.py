"""The checks that settings and arguments go through: what they take, as what, and what they say."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import metaprox as mp
from metaprox import checks
from metaprox.models import mlp


@pytest.mark.parametrize(
    "value", [0.5, np.float16(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)]
)
def test_numbers_become_those_of_python(value):
    lr = mp.GradientDescent(value).lr
    assert type(lr) is float
    assert lr == 0.5


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_integers_become_those_of_python(value):
    meta = mp.IMAML(mp.GradientDescent(value), steps=value, cg_steps=value, chunk_size=value, damping=value)
    for name in ("steps", "cg_steps", "chunk_size", "damping"):
        assert type(getattr(meta, name)) is int
        assert getattr(meta, name) == 3
    assert checks.ids("ids", np.array([value, 1])) == [3, 1]
    assert {type(i) for i in checks.ids("ids", torch.tensor([3, 1]))} == {int}


def test_switches_become_those_of_python():
    meta = mp.FOBMAML(mp.GradientDescent(0.1), 2, residual_correction=np.True_, compile=np.False_)
    assert meta.residual_correction is True
    assert meta.compile is False


def test_settings_that_are_several_become_tuples():
    assert mp.Adam(0.1, betas=[0.5, np.float32(0.75)]) == mp.Adam(0.1, betas=(0.5, 0.75))
    assert mp.ProximalProblem(max, max, 1.0, adapt=iter(["a.*", "b"])).adapt == ("a.*", "b")
    assert checks.path("out", "a/b") == checks.path("out", Path("a/b")) == Path("a/b")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "'x'"),
        (torch.ones(2, 3), "a Tensor of shape (2, 3), torch.float32, on cpu"),
        (torch.tensor(0.5, requires_grad=True), "a Tensor: tensor(0.5000, requires_grad=True)"),
        (mp.Adam, "the class Adam"),
        (test_switches_become_those_of_python, "the function test_switches_become_those_of_python"),
        (list(range(100)), "a list: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1..."),
    ],
)
def test_a_message_shows_a_value_in_a_line(value, text):
    assert checks.shown(value) == text


def test_a_message_shows_what_can_not_be_shown():
    assert checks.shown(10**5000) == "an int"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checks.positive("lr", 1e39), r"lr must be a finite number > 0 and <= 3\.4e\+38, got 1e\+39"),
        (
            lambda: checks.nonnegative("lam", -1, "a weight"),
            "lam must be a finite number >= 0, got -1: a weight",
        ),
        (lambda: checks.at_least("condition", 0.5, 1), "condition must be a finite number >= 1, got 0.5"),
        (lambda: checks.count("tokens", 9, least=3, most=5), "tokens must be an integer >= 3 and <= 5, got 9"),
        (lambda: checks.seed("seed", 2**63), r"seed must be an integer >= 0 and < 2\^63, got 9"),
        (lambda: checks.tuple_of("betas", (1, 2, 3), checks.count, 2), r"betas must hold 2 values, got \(1, 2, 3\)"),
        (lambda: checks.positive("lr", np.ma.masked), "lr must be a finite number > 0, got a MaskedConstant: masked"),
    ],
)
def test_messages(call, message):
    with pytest.raises(mp.InputError, match=message):
        call()


def test_solvers_are_told_apart_from_what_makes_one():
    settings = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(
        mp.InputError, match=r"mp\.TorchOptimizer\(functools\.partial\(torch\.optim\.AdamW, lr=\.\.\.\)\)"
    ):
        mp.FOMAML(settings, steps=3)
    with pytest.raises(mp.InputError, match=r"got the class Nesterov; such as mp\.GradientDescent\(lr=0\.1\)"):
        mp.FOMAML(mp.Nesterov, steps=3)


def test_making_a_model_touches_no_generator():
    before = torch.get_rng_state()
    first, second = mlp([3, 4, 1], seed=1), mlp([3, 4, 1], seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0].weight, second[0].weight)
