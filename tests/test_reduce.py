"""What ``reduce``, ``weights`` and ``per_task`` of an estimator do, against means that are taken by hand."""

import pytest
import torch
from torch import nn

import metaprox as mp

GD = mp.GradientDescent(0.3)
CHUNKS = [{"backend": "loop"}, {"backend": "vmap"}, {"backend": "vmap", "chunk_size": 2}]


class Record(mp.Reduce):
    """Changes nothing, and keeps what it sees."""

    def __init__(self):
        self.seen = []

    def of_tasks(self, tasks):
        self.seen.append((tasks.first, len(tasks.grad), tasks.weights.tolist(), tasks.failed.tolist()))
        return tasks.grad

    def of_sum(self, total):
        self.seen.append(("sum", total.count, total.weight))
        return total


class Double(mp.Reduce):
    def of_tasks(self, tasks):
        tasks.by_name()["y"].mul_(2)
        return tasks.grad


@pytest.mark.parametrize("how", CHUNKS)
def test_weights_and_gradients_of_each_task(quadratic, how):
    problem, x, tasks = quadratic
    weights = torch.tensor([0.0, 1.0, 3.0, 0.5, 2.0])
    out = mp.FOBMAML(GD, 10, **how)(problem, x, tasks, weights=weights, per_task=True)
    alone = [mp.FOBMAML(GD, 10, **how)(problem, x, mp.Task(*(_row(half, i) for half in tasks))).grad for i in range(5)]
    expected = torch.stack([one["y"] for one in alone])
    torch.testing.assert_close(out.per_task["y"], expected)
    torch.testing.assert_close(out.grad["y"], (weights.double() @ expected) / weights.sum())


def _row(tree, index):
    return torch.utils._pytree.tree_map(lambda leaf: leaf[index : index + 1], tree)


@pytest.mark.parametrize(("how", "sizes"), list(zip(CHUNKS, ([1] * 5, [5], [2, 2, 1]), strict=True)))
def test_the_hook_sees_every_chunk_as_it_comes_and_the_sum_once(quadratic, how, sizes):
    problem, x, tasks = quadratic
    hook = Record()
    mp.FOMAML(GD, 3, reduce=hook, **how)(problem, x, tasks, weights=[1, 2, 3, 4, 5])
    *chunks, total = hook.seen
    assert [size for _, size, _, _ in chunks] == sizes
    assert [first for first, _, _, _ in chunks] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert [weight for _, _, some, _ in chunks for weight in some] == [1, 2, 3, 4, 5]
    assert total == ("sum", 5, 15.0)


def test_hooks_are_called_in_order_and_may_write(quadratic):
    problem, x, tasks = quadratic
    plain = mp.FOMAML(GD, 3)(problem, x, tasks)
    doubled = mp.FOMAML(GD, 3, reduce=[Double(), mp.Reduce(), Double()])(problem, x, tasks)
    torch.testing.assert_close(doubled.grad["y"], 4 * plain.grad["y"])
    torch.testing.assert_close(doubled.info.sampling_error, plain.info.sampling_error)
    weighted = mp.FOMAML(GD, 3)(problem, x, tasks, weights=[2.0] * 5)
    torch.testing.assert_close(weighted.info.sampling_error, plain.info.sampling_error)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0], "a number for each of 5 tasks"),
        ([1, 1, 1, 1, -1], "finite and >= 0"),
        ([0.0] * 5, "must not all be 0"),
        ("abcde", "a tensor or a list"),
    ],
)
def test_odd_weights_are_refused(quadratic, weights, said):
    problem, x, tasks = quadratic
    with pytest.raises(mp.InputError, match=said):
        mp.FOMAML(GD, 3)(problem, x, tasks, weights=weights)


def test_odd_hooks_are_refused(quadratic):
    problem, x, tasks = quadratic
    with pytest.raises(mp.InputError, match=r"reduce must be a mp\.Reduce, a list of them or None"):
        mp.FOMAML(GD, 3, reduce=[torch.sum])

    class Sums(mp.Reduce):
        def of_tasks(self, tasks):
            return tasks.grad.sum(0)

    with pytest.raises(mp.InputError, match="reduce must return gradients of shape"):
        mp.FOMAML(GD, 3, reduce=Sums())(problem, x, tasks)


@pytest.mark.parametrize("method", [mp.FOBMAML, mp.MAML, mp.IMAML])
def test_noise_of_a_task_is_the_same_in_both_backends_and_in_all_chunks(method):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1)]
    model = nn.Sequential(*layers).double()

    def loss(model, batch):
        drawn = torch.randperm(5)[:4]
        noise = 0.1 * torch.randn(4, 1, dtype=torch.float64)
        return (model(batch[0][drawn]) - batch[1][drawn] + noise).square().mean()

    problem = mp.ProximalProblem.from_module(model, loss, lam=0.5)
    data = torch.randn(5, 5, 3, dtype=torch.float64), torch.randn(5, 5, 1, dtype=torch.float64)
    found = []
    for how in CHUNKS:
        torch.manual_seed(3)
        out = method(GD, 3, **how)(problem, dict(model.named_parameters()), mp.Task(data, data), per_task=True)
        found.append(torch.cat([grad.flatten(1) for grad in out.per_task.values()], 1))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-8)
