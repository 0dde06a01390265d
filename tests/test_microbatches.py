"""Support and query in pieces: the numbers of the whole, in the memory of a piece."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

import metaprox as mp
from metaprox.comparison import peak_memory
from metaprox.models import cross_entropy, mlp
from metaprox.tasks import MNIST1D

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


class Stream(IterableDataset):
    """Pairs of inputs and labels, one after another; ``said`` is its length, where it has one."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return zip(*self.data, strict=True)


class SizedStream(Stream):
    def __init__(self, data, said):
        super().__init__(data)
        self.said = said

    def __len__(self):
        return self.said


LOADERS = {
    "in order": lambda data: DataLoader(TensorDataset(*data), batch_size=10),
    "shuffled": lambda data: DataLoader(TensorDataset(*data), batch_size=10, shuffle=True),
    "own generator": lambda data: DataLoader(
        TensorDataset(*data), batch_size=10, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "own sampler": lambda data: DataLoader(
        TensorDataset(*data),
        batch_sampler=BatchSampler(RandomSampler(range(25), generator=torch.Generator()), 7, False),
    ),
    "batches of indices": lambda data: DataLoader(
        TensorDataset(*data), batch_sampler=[[*range(3)], [*range(3, 20)], [*range(20, 25)]]
    ),
    "a stream": lambda data: DataLoader(SizedStream(data, 25), batch_size=10),
    "a list": lambda data: list(zip(*(part.split(10) for part in data), strict=True)),
    "sized": lambda data: Sized(list(zip(*(part.split(5) for part in data), strict=True))),
}


class Sized:
    """Batches of a class of one's own, with a length."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_each_batch_weighs_its_share_of_the_examples(make):
    """25 examples in batches of 10, 10 and 5: the loss is the mean over all, in whatever order they are read."""
    task, model = whole()[0], problem()
    meta = mp.FOBMAML(SOLVER, 5, backend="loop")
    out = meta(model, model.live_parameters(), [mp.Task(mp.MicroBatches(make(task.support)), task.query)])
    expected = meta(model, model.live_parameters(), [task])
    for name, grad in expected.grad.items():
        torch.testing.assert_close(out.grad[name], grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("generator", [None, 1])
def test_what_a_loader_shuffles_and_drops_is_coupled(generator):
    """Five of 25 examples are dropped at each reading, others each time: all branches of a step miss the same ones.

    The loss of a batch is its mean of (y - data)^2 / 2, so that the curvature is 1 whatever is dropped: what all
    branches miss cancels, and what they do not miss together is divided by eps.
    """
    torch.manual_seed(0)
    data = torch.randn(25, 4, dtype=torch.float64)
    own = None if generator is None else torch.Generator().manual_seed(generator)
    loader = DataLoader(TensorDataset(data), batch_size=20, shuffle=True, drop_last=True, generator=own)

    def loss(params, batch):
        (rows,) = batch
        return 0.5 * (params["y"] - rows).square().sum(-1).mean()

    task = mp.Task(mp.MicroBatches(loader), (torch.ones(1, 4, dtype=torch.float64),))
    problem, lam, solver = mp.ProximalProblem(loss, loss, lam=0.5), 0.5, mp.GradientDescent(0.4)
    out = mp.FOBMAML(solver, 40, perturb="center", eps=1e-3, backend="loop")(
        problem, {"y": torch.zeros(4).double()}, [task]
    )
    exact = lam / (1 + lam) * (out.adapted["y"][0] - 1)
    torch.testing.assert_close(out.grad["y"], exact, rtol=1e-5, atol=0)


def test_generators_stay_as_they_are():
    """Building and looking draw nothing; a reading, also one that raises, puts a loader's own generator back."""
    data = whole()[0].support
    own = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*data), batch_size=10, shuffle=True, generator=own)
    before, mine = torch.get_rng_state(), own.get_state()
    pieces = mp.MicroBatches(loader)
    assert "MicroBatches" in repr(pieces)
    assert torch.equal(torch.get_rng_state(), before)
    mp.adapt(problem(), pieces, SOLVER, 2)
    assert torch.equal(own.get_state(), mine)

    def fails(params, batch):
        raise ArithmeticError("of the loss")

    with pytest.raises(ArithmeticError) as caught:
        mp.adapt(mp.ProximalProblem(fails, fails, 1.0), pieces, SOLVER, 2, params={"w": torch.zeros(1)})
    assert torch.equal(own.get_state(), mine), caught  # holds the frames of the reading
    torch.testing.assert_close(
        torch.randn(3, generator=own), torch.randn(3, generator=torch.Generator().manual_seed(3))
    )


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
        (lambda: mp.MicroBatches([1, 2], [0.0, 0.0]), r"weights must not all be 0, got \[0.0, 0.0\]"),
        (lambda: mp.MicroBatches([1, 2], [1.0]), "there are 1 weights, but 2 batches"),
        (lambda: mp.MicroBatches([1, 2]), r"batches\[0\] can't be told, for it holds no tensors.*give weights"),
        (lambda: mp.MicroBatches([(torch.ones(2), torch.ones(3))]), r"batches\[0\] can't be told.*sizes \[2, 3\]"),
        (lambda: mp.MicroBatches([torch.ones(2), torch.ones(0)]), r"batches\[1\] holds no examples"),
        (lambda: mp.MicroBatches(torch.ones(4, 2)), r"batches must be a list of batches.*tensor\.split"),
        (lambda: mp.MicroBatches(TensorDataset(torch.ones(4))), "batches must be a list of batches.*a DataLoader"),
        (lambda: list(mp.MicroBatches(_Endless(), [0.2, 0.3])), "there are 2 weights, but more batches"),
        (lambda: list(mp.MicroBatches(Sized([1]), [0.4])) + list(mp.MicroBatches(_once(), [1.0])), "but 0 batches"),
        (
            lambda: list(mp.MicroBatches(Sized([torch.ones(5), torch.ones(2)]))),
            "hold 7 examples, where 10 were expected",
        ),
        (lambda: list(mp.MicroBatches(Sized([torch.ones(2), torch.ones(5)]))), "hold more examples, where 4 were"),
        (
            lambda: mp.MicroBatches(DataLoader(Stream([torch.ones(3)]))),
            "number of examples in a DataLoader.*give weights",
        ),
        (
            lambda: mp.MicroBatches(DataLoader(_ONES, batch_size=None)),
            "number of examples in a DataLoader.*batch_size=None",
        ),
        (lambda: mp.MicroBatches(DataLoader(_ONES, batch_sampler=iter([[0]]))), "in a DataLoader.*read only once"),
        (lambda: mp.MicroBatches(DataLoader(_ONES, batch_size=9, drop_last=True)), "batches is empty"),
        (lambda: list(mp.MicroBatches(DataLoader(SizedStream([[]], 0)))), "batches is empty"),
        (lambda: list(mp.MicroBatches(DataLoader(SizedStream([[1.0] * 5], 4), 2))), "hold more examples, where 4 were"),
        (lambda: list(mp.MicroBatches(DataLoader(SizedStream([[1.0] * 5], 6), 2))), "hold 5 examples, where 6 were"),
    ],
)
def test_bad_pieces_are_named(make, message):
    with pytest.raises(mp.InputError, match=message):
        make()


class _Endless:
    def __iter__(self):
        return iter(int, 1)


def _once():
    """Batches that can be read once, though they are no iterator themselves, of which one was read."""
    loader = DataLoader(_ONES, batch_sampler=iter([[0, 1, 2, 3]]))
    list(loader)
    return loader


_ONES = TensorDataset(torch.ones(4, 2))
