"""Adapters for every speaker on a frozen encoder: low-rank changes of some layers, from ten words of a speaker.

Ten words are sounds that glide between frequencies; a speaker has a voice: all frequencies are shifted and stretched,
and some bands are loud. A convolutional encoder is trained on 20 speakers, and frozen. Two of its layers get an
adapter, W + B A with A and B of rank 4, whose start is meta-learned on further speakers, so that a speaker's own are
had from one recording of each word. 4 % of the numbers adapt. For speakers never heard the page prints the accuracy
on other recordings of

    the frozen encoder
    adapters that start where they usually do, A at random and B = 0, adapted
    adapters as they were meta-learned, not adapted, and adapted

About a quarter of a minute: python examples/speaker_adapters.py
"""

import argparse

import torch
from torch import Tensor, nn

import metaprox as mp
from metaprox.models import cross_entropy

WORDS, BANDS, FRAMES = 10, 24, 12


def recordings(speaker: int, each: int) -> tuple[Tensor, Tensor]:
    """[10 * each, 24, 12] log energies and the words, of a speaker's number alone."""
    draws = torch.Generator().manual_seed(speaker)
    shift, stretch = 8 * torch.rand(2, generator=draws) - 4
    loud = 0.5 * torch.randn(BANDS, 1, generator=draws)
    words = torch.arange(WORDS).repeat_interleave(each)
    paths = torch.rand(WORDS, 2, 2, generator=torch.Generator().manual_seed(0))[words]  # two glides, from and to
    time = torch.linspace(0, 1, FRAMES) + 0.1 * torch.randn(len(words), 1, generator=draws)
    energy = torch.zeros(len(words), BANDS, FRAMES)
    for glide in range(2):
        start, end = paths[:, glide].unsqueeze(-1).unbind(1)
        centre = BANDS / 2 + (0.6 + stretch / 16) * BANDS * (start + (end - start) * time - 0.5) + shift
        energy += torch.exp(-0.3 * (torch.arange(BANDS)[:, None] - centre[:, None]).square())
    return energy + loud + 0.3 * torch.randn(energy.shape, generator=draws), words


def task(speaker: int) -> mp.Task:
    """One recording of each word to adapt on, and five others."""
    inputs, words = recordings(speaker, 6)
    first = torch.arange(len(words)) % 6 == 0
    return mp.Task((inputs[first], words[first]), (inputs[~first], words[~first]))


class Encoder(nn.Module):
    """[N, 24, 12] to logits [N, 10]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.frames = nn.Sequential(nn.Conv1d(BANDS, width, 3, padding=1), nn.ReLU(), nn.Flatten())
        self.layers = nn.Sequential(nn.Linear(width * FRAMES, 128), nn.ReLU(), nn.Linear(128, WORDS))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(self.frames(inputs))


class Adapter(nn.Module):
    """layer(x) + B A x, with the layer frozen."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) + inputs @ self.a.T @ self.b.T


def main(pretraining: int, meta_steps: int, speakers: int) -> None:
    torch.manual_seed(0)
    encoder, everybody = Encoder(), [recordings(speaker, 6) for speaker in range(20)]
    adam = torch.optim.Adam(encoder.parameters(), lr=0.001)
    for step in range(pretraining):
        adam.zero_grad()
        cross_entropy(encoder, everybody[step % 20])[0].backward()
        adam.step()
    encoder.requires_grad_(False)
    for i in (0, 2):
        encoder.layers[i] = Adapter(encoder.layers[i])
    adapts = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    print(f"{adapts} of {sum(p.numel() for p in encoder.parameters())} parameters adapt")

    problem = mp.ProximalProblem.from_module(encoder, cross_entropy, lam=0.1)
    solver, steps = mp.AdaptiveGradientDescent(lr=0.1), 10
    test = [task(10_000 + speaker) for speaker in range(speakers)]

    def unadapted() -> mp.Statistic:
        with torch.no_grad():
            return mp.Statistic.of(torch.stack([cross_entropy(encoder, one.query)[1]["accuracy"] for one in test]))

    def adapted() -> mp.Statistic:
        return mp.evaluate(problem, test, None, solver, steps).metrics["accuracy"]

    print("frozen encoder                       ", unadapted())
    print("adapters, before meta-training       ", adapted())
    meta = mp.FOBMAML(solver, steps, perturb="center")
    optimizer = torch.optim.Adam((p for p in encoder.parameters() if p.requires_grad), lr=0.003)
    for step in range(meta_steps):
        optimizer.zero_grad()
        meta.backward(problem, [task(speaker) for speaker in range(100 + 4 * step, 104 + 4 * step)])
        optimizer.step()
    print("start of the adapters, not adapted   ", unadapted())
    print("adapters, after meta-training        ", adapted())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and speakers")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    main(*((500, 40, 20) if quick else (1000, 200, 100)))
