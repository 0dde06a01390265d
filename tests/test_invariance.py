"""The same problem put another way: every estimator, with drawn settings, gives the same meta-gradient in its units.

Steps of the difference are the default, or given in the problem's units. Inner solves are short: what is compared is
not the solution but what the library computes, and it agrees to rounding.
"""

import shutil
import threading
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

import metaprox as mp
from conftest import SCHEMES, relative_error

drawn = settings(derandomize=True, deadline=None, database=None, max_examples=25, phases=(Phase.generate, Phase.shrink))
few = settings(drawn, max_examples=8)

LAM, TASKS, STEPS = 1.5, 3, 4
SHAPES = {"w": (3, 2), "b": (2,), "v": (2,)}  # P = 10
# Rounding, which Anderson's least squares, Adam's quotients and the division by nu amplify.
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Units:
    """What numbers are multiplied by: parameters, both losses, the query loss once more."""

    parameter: float = 1.0
    loss: float = 1.0
    query: float = 1.0

    @property
    def gradient(self):
        return self.loss / self.parameter

    @property
    def curvature(self):
        return self.loss / self.parameter**2


@dataclass(frozen=True)
class Drawn:
    """A method and its settings, those with units as numbers to be multiplied."""

    method: str
    solver: str = "gd"
    options: dict = field(default_factory=dict)

    def in_units(self, units, **where):
        """The estimator; ``where``: backend, chunk_size, compile."""
        options = dict(self.options)
        if "branch_solver" in options:
            options["branch_solver"] = solver(options["branch_solver"], units)
        if self.method == "FOBMAML":
            step, place = options.pop("step"), options["perturb"] == "loss"
            if step is not None:
                options["nu" if place else "eps"] = step / units.query if place else step * units.parameter
        if "damping" in options:
            options["damping"] *= units.curvature
        if "tol" in options:
            options |= {"tol": options["tol"] * units.gradient, "max_steps": 12}
        else:
            options["steps"] = STEPS
        return getattr(mp, self.method)(solver(self.solver, units), **options, **where)

    def of_gradient(self, units):
        """What the meta-gradient is multiplied by."""
        return units.parameter if self.method == "Reptile" else units.gradient * units.query


def solver(name, units):
    lr = 0.3 / units.curvature
    return {
        "gd": lambda: mp.GradientDescent(lr),
        "nesterov": lambda: mp.Nesterov(lr),
        "heavy": lambda: mp.Nesterov(lr, momentum=0.5),
        "anderson": lambda: mp.Anderson(lr),
        "conjugate": lambda: mp.ConjugateGradient(lr),
        "adaptive": lambda: mp.AdaptiveGradientDescent(),
        "capped": lambda: mp.AdaptiveGradientDescent(0.8 * lr),
        "adam": lambda: mp.Adam(0.1 * units.parameter, eps=0.1 * units.gradient),
    }[name]()


SOLVERS = ("gd", "nesterov", "heavy", "anderson", "conjugate", "adaptive", "capped", "adam")
LINEAR = SOLVERS[:-1]  # commute with scaling
booleans, solvers = st.booleans(), st.sampled_from(SOLVERS)
starts, perturbs = st.sampled_from(["base", "predictor"]), st.sampled_from(["loss", "center"])


@st.composite
def branched(draw):
    """FOBMAML or Tangent."""
    method = draw(st.sampled_from(["FOBMAML", "FOBMAML", "FOBMAML", "Tangent"]))
    options = {name: draw(some) for name, some in (("perturb", perturbs), ("residual_correction", booleans))}
    options["start"] = draw(starts)
    if draw(booleans):
        options["branch_steps"] = draw(st.integers(0 if options["start"] == "predictor" else 1, STEPS + 2))
    if draw(booleans):
        linear = method == "Tangent" and options["residual_correction"]
        some = st.sampled_from([name for name in (LINEAR if linear else SOLVERS) if name != "adaptive"])
        options["branch_solver"] = draw(some)  # which begins with the base's step, that only an equal solver has
    if method == "FOBMAML":
        options |= {"scheme": draw(st.sampled_from(SCHEMES)), "step": draw(st.sampled_from([0.05, 0.02, None]))}
        options["estimate_truncation"] = options["scheme"] in ("forward", "symmetric") and draw(booleans)
    if draw(st.integers(0, 3)) == 0:
        options["tol"] = 0.2
    named = "branch_solver" in options
    linear = method == "Tangent" and options["residual_correction"] and not named
    return Drawn(method, draw(st.sampled_from(LINEAR) if linear else solvers), options)


implicit = st.builds(
    lambda name, steps, damping: Drawn("IMAML", name, {"cg_steps": steps, "damping": damping}),
    solvers,
    st.integers(1, 6),
    st.sampled_from([0.0, 0.3]),
)
unrolled = st.builds(lambda name: Drawn("MAML", name), solvers)
first_order = st.builds(Drawn, st.sampled_from(["FOMAML", "Reptile"]), solvers)
estimators = branched() | implicit | unrolled | first_order
factors = st.floats(-3, 3).map(lambda power: 10.0**power)
units = st.builds(Units, factors, factors, factors | st.just(1.0))
backends = st.sampled_from([{"backend": "loop"}, {"backend": "vmap"}, {"backend": "vmap", "chunk_size": 2}, {}])


def network(params, data):
    inputs, targets = data
    return ((inputs @ params["w"] + params["b"]).tanh() @ params["v"] - targets).square().mean()


def problem(units=Units()):
    def inner(params, data):
        return units.loss * network({name: p / units.parameter for name, p in params.items()}, data)

    def outer(params, data):
        return units.query * inner(params, data), {"largest": params["w"].abs().max() / units.parameter}

    return mp.ProximalProblem(inner, outer, LAM * units.curvature)


def case(seed=0, dtype=torch.float64):
    """(x, tasks)."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    x = {name: normal(*shape) / 2 for name, shape in SHAPES.items()}
    return x, mp.Task((normal(TASKS, 4, 3), normal(TASKS, 4)), (normal(TASKS, 5, 3), normal(TASKS, 5)))


def flat(grad):
    return torch.cat([grad[name].flatten() for name in SHAPES])


def alike(one, other, tolerance=TOLERANCE):
    assert relative_error(flat(other), flat(one)) < tolerance


@drawn
@given(estimators, units, backends)
def test_units_of_parameters_and_losses(settings, units, where):
    assume("tol" not in settings.options or units.query == 1)
    same_in(units, settings, where)


def test_units_of_the_query_loss_with_a_tolerance():
    options = {"perturb": "loss", "scheme": "symmetric", "step": 0.05, "tol": 0.2}
    same_in(Units(query=10.0), Drawn("FOBMAML", "gd", options), {})


def same_in(units, settings, where):
    """The same result, but for units, in these and without any."""
    x, tasks = case()
    plain = settings.in_units(Units(), **where)(problem(), x, tasks)
    scaled = {name: units.parameter * p for name, p in x.items()}
    out = settings.in_units(units, **where)(problem(units), scaled, tasks)
    alike(plain.grad, {name: g / settings.of_gradient(units) for name, g in out.grad.items()})
    alike(
        {name: y.sum(0) for name, y in plain.adapted.items()},
        {name: y.sum(0) / units.parameter for name, y in out.adapted.items()},
    )
    torch.testing.assert_close(out.query_loss / (units.loss * units.query), plain.query_loss, rtol=1e-7, atol=0)
    torch.testing.assert_close(out.metrics, plain.metrics, rtol=1e-7, atol=1e-9)
    assert out.info.counts == plain.info.counts
    per_unit = {
        "base_residual": units.gradient,
        "gradient_ratio": 1.0,
        "linear_residual": 1.0,
        "nu": 1 / units.query,
        "base_step_sizes": 1 / units.curvature,
        "branch_step_sizes": 1 / units.curvature,
        **dict.fromkeys(("relative_error", "branch_error", "base_error", "truncation_error", "rounding_error"), 1.0),
    }
    if settings.method in ("Tangent", "Reptile"):  # no nu; no gradient
        per_unit |= {"nu": 1.0, "gradient_ratio": 1.0}
    for name, factor in per_unit.items():
        one, other = getattr(plain.info, name), getattr(out.info, name) / factor
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7, equal_nan=True)


@few
@given(units, solvers, st.integers(1, 6))
def test_units_where_nothing_is_estimated(units, name, steps):
    """``adapt``, ``evaluate`` and the exact meta-gradient."""
    x, tasks = case()
    scaled = {name: units.parameter * p for name, p in x.items()}
    here, there = problem(), problem(units)
    one = mp.adapt(here, tuple(leaf[0] for leaf in tasks.support), solver(name, Units()), steps, params=x)
    other = mp.adapt(there, tuple(leaf[0] for leaf in tasks.support), solver(name, units), steps, params=scaled)
    alike(one, {key: y / units.parameter for key, y in other.items()})
    batch = lambda ids: mp.Task(*(tuple(leaf[list(ids)] for leaf in part) for part in tasks))  # noqa: E731
    one = mp.evaluate(here, batch, range(TASKS), solver(name, Units()), steps, params=x)
    other = mp.evaluate(there, batch, range(TASKS), solver(name, units), steps, params=scaled)
    torch.testing.assert_close(other.values["loss"] / (units.loss * units.query), one.values["loss"], rtol=1e-7, atol=0)
    one, other = mp.exact_meta_gradient(here, x, tasks), mp.exact_meta_gradient(there, scaled, tasks)
    alike(one.grad, {key: g / (units.gradient * units.query) for key, g in other.grad.items()})


@drawn
@given(estimators, st.permutations(range(TASKS)), st.integers(1, 3), backends)
def test_order_and_repetition_of_tasks(settings, order, times, where):
    x, tasks = case()
    meta = settings.in_units(Units(), **where)
    plain = meta(problem(), x, tasks)
    rows = torch.tensor(list(order) * times)
    out = meta(problem(), x, mp.Task(*(tuple(leaf[rows] for leaf in part) for part in tasks)))
    alike(plain.grad, out.grad)
    torch.testing.assert_close(out.query_loss, plain.query_loss[rows], rtol=1e-9, atol=0)
    torch.testing.assert_close(
        out.info.base_residual, plain.info.base_residual[rows], rtol=1e-7, atol=0, equal_nan=True
    )
    singles = [mp.Task(*(tuple(leaf[i] for leaf in part) for part in tasks)) for i in rows.tolist()]
    alike(plain.grad, meta(problem(), x, singles).grad)


@drawn
@given(estimators, st.integers(1, 2), st.permutations(range(4)), backends)
def test_names_order_and_splits_of_parameters(settings, cut, order, where):
    """w in two tensors, all under other names, in another order."""
    x, tasks = case()
    plain = settings.in_units(Units(), **where)(problem(), x, tasks)

    def split(params):
        parts = {
            "0.z": params["w"][..., :cut, :],
            "0.a": params["w"][..., cut:, :],
            "bias": params["b"],
            "v.v": params["v"],
        }
        return {name: parts[name] for name in [list(parts)[i] for i in order]}

    def join(parts):
        return {"w": torch.cat([parts["0.z"], parts["0.a"]], -2), "b": parts["bias"], "v": parts["v.v"]}

    whole = problem()
    parted = mp.ProximalProblem(
        *(lambda params, data, f=f: f(join(params), data) for f in (whole.inner_loss, whole.outer_loss)), LAM
    )
    out = settings.in_units(Units(), **where)(parted, split(x), tasks)
    alike(plain.grad, join(out.grad))
    alike(*({name: y.sum(0) for name, y in each.items()} for each in (plain.adapted, join(out.adapted))))


@drawn
@given(estimators, st.integers(0, 5))
def test_where_the_origin_of_the_parameters_is(settings, seed):
    """y + a in place of y; and a constant in the losses, which no gradient sees."""
    assume(settings.options.get("step", 0.0) is not None)  # the default's floor is what rounding makes of ||y_0||
    assume(settings.solver != "adaptive")  # its probe is a hundredth of ||y||
    x, tasks = case()
    a = case(seed + 1)[0]
    here = problem()
    there = mp.ProximalProblem(
        lambda params, data: here.inner_loss({k: p - a[k] for k, p in params.items()}, data) + 3.0,
        lambda params, data: here.outer_loss({k: p - a[k] for k, p in params.items()}, data)[0] - 5.0,
        LAM,
    )
    meta = settings.in_units(Units())
    alike(meta(here, x, tasks).grad, meta(there, {k: p + a[k] for k, p in x.items()}, tasks).grad)


@drawn
@given(estimators, st.sampled_from([1, 2, 5, None, "auto"]))
def test_backends_and_chunks(settings, chunk_size):
    x, tasks = case()
    loop, vmap, auto = (
        settings.in_units(Units(), **where)(problem(), x, tasks)
        for where in ({"backend": "loop"}, {"backend": "vmap", "chunk_size": chunk_size}, {})
    )
    alike(loop.grad, vmap.grad)
    alike(loop.grad, auto.grad)
    if settings.method != "IMAML" and "tol" not in settings.options:  # a chunk goes on until its last task is done
        assert loop.info.counts == vmap.info.counts == auto.info.counts


@drawn
@given(estimators, backends)
def test_precision(settings, where):
    assume(settings.options.get("step", 0.0) is not None)
    assume("anderson" not in (settings.solver, settings.options.get("branch_solver")))  # it amplifies rounding
    x, tasks = case()
    meta = settings.in_units(Units(), **where)
    narrow = meta(problem(), *case(dtype=torch.float32)).grad
    assert all(g.dtype == torch.float32 for g in narrow.values())
    alike(meta(problem(), x, tasks).grad, {name: g.double() for name, g in narrow.items()}, 5e-3)


@few
@given(estimators, estimators, st.sampled_from(["loop", "auto"]))
def test_two_threads_at_once_on_one_model(one, other, backend):
    model = Network().double()
    shared = mp.ProximalProblem.from_module(model, lambda m, data: network(dict(m.named_parameters()), data), LAM)
    live = {name: p.detach().clone() for name, p in model.named_parameters()}
    jobs = [(each.in_units(Units(), backend=backend), case(seed)[1]) for seed, each in enumerate((one, other))]
    alone = [meta(shared, live, tasks).grad for meta, tasks in jobs]
    start, found = threading.Barrier(2), {}

    def work(i):
        start.wait()
        found[i] = jobs[i][0](shared, live, jobs[i][1]).grad

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        torch.testing.assert_close(found[i], alone[i], rtol=0, atol=0)
    torch.testing.assert_close(dict(model.named_parameters()), live, rtol=0, atol=0)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, p in case()[0].items():
            setattr(self, name, torch.nn.Parameter(p))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
def test_compiled():
    x, tasks = case()
    meta = Drawn("FOBMAML", "gd", {"perturb": "center", "step": 0.05}).in_units(Units())
    here = problem()
    alike(meta(here, x, tasks).grad, replace(meta, compile=True)(here, x, tasks).grad)
