"""The problems that the defaults of FO-B-MAML are chosen on, with their exact meta-gradients.

quadratic, logistic       20 dimensions, float64; curvatures over a factor of 100, and inputs of decaying scale.
sinusoid                  MLP 1-40-40-1, 10 + 10 points, with tanh and with ReLU, the latter also in float64.
MNIST-1D, 5-way 5-shot    MLP 40-24-24-5 and two strided convolutions, with ReLU; the convolutions with batch norm and
                          ReLU; one transformer block (8 tokens of 5 numbers, d = 12, GELU). 25 + 75 examples.

Networks are taken at their initial weights and after 60 meta-steps; the convolutions without norm and the transformer
after them only. float32 where nothing else is said, 4 tasks, K = 10 base steps of gradient descent.

FURTHER: two smooth networks at their initial weights that no constant was chosen on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import grad, jacrev

import metaprox as mp
from metaprox.data.batch import TaskBatch
from metaprox.experiments.problems import LOGISTIC_LAM, logistic_loss, logistic_tasks
from metaprox.losses.second_order import flat_losses
from metaprox.models import cross_entropy, mean_squared_error
from metaprox.tasks import MNIST1D, Quadratic, Sinusoid
from metaprox.tasks.base import in_float64
from metaprox.vectors.parameters import Parameters

STEPS, TASKS, PRETRAINING = 10, 4, 60
REFERENCE_STEPS, REFERENCE_TOL = 5000, 1e-8
Params = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A problem at one point x, its tasks, and the inner step.

    kinks: whether the losses have them (ReLU).
    """

    problem: mp.ProximalProblem
    params: Params
    tasks: mp.Task
    lr: float
    kinks: bool = False

    def double(self) -> "Case":
        """The same in float64."""
        params = {name: value.double() for name, value in self.params.items()}
        return replace(self, params=params, tasks=in_float64(self.tasks))

    def value(self, params: Params) -> float:
        """The mean query loss after K inner steps from ``params``."""
        return float(mp.FOMAML(mp.GradientDescent(self.lr), STEPS)(self.problem, params, self.tasks).query_loss.mean())


@dataclass(frozen=True)
class Network:
    """A network, its tasks and how it adapts."""

    build: Callable[[], nn.Module]
    family: Sinusoid | MNIST1D
    loss: Callable[..., Tensor] | Callable[..., tuple[Tensor, dict[str, Tensor]]]
    lr: float
    kinks: bool


def _mlp(sizes: tuple[int, ...], activation: type[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def _convolutions(norm: bool, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = [nn.Unflatten(-1, (1, 40))]
    for inputs in (1, 8):
        layers += [nn.Conv1d(inputs, 8, 5, stride=2, padding=2)]
        layers += [nn.BatchNorm1d(8, track_running_stats=False)] * norm + [activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(80, 5))


class _Block(nn.Module):
    """One transformer block by hand: attention that has second derivatives."""

    def __init__(self, tokens: int = 8, width: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.tokens, self.heads = tokens, heads
        self.embed = nn.Linear(40 // tokens, width)
        self.place = nn.Parameter(0.1 * torch.randn(tokens, width))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embed(inputs.unflatten(-1, (self.tokens, -1))) + self.place
        q, k, v = self.mix(self.first(x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        attention = torch.softmax(q @ k.mT / k.shape[-1] ** 0.5, -1) @ v
        x = x + self.out(attention.transpose(-3, -2).flatten(-2))
        return self.head((x + self.feed(self.second(x))).mean(-2))


NETWORKS: dict[str, Network] = {
    "sinusoid, tanh": Network(lambda: _mlp((1, 40, 40, 1), nn.Tanh), Sinusoid(), mean_squared_error, 0.02, False),
    "sinusoid, ReLU": Network(lambda: _mlp((1, 40, 40, 1), nn.ReLU), Sinusoid(), mean_squared_error, 0.01, True),
    "MLP, ReLU": Network(lambda: _mlp((40, 24, 24, 5), nn.ReLU), MNIST1D(), cross_entropy, 0.1, True),
    "conv, ReLU": Network(lambda: _convolutions(False), MNIST1D(), cross_entropy, 0.1, True),
    "conv, batch norm, ReLU": Network(lambda: _convolutions(True), MNIST1D(), cross_entropy, 0.1, True),
    "transformer, GELU": Network(_Block, MNIST1D(), cross_entropy, 0.1, False),
}
FURTHER: dict[str, Network] = {
    "MLP, SiLU": Network(lambda: _mlp((40, 24, 24, 5), nn.SiLU), MNIST1D(), cross_entropy, 0.1, False),
    "conv, batch norm, softplus": Network(
        lambda: _convolutions(True, nn.Softplus), MNIST1D(), cross_entropy, 0.1, False
    ),
}
NETWORK_LAM = 0.5
TRAINED_ONLY = ("conv, ReLU", "transformer, GELU")


def problem_of(name: str, seed: int) -> mp.ProximalProblem:
    """On a network with weights that are a function of the seed."""
    network = (NETWORKS | FURTHER)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network.build()
    return mp.ProximalProblem.from_module(model, network.loss, NETWORK_LAM)


@lru_cache(maxsize=1)
def _trained(name: str, seed: int) -> tuple[mp.ProximalProblem, Params]:
    problem, network = problem_of(name, seed), NETWORKS[name]
    live = problem.live_parameters()
    meta = mp.FOBMAML(mp.GradientDescent(network.lr), STEPS, nu=0.1)
    optimizer = mp.optim.NormalizedSGD(live.values(), lr=0.1)
    for step in range(PRETRAINING):
        optimizer.zero_grad()
        meta.backward(problem, replace(network.family, seed=seed).batch(range(8 * step + 1000, 8 * step + 1008)))
        optimizer.step()
    return problem, {key: value.detach().clone() for key, value in live.items()}


def _of_network(name: str, seed: int, trained: bool) -> Case:
    network = (NETWORKS | FURTHER)[name]
    if trained:
        problem, params = _trained(name, seed)
    else:
        problem = problem_of(name, seed)
        params = {key: value.detach() for key, value in problem.live_parameters().items()}
    tasks = replace(network.family, seed=seed).batch(range(TASKS))
    return Case(problem, params, tasks, network.lr, network.kinks)


def _quadratic(seed: int) -> Case:
    family = Quadratic(20, 100.0, seed)
    x = {"y": torch.zeros(20, dtype=torch.float64)}
    return Case(family.problem(0.05), x, family.batch(range(TASKS)), 1.0)


def _logistic(seed: int) -> Case:
    problem = mp.ProximalProblem(logistic_loss, logistic_loss, LOGISTIC_LAM)
    x = {"w": torch.zeros(20, dtype=torch.float64)}
    return Case(problem, x, logistic_tasks(seed, TASKS), 1.1)


CASES: dict[str, Callable[[int], Case]] = {
    "quadratic": _quadratic,
    "logistic": _logistic,
    **{name: partial(_of_network, name, trained=False) for name in NETWORKS if name not in TRAINED_ONLY},
    **{f"{name}, trained": partial(_of_network, name, trained=True) for name in NETWORKS},
    "sinusoid, ReLU, trained, float64": lambda seed: _of_network("sinusoid, ReLU", seed, trained=True).double(),
}
FURTHER_CASES = {name: partial(_of_network, name, trained=False) for name in FURTHER}


@dataclass(frozen=True)
class Exact:
    """grad F, the mean over tasks of lam (H + lam I)^{-1} v at the inner solutions y_i; per_task: each [T, P].

    residual: the mean norm of the gradient that is left at y_i. least: the least eigenvalue of H + lam I of all tasks.
    """

    gradient: Params
    per_task: Tensor
    residual: float
    least: float


def exact(case: Case) -> Exact:
    """By a long solve from x, on the way that K steps take too, and dense Hessians; float64."""
    case = case.double()
    long = mp.FOMAML(mp.AdaptiveGradientDescent(case.lr), tol=REFERENCE_TOL, max_steps=REFERENCE_STEPS)
    points = long(case.problem, case.params, case.tasks).adapted
    assert points is not None
    parameters, batch = Parameters.of(case.params, case.problem.adapted_names), TaskBatch.of(case.tasks)
    inner, outer = flat_losses(case.problem, parameters)
    solved, left, least = [], [], []
    for index in range(TASKS):
        task, y = batch.one(index), parameters.adapted.flatten({name: value[index] for name, value in points.items()})

        def phi(y: Tensor, support: object = task.support) -> Tensor:
            return inner(y, support)[0] + 0.5 * case.problem.lam * (y - parameters.x).square().sum()

        v = grad(lambda y, query=task.query: outer(y, query)[0])(y)
        curvature = jacrev(grad(phi))(y)
        solved.append(torch.linalg.solve(curvature, case.problem.lam * v))
        left.append(float(grad(phi)(y).norm()))
        least.append(float(torch.linalg.eigvalsh(curvature)[0]))
    per_task = torch.stack(solved)
    return Exact(parameters.unflatten(per_task.mean(0)), per_task, sum(left) / TASKS, min(least))
