"""The inner solvers: their settings, and optimizers of torch."""

import functools

import torch
from torch import nn

import metaprox as mp
from bad_inputs import values
from bad_inputs.rows import Row, refused, taken

Y = torch.ones(1, 1, 3)
SGD = functools.partial(torch.optim.SGD, lr=0.5)


class NoClosure(torch.optim.Optimizer):
    """An optimizer whose step takes no closure."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.5})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-0.5)


def once(factory, elementwise=False):
    """One step of a TorchOptimizer."""
    solver = mp.TorchOptimizer(factory, elementwise)
    return solver.step(torch.ones_like(Y), Y, solver.init(Y))[0]


MODEL = nn.Linear(2, 1)
OTHER = [torch.zeros(3)]


def rows() -> list[Row]:
    found = []
    for solver in (
        mp.GradientDescent,
        mp.Nesterov,
        mp.Adam,
        mp.Anderson,
        mp.ConjugateGradient,
        mp.AdaptiveGradientDescent,
    ):
        optional = solver is mp.AdaptiveGradientDescent
        found += refused(solver, "lr", [value for value in values.NOT_POSITIVE if value is not None or not optional])
        found += taken(solver, "lr", values.NUMBERS)
        named = lambda solver=solver: solver(learning_rate=0.1)  # noqa: E731
        found += [Row(f"{solver.__name__}(learning_rate)", named, "learning_rate")]
        found += [] if optional else [Row(f"{solver.__name__}()", solver, "lr")]
    some = [value for value in values.NO_FRACTIONS if value is not None]
    found += refused(mp.Nesterov, "momentum", some, lr=0.5) + taken(mp.Nesterov, "momentum", values.NUMBERS[:4], lr=0.5)
    found += refused(mp.Adam, "eps", values.NOT_POSITIVE, lr=0.5) + taken(mp.Adam, "eps", values.NUMBERS, lr=0.5)
    betas = [
        0.9,
        (0.9,),
        (0.9, 0.99, 0.999),
        (0.9, 1.0),
        (-0.1, 0.5),
        (0.9, "0.99"),
        None,
        "ab",
        (values.NAN, 0.9),
        {},
        5,
    ]
    found += refused(mp.Adam, "betas", betas[:3] + betas[6:8] + betas[9:], lr=0.5)
    found += [
        Row(
            f"Adam(betas={value})", lambda value=value: mp.Adam(0.5, betas=value), r"betas\[[01]\] must lie in \[0, 1\)"
        )
        for value in betas[3:6] + betas[8:9]
    ]
    found += taken(mp.Adam, "betas", [([0.5, 0.75], (0.5, 0.75)), (torch.tensor([0.5, 0.75]), (0.5, 0.75))], lr=0.5)
    found += refused(mp.Anderson, "memory", values.NO_COUNTS, lr=0.5)
    found += taken(mp.Anderson, "memory", values.COUNTS, lr=0.5)
    found += refused(mp.AdaptiveGradientDescent, "probe", values.NOT_POSITIVE, lr=0.5)
    found += refused(mp.TorchOptimizer, "elementwise", values.NO_SWITCHES, factory=SGD)
    return found + _factories()


def _factories() -> list[Row]:
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    found = refused(mp.TorchOptimizer, "factory", ["adam", 0.1, None, optimizer, [SGD]])
    bad = {
        "over other parameters": (lambda params: torch.optim.SGD(MODEL.parameters(), lr=0.1), "factory.*other"),
        "one for all": (lambda params: optimizer, "factory.*other"),
        "over some and others": (lambda params: torch.optim.SGD([*params, *OTHER], lr=0.1), "factory.*other"),
        "returns None": (lambda params: None, "factory must return a torch.optim.Optimizer, got NoneType"),
        "of a wrong name": (functools.partial(torch.optim.SGD, learning_rate=0.1), "factory.*learning_rate"),
        "bad lr": (functools.partial(torch.optim.SGD, lr=-1.0), "factory.*-1.0"),
        "without arguments": (lambda: None, r"factory must be a function of \(params\)"),
        "LBFGS": (torch.optim.LBFGS, "LBFGS needs a closure"),
    }
    found += [Row(f"TorchOptimizer({name})", lambda f=f: once(f), pattern) for name, (f, pattern) in bad.items()]
    half = torch.full_like(Y, 0.5)
    good = {"partial": SGD, "step without closure": NoClosure}
    return found + [Row(f"TorchOptimizer({n})", lambda f=f: once(f), reference=lambda: half) for n, f in good.items()]
