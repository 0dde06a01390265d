"""Parameters that each task has of its own, made of x and its support: closed forms, and a head for any classes."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import metaprox as mp
from metaprox.data.batch import TaskBatch
from metaprox.losses.made import Made
from metaprox.losses.noise import coupled_noise
from metaprox.models import cross_entropy, mlp
from metaprox.modules.head import nearest_mean

LAM, T, N, M = 0.7, 3, 4, 3  # N numbers in x, M a task's own


def quadratic(params, data):
    z = torch.cat([params["x"], params["own"]])
    matrix, target = data[:2]
    return 0.5 * (matrix @ z - target).square().sum()


def linear_start(params, support):
    return {"own": support[2] @ params["x"] + support[3]}


def quadratic_tasks(seed=0):
    source = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(T, *shape, generator=source, dtype=torch.float64) / 4  # noqa: E731
    matrix = torch.eye(N + M, dtype=torch.float64) + draw(N + M, N + M)
    return mp.Task((matrix, draw(N + M), draw(M, N), draw(M)), (draw(N + M, N + M), draw(N + M)))


def closed_form(x, tasks, adapts=True):
    """Mean over tasks of g_x + B^T g_h, g = lam (H + lam)^-1 v; with x only shared, direct - mixed + B^T g_h."""
    total = torch.zeros_like(x)
    for A, a, B, b, C, c in zip(*tasks.support, *tasks.query, strict=True):
        H, r, h0 = A.T @ A, A.T @ a, B @ x + b
        if adapts:
            K = H + LAM * torch.eye(N + M, dtype=x.dtype)
            z = torch.linalg.solve(K, r + LAM * torch.cat([x, h0]))
            g = LAM * torch.linalg.solve(K, C.T @ (C @ z - c))
            total += g[:N] + B.T @ g[N:]
        else:
            K = H[N:, N:] + LAM * torch.eye(M, dtype=x.dtype)
            h = torch.linalg.solve(K, r[N:] + LAM * h0 - H[N:, :N] @ x)
            v = C.T @ (C @ torch.cat([x, h]) - c)
            u = torch.linalg.solve(K, v[N:])
            total += v[:N] - H[:N, N:] @ u + LAM * B.T @ u
    return total / T


EXACT = {
    "fobmaml": lambda **b: mp.FOBMAML(mp.Nesterov(lr=0.2), tol=1e-11, max_steps=300, **b),
    "center": lambda **b: mp.FOBMAML(mp.GradientDescent(lr=0.2), 120, perturb="center", eps=0.1, **b),
    "imaml": lambda **b: mp.IMAML(mp.GradientDescent(lr=0.2), 120, cg_steps=20, **b),
    "maml": lambda **b: mp.MAML(mp.GradientDescent(lr=0.2), 120, **b),
    "tangent": lambda **b: mp.Tangent(mp.GradientDescent(lr=0.2), 120, **b),
}


@pytest.mark.parametrize("adapts", [True, False], ids=["all adapts", "own alone adapts"])
@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("name", EXACT)
def test_the_meta_gradient_is_the_closed_form(name, backend, adapts):
    problem = mp.ProximalProblem(quadratic, quadratic, LAM, None if adapts else [], per_task=linear_start)
    tasks, x = quadratic_tasks(), torch.linspace(-1, 1, N, dtype=torch.float64)
    out = EXACT[name](backend=backend)(problem, {"x": x}, tasks)
    expected = closed_form(x, tasks, adapts)
    assert list(out.grad) == ["x"]
    assert (out.grad["x"] - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("adapts", [True, False])
def test_the_dense_reference_agrees_with_the_closed_form(adapts):
    problem = mp.ProximalProblem(quadratic, quadratic, LAM, None if adapts else [], per_task=linear_start)
    tasks, x = quadratic_tasks(1), torch.linspace(-1, 1, N, dtype=torch.float64)
    found = mp.exact_meta_gradient(problem, {"x": x}, tasks)
    assert torch.allclose(found.grad["x"], closed_form(x, tasks, adapts), rtol=1e-10, atol=0)
    assert found.per_task.shape == (T, N)


def test_reptile_follows_the_gradient_of_the_smoothed_support_loss():
    problem = mp.ProximalProblem(quadratic, quadratic, LAM, per_task=linear_start)
    tasks, x = quadratic_tasks(), torch.linspace(-1, 1, N, dtype=torch.float64).requires_grad_()
    out = mp.Reptile(mp.GradientDescent(lr=0.2), 120)(problem, {"x": x.detach()}, tasks)
    total = 0.0
    for A, a, B, b in zip(*tasks.support, strict=True):
        centre = torch.cat([x, B @ x + b])
        z = torch.linalg.solve(A.T @ A + LAM * torch.eye(N + M, dtype=x.dtype), A.T @ a + LAM * centre)
        total = total + (0.5 * (A @ z - a).square().sum() + LAM / 2 * (z - centre).square().sum()) / T
    (expected,) = torch.autograd.grad(total, x)
    assert torch.allclose(LAM * out.grad["x"], expected, rtol=1e-8)


def smooth(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes)).double()


def blobs(*classes, seed=0, shots=3):
    """A single task for each number of classes."""
    source, found = torch.Generator().manual_seed(seed), []
    for count in classes:
        centres = torch.randn(count, 1, 4, generator=source, dtype=torch.float64)
        x = centres + 0.5 * torch.randn(count, 2 * shots, 4, generator=source, dtype=torch.float64)
        labels = torch.arange(count).repeat_interleave(shots)
        halves = [half.reshape(-1, 4) for half in x.split(shots, 1)]
        found.append(mp.Task((halves[0], labels), (halves[1], labels)))
    return found


def problem_of(model, start, adapt=None):
    return mp.ProximalProblem.from_module(model, cross_entropy, lam=2.0, adapt=adapt, head=mp.Head("2", start))


@pytest.mark.parametrize("start", ["zeros", "means"])
@pytest.mark.parametrize("adapt", [None, "0.*", []], ids=["all", "body", "head"])
def test_a_head_of_other_sizes_gets_the_slopes_of_the_objective(start, adapt):
    """By differences of F, of which each value is a long solve by an explicit loop in plain torch."""
    model = smooth()
    tasks = blobs(5, 5)
    problem = problem_of(model, start, adapt)
    x = {name: value.detach() for name, value in problem.live_parameters().items()}
    assert list(x) == ["0.weight", "0.bias"]
    features = lambda w, data: torch.tanh(data @ w["0.weight"].T + w["0.bias"])  # noqa: E731
    direction = {name: torch.randn(value.shape, dtype=value.dtype) for name, value in x.items()}

    def by_hand(at):
        total = 0.0
        for (inputs, labels), (queries, query_labels) in tasks:
            if start == "means":
                means = torch.stack([features(at, inputs)[labels == k].mean(0) for k in range(5)])
                h0 = {"weight": 2 * means, "bias": -means.square().sum(1)}
            else:
                h0 = {"weight": torch.zeros(5, 6).double(), "bias": torch.zeros(5).double()}
            centre = {**at, **h0} if adapt != [] else h0
            y = {name: value.clone() for name, value in centre.items()}
            loss = lambda y, data, wanted: nn.functional.cross_entropy(  # noqa: E731
                features({**at, **y}, data) @ y["weight"].T + y["bias"], wanted
            )
            for _ in range(60):
                leaves = {name: value.requires_grad_() for name, value in y.items()}
                grads = torch.autograd.grad(loss(leaves, inputs, labels), list(leaves.values()))
                y = {
                    name: (value - 0.3 * (g + 2.0 * (value - centre[name]))).detach()
                    for (name, value), g in zip(leaves.items(), grads, strict=True)
                }
            total += float(loss(y, queries, query_labels)) / len(tasks)
        return total

    h = 1e-5
    ends = [by_hand({name: x[name] + sign * h * direction[name] for name in x}) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * h)
    for meta in (
        mp.FOBMAML(mp.GradientDescent(0.3), 60, eps=0.01, perturb="center", scheme="central4"),
        mp.MAML(mp.GradientDescent(0.3), 60, backend="vmap"),
    ):
        g = meta(problem, x, tasks).grad
        assert abs(sum(float((g[name] * direction[name]).sum()) for name in x) - slope) < 1e-6 * abs(slope) + 1e-9


def test_check_finds_nothing_wrong_and_sees_a_wrong_gradient_of_the_start(monkeypatch):
    model = smooth()
    problem = problem_of(model, "means")
    settings = mp.FOBMAML(mp.GradientDescent(0.3), 40)
    verdict = mp.check(problem, blobs(3, 4), settings, count=2)
    assert verdict.ok, str(verdict)
    assert verdict["meta-gradient"].verdict == "ok"
    monkeypatch.setattr("metaprox.losses.made.Made._product", lambda self, task, right: {})
    assert mp.check(problem, blobs(3, 4), settings, count=2)["meta-gradient"].verdict == "wrong"


@pytest.mark.parametrize("start", ["zeros", "means"])
def test_tasks_of_unequal_numbers_of_classes_are_those_tasks_one_by_one(start):
    problem, tasks = problem_of(smooth(), start), blobs(2, 5, 3)
    meta = mp.FOBMAML(mp.GradientDescent(0.3), 10)
    x = problem.live_parameters()
    out, alone = meta(problem, x, tasks), [meta(problem, x, [task]) for task in tasks]
    for name in x:
        assert torch.allclose(out.grad[name], sum(one.grad[name] for one in alone) / 3, rtol=1e-7, atol=1e-10)
    assert out.adapted is None
    assert alone[1].adapted["2.weight"].shape == (1, 5, 6)
    values = mp.evaluate(problem, tasks, None, mp.GradientDescent(0.3), 10).values["loss"]
    assert torch.allclose(values, out.query_loss, rtol=1e-12)
    with pytest.raises(mp.InputError, match=r"task 1 .*\(5, 6\).*backend='loop'"):
        mp.FOBMAML(mp.GradientDescent(0.3), 10, backend="vmap")(problem, x, tasks[:2])


def test_equal_shapes_of_data_with_unequal_classes_go_through_the_loop():
    data = torch.randn(2, 6, 4, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 1]])
    problem, tasks = problem_of(smooth(), "means"), mp.Task((data, labels), (data, labels))
    out = mp.FOBMAML(mp.GradientDescent(0.3), 5)(problem, problem.live_parameters(), tasks)
    loop = mp.FOBMAML(mp.GradientDescent(0.3), 5, backend="loop")(problem, problem.live_parameters(), tasks)
    assert all(torch.equal(out.grad[name], loop.grad[name]) for name in out.grad)


@pytest.mark.parametrize("solver", [mp.GradientDescent(0.3), mp.AdaptiveGradientDescent(0.3)])
@pytest.mark.parametrize("start", ["zeros", "means"])
def test_vmap_gives_what_the_loop_gives(start, solver):
    problem, tasks = problem_of(smooth(), start), mp.Task.stack(blobs(4, 4, 4))
    outs = [
        mp.FOBMAML(solver, 8, backend=name, chunk_size=2)(problem, problem.live_parameters(), tasks)
        for name in ("loop", "vmap")
    ]
    for name in outs[0].grad:
        assert torch.allclose(outs[0].grad[name], outs[1].grad[name], rtol=1e-8, atol=1e-12)
    for name in outs[0].adapted:
        assert torch.allclose(outs[0].adapted[name], outs[1].adapted[name], rtol=1e-10, atol=1e-12)
    assert outs[0].info.counts == outs[1].info.counts


@pytest.mark.parametrize("start", ["zeros", "means"])
def test_a_product_counts_as_a_support_gradient(start):
    problem, x = problem_of(smooth(), start), problem_of(smooth(), start).live_parameters()
    out = mp.FOMAML(mp.GradientDescent(0.3), 5)(problem, x, mp.Task.stack(blobs(4, 4, 4)))
    assert out.info.counts == mp.Counts(3 * 5 + 3 * (start == "means"), 3, 0)


def test_backward_fills_the_body_and_leaves_the_models_own_head_alone():
    model = smooth()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mp.FOBMAML(mp.GradientDescent(0.3), 5).backward(problem_of(model, "means"), mp.Task.stack(blobs(5, 5)))
    assert model[2].weight.grad is model[2].bias.grad is None
    assert model[0].weight.grad.abs().max() > 0
    assert model[2].weight.shape == (3, 6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_adapt_starts_at_the_nearest_mean():
    model, (task,) = smooth(), blobs(4)
    problem = mp.ProximalProblem.from_module(model, cross_entropy, lam=1e3, head=mp.Head("2", "means"))
    y = mp.adapt(problem, task.support, mp.GradientDescent(1e-9), 1)
    features = model[:2](task.support[0])
    means = torch.stack([features[task.support[1] == k].mean(0) for k in range(4)])
    logits = features @ y["2.weight"].T + y["2.bias"] - features.square().sum(1, keepdim=True)
    assert torch.allclose(logits, -torch.cdist(features, means).square(), atol=1e-6)


def test_dropout_draws_the_same_features_for_the_start_and_for_its_derivative():
    """With the noise of a task fixed, h(x) + its product is a directional derivative of h at that noise."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    problem = mp.ProximalProblem.from_module(model, cross_entropy, lam=2.0, adapt=[], head=mp.Head("2", "means"))
    x = {name: value.detach() for name, value in problem.live_parameters().items()}
    with torch.no_grad(), coupled_noise(torch.device("cpu")) as noise:
        made = Made.of(problem.private(), x, TaskBatch.of(blobs(3)), noise)
        again = made.at(x)
        assert all(torch.equal(value, again.starts[0][name]) for name, value in made.starts[0].items())
        h, d = 1e-6, {name: torch.randn_like(value) for name, value in x.items()}
        ends = [made.at({name: x[name] + sign * h * d[name] for name in x}).starts[0] for sign in (1, -1)]
        right = {name: torch.randn_like(value) for name, value in made.starts[0].items()}
        slope = sum(float(((ends[0][name] - ends[1][name]) * right[name]).sum()) for name in right) / (2 * h)
        product = made._product(0, right)
    assert abs(sum(float((product[name] * d[name]).sum()) for name in product) - slope) < 1e-7 * abs(slope)


def test_buffers_stay_and_batch_norm_is_seen_as_the_loss_sees_it():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (task,) = blobs(4)
    problem = problem_of(model, "means")
    y = mp.adapt(problem, task.support, mp.GradientDescent(1e-9), 1)
    features = nn.functional.batch_norm(model[0](task.support[0]), None, None, training=True)
    expected, _ = nearest_mean(features, task.support[1])
    assert torch.allclose(y["2.weight"], expected, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x)) + self.head(self.body(-x))


def good_task():
    return torch.randn(6, 4), torch.arange(3).repeat(2)


def call(model, head, support=None):
    problem = mp.ProximalProblem.from_module(model, cross_entropy, 1.0, head=head)
    mp.adapt(problem, good_task() if support is None else support, mp.GradientDescent(0.1), 2)


REFUSED = {
    "no such layer": (lambda: call(mlp([4, 5, 3]), mp.Head("fc")), r"'fc'.*no such layer.*\['0', '2'\]"),
    "another layer": (lambda: call(mlp([4, 5, 3]), mp.Head("1")), r"'1' must be a torch.nn.Linear"),
    "tied": (lambda: call(Tied(), mp.Head("two")), "'two' is tied"),
    "no bias": (lambda: call(nn.Sequential(nn.Linear(4, 3, bias=False)), mp.Head("0", "means")), "no bias"),
    "start": (lambda: mp.Head("0", "mean"), "unknown start 'mean'; known: zeros, means"),
    "no head": (
        lambda: mp.ProximalProblem.from_module(mlp([4, 3]), cross_entropy, 1.0, head="0"),
        "head must be a Head",
    ),
    "used twice": (lambda: call(Twice(), mp.Head("head", "means")), "once in an evaluation"),
    "a class is missing": (
        lambda: call(mlp([4, 5, 3]), mp.Head("2"), (torch.randn(4, 4), torch.tensor([0, 1, 1, 3]))),
        "labels up to 3, and no example of 2",
    ),
    "a huge label": (
        lambda: call(mlp([4, 5, 3]), mp.Head("2"), (torch.randn(2, 4), torch.tensor([0, 2**62]))),
        f"labels up to {2**62}, and no example of 1",
    ),
    "a negative label": (
        lambda: call(mlp([4, 5, 3]), mp.Head("2"), (torch.randn(2, 4), torch.tensor([0, -1]))),
        "0 to C - 1, got -1",
    ),
    "no labels": (lambda: call(mlp([4, 5, 3]), mp.Head("2"), torch.randn(4, 4)), r"\(inputs, labels\)"),
    "float labels": (lambda: call(mlp([4, 5, 3]), mp.Head("2"), (torch.randn(4, 4), torch.rand(4))), "integer labels"),
    "the head among params": (
        lambda: mp.adapt(
            problem_of(smooth(), "zeros"),
            blobs(3)[0].support,
            mp.GradientDescent(0.1),
            1,
            params=dict(smooth().named_parameters()),
        ),
        "'2.weight' is made for each task.*leave it out",
    ),
    "pieces": (
        lambda: call(mlp([4, 5, 3]), mp.Head("2"), mp.MicroBatches([good_task()])),
        "not of MicroBatches",
    ),
    "a function that gives no tensors": (
        lambda: mp.adapt(
            mp.ProximalProblem(quadratic, quadratic, 1.0, per_task=lambda x, support: 3),
            blobs(3)[0].support,
            mp.GradientDescent(0.1),
            1,
            params={"x": torch.zeros(4)},
        ),
        "per_task must return a dict of tensors",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_is_refused_by_name(name):
    what, message = REFUSED[name]
    with pytest.raises(mp.InputError, match=message):
        what()


def test_a_start_that_is_not_finite_names_the_task():
    problem = mp.ProximalProblem(quadratic, quadratic, 1.0, per_task=lambda x, s: {"own": x["x"][:3] / s[3].sum()})
    tasks = quadratic_tasks()
    tasks.support[3][1] = 0.0
    with pytest.raises(mp.NonFiniteError, match="task 1: its own parameter 'own'"):
        mp.FOMAML(mp.GradientDescent(0.1), 1)(problem, {"x": torch.ones(N, dtype=torch.float64)}, tasks)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
def test_a_compiled_solve_takes_one_x_and_the_rest_as_a_linear_term(as_traced):
    counters.clear()
    problem, tasks = problem_of(smooth(), "means"), mp.Task.stack(blobs(4, 4, 4))
    out, loop = (
        mp.FOBMAML(mp.GradientDescent(0.3), 8, nu=0.05, **how)(problem, problem.live_parameters(), tasks)
        for how in ({"backend": "vmap", "compile": True}, {"backend": "loop"})
    )
    assert counters["stats"]["unique_graphs"] == 3  # of the base, the query, and the branches
    for name in out.grad:
        assert torch.allclose(out.grad[name], loop.grad[name], rtol=1e-8, atol=1e-12)
