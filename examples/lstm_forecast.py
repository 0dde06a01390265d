"""Forecasting with an LSTM: every machine is a task, and a new one is forecast after a short look at it.

The load of a machine swings with a period, a shape and a noise of its own. From a window of 8 values, less than a
period, the LSTM is to give the next 8. First it is trained on the windows of many machines together, as one would; from
there it is meta-learned, so that it adapts to a machine by ten windows of it. For machines that it has never seen
the page prints the mean squared error of later windows, in units of their variance, of

    the last value, repeated
    one LSTM for all machines, which got as many gradients as meta-learning takes, as it is, and adapted likewise
    the LSTM before meta-training, and after it, adapted

Most is gained by training together and adapting; what meta-learning adds to that is the last line.

About three quarters of a minute: python examples/lstm_forecast.py
"""

import argparse
import copy

import torch
from torch import Tensor, nn

import metaprox as mp

WINDOW, AHEAD = 8, 8


class Forecaster(nn.Module):
    """[N, 8] to [N, 8]: differences from the last value."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, AHEAD)

    def forward(self, windows: Tensor) -> Tensor:
        states, _ = self.lstm(windows.unsqueeze(-1))
        return windows[:, -1:] + self.head(states[:, -1])


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    windows, following = batch
    return nn.functional.mse_loss(model(windows), following)


def machine(number: int, split: str) -> mp.Task:
    """Ten windows to adapt on and 20 later ones, a function of the number alone."""
    draws = torch.Generator().manual_seed(2 * number + (split == "test"))
    period, phase, second, sharp = torch.rand(4, generator=draws)
    time = torch.arange(200.0)
    angle = 2 * torch.pi * (time / (8 + 16 * period) + phase)
    series = torch.tanh((1 + 3 * sharp) * torch.sin(angle)) + second * torch.cos(2 * angle + 6 * phase)
    series = series + 0.1 * torch.randn(200, generator=draws)
    series = (series - series[:64].mean()) / series[:64].std()  # by what the support shows
    starts = [*range(0, 50, 5), *range(64, 184, 6)]
    windows = torch.stack([series[start : start + WINDOW + AHEAD] for start in starts])
    windows, following = windows.split([WINDOW, AHEAD], dim=1)
    return mp.Task((windows[:10], following[:10]), (windows[10:], following[10:]))


def train_together(model: nn.Module, gradients: int) -> None:
    """On the windows of one machine after another."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(gradients):
        support, query = machine(step % 2000, "train")
        optimizer.zero_grad()
        loss(model, tuple(map(torch.cat, zip(support, query, strict=True)))).backward()
        optimizer.step()


def main(pretraining: int, meta_steps: int, machines: int) -> None:
    torch.manual_seed(0)
    model, test = Forecaster(), [machine(i, "test") for i in range(machines)]
    solver, steps, lam = mp.AdaptiveGradientDescent(lr=0.1), 5, 0.1

    def judged(model: nn.Module) -> mp.Evaluation:
        return mp.evaluate(mp.ProximalProblem.from_module(model, loss, lam), test, None, solver, steps)

    def without_adaptation(model: nn.Module) -> mp.Statistic:
        with torch.no_grad():
            return mp.Statistic.of(torch.stack([loss(model, task.query) for task in test]))

    print(
        "the last value                       ", without_adaptation(lambda windows: windows[:, -1:].expand(-1, AHEAD))
    )
    train_together(model, pretraining)
    pooled = copy.deepcopy(model)
    print("before meta-training, adapted        ", judged(model).loss)

    problem = mp.ProximalProblem.from_module(model, loss, lam)
    meta = mp.FOBMAML(solver, steps, perturb="center", backend="loop")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    gradients = 0
    for step in range(meta_steps):
        optimizer.zero_grad()
        out = meta.backward(problem, [machine(i, "train") for i in range(4 * step, 4 * step + 4)])
        optimizer.step()
        gradients += out.info.counts.support_gradients + out.info.counts.query_gradients
    after = judged(model)
    print("after meta-training, adapted         ", after.loss)

    train_together(pooled, gradients)
    print("one LSTM for all machines            ", without_adaptation(pooled))
    together = judged(pooled)
    print("one LSTM for all machines, adapted   ", together.loss)
    print("meta-learned less that, by machine   ", mp.Statistic.of(after.values["loss"] - together.values["loss"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and machines")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    main(*((2000, 40, 20) if quick else (5000, 100, 100)))
