"""Support and query in pieces: the numbers of the whole, in the memory of a piece."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import metaprox as mp
from metaprox.models import cross_entropy, mlp
from metaprox.tasks import MNIST1D
from metaprox.training.cost import peak_memory

SOLVER = mp.GradientDescent(0.1)


def problem(adapt=None):
    model = mlp([40, 16, 5]).double()
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.ReLU):
            model[int(name)] = torch.nn.Tanh()
    return mp.ProximalProblem.from_module(model, cross_entropy, lam=0.5, adapt=adapt)


def whole():
    """Two tasks of 25 support and 75 query examples."""
    tasks = MNIST1D().batch(range(2))
    return [mp.Task(*((part[0][i].double(), part[1][i]) for part in tasks)) for i in range(2)]


def pieces(data, sizes):
    """In batches of these sizes, each with its share of the examples as its weight."""
    inputs, labels = data
    batches = list(zip(inputs.split(sizes), labels.split(sizes), strict=True))
    return mp.MicroBatches(batches, [size / sum(sizes) for size in sizes])


def in_pieces():
    return [mp.Task(pieces(task.support, [10, 8, 7]), pieces(task.query, [40, 35])) for task in whole()]


METHODS = [
    mp.FOBMAML(SOLVER, 5),
    mp.FOBMAML(SOLVER, 5, scheme="forward", perturb="center", residual_correction=True),
    mp.Tangent(SOLVER, 5),
    mp.MAML(SOLVER, 5),
    mp.IMAML(SOLVER, 5),
    mp.FOMAML(SOLVER, 5),
    mp.Reptile(SOLVER, 5),
]


@pytest.mark.parametrize("adapt", [None, "2.*"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_method_sees_the_whole_batch(method, adapt):
    if adapt and isinstance(method, mp.Reptile):
        pytest.skip("Reptile adapts all parameters")
    meta = type(method)(**(vars(method) | {"backend": "loop"}))
    task = problem(adapt)
    x = task.live_parameters()
    expected, out = meta(task, x, whole()), meta(task, x, in_pieces())
    for name, grad in expected.grad.items():
        torch.testing.assert_close(out.grad[name], grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out.query_loss, expected.query_loss)
    torch.testing.assert_close(out.metrics["accuracy"], expected.metrics["accuracy"])
    assert out.info.counts == expected.info.counts  # a gradient is one of the whole sum


def test_a_loader_is_read_anew_at_every_evaluation_with_coupled_order():
    """A loader that shuffles draws its order from torch's generator, so that branches see equal orders."""
    task = whole()[0]
    loader = DataLoader(TensorDataset(*task.support), batch_size=5, shuffle=True)
    meta = mp.FOBMAML(SOLVER, 5, backend="loop")
    model = problem()
    out = meta(model, model.live_parameters(), [mp.Task(mp.MicroBatches(loader), task.query)])
    expected = meta(model, model.live_parameters(), [task])
    for name, grad in expected.grad.items():
        torch.testing.assert_close(out.grad[name], grad, rtol=1e-6, atol=1e-9)


def test_memory_is_that_of_one_batch():
    model = mlp([40, 256, 256, 5])
    data = mp.ProximalProblem.from_module(model, cross_entropy, lam=0.5)
    inputs, labels = torch.randn(8000, 40), torch.randint(5, (8000,))
    meta = mp.FOBMAML(SOLVER, 2, backend="loop", estimate_error=False)

    def peak(make):
        model.zero_grad()
        return peak_memory(
            lambda: meta.backward(data, [mp.Task(make(inputs, labels), make(inputs, labels))]), torch.device("cpu")
        )

    at_once = peak(lambda *both: both)
    split = peak(lambda *both: pieces(both, [500] * 16))
    few = peak(lambda inputs, labels: (inputs[:500], labels[:500]))
    assert split < 1.1 * few < 0.3 * at_once


def test_adapt_and_evaluate_take_pieces():
    model = problem()
    split, task = in_pieces()[0], whole()[0]
    for name, value in mp.adapt(model, task.support, SOLVER, 4).items():
        torch.testing.assert_close(mp.adapt(model, split.support, SOLVER, 4)[name], value)
    one = mp.evaluate(model, lambda ids: [task], [0], SOLVER, 4, backend="loop")
    two = mp.evaluate(model, lambda ids: [split], [0], SOLVER, 4, backend="loop")
    torch.testing.assert_close(two.values, one.values)


def test_vmap_says_that_it_takes_no_pieces():
    model = problem()
    with pytest.raises(mp.InputError, match=r"tasks\[0\]\.support is a MicroBatches.*use backend='loop'"):
        mp.FOBMAML(SOLVER, 5, backend="vmap")(model, model.live_parameters(), in_pieces())


def test_non_finite_data_are_named():
    task = in_pieces()[1]
    task.support.batches[2][0][3, 1] = torch.nan
    model = problem()
    with pytest.raises(mp.NonFiniteError, match=r"task 1: .*non-finite values, in \.support\.batches\[2\]\[0\]\."):
        mp.FOBMAML(SOLVER, 5, backend="loop")(model, model.live_parameters(), [in_pieces()[0], task])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mp.MicroBatches(iter([1, 2])), "list_iterator, which can be read only once"),
        (lambda: mp.MicroBatches([]), "batches is empty"),
        (lambda: mp.MicroBatches(_Endless()), "_Endless, without a length: give weights"),
        (lambda: mp.MicroBatches([1, 2], [0.5, -1.0]), r"weights\[1\] must be a finite number >= 0, got -1.0"),
        (lambda: list(mp.MicroBatches([1, 2], [1.0])), "there are 1 weights, but more batches"),
        (lambda: list(mp.MicroBatches([1, 2], [0.2, 0.3, 0.5])), "there are 3 weights, but 2 batches"),
    ],
)
def test_bad_pieces_are_named(make, message):
    with pytest.raises(mp.InputError, match=message):
        make()


class _Endless:
    def __iter__(self):
        return iter(int, 1)
