"""Gradients of the two losses at tasks x branches, against autograd; what they count, and which noise they see."""

import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import metaprox as mp
from metaprox.call import begun
from metaprox.data.batch import TaskBatch
from metaprox.errors import MetaproxError
from metaprox.losses.backend import Evaluation, Step
from metaprox.losses.choose import Choice
from metaprox.losses.counts import Counts
from metaprox.losses.gradients import BASE_NOISE, BRANCH_NOISE, Gradients
from metaprox.losses.second_order import gradient_through, hessian_vector, mixed_product
from metaprox.losses.vmap import VmapBackend
from metaprox.vectors.terms import LinearTerm

LAM, CHUNK = 0.7, (1, 4)  # three tasks of five, not the first
T, B, P, W = 3, 2, 4, 2


def inner(params, data):
    y, w = params["y"], params["w"]
    return ((y - data) ** 2).sum() * (1 + w.square().sum()) + (y**3).sum() * w[0]


def outer(params, data):
    y, w = params["y"], params["w"]
    return ((y - data) ** 4).sum() * w[1] + y.prod() + w.prod(), {"mean": y.mean()}


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, W0 = numbers(P, seed=1), numbers(W, seed=2)
TASKS = mp.Task(numbers(5, P, seed=3), numbers(5, P, seed=4))


@contextmanager
def started(backend="loop", chunk=CHUNK, losses=(inner, outer), adapt="y"):
    problem = mp.ProximalProblem(*losses, lam=LAM, adapt=adapt)
    params = {"y": X, "w": W0} if adapt else {"y": X}
    with begun(problem, params, TaskBatch.of(TASKS), Choice(backend, None)) as call:
        yield call, call.gradients(chunk)


def by_autograd(loss, y, data):
    """Gradients with respect to y [T, B, P] and w [T, B, W], and the values [T, B], point by point."""
    rows = []
    for t in range(y.shape[0]):
        for b in range(y.shape[1]):
            with torch.enable_grad():
                point, w = y[t, b].clone().requires_grad_(), W0.clone().requires_grad_()
                value = loss({"y": point, "w": w}, data[CHUNK[0] + t])
                value = value[0] if isinstance(value, tuple) else value
                rows.append((*torch.autograd.grad(value, (point, w)), value.detach()))
    return [torch.stack(column).unflatten(0, y.shape[:2]) for column in zip(*rows, strict=True)]


both = pytest.mark.parametrize("backend", ["loop", "vmap"])
same = torch.testing.assert_close


@both
def test_the_gradient_of_the_inner_problem(backend):
    y, coefficient, vector = numbers(T, B, P), numbers(T, B, 1, seed=5), numbers(T, 1, P, seed=6)
    slope, *_ = by_autograd(inner, y, TASKS.support)
    with started(backend) as (_, gradients):
        same(gradients.start_at_x(), X.expand(T, 1, P))
        same(gradients.per_task(0.25), torch.full((T,), 0.25, dtype=torch.float64))
        same(gradients.displacement(y), y - X)
        same(gradients.proximal(y, 0, noise=BASE_NOISE), slope + LAM * (y - X))
        linear = LinearTerm([(coefficient, vector), (2 * coefficient, vector**2)])
        expected = slope + LAM * (y - X) + coefficient * vector + 2 * coefficient * vector**2
        same(gradients.proximal(y, 0, linear=linear), expected)
        assert gradients.counts == Counts(support_gradients=2 * T * B)


@both
def test_the_gradient_of_the_query_loss(backend):
    y, weight, total = numbers(T, B, P), numbers(T, B, 1, seed=5), numbers(T, B, P, seed=6)
    slope, shared, value = by_autograd(outer, y, TASKS.query)
    with started(backend) as (_, gradients):
        found = gradients.query(y, 0)
        same(found.grad, slope)
        same(found.value, value)
        same(found.metrics, {"mean": y.mean(-1)})
        assert gradients.counts == Counts(query_gradients=T * B)
        added = total.clone()
        gradients.add_query(added, weight, y, 0)
        same(added, total + weight * slope)
        assert gradients.counts == Counts(query_gradients=2 * T * B)
        found, of_w = gradients.query_both(y, 0)
        same((found.grad, of_w, found.value), (slope, shared, value))
        same(found.metrics, {"mean": y.mean(-1)})
        assert gradients.counts == Counts(query_gradients=3 * T * B)
        values, metrics = gradients.query_values(y[:, 0], 0)
        same((values, metrics), (value[:, 0], {"mean": y[:, 0].mean(-1)}))
        assert gradients.counts == Counts(query_gradients=3 * T * B)


@both
def test_the_gradient_of_what_does_not_adapt(backend):
    y = numbers(T, B, P)
    _, shared, _ = by_autograd(inner, y, TASKS.support)
    with started(backend) as (_, gradients):
        assert gradients.shares
        same(gradients.support_shared(y, 0), shared)
        assert gradients.counts == Counts(support_gradients=T * B)


@both
def test_what_everything_adapts_has_no_gradient_besides(backend):
    y = numbers(T, B, P)
    losses = (lambda params, data: ((params["y"] - data) ** 2).sum(),) * 2
    with started(backend, losses=losses, adapt=None) as (_, gradients):
        assert not gradients.shares
        assert gradients.support_shared(y, 0).shape == (T, B, 0)
        assert mixed_product(gradients, y[:, :1], y[:, :1], 0).shape == (T, 1, 0)
        assert gradients.counts == Counts()
        found, of_w = gradients.query_both(y, 0)
        same(found.grad, 2 * (y - TASKS.query[1:4, None]))
        assert of_w.shape == (T, B, 0)
        assert gradients.counts == Counts(query_gradients=T * B)


@both
def test_products_with_second_derivatives(backend):
    """Of (y - s)^2 (1 + |w|^2) + w_0 y^3: Hess = diag(2 (1 + |w|^2) + 6 w_0 y), d/dw = 4 w (y - s) + (3 y^2, 0)."""
    y, p = numbers(T, 1, P), numbers(T, 1, P, seed=7)
    with started(backend) as (_, gradients):
        same(hessian_vector(gradients, y, p, 0), (2 * (1 + W0.square().sum()) + 6 * W0[0] * y) * p)
        assert gradients.counts == Counts(hessian_vector_products=T)
        first = (2 * (y - TASKS.support[1:4, None]) * p).sum(-1, keepdim=True) * 2 * W0
        second = torch.cat([(3 * y**2 * p).sum(-1, keepdim=True), torch.zeros(T, 1, 1)], -1)
        same(mixed_product(gradients, y, p, 0), first + second)
        assert gradients.counts == Counts(hessian_vector_products=2 * T)


@both
def test_the_gradient_through_a_solve(backend):
    """Through y = x - 0.1 grad fhat(x), and what the solve says of itself."""

    def solve(x, gradient):
        y = x - 0.1 * gradient(x, 0)
        return y, {"moved": (y - x)[None].detach()}

    x = X.expand(T, 1, P)
    with started(backend) as (_, gradients):
        found = gradient_through(gradients, solve, x)
        assert gradients.counts.query_gradients == T
    for t in range(T):
        with torch.enable_grad():
            point, w = X.clone().requires_grad_(), W0.clone().requires_grad_()
            value = inner({"y": point, "w": w}, TASKS.support[1 + t])
            moved = -0.1 * torch.autograd.grad(value, point, create_graph=True)[0]
            loss, _ = outer({"y": point + moved, "w": w}, TASKS.query[1 + t])
            expected = torch.cat(torch.autograd.grad(loss, (point, w)))
        same(found.grad[t, 0], expected)
        same(found.value[t, 0], loss.detach())
        same(found.metrics["records"]["moved"][t].flatten(), moved.detach())


def backend(compiled, has_graphs=True):
    made = Fused(compile=compiled)
    object.__setattr__(made, "seen", [])
    object.__setattr__(made, "has_graphs", has_graphs)
    return made


def with_backend(call, made, chunk=CHUNK):
    return Gradients(call.problem, call.parameters, made, call.noise, call.batch, chunk, replace(call.look, draws=True))


@pytest.mark.parametrize("adapt", [None, "y"])
def test_noise_is_that_of_the_ids_and_of_the_task_in_the_batch(adapt):
    """The gradient of <y, random numbers> is the random numbers, those of (half, ids, task)."""
    draw = lambda params, data: (params["y"] * torch.rand(P, dtype=torch.float64)).sum()  # noqa: E731
    y = X.expand(T, B, P)
    with started(losses=(draw, draw), adapt=adapt) as (call, gradients):

        def drawn(half, *ids):
            rows = []
            for task in range(*CHUNK):
                with call.noise.of(half, *ids, task):
                    rows.append(torch.rand(P, dtype=torch.float64))
            return torch.stack(rows)[:, None].expand(T, B, P)

        same(gradients.proximal(y, 6, noise=5), drawn(0, 5, 6))
        same(gradients.query(y, 6).grad, drawn(1, BRANCH_NOISE, 6))
        same(gradients.query_both(y, 6)[0].grad, drawn(1, BRANCH_NOISE, 6))
        same(gradients.query_values(y[:, 0], 5)[0], (drawn(1, BRANCH_NOISE, 5)[:, 0] * X).sum(-1))
        total = torch.zeros(T, B, P, dtype=torch.float64)
        gradients.add_query(total, torch.ones(T, B, 1, dtype=torch.float64), y, 6)
        same(total, drawn(1, BRANCH_NOISE, 6))
        alone = with_backend(call, backend(True), (2, 3))
        same(alone.step(mp.GradientDescent(0.1), y[1:2, :1], 6, noise=5).grad, drawn(0, 5, 6)[1:2, :1])


class Fused(VmapBackend):
    """Steps along with their gradients, as compiled graphs do."""

    def evaluate(self, loss, y, data, seed):
        gradient, (value, metrics) = self._eagerly(loss, y, data, seed)
        return Evaluation(gradient, value, metrics)

    def step(self, loss, y, data, seed, term, size):
        self.seen.append(size)
        with seed(0):
            grad = term.gradient(y) + self._eagerly(loss, y, data, seed)[0]
        return Step(y - size * grad, grad, grad.norm(dim=-1)) if self.has_graphs else None


def test_a_step_along_with_its_gradient_is_counted_and_only_for_solvers_whose_steps_are_known():
    y, linear = numbers(T, B, P), LinearTerm([(numbers(T, B, 1, seed=5), numbers(T, 1, P, seed=6))])
    with started("vmap") as (call, plain):
        made = backend(True)
        gradients = with_backend(call, made)
        step = gradients.step(mp.GradientDescent(0.3), y, 0, linear=linear)
        slope = plain.proximal(y, 0, linear=linear)
        same((step.grad, step.y), (slope, y - 0.3 * slope))
        assert gradients.counts == Counts(support_gradients=T * B)
        assert gradients.step(mp.Nesterov(0.3), y, 0) is None
        assert made.seen == [0.3]
        made = backend(True, has_graphs=False)
        gradients = with_backend(call, made)
        assert gradients.step(mp.GradientDescent(0.3), y, 0) is None
        assert made.seen == [0.3]
        assert gradients.counts == Counts()
        made = backend(False)
        gradients = with_backend(call, made)
        assert gradients.step(mp.GradientDescent(0.3), y, 0) is None
        assert made.seen == []


def test_a_gradient_that_comes_with_a_step_is_taken_from_it():
    """The loss is evaluated once, in the graph, and not outside of it as well."""
    calls = []

    def counted(params, data):
        calls.append(1)
        return inner(params, data)

    y, linear = numbers(T, B, P), LinearTerm([(numbers(T, B, 1, seed=5), numbers(T, 1, P, seed=6))])
    with started("vmap", losses=(counted, outer)) as (call, plain):
        expected = plain.proximal(y, 0, linear=linear)
        gradients = with_backend(call, backend(True))
        calls.clear()
        same(gradients.proximal(y, 0, linear=linear), expected)
    assert len(calls) == 1
    assert gradients.counts == Counts(support_gradients=T * B)


@pytest.mark.parametrize(("chunk", "where"), [((1, 2), "task 1"), ((1, 4), "tasks 1 to 3")])
def test_what_the_users_code_raises_says_which_tasks_and_which_half(chunk, where):
    answers = {"inner": True, "outer": True}

    def failing(name):
        def loss(params, data):
            if not answers[name]:
                raise KeyError(name)
            return (params["y"] ** 2).sum()

        return loss

    y = numbers(chunk[1] - chunk[0], B, P)
    calls = (
        ("inner", "support", lambda gradients: gradients.proximal(y, 0)),
        ("outer", "query", lambda gradients: gradients.query(y, 0)),
        ("outer", "query", lambda gradients: gradients.add_query(y.clone(), y[..., :1], y, 0)),
        ("outer", "query", lambda gradients: gradients.query_values(y[:, 0], 0)),
    )
    for name, half, call in calls:
        answers.update(inner=True, outer=True)
        with started(chunk=chunk, losses=(failing("inner"), failing("outer")), adapt=None) as (_, gradients):
            answers[name] = False
            with pytest.raises(KeyError) as caught:
                call(gradients)
        assert f"metaprox: in {where}, {half}" in caught.value.__notes__
    answers.update(inner=True, outer=True)
    with started("vmap", chunk, losses=(failing("inner"), failing("outer")), adapt=None) as (call, _):
        answers["inner"] = False
        with pytest.raises(KeyError) as caught:
            with_backend(call, backend(True), chunk).step(mp.GradientDescent(0.1), y, 0)
    assert f"metaprox: in {where}, support" in caught.value.__notes__


def test_what_they_raise_where_gradients_of_what_does_not_adapt_are_taken_says_so_too():
    fails, y = [], numbers(T, B, P)

    def loss(params, data):
        if fails:
            raise KeyError("loss")
        return (params["y"] ** 2).sum() * params["w"].sum()

    for half, call in (
        ("query", lambda gradients: gradients.query_both(y, 0)),
        ("support", lambda gradients: gradients.support_shared(y, 0)),
    ):
        fails.clear()
        with started(losses=(loss, loss)) as (_, gradients):
            fails.append(True)
            with pytest.raises(KeyError) as caught:
                call(gradients)
        assert f"metaprox: in tasks 1 to 3, {half}" in caught.value.__notes__


def test_nothing_that_a_model_keeps_of_an_evaluation_outlives_it():
    kept = []

    class Keeps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.y = torch.nn.Parameter(X.clone())

        def forward(self, data):
            self.last = self.y - data
            kept.append(weakref.ref(self.last))
            return self.last

    problem = mp.ProximalProblem.from_module(Keeps(), lambda model, data: model(data).square().sum(), lam=LAM)
    with begun(problem, problem.live_parameters(), TaskBatch.of(TASKS), Choice("loop", None)) as call:
        gradients = call.gradients(CHUNK)
        for evaluate in (gradients.proximal, gradients.query):
            kept.clear()
            evaluate(numbers(T, B, P), 0)
            assert [reference() for reference in kept] == [None] * T * B


def test_the_value_of_a_query_loss_needs_no_parameters():
    problem = mp.ProximalProblem(inner, lambda params, data: data.sum(), lam=LAM, adapt="y")
    with begun(problem, {"y": X, "w": W0}, TaskBatch.of(TASKS), Choice("loop", None), query="value") as call:
        values, _ = call.gradients(CHUNK).query_values(numbers(T, P), 0)
    same(values, TASKS.query[1:4].sum(-1))


class Once(torch.autograd.Function):
    """The square, whose derivative can't be differentiated again."""

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


def test_what_can_not_be_differentiated_twice_says_so_wherever_it_is():
    loss = lambda params, data: Once.apply(params["y"]).sum() * params["w"].sum()  # noqa: E731
    y = numbers(T, 1, P)
    calls = (
        lambda gradients: hessian_vector(gradients, y, y, 0),
        lambda gradients: mixed_product(gradients, y, y, 0),
        lambda gradients: gradient_through(gradients, lambda x, gradient: (x - gradient(x, 0), {}), y),
    )
    for call in calls:
        with started(losses=(loss, loss)) as (_, gradients), pytest.raises(RuntimeError) as caught:
            call(gradients)
        assert any("raised while the inner loss was differentiated twice" in note for note in caught.value.__notes__)


def test_second_derivatives_and_those_of_what_does_not_adapt_see_the_noise_of_the_inner_loss():
    """Of <y^2, r> + sum(y) <w, s>, with random r and s: 2 diag(r), sum(y) s, and sum(p) s."""

    def noisy(params, data):
        r = torch.rand(P + W, dtype=torch.float64)
        return (params["y"] ** 2 * r[:P]).sum() + params["y"].sum() * (params["w"] * r[P:]).sum()

    y, p = numbers(T, 1, P), numbers(T, 1, P, seed=7)
    with started(losses=(noisy, noisy)) as (call, gradients):
        rows = []
        for task in range(*CHUNK):
            with call.noise.of(0, BRANCH_NOISE, 6, task):
                rows.append(torch.rand(P + W, dtype=torch.float64))
        r = torch.stack(rows)[:, None]
        same(hessian_vector(gradients, y, p, 6), 2 * r[..., :P] * p)
        same(gradients.support_shared(y, 6), y.sum(-1, keepdim=True) * r[..., P:])
        same(mixed_product(gradients, y, p, 6), p.sum(-1, keepdim=True) * r[..., P:])


def test_noise_through_a_solve_is_that_of_its_steps_and_then_of_the_query():
    draw = lambda params, data: (params["y"] * torch.rand(P, dtype=torch.float64)).sum()  # noqa: E731
    solve = lambda x, gradient: (x - gradient(x, 0) - gradient(x, 1), {})  # noqa: E731
    with started(chunk=(2, 3), losses=(draw, draw), adapt=None) as (call, gradients):
        found, drawn = gradient_through(gradients, solve, X.expand(1, 1, P)), []
        assert gradients.counts == Counts(support_gradients=2, query_gradients=1)
        for ids in ((0, 0, 0, 2), (0, 0, 1, 2), (1, 1, 0, 2)):
            with call.noise.of(*ids):
                drawn.append(torch.rand(P, dtype=torch.float64))
    same(found.grad.flatten(), drawn[2])
    same(found.value.flatten(), ((X - drawn[0] - drawn[1]) * drawn[2]).sum()[None])
    with started("vmap", losses=(draw, draw), adapt=None) as (_, gradients):
        gradient_through(gradients, solve, X.expand(T, 1, P))
        assert gradients.counts == Counts(support_gradients=2 * T, query_gradients=T)


def test_losses_that_write_on_their_parameters_are_evaluated_where_they_have_written():
    """A clamp of y before the loss: gradients are those at the clamped point, and the point stays."""

    def clamped(loss):
        def wrapped(params, data):
            with torch.no_grad():
                params["y"].clamp_(-0.5, 0.5)
            return loss(params, data)

        return wrapped

    y, p = numbers(T, B, P), numbers(T, B, P, seed=7)
    point = y.clamp(-0.5, 0.5)
    _, inner_w, _ = by_autograd(inner, point, TASKS.support)
    outer_y, outer_w, _ = by_autograd(outer, point, TASKS.query)
    kept = y.clone()
    with started(losses=(clamped(inner), clamped(outer))) as (call, gradients):
        assert call.look.writes
        found, of_w = gradients.query_both(y, 0)
        same((found.grad, of_w), (outer_y, outer_w))
        same(gradients.support_shared(y, 0), inner_w)
        one = hessian_vector(gradients, y[:, :1], p[:, :1], 0)
        same(one, (2 * (1 + W0.square().sum()) + 6 * W0[0] * point[:, :1]) * p[:, :1])
        first = (2 * (point[:, :1] - TASKS.support[1:4, None]) * p[:, :1]).sum(-1, keepdim=True) * 2 * W0
        second = torch.cat([(3 * point[:, :1] ** 2 * p[:, :1]).sum(-1, keepdim=True), torch.zeros(T, 1, 1)], -1)
        same(mixed_product(gradients, y[:, :1], p[:, :1], 0), first + second)
    assert torch.equal(y, kept)


def test_what_is_refused_by_name_needs_no_place_of_ours():
    bad = []
    loss = lambda params, data: params["y"] ** 2 if bad else (params["y"] ** 2).sum()  # noqa: E731
    with started(losses=(loss, loss), adapt=None) as (_, gradients):
        bad.append(True)
        with pytest.raises(mp.InputError, match="inner_loss must return a scalar tensor") as caught:
            gradients.proximal(numbers(T, B, P), 0)
    assert not getattr(caught.value, "__notes__", [])


def test_a_loss_that_begins_to_write_on_what_does_not_adapt_is_stopped():
    writes = []

    def loss(params, data):
        if writes:
            params["w"].add_(1.0)
        return (params["y"] ** 2).sum() * params["w"].sum()

    kept = W0.clone()
    with started(losses=(loss, loss)) as (_, gradients):
        writes.append(True)
        with pytest.raises(MetaproxError, match="a loss wrote on parameters that do not adapt"):
            gradients.proximal(numbers(T, B, P), 0)
    assert torch.equal(W0, kept)
