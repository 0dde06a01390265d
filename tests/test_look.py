"""What is refused, or remembered, when the losses are first looked at."""

import gc
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import metaprox as mp
from conftest import relative_error
from metaprox.data import stacks
from metaprox.losses.checked import CheckedLoss
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.tasks import BANKING77, MNIST1D, Quadratic, Sinusoid

GD = mp.GradientDescent(0.1)
ESTIMATORS = [mp.FOBMAML, mp.Tangent, mp.IMAML, mp.MAML, mp.FOMAML, mp.Reptile]


def regression(tasks=3, shots=12, dtype=torch.float32):
    part = lambda: (torch.randn(tasks, shots, 3, dtype=dtype), torch.randn(tasks, shots, 1, dtype=dtype))  # noqa: E731
    return mp.Task(part(), part())


@pytest.mark.parametrize("backend", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("method", ESTIMATORS)
def test_a_tensor_that_requires_grad_and_is_no_parameter_is_refused(method, backend):
    weights = torch.zeros(12, requires_grad=True)
    scale = 2 * torch.ones((), requires_grad=True)

    def of_leaf(model, batch):
        return (weights.sigmoid() * (model(batch[0]) - batch[1]).square().squeeze(1)).mean()

    def of_graph(model, batch):
        return scale * mean_squared_error(model, batch)

    for loss, shape in ((of_leaf, r"\(12,\)"), (of_graph, r"\(\)")):
        problem = mp.ProximalProblem.from_module(nn.Linear(3, 1), loss, 0.5, mean_squared_error)
        with pytest.raises(
            mp.InputError, match=rf"inner_loss depends on a tensor of shape {shape}.*Make it a parameter"
        ):
            method(GD, 3, backend=backend).backward(problem, regression())
    problem = mp.ProximalProblem.from_module(nn.Linear(3, 1), mean_squared_error, 0.5, of_graph)
    with pytest.raises(mp.InputError, match="outer_loss depends on a tensor"):
        method(GD, 3, backend=backend).backward(problem, regression())


def test_the_live_model_in_a_closure_is_refused_by_its_parameters_name():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    problem = mp.ProximalProblem.from_module(net, lambda model, batch: mean_squared_error(net, batch), 0.5)
    with pytest.raises(
        mp.InputError, match=r"depends on '\d\.(weight|bias)' of the live model.*Use the model that the loss"
    ):
        mp.adapt(problem, tuple(leaf[0] for leaf in regression().support), GD, 3)


def test_the_form_that_works_gives_the_outer_tensor_its_gradient():
    """Weights of examples: equal to the exact meta-gradient of the same problem on tensors."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net, self.weights = nn.Linear(3, 1), nn.Parameter(torch.zeros(12))
            self.double()

    def inner(model, batch):
        return (model.weights.sigmoid() * (model.net(batch[0]) - batch[1]).square().squeeze(1)).mean()

    both, tasks = Both(), regression(dtype=torch.float64)
    problem = mp.ProximalProblem.from_module(
        both, inner, 0.1, lambda model, batch: mean_squared_error(model.net, batch), adapt="net.*"
    )
    ours = mp.FOBMAML(mp.GradientDescent(0.3), 200, scheme="central4")(problem, problem.live_parameters(), tasks)
    exact = mp.exact_meta_gradient(problem, problem.live_parameters(), tasks)
    assert relative_error(ours.grad["weights"], exact.grad["weights"]) < 1e-6


@pytest.mark.parametrize("backend", ["auto", "loop"])
def test_leaves_that_a_loss_makes_itself_and_data_that_require_grad_are_fine(backend):
    """Inputs to take derivatives with respect to, whether the loss makes them or the data are; equal to a formula."""

    def made(model, batch):
        x = batch[0].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.square().mean() + mean_squared_error(model, batch)

    def given(model, batch):
        x = batch[0].requires_grad_(True)
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.square().mean() + mean_squared_error(model, (x, batch[1]))

    def formula(model, batch):
        h = torch.tanh(model[0](batch[0]))
        slope = (model[2].weight * (1 - h * h)) @ model[0].weight
        return slope.square().mean() + mean_squared_error(model, batch)

    torch.manual_seed(0)
    model, tasks = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double(), regression(dtype=torch.float64)
    results = []
    for loss in (formula, made, given):
        problem = mp.ProximalProblem.from_module(model, loss, 0.5)
        grad = mp.FOBMAML(GD, 5, backend=backend)(problem, problem.live_parameters(), tasks).grad
        values = mp.evaluate(problem, lambda ids: tasks, range(3), GD, 5, backend=backend).values["loss"]
        results.append(torch.cat([*(g.flatten() for g in grad.values()), values]))
    assert relative_error(results[1], results[0]) < 1e-9
    assert relative_error(results[2], results[0]) < 1e-9


CLASSES = torch.arange(25) % 5


@pytest.mark.parametrize("forgotten", [(torch.randn(25, 8), CLASSES), (torch.randn(25, 1), torch.randn(25, 1))])
@pytest.mark.parametrize("method", ESTIMATORS)
def test_one_task_without_a_task_dimension_is_refused(method, forgotten):
    classes = forgotten[1] is CLASSES
    model = nn.Linear(8, 5) if classes else nn.Linear(1, 1)
    problem = mp.ProximalProblem.from_module(model, cross_entropy if classes else mean_squared_error, 0.5)
    with pytest.raises(mp.InputError, match=r"look like one task without a task dimension.*a list of one"):
        method(GD, 3).backward(problem, mp.Task(forgotten, forgotten))
    assert all(p.grad is None for p in model.parameters())
    method(GD, 3).backward(problem, [mp.Task(forgotten, forgotten)])
    with pytest.raises(mp.InputError, match="without a task dimension"):
        mp.evaluate(problem, lambda ids: mp.Task(forgotten, forgotten), range(25), GD, 3)


def test_a_batch_where_one_task_belongs_is_refused_once_a_task_was_seen():
    problem = mp.ProximalProblem.from_module(nn.Linear(8, 5), cross_entropy, 0.5)
    tasks = mp.Task(
        (torch.randn(4, 5, 8), torch.arange(20).view(4, 5) % 5), (torch.randn(4, 5, 8), torch.zeros(4, 5).long())
    )
    mp.FOBMAML(GD, 3).backward(problem, tasks)
    more = r"shapes \(4, 5, 8\), \(4, 5\) has a dimension more than .* given 4 tasks, each .* \(5, 8\), \(5,\), before"
    with pytest.raises(mp.InputError, match=more):
        mp.adapt(problem, tasks.support, GD, 3)
    mp.adapt(problem, tuple(leaf[0] for leaf in tasks.support), GD, 3)
    with pytest.raises(mp.InputError, match="without a task dimension"):
        mp.FOBMAML(GD, 3).backward(problem, mp.Task(*(tuple(leaf[0] for leaf in half) for half in tasks)))


def waves():
    """4 tasks in a stack, by hand."""
    return mp.Task((torch.randn(4, 5, 1), torch.randn(4, 5, 1)), (torch.randn(4, 3, 1), torch.randn(4, 3, 1)))


def first(tasks):
    return pytree.tree_map(lambda leaf: leaf[0], tasks)


@pytest.mark.filterwarnings("ignore:one task with a support of shapes")
def test_two_calls_that_contradict_each_other_are_both_named_whichever_comes_first():
    """A batch by hand, and a model that takes any rank: nothing tells that the first ``adapt`` is wrong."""
    tasks = waves()
    make = partial(mp.ProximalProblem.from_module, mlp([1, 4, 1]), mean_squared_error, 0.5)
    problem = make()
    mp.adapt(problem, tasks.support, GD, 2)
    before = r"given one task with a support of shapes \(4, 5, 1\), \(4, 5, 1\), before.*make the problem anew"
    for _ in range(2):  # not forgotten
        with pytest.raises(mp.InputError, match=r"they would be 4 tasks, each .* \(5, 1\), \(5, 1\), but .*" + before):
            mp.FOMAML(GD, 2).backward(problem, tasks)
    for call in (
        lambda: mp.adapt(problem, first(tasks.support), GD, 2),
        lambda: mp.FOMAML(GD, 2).backward(problem, [first(tasks)]),
        lambda: mp.evaluate(problem, [first(tasks)], None, GD, 2),
    ):
        with pytest.raises(mp.InputError, match=r"a dimension less than those before: .*" + before):
            call()
    problem = make()
    mp.FOMAML(GD, 2).backward(problem, tasks)
    mp.adapt(problem, first(tasks.support), GD, 2)
    more = r"\(4, 5, 1\) has a dimension more .* given one task .* \(5, 1\), before.*problem anew"
    for call in (
        lambda: mp.adapt(problem, tasks.support, GD, 2),
        lambda: mp.FOMAML(GD, 2).backward(problem, [tasks]),
    ):
        with pytest.raises(mp.InputError, match=more):
            call()


FAMILIES = {
    "sinusoid": (Sinusoid, lambda: mlp([1, 4, 1]), mean_squared_error),
    "mnist1d": (MNIST1D, lambda: mlp([40, 4, 5]), lambda model, batch: model(batch[0]).square().mean()),
    "banking77": (BANKING77, lambda: nn.Embedding(40000, 2), lambda model, b: model(b[0]["input_ids"]).square().mean()),
    "by hand": (None, lambda: mlp([1, 4, 1]), mean_squared_error),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_that_was_stacked_is_refused_as_one_task_at_once(family, request, monkeypatch):
    """The models and losses take any rank: nothing but where the tensors come from tells."""
    if family == "banking77":
        monkeypatch.setenv("METAPROX_DATA", str(request.getfixturevalue("banking77").parent))
    made, model, loss = FAMILIES[family]
    batch = mp.Task.stack([first(waves()) for _ in range(3)]) if made is None else made().batch(range(3))
    problem = mp.ProximalProblem.from_module(model(), loss, 0.5)
    with pytest.raises(mp.InputError, match=r"^the support, of shapes \(3, .* is that of a batch of 3 tasks"):
        mp.adapt(problem, batch.support, GD, 2)
    for call in (
        lambda: mp.FOMAML(GD, 2).backward(problem, [batch]),
        lambda: mp.evaluate(problem, [batch], None, GD, 2),
        lambda: mp.evaluate(problem, lambda ids: [batch], [0], GD, 2),
    ):
        with pytest.raises(mp.InputError, match=r"^the support of tasks\[0\], of shapes \(3, .* without a list around"):
            call()
    mp.FOMAML(GD, 2).backward(problem, batch)
    mp.adapt(problem, first(batch.support), GD, 2)
    mp.evaluate(problem, batch, None, GD, 2)
    mp.FOMAML(GD, 2).backward(problem, [first(batch)])


def test_a_batch_of_quadratics_is_refused_as_one_task():
    family = Quadratic(dim=3)
    with pytest.raises(mp.InputError, match=r"\(2, 3, 3\), \(2, 3\), is that of a batch of 2 tasks"):
        mp.adapt(family.problem(0.5), family.batch([0, 1]).support, GD, 2, params={"y": torch.zeros(3).double()})


@pytest.mark.filterwarnings("ignore:one task with a support of shapes")
def test_what_is_computed_from_a_stack_is_no_stack():
    """Copies, parts and joined tasks; nor is a tensor in the place of one that is gone."""
    batch = mp.Task.stack([first(waves()) for _ in range(3)])
    problem = partial(mp.ProximalProblem.from_module, mlp([1, 4, 1]), mean_squared_error, 0.5)
    joined = mp.adapt(problem(), tuple(leaf.flatten(0, 1) for leaf in batch.support), GD, 2)
    whole = mp.adapt(problem(), tuple(leaf.clone() for leaf in batch.support), GD, 2)
    torch.testing.assert_close(joined, whole)
    gc.collect()
    known = len(stacks._MADE)
    del batch
    gc.collect()
    assert len(stacks._MADE) == known - 4
    again = pickle.loads(pickle.dumps(mp.Task.stack([first(waves())])))
    assert isinstance(again, mp.Task)


def test_losses_of_functions_may_have_scalars_for_each_task():
    loss = lambda params, data: (params["w"] - data).square().sum()  # noqa: E731
    out = mp.FOMAML(GD, 3)(
        mp.ProximalProblem(loss, loss, 1.0), {"w": torch.zeros(2)}, mp.Task(torch.ones(3), torch.ones(3))
    )
    assert len(out.query_loss) == 3


def test_gradient_hooks_are_refused():
    model = nn.Linear(3, 1)
    handle = model.weight.register_hook(lambda grad: 0 * grad)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, 0.5)
    with pytest.raises(mp.InputError, match="'weight' has a gradient hook"):
        mp.FOBMAML(GD, 3).backward(problem, regression())
    handle.remove()
    mp.FOBMAML(GD, 3).backward(problem, regression())
    model.weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(mp.InputError, match="'weight' has a gradient hook"):
        mp.adapt(problem, tuple(leaf[0] for leaf in regression().support), GD, 3)


@pytest.mark.parametrize("backend", ["auto", "vmap", "loop"])
def test_errors_of_a_loss_say_where_and_on_what(backend):
    problem = mp.ProximalProblem.from_module(nn.Linear(4, 1), mean_squared_error, 0.5)
    with pytest.raises(RuntimeError) as found:
        mp.FOBMAML(GD, 3, backend=backend).backward(problem, regression())
    notes = "\n".join(found.value.__notes__)
    assert (
        "raised by inner_loss on a batch of [0]: a torch.float32 tensor of shape (12, 3), [1]: a torch.float32" in notes
    )
    assert "a loss returns a scalar tensor" in notes


def test_the_mode_of_the_model_is_looked_at_anew():
    """A model that vmap can take in eval mode alone: "auto" goes through the loop in the other."""

    class Picky(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1.0 if not self.training or float(x.sum()) < 1e9 else 2.0)

    model = Picky(3, 1).eval()
    problem, tasks = mp.ProximalProblem.from_module(model, mean_squared_error, 0.5), regression()
    for training in (False, True):
        model.train(training)
        ours, loop = (
            mp.FOBMAML(GD, 3, backend=backend)(problem, problem.live_parameters(), tasks).grad["weight"]
            for backend in ("auto", "loop")
        )
        assert relative_error(ours, loop) < 1e-2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_changes_nothing(mode):
    torch.manual_seed(0)
    model, tasks = nn.Linear(3, 1).double(), regression(dtype=torch.float64)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, 0.5)
    plain = mp.FOBMAML(GD, 3)(problem, problem.live_parameters(), tasks).grad
    with mode():
        own = mp.Task(*(tuple(leaf.clone() for leaf in half) for half in tasks))  # inference tensors, in that mode
        inside = mp.ProximalProblem.from_module(nn.Linear(3, 1).double(), mean_squared_error, 0.5)
        assert torch.equal(mp.FOBMAML(GD, 3)(problem, problem.live_parameters(), own).grad["weight"], plain["weight"])
        for method in ESTIMATORS:
            for backend in ("loop", "auto"):
                method(GD, 3, backend=backend)(inside, inside.live_parameters(), own)
        pieces = mp.MicroBatches([tuple(leaf[0] for leaf in own.support)])
        adapted = mp.adapt(problem, pieces, GD, 3)
        assert mp.evaluate(problem, lambda ids: own, range(3), GD, 3).loss.n == 3
    adapted["weight"].mul_(1.0).requires_grad_().sum().backward()


@pytest.mark.parametrize(
    ("loss", "batch"),
    [
        (cross_entropy, (torch.randn(4, 5, 8), torch.arange(20).view(4, 5) % 5)),
        (mean_squared_error, (torch.randn(4, 6, 8), torch.randn(4, 6, 5))),
    ],
)
def test_what_may_be_a_batch_as_well_as_one_task_is_told_of(loss, batch):
    """Of a model that takes any rank: a batch of tasks made by hand, the first that the problem is given."""
    own = loss if loss is mean_squared_error else lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])
    for given in ("adapt", "list"):
        problem = mp.ProximalProblem.from_module(nn.Linear(8, 5), own, lam=0.5)
        if given == "adapt":
            call = partial(mp.adapt, problem, batch, mp.GradientDescent(0.1), steps=2)
        else:
            meta = mp.FOMAML(mp.GradientDescent(0.1), 2)
            call = partial(meta, problem, problem.live_parameters(), [mp.Task(batch, batch)])
        with pytest.warns(UserWarning, match=r"of shapes \(4, [56], 8\).*looks like a batch of 4 tasks just as well"):
            call()


def test_one_task_is_not_told_of():
    """Vectors with labels, sequences with a label each, images: warnings are errors in these tests."""
    sequences = nn.Sequential(nn.Linear(8, 4), nn.Flatten(), nn.Linear(12, 5))
    images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5))
    labels = torch.arange(6) % 5
    for model, inputs in (
        (nn.Linear(8, 5), torch.randn(6, 8)),
        (sequences, torch.randn(6, 3, 8)),
        (images, torch.randn(6, 1, 4, 4)),
    ):
        problem = mp.ProximalProblem.from_module(model, cross_entropy, lam=0.5)
        mp.adapt(problem, (inputs, labels), mp.GradientDescent(0.1), steps=2)
    problem = mp.ProximalProblem.from_module(mlp([2, 4, 1]), mean_squared_error, lam=0.5)
    mp.adapt(problem, (torch.randn(6, 2), torch.randn(6, 1)), mp.GradientDescent(0.1), steps=2)


def test_a_loss_that_fails_on_tasks_that_lie_elsewhere_is_told_so():
    params = {"w": torch.ones(3, requires_grad=True)}
    loss = CheckedLoss(lambda params, batch: (params["w"] * batch).sum(), "inner_loss")
    mixed = CheckedLoss(lambda params, batch: torch.dot(params["w"], batch), "inner_loss")
    with pytest.raises(mp.InputError, match=r"inner_loss got a batch with tensors on meta and parameters on cpu, and"):
        mixed(params, torch.ones(3, device="meta"))
    with pytest.raises(RuntimeError, match="must match") as caught:  # another fault, whatever the devices
        loss(params, torch.ones(4))
    assert not isinstance(caught.value, mp.InputError)
