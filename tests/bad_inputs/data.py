"""Tasks, their data, micro-batches, what losses return, and solvers of one's own that break their word."""

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import metaprox as mp
from bad_inputs import values
from bad_inputs.calls import GD, SINGLES, TASKS, X, adapt, estimate, evaluate
from bad_inputs.rows import Row, refused, taken

PAIRS = TensorDataset(torch.ones(4, 3))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(3))


BATCHES = [torch.ones(2, 3), torch.ones(1, 3)]


def pieces(batches=BATCHES, weights=None):
    """The weights and batches of MicroBatches."""
    return list(mp.MicroBatches(batches, weights))


def rows() -> list[Row]:
    return _micro_batches() + _tasks() + _losses() + _solvers()


def _micro_batches() -> list[Row]:
    found = refused(
        pieces, "batches", [5, None, "ab", torch.ones(4, 3), {"a": 1}, PAIRS, iter([1]), map(int, "12"), b"1", 0.5]
    )
    found += refused(pieces, "weights", [0.5, "ab", {0: 1}, 5, torch.tensor(0.5)])
    found += refused(pieces, "weights", [torch.ones(2, 2)], where="2-d pieces")
    some = [["a", 1], [values.NAN, 1], [-1.0, 1], [None, 1], [values.INF, 1], [True, 1], [1j, 1], [[1], 1]]
    found += [
        Row(f"pieces(weights={v})", lambda v=v: pieces(weights=v), r"weights\[0\] must be a finite") for v in some
    ]
    found += taken(
        pieces,
        "weights",
        [(torch.tensor([0.5, 0.5]), [0.5, 0.5]), (np.array([0.5, 0.5]), [0.5, 0.5]), ((0.5, 0.5), [0.5, 0.5])],
    )
    shares = [2 / 3, 1 / 3]
    found += [Row("pieces: shares", pieces, reference=lambda: pieces(weights=shares))]
    bad = {
        "no batches": ({"batches": []}, "batches is empty"),
        "zero weights": ({"weights": [0, 0]}, "weights must not all be 0"),
        "few weights": ({"weights": [1.0]}, "1 weights, but 2 batches"),
        "many weights": ({"weights": [1.0, 1.0, 1.0]}, "3 weights, but 2 batches"),
        "no tensors": ({"batches": ["a", "b"]}, r"batches\[0\] can't be told.*give weights"),
        "scalars": ({"batches": [torch.tensor(1.0)]}, r"batches\[0\] can't be told.*give weights"),
        "unequal leaves": ({"batches": [(torch.ones(2), torch.ones(3))]}, r"batches\[0\] can't be told.*\[2, 3\]"),
        "empty batch": ({"batches": [torch.ones(0, 3)]}, r"batches\[0\] holds no examples"),
        "stream": ({"batches": DataLoader(Stream(), 2)}, "DataLoader can't be told.*give weights"),
        "no batch size": ({"batches": DataLoader(PAIRS, batch_size=None)}, "DataLoader can't be told.*give weights"),
        "all dropped": ({"batches": DataLoader(PAIRS, 9, drop_last=True)}, "batches is empty"),
    }
    found += [Row(f"pieces: {name}", lambda s=s: pieces(**s), pattern) for name, (s, pattern) in bad.items()]
    stacked = mp.Task(mp.MicroBatches([torch.ones(2, 3)]), torch.ones(2, 3))
    return [
        *found,
        Row("MicroBatches in a batch", lambda: estimate(tasks=stacked), "support must be a tensor.*MicroBatches"),
        Row(
            "MicroBatches under vmap",
            lambda: estimate(tasks=[stacked], method=mp.FOMAML(GD, 1, backend="vmap")),
            "MicroBatches.*backend='loop'",
        ),
    ]


def _tasks() -> list[Row]:
    one = torch.ones(2, 3)
    bad = {
        "sizes differ": (mp.Task(torch.ones(2, 3), torch.ones(3, 3)), r"leading \(task\) sizes differ"),
        "no tasks": (mp.Task(torch.ones(0, 3), torch.ones(0, 3)), r"leading \(task\) size is 0"),
        "an empty list": ([], "batch of tasks is empty"),
        "no tensors": (mp.Task((), ()), "holds no tensors"),
        "a scalar": (mp.Task(one, torch.tensor(1.0)), "leading task dimension"),
        "strings": (mp.Task(one, "query"), "leading task dimension, got a str"),
        "arrays": (mp.Task(np.ones((2, 3)), np.ones((2, 3))), "leading task dimension, got a.* ndarray"),
        "pairs": ([(one, one)], r"tasks\[0\] must be a mp.Task"),
        "numbers": ([1, 2], r"tasks\[0\] must be a mp.Task"),
        "None": (mp.Task(None, None), "holds no tensors|leading task dimension"),
        "on meta": (mp.Task(one.to("meta"), one.to("meta")), "meta"),
        "support on meta": (mp.Task(one.to("meta"), one), "meta"),
    }
    found = [
        Row(f"tasks: {name}", lambda t=tasks: estimate(tasks=t), pattern) for name, (tasks, pattern) in bad.items()
    ]
    unlike = {
        "shapes": [mp.Task(torch.ones(3), torch.ones(3)), mp.Task(torch.ones(2), torch.ones(3))],
        "trees": [mp.Task(torch.ones(3), torch.ones(3)), mp.Task((torch.ones(3),), torch.ones(3))],
        "dtypes": [mp.Task(torch.ones(3), torch.ones(3)), mp.Task(torch.ones(3).double(), torch.ones(3))],
        "kinds": [mp.Task(torch.ones(3), torch.ones(3)), mp.Task("a", torch.ones(3))],
        "Task of Task": [mp.Task(torch.ones(3), torch.ones(3)), mp.Task(SINGLES[0], torch.ones(3))],
        "no tasks": [torch.ones(3), torch.ones(3)],
    }
    found += [
        Row(f"Task.stack: {name}", lambda t=tasks: mp.Task.stack(t), r"tasks\[[01]\].*")
        for name, tasks in unlike.items()
    ]
    found += [Row("Task.stack([])", lambda: mp.Task.stack([]), "empty list of tasks")]
    found += [Row(f"Task.stack({v})", lambda v=v: mp.Task.stack(v), "tasks") for v in (5, "ab")]
    loop = mp.FOBMAML(GD, steps=2)

    def two_kinds(params, data):
        return sum((params["w"] - leaf).square().sum() for leaf in (data if isinstance(data, tuple) else (data,)))

    trees = [mp.Task(torch.ones(3), torch.ones(3)), mp.Task((torch.ones(3),), torch.ones(3))]
    problem = mp.ProximalProblem(two_kinds, two_kinds, 0.5)
    return [
        *found,
        Row(
            "auto on unlike trees",
            lambda: loop(problem, X, trees).grad,
            reference=lambda: mp.FOBMAML(GD, steps=2, backend="loop")(problem, X, trees).grad,
        ),
        Row(
            "tasks: a generator",
            lambda: estimate(tasks=(t for t in SINGLES)),
            reference=lambda: estimate(tasks=SINGLES),
        ),
        Row("tasks: a tuple", lambda: estimate(tasks=tuple(SINGLES)), reference=lambda: estimate(tasks=SINGLES)),
        Row(
            "tasks: data that require grad",
            lambda: estimate(tasks=mp.Task(*(part.clone().requires_grad_() for part in TASKS))),
            reference=estimate,
        ),
    ]


def with_loss(loss, call=adapt, **arguments):
    problem = mp.ProximalProblem(loss, loss, 0.5)
    return call(problem=problem, **arguments)


def _losses() -> list[Row]:
    def square(params, data):
        return (params["w"] - data).square().sum()

    returns = {
        "a vector": (lambda p, d: (p["w"] - d).square(), r"inner_loss.*shape \(3,\)"),
        "a float": (lambda p, d: 1.0, "inner_loss.*float"),
        "None": (lambda p, d: None, "inner_loss.*NoneType"),
        "a string": (lambda p, d: "1.0", "inner_loss.*str"),
        "a dict": (lambda p, d: {"loss": square(p, d)}, "inner_loss.*dict"),
        "an integer tensor": (lambda p, d: square(p, d).long(), "inner_loss"),
        "a complex tensor": (lambda p, d: square(p, d) * 1j, "inner_loss.*complex"),
        "no function of w": (lambda p, d: d.sum(), "inner_loss.*does not depend"),
        "detached": (lambda p, d: square(p, d).detach(), "inner_loss.*does not depend"),
    }
    found = [
        Row(f"loss returns {name}", lambda loss=loss: with_loss(loss), pattern)
        for name, (loss, pattern) in returns.items()
    ]
    metrics = {
        "a metric called loss": (lambda p, d: (square(p, d), {"loss": torch.tensor(0.0)}), "metric.*'loss'"),
        "a string metric": (lambda p, d: (square(p, d), {"a": "b"}), "metric.*'a'"),
        "NaN query loss": (lambda p, d: square(p, d) * values.NAN, "query|outer_loss"),
    }
    found += [
        Row(f"evaluate: {name}", lambda f=loss: evaluate(problem=mp.ProximalProblem(square, f, 0.5)), pattern)
        for name, (loss, pattern) in metrics.items()
    ]
    wide = mp.GradientDescent(1e38)
    return [
        *found,
        Row("adapt: the last step overflows", lambda: adapt(solver=wide, steps=1), "non-finite|finite"),
        Row("Statistic.of([])", lambda: mp.Statistic.of(torch.ones(0)), "values"),
        Row("Statistic.of(list)", lambda: mp.Statistic.of([1.0, 2.0]), "values.*list"),
    ]


class Solver:
    """Gradient descent, of which ``step`` is another function."""

    def __init__(self, step):
        self._step = step

    def init(self, y):
        return None

    def step(self, grad, y, state):
        return self._step(grad, y, state)


def _solvers() -> list[Row]:
    steps = {
        "returns the point alone": (lambda g, y, s: y - 0.25 * g, "step.*must return"),
        "returns None": (lambda g, y, s: None, "step.*must return.*NoneType|None"),
        "another shape": (lambda g, y, s: ((y - 0.25 * g)[..., :1], s), r"step.*shape \(1, 1, 1\)"),
        "another dtype": (lambda g, y, s: ((y - 0.25 * g).double(), s), "step.*float64"),
        "no tensor": (lambda g, y, s: ([0.0], s), "step.*must return"),
    }
    found = [
        Row(f"solver: {name}", lambda f=f: adapt(solver=Solver(f)), pattern) for name, (f, pattern) in steps.items()
    ]

    def in_place(grad, y, state):
        return y.sub_(grad, alpha=0.25), state

    found.append(Row("solver: writes on the point", lambda: adapt(solver=Solver(in_place)), "step.*written"))
    plain = Solver(lambda g, y, s: (y - 0.25 * g, s))
    found.append(Row("solver: one's own", lambda: adapt(solver=plain), reference=adapt))
    return found
