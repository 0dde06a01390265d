"""Families of tasks: pure functions of (seed, split, id), disjoint classes, clear limits."""

import random

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import metaprox as mp
from metaprox.tasks import MNIST1D, Quadratic, Sinusoid
from metaprox.tasks import quadratic as closed_form
from metaprox.tasks.mnist1d import CLASSES, EXAMPLES, examples

FAMILIES = {"quadratic": Quadratic, "sinusoid": Sinusoid, "mnist1d": MNIST1D}


def leaves(task):
    return pytree.tree_leaves(task)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_task_is_a_function_of_seed_split_and_id(name):
    family = FAMILIES[name]
    straight = family().batch(range(6))
    picked = family().batch([4, 1])
    assert same(mp.Task(*pytree.tree_map(lambda leaf: leaf[[4, 1]], tuple(straight))), picked)
    assert not same(family(seed=1).batch([4]), family().batch([4]))
    assert not same(family(split="test").batch([4]), family().batch([4]))
    assert not same(family().batch([4]), family().batch([5]))


@pytest.mark.parametrize("name", FAMILIES)
def test_global_generators_are_left_alone(name):
    examples.cache_clear()
    np.random.seed(3)
    random.seed(3)
    torch.manual_seed(3)
    FAMILIES[name]().batch([0])
    drawn = np.random.rand(), random.random(), torch.rand(1).item()
    np.random.seed(3)
    random.seed(3)
    torch.manual_seed(3)
    assert drawn == (np.random.rand(), random.random(), torch.rand(1).item())


def test_examples_are_the_same_after_a_restart():
    first = examples("train", 0).clone()
    examples.cache_clear()
    np.random.seed(12345)
    assert torch.equal(first, examples("train", 0))


def test_mnist1d_shapes_labels_and_order():
    tasks = MNIST1D(ways=4, shots=3, queries=6).batch(range(5))
    (inputs, labels), (query, query_labels) = tasks
    assert inputs.shape == (5, 12, 40)
    assert query.shape == (5, 24, 40)
    assert inputs.dtype == torch.float32
    for row, per_class in ((labels, 3), (query_labels, 6)):
        assert all(torch.bincount(r, minlength=4).tolist() == [per_class] * 4 for r in row)
    assert not torch.equal(labels[0], labels[1])  # shuffled anew


def test_support_and_query_share_no_example():
    tasks = MNIST1D(ways=5, shots=40, queries=60).batch(range(3))
    for support, query in zip(tasks.support[0], tasks.query[0], strict=True):
        rows = {tuple(r.tolist()) for r in support} & {tuple(r.tolist()) for r in query}
        assert not rows


def test_splits_share_no_example_and_have_their_sizes():
    pools = {split: examples(split, 0) for split in CLASSES}
    seen = set()
    for split, pool in pools.items():
        assert pool.shape == (CLASSES[split], EXAMPLES, 40)
        rows = {tuple(r.tolist()) for r in pool.flatten(0, 1)}
        assert len(rows) == CLASSES[split] * EXAMPLES
        assert not rows & seen
        seen |= rows


def test_test_classes_are_the_digits_of_mnist1d():
    """A nearest-mean rule that has learned the digits from the package's own data names the test classes 0 to 9."""
    from mnist1d.data import get_dataset_args, make_dataset

    state, python_state = np.random.get_state(), random.getstate()
    data = make_dataset(get_dataset_args())
    np.random.set_state(state)
    random.setstate(python_state)
    inputs, labels = torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"])
    pool = examples("test", 0)
    queries = pool.flatten(0, 1)
    nearest = labels[torch.cdist(queries, inputs).argmin(1)].view(10, EXAMPLES)
    hits = (nearest == torch.arange(10)[:, None]).float().mean(1)
    assert hits.mean() > 0.4  # one nearest neighbour; chance is 0.1
    assert (nearest.mode(1).values == torch.arange(10)).sum() >= 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 11, "split": "test"}, "11-way tasks need 11 classes, but the test split has 10"),
        ({"ways": 201}, "201-way tasks need 201 classes, but the train split has 200"),
        ({"shots": 90, "queries": 15}, "90 shots and 15 queries need 105 examples of a class, but there are 100"),
        ({"ways": 0}, "ways must be an integer >= 1, got 0"),
        ({"shots": 0}, "shots must be an integer >= 1, got 0"),
        ({"split": "dev"}, "unknown split 'dev'; known: train, validation, test"),
    ],
)
def test_mnist1d_limits(settings, message):
    with pytest.raises(mp.InputError, match=message):
        MNIST1D(**settings)


def test_negative_ids_are_refused():
    with pytest.raises(mp.InputError, match="task ids must be >= 0, got -1"):
        Sinusoid().batch([-1])


def test_sinusoids_are_sinusoids():
    """Amplitude and phase fitted to 50 support points predict the query exactly."""
    tasks = Sinusoid(shots=50, queries=20).batch(range(20))
    (t, y), (tq, yq) = (tuple(leaf.double() for leaf in part) for part in tasks)
    design = lambda inputs: torch.cat([inputs.sin(), inputs.cos()], -1)  # noqa: E731
    fit = torch.linalg.lstsq(design(t), y).solution
    torch.testing.assert_close(design(tq) @ fit, yq, atol=1e-5, rtol=1e-5)
    amplitude = fit.norm(dim=1)
    assert amplitude.min() >= 0.1 - 1e-6
    assert amplitude.max() <= 5.0 + 1e-6
    phase = torch.atan2(-fit[:, 1], fit[:, 0])
    assert phase.min() > -1e-4
    assert phase.max() < torch.pi + 1e-4


def test_quadratic_curvatures_lie_within_the_condition_number():
    tasks = Quadratic(dim=12, condition=30.0).batch(range(10))
    for curvature in (tasks.support[0], tasks.query[0]):
        eigenvalues = torch.linalg.eigvalsh(curvature)
        assert eigenvalues.min() >= 1 / 30 - 1e-12
        assert eigenvalues.max() <= 1 + 1e-12


def test_quadratic_closed_forms_agree_with_newton_and_autograd():
    family = Quadratic(dim=5, condition=10.0, seed=2)
    tasks = family.batch(range(4))
    x = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = mp.exact_meta_gradient(family.problem(0.7), {"y": x}, tasks)
    torch.testing.assert_close(exact.per_task, closed_form.meta_gradient(x, tasks, 0.7))
    torch.testing.assert_close(exact.solutions, closed_form.solution(x, tasks, 0.7))
    torch.testing.assert_close(exact.value, closed_form.objective(x, tasks, 0.7).mean())
    leaf = x.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(closed_form.objective(leaf, tasks, 0.7).mean(), leaf)
    torch.testing.assert_close(by_autograd, exact.grad["y"])
