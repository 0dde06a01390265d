"""Calls of estimators, ``adapt``, ``evaluate`` and ``exact_meta_gradient``: arguments, parameters, tasks."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metaprox as mp
from bad_inputs import values
from bad_inputs.problems import square
from bad_inputs.rows import Float64, Row, refused, shown, taken, within

GD = mp.GradientDescent(0.25)
X = {"w": torch.zeros(3)}
TASKS = mp.Task(torch.arange(6.0).reshape(2, 3), torch.ones(2, 3))
SINGLES = [mp.Task(TASKS.support[i], TASKS.query[i]) for i in range(2)]
PROBLEM = mp.ProximalProblem(square, square, 0.5)
LIVE = nn.Linear(3, 1)
NO_PROBLEMS = [None, square, nn.Linear(3, 1), "problem", X, TASKS, mp.ProximalProblem, 0.5]
NO_PARAMS = [LIVE, list(LIVE.parameters()), LIVE.parameters(), LIVE.named_parameters(), torch.zeros(3), TASKS, "w", 0.5]
NO_TASKS = [None, 5, square, "tasks", torch.ones(2, 3), X, {"support": 1, "query": 2}, (torch.ones(2), torch.ones(2))]


def estimate(**arguments):
    """A pure call."""
    method = arguments.pop("method", mp.FOBMAML(GD, steps=2))
    return method(**{"problem": PROBLEM, "params": X, "tasks": TASKS} | arguments)


def backward(**arguments):
    """Returns what lands in .grad."""
    params = arguments.pop("params", {"w": torch.zeros_like(X["w"], requires_grad=True)})
    mp.FOBMAML(GD, steps=2).backward(**{"problem": PROBLEM, "params": params, "tasks": TASKS} | arguments)
    return {name: value.grad for name, value in params.items()}


def adapt(**arguments):
    defaults = {"problem": PROBLEM, "support": TASKS.support[0], "solver": GD, "steps": 2, "params": X}
    return mp.adapt(**defaults | arguments)


def batch(ids):
    return [SINGLES[i % 2] for i in ids]


def evaluate(**arguments):
    defaults = {"problem": PROBLEM, "tasks": batch, "ids": range(4), "solver": GD, "steps": 2, "params": X}
    return mp.evaluate(**defaults | arguments)


def exact(**arguments):
    defaults = {"problem": PROBLEM, "params": X, "tasks": TASKS, "tol": 1e-4}
    return mp.exact_meta_gradient(**defaults | arguments).per_task


def rows() -> list[Row]:
    found: list[Row] = []
    for call in (estimate, adapt, evaluate, exact, backward):
        found += refused(call, "problem", NO_PROBLEMS)
    for call in (estimate, adapt, evaluate, exact):
        some = [value for value in NO_PARAMS if value is not None]
        found += refused(call, "params", some)
    for call in (estimate, exact, backward):
        found += [
            Row(f"{call.__name__}(tasks={shown(v)})", lambda c=call, v=v: c(tasks=v), r"tasks.* must be a mp\.Task")
            for v in NO_TASKS
        ]
    for call in (adapt, evaluate):
        found += refused(call, "solver", values.NO_SOLVERS)
        found += refused(call, "steps", [value for value in values.NO_COUNTS if value is not None])
        found += taken(call, "steps", values.COUNTS)
    return found + _swapped() + _params() + _adapt() + _evaluate() + _exact() + _modes()


def _swapped() -> list[Row]:
    meta = mp.FOBMAML(GD, steps=2)
    calls = {
        "tasks, params": (lambda: meta(PROBLEM, TASKS, X), r"params.*Task"),
        "params, problem": (lambda: meta(X, PROBLEM, TASKS), r"problem must be a mp\.ProximalProblem, got"),
        "params, tasks, problem": (lambda: meta(X, TASKS, PROBLEM), "problem must be"),
        "backward(tasks, problem)": (lambda: meta.backward(TASKS, PROBLEM), "problem must be.*Task"),
        "backward(problem, params)": (lambda: meta.backward(PROBLEM, X), "pass params="),
        "adapt(solver, support)": (
            lambda: mp.adapt(PROBLEM, GD, TASKS.support[0], 2, params=X),
            "solver must be.*Tensor",
        ),
        "adapt(support, problem)": (lambda: mp.adapt(TASKS.support[0], PROBLEM, GD, 2, params=X), "problem must be"),
        "evaluate(ids, batch)": (
            lambda: mp.evaluate(PROBLEM, range(2), batch, GD, 2, params=X),
            "tasks must be.*range",
        ),
        "evaluate(solver, ids)": (
            lambda: mp.evaluate(PROBLEM, batch, GD, range(2), 2, params=X),
            "solver must be.*range",
        ),
        "exact(tasks, params)": (lambda: mp.exact_meta_gradient(PROBLEM, TASKS, X), "params.*Task"),
        "adapt(model)": (lambda: mp.adapt(LIVE, TASKS.support[0], GD, 2), "problem must be.*from_module"),
    }
    return [Row(f"swapped: {name}", call, pattern) for name, (call, pattern) in calls.items()]


def _params() -> list[Row]:
    made = torch.zeros(3, requires_grad=True)
    sparse = torch.zeros(3, requires_grad=True)
    sparse.grad = torch.zeros(3).to_sparse()
    lazy = nn.LazyLinear(1)
    bad = {
        "empty": ({}, "no parameters to adapt"),
        "integers": ({"w": torch.zeros(3, dtype=torch.int64)}, "'w' has dtype torch.int64"),
        "bool": ({"w": torch.zeros(3, dtype=torch.bool)}, "'w' has dtype torch.bool"),
        "complex": ({"w": torch.zeros(3, dtype=torch.complex64)}, "'w' has dtype torch.complex64"),
        "half": ({"w": torch.zeros(3).half()}, "'w' has dtype torch.float16"),
        "float8": ({"w": torch.zeros(3).to(torch.float8_e4m3fn)}, "'w' has dtype torch.float8"),
        "NaN": ({"w": torch.full((3,), values.NAN)}, "'w' has non-finite values"),
        "infinite": ({"w": torch.full((3,), values.INF)}, "'w' has non-finite values"),
        "a list": ({"w": [0.0, 0.0, 0.0]}, "'w' must be a tensor, got list"),
        "numpy": ({"w": np.zeros(3)}, "'w' must be a tensor, got ndarray"),
        "None": ({"w": None}, "'w' must be a tensor, got NoneType"),
        "meta": ({"w": torch.zeros(3, device="meta")}, "'w'.*meta"),
        "sparse": ({"w": torch.zeros(3).to_sparse()}, "'w'.*sparse"),
        "lazy": ({"w": lazy.weight}, "'w'.*not initialized"),
        "names that are no strings": ({0: torch.zeros(3)}, "names.*0"),
        "two devices": ({"w": torch.zeros(3), "v": torch.zeros(3, device="meta")}, "'v'.*meta"),
        "nested dict": ({"head": {"w": torch.zeros(3)}}, "'head' must be a tensor, got dict"),
    }
    found = [Row(f"params: {name}", lambda p=p: estimate(params=p), pattern) for name, (p, pattern) in bad.items()]
    grads = {
        "not a leaf": ({"w": made * 2}, "'w'.*leaf"),
        "sparse grad": ({"w": sparse}, r"'w'.*\.grad.*sparse"),
    }
    found += [Row(f"backward: {name}", lambda p=p: backward(params=p), pattern) for name, (p, pattern) in grads.items()]
    one = estimate
    good = {
        "requires grad": {"w": made},
        "not a leaf": {"w": made * 2},
        "nn.Parameter": {"w": nn.Parameter(torch.zeros(3))},
        "ParameterDict": nn.ParameterDict({"w": torch.zeros(3)}),
        "expanded": {"w": torch.zeros(1).expand(3)},
        "strided": {"w": torch.zeros(6)[::2]},
    }
    found += [Row(f"params: {name}", lambda p=p: one(params=p), reference=one) for name, p in good.items()]
    return [*found, Row("backward keeps other grads", _backward_all_or_nothing, reference=lambda: True)]


def _backward_all_or_nothing():
    """Where the second .grad can't be added to, the first is as it was."""
    problem = mp.ProximalProblem(lambda p, d: (p["a"] - d).square().sum() + (p["b"] - d).square().sum(), square, 0.5)
    problem = mp.ProximalProblem(problem.inner_loss, problem.inner_loss, 0.5)
    params = {name: torch.zeros(3, requires_grad=True) for name in "ab"}
    params["a"].grad, params["b"].grad = torch.zeros(3), torch.zeros(3).to_sparse()
    try:
        mp.FOBMAML(GD, steps=2).backward(problem, TASKS, params)
    except mp.InputError:
        return bool((params["a"].grad == 0).all())
    return False


def _adapt() -> list[Row]:
    return [
        Row("adapt(support=Task)", lambda: adapt(support=SINGLES[0]), r"support.*Task.*task\.support"),
        Row("adapt(steps, tol)", lambda: adapt(tol=0.1), "steps=K, or tol"),
        Row("adapt(no steps)", lambda: adapt(steps=None), "steps=K, or tol"),
        Row(
            "adapt(NaN support)", lambda: adapt(support=torch.full((3,), values.NAN)), "non-finite values, in .support"
        ),
        *refused(adapt, "tol", [v for v in values.NOT_POSITIVE[:12] if v is not None], steps=None, max_steps=3),
    ]


def _evaluate() -> list[Row]:
    found = refused(evaluate, "batch_size", values.NO_COUNTS) + taken(evaluate, "batch_size", values.COUNTS)
    found += refused(evaluate, "backend", values.NO_CHOICES)
    loader = DataLoader(TensorDataset(torch.ones(4, 3)), batch_size=2)
    found += refused(evaluate, "tasks", [loader, None, "test", torch.ones(2, 3), {0: SINGLES[0]}])
    found += refused(evaluate, "ids", [5, 0.5, None, "0123", b"01", {0: 1}, torch.tensor(3), square])
    no_ids = [[0.5, 1], [True], torch.ones(2, 2).long(), np.array([0.0, 1.0]), [[0]], ["a"], [values.NAN], [None]]
    found += [
        Row(f"evaluate(ids={shown(ids)})", lambda ids=ids: evaluate(ids=ids), r"ids\[0\] must be an integer")
        for ids in [*no_ids, torch.tensor([True, False])]
    ]
    found += [
        Row(f"evaluate(ids={name})", lambda ids=ids: evaluate(ids=ids), "ids is empty")
        for name, ids in {"list": [], "range": range(0), "array": np.array([], int), "generator": iter(())}.items()
    ]
    same = [(np.arange(4), range(4)), (torch.arange(4), range(4)), ((i for i in range(4)), range(4))]
    same += [(list(np.arange(4)), range(4)), (np.arange(4, dtype=np.uint8), range(4)), (tuple(range(4)), range(4))]
    found += taken(evaluate, "ids", same)
    wrong = {
        "fewer": (lambda ids: SINGLES[:1], "1 task.*4 ids"),
        "more": (lambda ids: SINGLES * 4, "8 tasks.*4 ids"),
        "fewer, stacked": (lambda ids: TASKS, "2 tasks.*4 ids"),
        "None": (lambda ids: None, r"must be a mp\.Task"),
        "a tensor": (lambda ids: torch.ones(4, 3), r"must be a mp\.Task"),
        "a dict": (lambda ids: {0: SINGLES[0]}, r"must be a mp\.Task"),
        "no tasks": (lambda ids: [], "the batch of tasks is empty"),
        "pairs": (lambda ids: [(1, 2) for _ in ids], r"mp\.Task\(support, query\), got tuple"),
    }
    found += [Row(f"evaluate: batch returns {n}", lambda b=b: evaluate(tasks=b), p) for n, (b, p) in wrong.items()]
    return found


def _exact() -> list[Row]:
    found = refused(exact, "tol", values.NOT_POSITIVE) + refused(exact, "max_steps", values.NO_COUNTS)
    found += taken(exact, "tol", [(np.float32(0.5), 0.5), (torch.tensor(0.5), 0.5)])
    return found + taken(exact, "max_steps", values.COUNTS)


def _modes() -> list[Row]:
    """Grad modes, default devices and default dtypes of the caller change nothing."""
    contexts = {
        "no_grad": torch.no_grad,
        "enable_grad": torch.enable_grad,
        "inference_mode": torch.inference_mode,
        "default device meta": lambda: torch.device("meta"),
        "default dtype float64": Float64,
    }
    calls = {"estimate": estimate, "adapt": adapt, "evaluate": evaluate, "exact": exact, "backward": backward}
    for method in (mp.MAML, mp.IMAML, mp.Tangent, mp.FOMAML, mp.Reptile):
        calls[method.__name__] = lambda method=method: estimate(method=method(GD, steps=2))
    return [
        Row(f"{name} under {context}", lambda c=call, e=enter: within(e, c), reference=call)
        for context, enter in contexts.items()
        for name, call in calls.items()
    ]
