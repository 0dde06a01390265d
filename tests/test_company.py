"""Whether answers depend on the company of an example is found out by asking, for any model, and told."""

import warnings

import pytest
import torch
from torch import nn

import metaprox as mp
from metaprox.models import NORMS, conv_net, cross_entropy
from metaprox.modules.company import company
from metaprox.modules.loss import ModuleLoss

SOLVER = mp.GradientDescent(0.1)


class Centred(nn.Module):
    """By the mean of the batch, which no structure of torch tells."""

    def forward(self, inputs):
        return inputs - inputs.mean(0)


class Attending(nn.Module):
    """Examples that look at each other."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(4, 4)

    def forward(self, inputs):
        keys = self.inside(inputs)
        return (keys @ keys.T).softmax(-1) @ inputs


class Named(nn.Module):
    """Of a dictionary of tensors, by keyword."""

    def __init__(self, centred):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), Centred() if centred else nn.Tanh(), nn.Linear(4, 3))

    def forward(self, *, inputs, mask):
        return self.layers(inputs * mask)


def named_loss(model, batch):
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs=inputs, mask=torch.ones_like(inputs)), labels)


def batch(count=6):
    source = torch.Generator().manual_seed(0)
    return torch.randn(count, 4, generator=source), torch.arange(count) % 3


def found(model, loss=cross_entropy, data=None):
    wrapped = ModuleLoss(model, loss)
    return company(wrapped, dict(model.named_parameters()), batch() if data is None else data)


def between(module, **modes):
    return nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("model", "by"),
    [
        (between(nn.BatchNorm1d(4)), "1, BatchNorm1d"),
        (between(nn.BatchNorm1d(4)).eval(), None),
        (between(nn.BatchNorm1d(4, track_running_stats=False)).eval(), "1, BatchNorm1d"),
        (between(nn.Sequential(nn.Tanh(), Centred())).eval(), "1.1, Centred"),
        (between(Attending()), "1, Attending"),
        (between(nn.LayerNorm(4)), None),
        (between(nn.GroupNorm(2, 4)), None),
        (nn.Sequential(Centred(), nn.Linear(4, 3)), "0, Centred"),
        (between(nn.Dropout(0.5)), None),  # random numbers say nothing of the company
        (between(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))), "1.1, BatchNorm1d"),  # but its kind does
    ],
)
def test_the_first_module_by_which_it_does_is_named(model, by):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = found(model)
    assert (one.depends, one.by if one.depends else None) == (by is not None, by)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("centred", [True, False])
def test_of_models_that_take_other_things_than_a_tensor(centred):
    one = found(Named(centred), named_loss)
    assert (one.depends, one.by) == (centred, "layers.1, Centred" if centred else "")


def test_where_nothing_can_be_asked_it_goes_by_batch_norms():
    def by_parts(model, data):
        return cross_entropy(nn.Sequential(*model), data)

    assert not found(between(Centred()), by_parts).depends  # the model itself is not called
    assert found(between(nn.BatchNorm1d(4)), by_parts).depends
    assert not found(between(nn.Tanh()), data=batch(1)).depends


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_of_modules_that_take_no_hooks_or_would_be_compiled_anew():
    model = between(nn.BatchNorm1d(4, track_running_stats=False)).eval()
    scripted = torch.jit.trace(model, batch()[0], check_trace=False)
    assert found(nn.Sequential(scripted)).depends

    calls = []

    def backend(graph, inputs):
        calls.append([tuple(one.shape) for one in inputs])
        return graph

    compiled = torch.compile(between(nn.BatchNorm1d(4)), backend=backend)
    assert found(compiled).depends
    assert not calls


def test_neither_numbers_nor_generators_are_moved():
    model, before = between(nn.Dropout(0.5)), torch.random.get_rng_state()
    found(model)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("norm", [Centred, nn.Identity])
def test_evaluations_and_adapted_models_say_so(norm, tmp_path):
    learner = mp.Learner(between(norm()).eval(), cross_entropy, 0.1, SOLVER, 3)
    task, by = mp.Task(batch(), batch()), "1, Centred" if norm is Centred else ""
    result = mp.evaluate(learner.problem, [task, task], None, SOLVER, 3)
    assert (result.transductive, result.transductive_by) == (bool(by), by)
    adapted = learner.adapt(batch())
    assert (adapted.transductive, adapted.transductive_by) == (bool(by), by)
    adapted.save(tmp_path / "a")
    again = mp.Adapted.load(tmp_path / "a", between(norm()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            again.predict(batch()[0])
    assert [one.category for one in caught] == [mp.TransductiveWarning] * bool(by)
    if by:
        assert f"(by {by})" in str(caught[0].message)
        assert caught[0].filename == __file__


def test_with_a_head_for_each_task():
    head = mp.Head("2", "means")
    learner = mp.Learner(between(Centred()).eval(), cross_entropy, 0.1, SOLVER, 3, head=head)
    task = mp.Task(batch(), batch())
    assert mp.evaluate(learner.problem, [task], None, SOLVER, 3).transductive_by == "1, Centred"
    assert learner.adapt(batch()).transductive_by == "1, Centred"


@pytest.mark.parametrize("size", [4, 8, 28])
@pytest.mark.parametrize("norm", NORMS)
def test_what_the_conv_net_says_of_a_picture_is_its_own_but_with_batch_norms(norm, size):
    model = conv_net(size, 1, 5, width=16, norm=norm)
    pictures = torch.rand(6, 1, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = model(pictures)
        assert together.std(0).max() > 1e-3  # pictures are told apart, where they end in one pixel too
        if norm == "batch":
            assert not torch.allclose(model(pictures[:5]), together[:5], atol=1e-3)
        else:
            torch.testing.assert_close(torch.cat([model(one[None]) for one in pictures]), together)
    assert found(model, data=(pictures, torch.arange(6) % 5)).depends is (norm == "batch")


def test_a_batch_norm_of_a_part_that_does_not_matter_is_no_company():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.BatchNorm1d(4)

        def forward(self, inputs):
            return self.used(inputs)

    assert not found(Beside()).depends
