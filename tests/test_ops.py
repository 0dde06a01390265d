"""Every operation of the op zoo, by every backend and at several branches: values and derivatives of plain autograd.

The reference is the model itself in plain torch, made anew and loaded with each point in turn.
"""

import functools
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import metaprox as mp
from metaprox.call import begun
from metaprox.data.batch import TaskBatch
from metaprox.losses.choose import Choice
from metaprox.losses.gradients import BRANCH_NOISE
from metaprox.losses.second_order import hessian_vector
from ops import scalar
from ops.functions import FUNCTIONS
from ops.layers import LAYERS
from ops.losses import LOSSES
from ops.noisy import NOISY
from ops.sequences import SEQUENCES

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what}")
    for what in (
        "There is a performance drop",  # of vmap, where torch goes one by one
        "one task with a support of shapes",  # of sequences, with a target at each place
        "Using padding='same' with even kernel",
        "Sparse CSR tensor support is in beta",
        "`torch.nn.utils.weight_norm` is deprecated",
    )
]

OPS = {**LOSSES, **LAYERS, **SEQUENCES, **FUNCTIONS}
BRANCHES = (1, 2, 4)
TASKS = 2
LAM = 0.5
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """Points y [T, B, P], tasks, and what plain autograd gives there: values [T, B], gradients, Hessians times u."""

    problem: mp.ProximalProblem
    tasks: mp.Task
    y: Tensor
    x: Tensor
    values: Tensor
    gradients: Tensor
    products: Tensor | None


def direction(y):
    """u [P]."""
    return torch.linspace(0, y.shape[-1], y.shape[-1], dtype=y.dtype).cos()


def joined(parts, params):
    """As a vector [P], with zeros where there is none."""
    filled = [torch.zeros_like(p) if part is None else part.to_dense() for part, p in zip(parts, params, strict=True)]
    return torch.cat([part.flatten() for part in filled])


def plainly(op, point, data):
    """Value, gradient and Hessian times u at a point [P]; None where torch has no second derivative."""
    model = op.model()
    params = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for param, part in zip(params, point.split([p.numel() for p in params]), strict=True):
            param.copy_(part.view_as(param))
    value = scalar(model, data)
    slopes = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
    slope = joined(slopes, params)
    if not slope.requires_grad:
        return value.detach(), slope.detach(), torch.zeros_like(point)
    try:
        turned = torch.autograd.grad(slope @ direction(point), params, allow_unused=True)
    except RuntimeError:
        return value.detach(), slope.detach(), None
    product = joined(turned, params)
    return value.detach(), slope.detach(), product


@functools.cache
def case(name):
    op = OPS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = op.model()
        problem = mp.ProximalProblem.from_module(model, scalar, LAM)
        x = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
        y = x + 0.1 * torch.randn(TASKS, max(BRANCHES), len(x), dtype=x.dtype)
        singles = [op.data() for _ in range(TASKS)]
    data = tuple(torch.stack(leaves) for leaves in zip(*singles, strict=True))
    rows = [plainly(op, point, singles[task]) for task in range(TASKS) for point in y[task]]
    values, gradients, products = zip(*rows, strict=True)
    shape = y.shape[:2]
    known = None if products[0] is None else torch.stack(products).view_as(y)
    gradients = torch.stack(gradients).view_as(y)
    assert gradients.isfinite().all()
    assert gradients.norm() > 0
    return Case(problem, mp.Task(data, data), y, x, torch.stack(values).view(shape), gradients, known)


def by_library(case, backend, branches, kind):
    """What the library's ``kind`` gives at the first branches, for all tasks."""
    choice, y = Choice(backend, "auto"), case.y[:, :branches]
    params, batch = case.problem.live_parameters(), TaskBatch.of(case.tasks)
    with begun(case.problem, params, batch, choice, twice=kind == "product") as call:
        found = [kind_of(kind)(call.gradients(span), y[slice(*span)]) for span in call.chunks()]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def first_derivatives(gradients, y):
    """By the ways the library has: gradient and value, gradient with the pull, value alone."""
    query = gradients.query(y, 0)
    pulled = gradients.proximal(y, 0)
    values, _ = gradients.query_values(y[:, 0], 0)
    return query.value, query.grad, pulled, values


def second_derivative(gradients, y):
    return (hessian_vector(gradients, y, direction(y).expand_as(y), 0),)


def kind_of(kind):
    return second_derivative if kind == "product" else first_derivatives


def refuses(op, backend):
    return backend == "vmap" and not op.vmap


def close(found, truth):
    """To rounding, relative to all tasks' and branches' numbers."""
    torch.testing.assert_close(found, truth, rtol=TOLERANCE, atol=TOLERANCE * float(truth.abs().max()))


@pytest.mark.parametrize("backend", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("name", OPS)
def test_values_and_gradients_are_those_of_plain_autograd(name, backend):
    one = case(name)
    refused = 0
    for branches in BRANCHES:
        try:
            values, gradients, pulled, alone = by_library(one, backend, branches, "gradient")
        except (RuntimeError, mp.InputError):
            if not refuses(OPS[name], backend):
                raise
            refused += 1
            continue
        close(values, one.values[:, :branches])
        close(alone, one.values[:, 0])
        close(gradients, one.gradients[:, :branches])
        close(pulled, one.gradients[:, :branches] + LAM * (one.y[:, :branches] - one.x))
    assert (refused > 0) == refuses(OPS[name], backend)


@pytest.mark.parametrize("backend", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("name", OPS)
def test_second_derivatives_are_those_of_plain_autograd_or_refused(name, backend):
    one = case(name)
    try:
        (products,) = by_library(one, backend, 1, "product")
    except (RuntimeError, mp.InputError):
        if backend != "vmap" and OPS[name].twice and one.products is not None:
            raise
        return
    assert one.products is not None, "the library has a second derivative where torch has none"
    close(products, one.products[:, :1])


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # the older weight_norm
    SPLIT = [name for name, op in OPS.items() if len(list(op.model().parameters())) > 1]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("backend", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("name", SPLIT)
def test_where_every_other_parameter_adapts_both_kinds_have_their_gradients(name, backend, odd):
    """The others are the same for all tasks and branches, and no tensor of a batch under vmap."""
    one, model = case(name), OPS[name].model()
    params = {key: p for key, p in model.named_parameters() if p.requires_grad}
    adapt = list(params)[odd::2]
    adapts = torch.cat([torch.full((p.numel(),), key in adapt) for key, p in params.items()])
    y = one.y[:, :2, adapts]
    points = one.x.expand(*y.shape[:2], -1).clone()
    points[..., adapts] = y
    singles = [tuple(leaf[task] for leaf in one.tasks.support) for task in range(TASKS)]
    rows = [plainly(OPS[name], point, singles[task]) for task in range(TASKS) for point in points[task]]
    values, gradients = (torch.stack(parts).unflatten(0, y.shape[:2]) for parts in list(zip(*rows, strict=True))[:2])
    problem = mp.ProximalProblem.from_module(model, scalar, LAM, adapt=adapt)
    try:
        with begun(problem, params, TaskBatch.of(one.tasks), Choice(backend, "auto")) as call:
            found = [both_kinds(call.gradients(span), y[slice(*span)]) for span in call.chunks()]
    except (RuntimeError, mp.InputError):
        if backend != "vmap":
            raise
        return
    scale = float(gradients.abs().max())
    expected = [values, *[gradients[..., part] for part in (adapts, adapts, ~adapts, ~adapts)]]
    for parts, truth in zip(zip(*found, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.cat(parts), truth, rtol=TOLERANCE, atol=TOLERANCE * scale)


def both_kinds(gradients, y):
    query, (both, shared) = gradients.query(y, 0), gradients.query_both(y, 0)
    return query.value, query.grad, both.grad, shared, gradients.support_shared(y, 0)


@pytest.mark.parametrize("backend", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("name", NOISY)
def test_noise_is_that_of_the_task_in_all_branches(name, backend):
    """Two tasks of equal data, at one point; the first one's noise is known, and a task alone has it under vmap too."""
    torch.manual_seed(3)
    op = NOISY[name]
    model, data = op.model(), op.data()
    problem = mp.ProximalProblem.from_module(model, scalar, LAM)
    x = torch.cat([p.detach().flatten() for p in model.parameters()])
    found, alone = [], []
    try:
        for count, results in ((1, alone), (2, found)):
            tasks = TaskBatch.of([mp.Task(data, data)] * count)
            with begun(problem, problem.live_parameters(), tasks, Choice(backend, "auto")) as call:
                for span in call.chunks():
                    gradients = call.gradients(span)
                    y = x.expand(span[1] - span[0], 4, -1)
                    results.append(gradients.query(y, 7).grad)
                    again = gradients.query(y, 7).grad
                    torch.testing.assert_close(again, results[-1], rtol=TOLERANCE, atol=0)
                    with call.noise.of(1, BRANCH_NOISE, 7, span[0]), torch.enable_grad():
                        expected = plainly(op, x, data)[1]
                if count == 1:
                    close(results[0], expected.expand(1, 4, -1))
    except RuntimeError:
        if not refuses(op, backend):
            raise
        return
    assert not refuses(op, backend)
    both = torch.cat(found)
    close(both[:, 1:], both[:, :1].expand(-1, 3, -1))
    assert (both[0, 0] - both[1, 0]).abs().max() > TOLERANCE
