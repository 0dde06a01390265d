"""Tasks from labelled data: what they hold, of which examples, and that a task is a function of its number."""

import random

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import metaprox as mp
from metaprox.data import Examples, FewShot, Grouped, split_classes
from metaprox.data.draws import KeyedDraws
from metaprox.readers import Pictures

X = torch.arange(120.0).view(60, 2)
Y = torch.arange(60) % 6


def same(a, b):
    pairs = zip(torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


class Counted(Dataset):
    """Of (x, label); remembers what was read, and draws noise where asked to."""

    def __init__(self, noise=0.0, listed=True):
        self.read, self.noise = [], noise
        if listed:
            self.targets = Y.tolist()

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        self.read.append(index)
        return X[index] + self.noise * torch.rand(2), int(Y[index])


def hub():
    features = datasets.Features(
        {"x": datasets.Sequence(datasets.Value("float32")), "kind": datasets.ClassLabel(names=list("abcdef"))}
    )
    return datasets.Dataset.from_dict({"x": X.tolist(), "kind": Y.tolist()}, features=features).with_format("torch")


SOURCES = {
    "tensors": lambda: {"source": (X, Y)},
    "arrays": lambda: {"source": (X.numpy(), Y.numpy())},
    "labels apart": lambda: {"source": (X, None), "labels": Y.tolist()},
    "dataset": lambda: {"source": Counted()},
    "dataset without targets": lambda: {"source": Counted(listed=False)},
    "hub": lambda: {"source": hub(), "columns": ("x", "kind")},
    "examples": lambda: {"source": Examples("here", X, Y, tuple("abcdef"))},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_tasks_of_every_source_are_the_same_and_hold_what_they_say(kind):
    tasks = FewShot(**SOURCES[kind](), ways=4, shots=3, queries=5, seed=7)
    assert same(tasks.batch(range(3)), FewShot((X, Y), 4, 3, 5, seed=7).batch(range(3)))
    rows = {tuple(x.tolist()): int(y) for x, y in zip(X, Y, strict=True)}
    task = tasks[2]
    for (inputs, labels), count in ((task.support, 3), (task.query, 5)):
        assert labels.bincount().tolist() == [count] * 4
        for x, label in zip(inputs, labels.tolist(), strict=True):
            name = "abcdef"[rows[tuple(x.tolist())]]
            assert tasks.names(2)[label] in (name, str(rows[tuple(x.tolist())]))
    assert len({tuple(x.tolist()) for x in torch.cat([task.support[0], task.query[0]])}) == 32


def test_a_task_is_a_function_of_seed_and_number_and_leaves_generators_alone():
    tasks = FewShot(Counted(noise=1.0), 3, 2, 2, transform=lambda x: x + torch.rand_like(x))
    torch.manual_seed(3)
    random.seed(3)
    first = tasks.batch([5, 1])
    drawn = torch.rand(1), random.random()
    torch.manual_seed(3)
    random.seed(3)
    assert (torch.rand(1), random.random()) == drawn
    assert same(first, mp.Task.stack([tasks[5], tasks[1]]))
    assert not same(tasks[5], FewShot(Counted(noise=1.0), 3, 2, 2, seed=1)[5])
    noise = tasks[5].support[0] - FewShot(Counted(), 3, 2, 2)[5].support[0]
    assert noise.min() > 0
    assert noise.unique().numel() == noise.numel()


def test_only_the_examples_of_a_task_are_read():
    data = Counted()
    tasks = FewShot(data, 3, 2, 4)
    assert not data.read
    _ = tasks[0]
    assert len(data.read) == len(set(data.read)) == 18


def test_draws_are_those_of_every_python():
    """Python promises the values of random.random for a seed; these are written down."""
    assert KeyedDraws("task", 0, 3).choose(100, 5) == [*FIXED]
    draws = KeyedDraws("x")
    counts = np.bincount([draws.choose(5, 2)[0] for _ in range(5000)], minlength=5)
    assert counts.min() > 850
    assert sorted(draws.order(7)) == list(range(7))


FIXED = (76, 75, 62, 99, 25)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_data_loader_reads_tasks(workers):
    tasks = FewShot((X, Y), 3, 2, 4, length=6)
    loader = DataLoader(tasks, batch_size=3, num_workers=workers)
    batches = [mp.Task(*batch) for batch in loader]
    assert [batch.support[0].shape for batch in batches] == [(3, 6, 2)] * 2
    assert same([batches[1].query[0], batches[1].query[1]], list(tasks.batch([3, 4, 5]).query))
    endless = DataLoader(FewShot((X, Y), 3, 2, 4), batch_size=2, sampler=range(4))
    assert sum(1 for _ in endless) == 2
    with pytest.raises(TypeError, match="no end"):
        len(FewShot((X, Y), 3, 2, 4))
    assert len(list(tasks)) == 6


def test_sizes_are_drawn_within_ranges_and_shared_by_those_that_make_a_batch():
    tasks = FewShot((X, Y), (2, 5), (1, 3), (2, 4), together=4)
    sizes = {(len(t.support[1]), len(t.query[1])) for i in range(40) for t in [tasks[i]]}
    assert len(sizes) > 5
    for start in range(0, 40, 4):
        batch = tasks.batch(range(start, start + 4))
        ways = int(batch.support[1].max()) + 1
        assert 2 <= ways <= 5
        assert len(tasks.names(start)) == ways
    assert isinstance(tasks.batch(range(40)), list)


def test_unequal_tasks_train_by_the_loop():
    tasks = FewShot((X, Y), (2, 4), 2, 3)
    model = torch.nn.Linear(2, 4)
    problem = mp.ProximalProblem.from_module(
        model, lambda m, b: torch.nn.functional.cross_entropy(m(b[0] / 60), b[1]), 0.5
    )
    out = mp.FOBMAML(mp.GradientDescent(0.1), 3).backward(problem, tasks.batch(range(5)))
    assert out.grad["weight"].isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FewShot((X, Y), 7, 1, 1), "7-way tasks need 7 classes, but there are 6"),
        (lambda: FewShot((X, Y), 2, 6, 5), "6 shots and 5 queries need 11 examples of a class, but 0 has 10, 1 has 10"),
        (
            lambda: FewShot((X, Y), 2, 6, 5, small="leave out"),
            "2-way tasks need 2 classes, but there are 0 with enough",
        ),
        (lambda: FewShot((X, Y[:9]), 2, 1, 1), "there are 9 labels for 60 examples"),
        (lambda: FewShot(X, 2, 1, 1), "give labels|source must be"),
        (lambda: FewShot((X, None), 2, 1, 1), "the source has no labels"),
        (lambda: FewShot((X, Y), (3, 2), 1, 1), r"ways must be a number, or the \(least, most\) of a range"),
        (lambda: FewShot((X, Y), 2, 1, 1, classes=[0, 9]), "classes has 9, of which the source has no example"),
        (lambda: FewShot((X, Y), 2, 1, 1)[-1], "id must be an integer >= 0"),
        (lambda: FewShot(hub(), 2, 1, 1), "columns must be two of x, kind"),
        (lambda: FewShot(hub(), 2, 1, 1, columns=("x", "y")), "the Dataset has no column 'y'; it has x, kind"),
        (lambda: FewShot(Examples("f", list("ab" * 30), Y), 2, 1, 1)[0], "the inputs are no tensors.*give inputs="),
    ],
)
def test_what_can_not_be_is_refused_by_name(make, message):
    with pytest.raises(mp.InputError, match=message):
        make()


def test_small_classes_are_left_out_by_name():
    labels = torch.cat([Y, torch.tensor([6, 6])])
    tasks = FewShot((torch.cat([X, X[:2]]), labels), 6, 2, 2, small="leave out")
    assert tasks.left_out == ("6",)


def test_classes_are_dealt_out_alike_whatever_their_order():
    names = [f"class {i}" for i in range(25)]
    split = split_classes(names)
    assert {name: len(found) for name, found in split.items()} == {"train": 15, "validation": 5, "test": 5}
    assert sorted(sum(split.values(), ())) == sorted(names)
    assert {k: set(v) for k, v in split_classes(names[::-1]).items()} == {k: set(v) for k, v in split.items()}
    assert split_classes(names, seed=1) != split
    groups = [i // 5 for i in range(25)]
    by_group = split_classes(names, groups=groups)
    assert [len(found) for found in by_group.values()] == [15, 5, 5]
    assert all(len({int(name.split()[1]) // 5 for name in found}) * 5 == len(found) for found in by_group.values())
    lists = split_classes(names, groups=groups, lists={"train": [0, 1, 2], "test": [3]})
    assert (len(lists["train"]), len(lists["test"])) == (15, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ["a", "a"]}, "the class 'a' comes twice"),
        ({"classes": ["a", "b"]}, "2 classes or groups can't be dealt out to train, validation, test"),
        ({"classes": list("abc"), "fractions": {"train": 0.9, "test": 0.2}}, "fractions must sum to at most 1"),
        (
            {"classes": list("abc"), "lists": {"train": ["a"], "test": ["a"]}},
            "'a' is in the lists of both train and test",
        ),
        ({"classes": list("abc"), "lists": {"train": ["z"]}}, "the lists name 'z', which the data do not have"),
    ],
)
def test_splits_that_can_not_be_are_refused(settings, message):
    with pytest.raises(mp.InputError, match=message):
        split_classes(**settings)


def test_groups_are_tasks_each_once_a_turn():
    groups = [f"p{i}" for i in range(5) for _ in range(4 + i)]
    x, y = torch.arange(30.0)[:, None], torch.arange(30.0)
    tasks = Grouped((x, y), by=groups, support=0.5)
    assert sorted(tasks.name(i) for i in range(5)) == sorted(tasks.name(i) for i in range(5, 10)) == sorted(set(groups))
    for i in range(10):
        (inputs, targets), (query, query_targets) = tasks[i]
        both = torch.cat([inputs, query]).flatten()
        assert {groups[int(row)] for row in both} == {tasks.name(i)}
        assert len(both) == groups.count(tasks.name(i)) == len(both.unique())
        assert torch.equal(inputs, targets)
        assert torch.equal(query, query_targets)
    assert same(tasks.batch([3]), mp.Task.stack([tasks[3]]))
    assert isinstance(tasks.batch([0, 1]), list)


def test_support_comes_first_in_time():
    time = torch.tensor([3, 1, 2, 0, 9, 8, 7])
    x = time.float()[:, None]
    tasks = Grouped((x, x[:, 0]), by=[0, 0, 0, 0, 1, 1, 1], how="time", order=time, support=2)
    assert tasks[0].support[0].flatten().tolist() == [0, 1]
    assert tasks[0].query[0].flatten().tolist() == [2, 3]
    assert tasks[1].query[0].flatten().tolist() == [9]


def test_groups_that_are_too_small_are_named():
    with pytest.raises(mp.InputError, match="support=2 and a query need more examples of a group, but b has 2"):
        Grouped((X[:5], torch.zeros(5)), by=list("aaabb"), support=2)
    assert Grouped((X[:5], torch.zeros(5)), by=list("aaabb"), support=2, small="leave out").left_out == ("b",)
    with pytest.raises(mp.InputError, match="by must be one for each of 5 examples, got 4"):
        Grouped((X[:5], torch.zeros(5)), by=list("aaab"), support=2)


def test_pictures_of_pillow_are_inputs_of_a_hub_data_set():
    rows = {"image": [Image.new("L", (9, 5), 10 * i) for i in range(12)], "label": [i % 3 for i in range(12)]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    tasks = FewShot(data, 2, 1, 2, columns=("image", "label"), inputs=Pictures(8))
    assert tasks[0].support[0].shape == (2, 1, 8, 8)
