"""Values that are no number, no count, no switch, no solver, and those that are one in another guise."""

import functools
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from torch import nn

import metaprox as mp

NAN, INF = float("nan"), float("inf")
NO_NUMBERS = [
    "0.5",
    None,
    True,
    1j,
    [0.5],
    {"a": 1},
    NAN,
    INF,
    -INF,
    np.float32("nan"),
    np.True_,
    np.ones(2),
    torch.ones(2),
    torch.tensor(NAN),
    torch.tensor(True),
    torch.tensor(0.5, requires_grad=True),
    torch.tensor(0.5, device="meta"),
    10**400,
    Decimal("0.5"),
    abs,
]
NOT_POSITIVE = [*NO_NUMBERS, 0, -0.5, np.float64(0.0), torch.tensor(-1.0)]
NEGATIVE = [*NO_NUMBERS, -0.5, np.float64(-1.0), torch.tensor(-1.0)]
NO_FRACTIONS = [*NO_NUMBERS, 1.0, 2, -0.1, np.float32(1.0)]
NO_COUNTS = [
    0,
    -1,
    1.5,
    2.0,
    "3",
    None,
    True,
    NAN,
    INF,
    [3],
    (3,),
    1j,
    np.float64(2.0),
    np.int64(0),
    np.True_,
    torch.ones(2),
    torch.tensor(1.5),
    torch.tensor(True),
]
NO_SWITCHES = ["yes", "no", "False", "", 1, 0, 2.0, None, [True], np.ones(2, dtype=bool), torch.ones(2).bool()]
NO_CHOICES = ["x", "", None, 1, ["loss"], {"loss": 1}, b"loss", np.array(["loss"]), True, 0.5]

NUMBERS = [(np.float32(0.5), 0.5), (np.float64(0.5), 0.5), (np.float16(0.5), 0.5), (Fraction(1, 2), 0.5)]
NUMBERS += [(torch.tensor(0.5), 0.5), (np.array(0.5), 0.5), (np.int64(1), 1), (torch.tensor(1), 1)]
COUNTS = [(np.int64(3), 3), (np.int32(3), 3), (np.uint8(3), 3), (torch.tensor(3), 3), (np.array(3), 3)]
SWITCHES = [(np.True_, True), (np.False_, False)]

NO_SOLVERS = [
    "sgd",
    0.1,
    None,
    mp.GradientDescent,
    mp.Adam,
    torch.optim.SGD,
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1),
    functools.partial(torch.optim.SGD, lr=0.1),
    [mp.GradientDescent(0.1)],
    {"lr": 0.1},
    nn.Linear(1, 1),
    mp.FOMAML(mp.GradientDescent(0.1), steps=1),
    object(),
]
