"""A neural field: a coordinate network that takes the shape of a new picture in ten steps.

The network gives the brightness at a place; a picture is its weights. Every picture is a task: half of its pixels,
drawn at random, are the support, the others the query. The start is meta-learned on drawings of two discs and a bar.
For drawings that it has never seen the page prints the peak signal-to-noise ratio (dB) on the pixels not shown, of

    the mean brightness of the pixels shown
    the network as it is made, after ten steps on the new picture, and after 10, 100 and 500 steps of Adam, the better
    of two step sizes, on ten of the pictures
    the network as it was meta-learned, after ten steps

A start does not do everything: a hundred steps of Adam from scratch end higher.

About three quarters of a minute: python examples/neural_field.py
"""

import argparse
import copy
import math

import torch
from torch import Tensor, nn

import metaprox as mp

SIZE = 16
PLACES = torch.cartesian_prod(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE))


class Field(nn.Module):
    """[N, 2] to [N, 1], through sines and cosines of fixed frequencies."""

    def __init__(self, frequencies: int = 32, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("frequencies", 4 * torch.randn(2, frequencies))
        layers = nn.Linear(2 * frequencies, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, places: Tensor) -> Tensor:
        angles = places @ self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], 1))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    places, values = batch
    error = nn.functional.mse_loss(model(places), values)
    return error, {"dB": -10 * error.log10()}


def drawing(number: int, split: str) -> mp.Task:
    """Two discs and a bar on a shaded ground, a function of the number alone."""
    draws = torch.Generator().manual_seed(2 * number + (split == "test"))
    x, y = PLACES.unbind(1)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draws))

    picture = 0.5 + draw(-0.2, 0.2) * x + draw(-0.2, 0.2) * y
    angle = draw(0, math.pi)
    across = x * math.cos(angle) + y * math.sin(angle) - draw(-0.5, 0.5)
    discs = [torch.hypot(x - draw(-0.6, 0.6), y - draw(-0.6, 0.6)) - draw(0.2, 0.45) for _ in range(2)]
    shapes = [across.abs() - draw(0.05, 0.2), *discs]
    for inside in shapes:
        cover = torch.sigmoid(-20 * inside)  # with a soft edge
        picture = (1 - cover) * picture + cover * draw(0, 1)
    order = torch.randperm(SIZE**2, generator=draws)
    shown, hidden = order.chunk(2)
    values = picture.unsqueeze(1)
    return mp.Task((PLACES[shown], values[shown]), (PLACES[hidden], values[hidden]))


def by_adam(model: nn.Module, task: mp.Task, steps: int, lr: float) -> Tensor:
    """The ratio that so many steps from ``model`` reach."""
    model = copy.deepcopy(model)
    adam = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        adam.zero_grad()
        loss(model, task.support)[0].backward()
        adam.step()
    return loss(model, task.query)[1]["dB"].detach()


def main(meta_steps: int, pictures: int) -> None:
    torch.manual_seed(0)
    model, solver, steps, lam = Field(), mp.AdaptiveGradientDescent(lr=0.5), 10, 0.01
    problem = mp.ProximalProblem.from_module(model, loss, lam)
    test = [drawing(i, "test") for i in range(pictures)]

    def judged() -> mp.Statistic:
        return mp.evaluate(problem, test, None, solver, steps).metrics["dB"]

    flat = [-10 * (task.query[1] - task.support[1].mean()).square().mean().log10() for task in test]
    print("mean brightness                ", mp.Statistic.of(torch.stack(flat)))
    print("before meta-training, 10 steps ", judged())
    for more in (10, 100, 500):
        some = [[by_adam(model, task, more, lr) for task in test[:10]] for lr in (0.003, 0.01)]
        best = max((mp.Statistic.of(torch.stack(one)) for one in some), key=lambda found: found.mean)
        print(f"from scratch, Adam, {more:3} steps  ", best)

    meta = mp.FOBMAML(solver, steps, perturb="center")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for step in range(meta_steps):
        optimizer.zero_grad()
        meta.backward(problem, mp.Task.stack([drawing(i, "train") for i in range(4 * step, 4 * step + 4)]))
        optimizer.step()
    print("after meta-training, 10 steps  ", judged())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and pictures")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    main(*((40, 10) if quick else (300, 50)))
