"""Learners and adapted models: what they compute, what they leave alone, and what is read and refused on disk."""

import contextlib
import copy
import json
import os
import pickle
import stat
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import metaprox as mp
from metaprox.data.examples import Examples
from metaprox.data.preprocessing import Preprocessing, register
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.serving import Blueprint

SOLVER = mp.GradientDescent(0.3)


@register("numbers of words")
@dataclass(frozen=True)
class Words(Preprocessing):
    """A vector of 4 numbers of a string."""

    scale: float = 1.0

    def __call__(self, items):
        if odd := [item for item in items if not isinstance(item, str)]:
            raise mp.InputError(f"{odd[0]!r} is no text")
        return self.scale * torch.tensor([[len(s), s.count("a"), s.count("e"), 1.0] for s in items])


def data(classes=3, shots=3, seed=0):
    source = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, 4, generator=source)
    inputs = (centres + 0.3 * torch.randn(classes, shots, 4, generator=source)).flatten(0, 1)
    return inputs, torch.arange(classes).repeat_interleave(shots)


def learner_of(**changes):
    given = {"blueprint": Blueprint("mlp", {"sizes": [4, 8, 3], "seed": 1}), "head": mp.Head("2", "means")} | changes
    return mp.Learner(mlp([4, 8, 3], seed=1), cross_entropy, 0.1, SOLVER, 15, **given)


def state(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def odd_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.0), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("head", [None, mp.Head("2"), mp.Head("2", "means")])
def test_predictions_are_those_that_evaluation_judges(head):
    learner, (inputs, labels), queries = learner_of(head=head), data(), data(seed=0, shots=5)
    adapted = learner.adapt((inputs, labels))
    found = adapted.predict(queries[0])
    judged = mp.evaluate(learner.problem, [mp.Task((inputs, labels), queries)], None, SOLVER, 15)
    loss = nn.functional.cross_entropy(found.outputs, queries[1])
    assert torch.allclose(judged.values["loss"][0], loss, rtol=1e-6)
    assert judged.metrics["accuracy"].mean == pytest.approx(float((found.indices == queries[1]).double().mean()))
    y = mp.adapt(learner.problem, (inputs, labels), SOLVER, 15)
    assert same(y, {name: value for name, value in adapted.module().named_parameters() if name in y})
    assert torch.equal(adapted.module()(queries[0]), found.outputs)


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_batch_statistics_are_those_of_evaluation_and_nothing_is_written(training):
    model = odd_model().train(training)
    before, modes = copy.deepcopy(state(model)), [module.training for module in model.modules()]
    learner = mp.Learner(model, cross_entropy, 0.1, SOLVER, 5)
    support, query = data(), data(shots=6)
    adapted = learner.adapt(support)
    with pytest.warns(mp.TransductiveWarning) if training else contextlib.nullcontext():
        found = adapted.predict(query[0])
    judged = mp.evaluate(learner.problem, [mp.Task(support, query)], None, SOLVER, 5)
    assert torch.allclose(judged.values["loss"][0], nn.functional.cross_entropy(found.outputs, query[1]), rtol=1e-6)
    assert same(before, state(model))
    assert modes == [module.training for module in model.modules()] == [m.training for m in adapted.module().modules()]
    assert adapted.transductive is judged.transductive is training
    assert torch.equal(found.outputs, adapted.predict(query[0]).outputs)  # running statistics did not move
    if not training:
        assert torch.allclose(found.outputs[:1], adapted.predict(query[0][:1]).outputs, atol=1e-6)


def test_a_module_is_a_copy_of_its_own():
    adapted = learner_of().adapt(data())
    inputs, module = data()[0], adapted.module()
    before = adapted.predict(inputs).outputs
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(before, adapted.predict(inputs).outputs)
    assert isinstance(module[2], nn.Linear)
    assert module[2].out_features == 3
    module(inputs).sum().backward()
    assert module[0].weight.grad is not None


def test_later_training_of_the_model_does_not_change_what_was_adapted():
    learner = learner_of()
    adapted, inputs = learner.adapt(data()), data()[0]
    before = adapted.predict(inputs).outputs
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(1.0)
    assert torch.equal(before, adapted.predict(inputs).outputs)


def test_residual_and_steps_are_those_of_the_solve():
    learner, support = learner_of(head=None), data()
    adapted = learner.adapt(support)
    x, y = dict(learner.model.named_parameters()), dict(adapted.module().named_parameters())
    loss = cross_entropy(module := adapted.module(), support)[0]
    grads = torch.autograd.grad(loss, list(module.parameters()))
    residual = torch.cat([(g + 0.1 * (y[name] - x[name])).flatten() for name, g in zip(y, grads, strict=True)]).norm()
    assert adapted.residual == pytest.approx(float(residual.detach()), rel=1e-4)
    assert (adapted.steps, adapted.converged) == (15, True)
    tight = mp.Learner(learner.model, cross_entropy, 0.1, SOLVER, tol=1e-4, max_steps=3).adapt(support)
    assert (tight.steps, tight.converged) == (3, False)
    loose = mp.Learner(learner.model, cross_entropy, 0.1, SOLVER, tol=0.3, max_steps=500).adapt(support)
    assert loose.converged
    assert loose.residual <= 0.3


def test_any_number_of_classes_by_name():
    learner = learner_of()
    for count in (1, 2, 7, 150):
        inputs, labels = data(count)
        names = [f"класс {i} \N{SNOWMAN}" for i in range(count)]
        adapted = learner.adapt((inputs, [names[i] for i in labels]))
        assert adapted.names == tuple(sorted(names))
        found = adapted.predict(inputs)
        assert found.probabilities.shape == (len(inputs), count)
        assert torch.allclose(found.probabilities.sum(1), torch.ones(len(inputs)))
        assert found.labels == tuple(adapted.names[i] for i in found.indices)
        if count == 7:
            assert sum(a == names[i] for a, i in zip(found.labels, labels, strict=True)) > 10  # of 21, by chance 3


def test_labels_by_number_by_name_and_by_examples_are_the_same_task():
    learner, (inputs, labels) = learner_of(), data()
    names = ("b", "a", "c")
    outputs = learner.adapt((inputs, labels), names=names).predict(inputs)
    by_name = learner.adapt((inputs, [names[i] for i in labels]), names=names).predict(inputs)
    examples = Examples("here", inputs, labels, names)
    assert torch.equal(outputs.outputs, by_name.outputs)
    assert outputs.labels == by_name.labels == learner.adapt(examples).predict(inputs).labels
    assert learner.adapt((inputs, labels)).names == ("0", "1", "2")
    assert learner.adapt((inputs, labels.tolist())).names == ("0", "1", "2")


def test_a_support_is_put_in_the_order_of_the_classes_that_the_model_answers_with(tmp_path):
    """Its own outputs stand for classes: a support that names them in another order, or not all, is the same task."""
    learner, (inputs, labels) = learner_of(head=None, names=("b", "a", "c")), data()
    names = [learner.names[i] for i in labels]
    by_number = learner.adapt((inputs, labels))
    others = [
        learner.adapt((inputs, names)),
        learner.adapt((inputs, names), names=("c", "b", "a")),
        learner.adapt((inputs, torch.tensor([2, 1, 0])[labels]), names=("c", "a", "b")),
        learner.adapt(Examples("here", inputs, torch.tensor([2, 1, 0])[labels], ("c", "a", "b"))),
        mp.Learner.load(learner.save(tmp_path / "kept")).adapt((inputs, names)),
    ]
    for other in (by_number, *others):
        assert other.names == ("b", "a", "c")
        assert torch.equal(other.predict(inputs).outputs, by_number.predict(inputs).outputs)
    few = learner.adapt((inputs[:6], names[:6]))  # of two of its classes
    assert few.names == ("b", "a", "c")
    with pytest.raises(mp.InputError, match=r"the class 'd', and the model answers with 'b', 'a', 'c' alone"):
        learner.adapt(Examples("here", inputs, labels, ("a", "b", "d")))
    with pytest.raises(mp.InputError, match="names are of the model's own outputs, but head is made"):
        learner_of(names=("a", "b", "c"))
    of = mp.Learner.of(learner.problem, mp.FOBMAML(SOLVER, 15), names=learner.names)
    assert torch.equal(of.adapt((inputs, names)).predict(inputs).outputs, by_number.predict(inputs).outputs)


def test_regression_gives_numbers():
    learner = mp.Learner(mlp([1, 8, 1]), mean_squared_error, 0.1, SOLVER, 20)
    inputs = torch.linspace(-1, 1, 8)[:, None]
    adapted = learner.adapt((inputs, 2 * inputs))
    found = adapted.predict(torch.tensor([[0.5]]))
    assert found.outputs.shape == (1, 1)
    assert adapted.names == ()
    for part in ("probabilities", "labels", "indices"):
        with pytest.raises(mp.InputError, match="no classes"):
            getattr(found, part)
    whole = mp.Learner(mlp([1, 8, 1]), lambda m, b: (m(b[0])[:, 0] - b[1]).square().mean(), 0.1, SOLVER, 2)
    assert whole.adapt((inputs, torch.arange(8)), names=()).names == ()


def test_a_preprocessing_makes_inputs_of_items_and_is_kept(tmp_path):
    learner = learner_of(preprocessing=Words(0.1))
    adapted = learner.adapt((["aaa", "eee eee", "xyz zyx yzx zzz"], ["A", "E", "other"]))
    adapted.save(tmp_path / "a")
    again = mp.load(tmp_path / "a")
    assert again.preprocessing == Words(0.1)
    assert torch.equal(again.predict(["aa"]).outputs, adapted.predict(["aa"]).outputs)
    with pytest.raises(mp.InputError, match="3 is no text"):
        adapted.predict([3])


@pytest.mark.parametrize("head", [None, mp.Head("2"), mp.Head("2", "means")])
def test_round_trips_are_the_same_to_the_last_bit(tmp_path, head):
    learner, inputs = learner_of(head=head, adapts=None if head is None else ("0.*",)), data(seed=1)[0]
    with torch.no_grad():
        learner.model[0].weight.mul_(1.37)
    adapted = learner.adapt(data())
    learner.save(tmp_path / "learner")
    adapted.save(tmp_path / "deep" / "adapted")
    there, found = mp.load(tmp_path / "learner"), mp.load(tmp_path / "deep" / "adapted")
    assert same(state(there.model), state(learner.model))
    assert same(state(found.module()), state(adapted.module()))
    assert torch.equal(found.predict(inputs).outputs, adapted.predict(inputs).outputs)
    again = there.adapt(data())
    assert torch.equal(again.predict(inputs).outputs, adapted.predict(inputs).outputs)
    for name in ("names", "residual", "converged", "steps", "transductive", "head", "blueprint"):
        assert getattr(found, name) == getattr(adapted, name) == getattr(again, name), name
    there.save(tmp_path / "again")
    for file in ("learner.json", "weights.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "learner" / file).read_bytes()


def test_a_model_of_ones_own_is_given_and_stays_as_it_is(tmp_path):
    model = odd_model()
    model[0].bias.requires_grad_(False)
    model(torch.randn(5, 4))  # moves the running statistics
    model.eval()
    learner = mp.Learner(model, cross_entropy, 0.1, mp.Nesterov(0.2), tol=1e-2, max_steps=7)
    learner.save(tmp_path / "l")
    adapted = learner.adapt(data())
    adapted.save(tmp_path / "a")
    for load, folder in ((mp.Learner.load, "l"), (mp.Adapted.load, "a"), (mp.load, "l"), (mp.load, "a")):
        with pytest.raises(mp.InputError, match=r"model of your own.*model=\.\.\."):
            load(tmp_path / folder)
    fresh = odd_model()
    with torch.no_grad():
        fresh[0].weight.zero_()
    before = copy.deepcopy(state(fresh))
    there, found = mp.Learner.load(tmp_path / "l", fresh), mp.Adapted.load(tmp_path / "a", fresh)
    assert same(before, state(fresh))
    assert fresh.training
    assert not there.model.training
    assert not there.model[0].bias.requires_grad
    assert there.solver == mp.Nesterov(0.2)
    assert torch.equal(there.adapt(data()).predict(data()[0]).outputs, adapted.predict(data()[0]).outputs)
    assert torch.equal(found.predict(data()[0]).outputs, adapted.predict(data()[0]).outputs)
    with pytest.raises(
        mp.RunFolderError, match=r"does not fit the model: 0.bias: model .5,. float32, file .6,. float32, 0.weight"
    ):
        mp.Adapted.load(tmp_path / "a", nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)))


def test_what_was_frozen_is_kept_and_frozen_again(tmp_path):
    learner = learner_of()
    learner.model[0].weight.requires_grad_(False)
    learner.save(tmp_path / "l")
    assert "0.weight" in load_file(tmp_path / "l" / "weights.safetensors")  # the blueprint would learn it
    there = mp.load(tmp_path / "l")
    assert [p.requires_grad for p in there.model.parameters()] == [False, True, True, True]
    learner.adapt(data()).save(tmp_path / "a")
    assert [p.requires_grad for p in mp.load(tmp_path / "a").module().parameters()] == [False, True, True, True]


def test_a_loss_of_ones_own_is_given(tmp_path):
    own = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]) * 2  # noqa: E731
    learner = mp.Learner(mlp([4, 8, 3], seed=1), own, 0.1, SOLVER, 4, blueprint=learner_of().blueprint)
    learner.save(tmp_path / "l")
    with pytest.raises(mp.InputError, match=r"loss=\.\.\."):
        mp.load(tmp_path / "l")
    there = mp.Learner.load(tmp_path / "l", loss=own)
    assert torch.equal(there.adapt(data()).predict(data()[0]).outputs, learner.adapt(data()).predict(data()[0]).outputs)


KEPT_NOT = {
    "a solver of torch": (
        lambda: mp.Learner(mlp([4, 3]), cross_entropy, 0.1, mp.TorchOptimizer(torch.optim.SGD), 3),
        "TorchOptimizer.* can't be kept: these can: Adam",
    ),
    "a function": (lambda: learner_of(preprocessing=lambda items: items), "preprocessing .* can't be kept"),
}


class Counted(nn.Linear):
    def get_extra_state(self):
        return 3


KEPT_NOT |= {
    "another blueprint": (
        lambda: learner_of(blueprint=Blueprint("mlp", {"sizes": [4, 9, 3]})),
        r"makes another model: 0.bias is \(9,\) there, \(8,\) here",
    ),
    "state that is no tensor": (
        lambda: mp.Learner(nn.Sequential(Counted(4, 3)), cross_entropy, 0.1, SOLVER, 3),
        "'0' has state of its own",
    ),
}


@pytest.mark.parametrize("name", KEPT_NOT)
def test_what_can_not_be_kept_is_refused_before_a_folder_is_made(tmp_path, name):
    what, message = KEPT_NOT[name]
    with pytest.raises(mp.InputError, match=message):
        what().save(tmp_path / "l")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_modes_that_the_umask_says(tmp_path, mask):
    old = os.umask(mask)
    try:
        learner_of().save(tmp_path / "l")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "l").stat().st_mode) == 0o777 & ~mask
    for file in (tmp_path / "l").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [tmp_path / "l"]


def test_folders_that_hold_something_or_can_not_be_written_are_refused(tmp_path, monkeypatch):
    learner = learner_of()
    (tmp_path / "empty").mkdir()
    learner.save(tmp_path / "empty")
    before = (tmp_path / "empty" / "weights.safetensors").read_bytes()
    with pytest.raises(mp.RunFolderError, match="exists and is not an empty folder"):
        learner.save(tmp_path / "empty")
    assert (tmp_path / "empty" / "weights.safetensors").read_bytes() == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(mp.RunFolderError, match="exists"):
        learner.save(tmp_path / "file")
    with pytest.raises(mp.RunFolderError, match="can't be written"):
        learner.save(tmp_path / "file" / "below")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(mp.RunFolderError, match="No space left"):
        learner.save(tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]  # nothing in part


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(mp.RunFolderError, match="Permission denied"):
            learner_of().save(tmp_path / "l")
    finally:
        tmp_path.chmod(0o755)


@pytest.fixture
def saved(tmp_path):
    adapted = learner_of().adapt(data(), names=("a", "b", "c"))
    return adapted.save(tmp_path / "a")


def without_checksums(folder):
    """As whoever makes a hostile folder might leave it."""
    for path in folder.glob("*.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps({key: one for key, one in values.items() if not key.endswith("sha256")}))
    return folder


def changed(folder, **changes):
    path = folder / "adapted.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}, default=str))


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil",))


def weights(folder, change):
    tensors = load_file(folder / "weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")


HOSTILE = {
    "other shapes": (
        lambda f: weights(f, lambda t: t.update({"0.weight": torch.ones(9, 4)})),
        "0.weight: model .8, 4.",
    ),
    "another dtype": (lambda f: weights(f, lambda t: t.update({"0.bias": torch.ones(8).double()})), "float64"),
    "a name more": (lambda f: weights(f, lambda t: t.update({"x": torch.ones(1)})), "x: model none"),
    "a name less": (lambda f: weights(f, lambda t: t.pop("0.bias")), "0.bias: .*file none"),
    "not finite": (lambda f: weights(f, lambda t: t["0.bias"].fill_(torch.nan)), "non-finite values in 0.bias"),
    "a pickle": (
        lambda f: (f / "weights.safetensors").write_bytes(pickle.dumps(Evil())),
        "corrupt or not a safetensors",
    ),
    "empty weights": (lambda f: (f / "weights.safetensors").write_bytes(b""), "corrupt"),
    "a huge header": (
        lambda f: (f / "weights.safetensors").write_bytes(b"\xff" * 8 + b"{}"),
        "corrupt or not a safetensors file",
    ),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "is missing; .*pickles"),
    "deep JSON": (lambda f: (f / "adapted.json").write_text("[" * 100_000), "can't be read"),
    "no JSON": (lambda f: (f / "adapted.json").write_bytes(b"\x80\x04K."), "can't be read"),
    "a list": (lambda f: (f / "adapted.json").write_text("[]"), "not that of a saved adapted"),
    "another kind": (lambda f: changed(f, kind="learner"), "not that of a saved adapted"),
    "a newer version": (lambda f: changed(f, version=2), "version 2; this metaprox reads 1"),
    "a huge file": (lambda f: (f / "adapted.json").write_text(" " * (2**24 + 1)), "larger than 16 MiB"),
    "a name that is unknown": (lambda f: changed(f, surprise=1), "surprise"),
    "a name that is missing": (lambda f: changed(f, names=...), "'names'"),
    "names that are numbers": (lambda f: changed(f, names=[1, 2, 3]), r"names\[0\] must be a string"),
    "names twice": (lambda f: changed(f, names=["a", "a", "b"]), "'a' twice"),
    "names that are too many": (lambda f: changed(f, names=list("abcd")), r"2.weight: model \(4, 8\)"),
    "what is not frozen left out": (
        lambda f: (changed(f, built=["0.bias"]), weights(f, lambda t: t.pop("0.bias"))),
        "'0.bias' is no frozen parameter",
    ),
    "a frozen name that is none": (lambda f: changed(f, frozen=["x"]), "no parameter 'x'"),
    "another head": (lambda f: changed(f, head="7"), "no such layer"),
    "a head that is no path": (lambda f: changed(f, head=["2"]), "must be a string"),
    "modules that are not there": (lambda f: changed(f, training=["9"]), "no module '9'"),
    "a residual that is none": (lambda f: changed(f, residual="0"), "residual must be a finite number"),
    "steps below 0": (lambda f: changed(f, steps=-1), "steps must be an integer >= 0"),
    "a builder of its own": (lambda f: changed(f, model={"builder": "os:system", "arguments": {}}), "unknown builder"),
    "arguments of its own": (
        lambda f: changed(f, model={"builder": "mlp", "arguments": {"sizes": {"a": 1}}}),
        "must be a number, a word, or a list",
    ),
    "arguments that are unknown": (
        lambda f: changed(f, model={"builder": "mlp", "arguments": {"sizes": [4, 8, 3], "file": "x"}}),
        "mlp makes no model",
    ),
    "a model that fills the memory": (
        lambda f: changed(f, model={"builder": "mlp", "arguments": {"sizes": [100_000, 100_000, 3]}}),
        "larger than the weights",
    ),
    "a last layer that fills the memory": (
        lambda f: changed(f, model={"builder": "mlp", "arguments": {"sizes": [4, 8, 10**10]}}),
        "larger than the weights",
    ),
    "a preprocessing that is unknown": (lambda f: changed(f, preprocessing={"name": "os"}), "unknown preprocessing"),
    "a preprocessing of other settings": (
        lambda f: changed(f, preprocessing={"name": "numbers of words", "x": 1}),
        "no setting x",
    ),
    "a source that is no words": (lambda f: changed(f, source={"family": 3}), "must be a string"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_files_are_refused_and_run_nothing(saved, name, monkeypatch):
    monkeypatch.chdir(saved)
    what, message = HOSTILE[name]
    what(without_checksums(saved))
    with pytest.raises(mp.RunFolderError, match=message):
        mp.load(saved)
    assert not (saved / "evil").exists()


def test_a_learner_of_hostile_settings_is_refused(tmp_path):
    for index, (changes, message) in enumerate(
        [
            ({"lam": -1}, "lam must be"),
            ({"lam": float("nan")}, "lam must be"),
            ({"solver": {"class": "TorchOptimizer", "factory": "os.system"}}, "unknown solver"),
            ({"solver": {"class": "GradientDescent", "lr": 0.1, "x": 1}}, "no setting x"),
            ({"solver": 3}, "not what was saved"),
            ({"loss": {"name": "builtins:exec"}}, "unknown loss"),
            ({"steps": 10**30}, "steps"),
            ({"head": {"module": "2", "start": "evil"}}, "unknown start"),
            ({"adapts": "nothing.*"}, None),
        ]
    ):
        folder = without_checksums(learner_of().save(tmp_path / str(index)))
        values = json.loads((folder / "learner.json").read_text())
        (folder / "learner.json").write_text(json.dumps(values | changes))
        if message is None:
            with pytest.raises(mp.InputError, match="fits no parameter"):
                mp.load(folder).adapt(data())
        else:
            with pytest.raises(mp.RunFolderError, match=message):
                mp.load(folder)


def test_a_folder_that_holds_nothing_of_metaprox_is_said_to(tmp_path):
    with pytest.raises(mp.RunFolderError, match="no run, no saved learner and no adapted model"):
        mp.load(tmp_path)
    with pytest.raises(mp.InputError, match="must be a path"):
        mp.load(3)


REFUSED = {
    "a label that is none of the names": (
        lambda: learner_of().adapt((data()[0], list("aaabbbccx")), names=list("abc")),
        "label 'x' is none of the names: 'a', 'b', 'c'",
    ),
    "names that are not used": (lambda: learner_of().adapt(data(), names=list("abcd")), "no example of 'd'"),
    "a number beyond the names": (lambda: learner_of().adapt(data(), names=list("ab")), "the label 2, of 2 classes"),
    "a class without an example": (
        lambda: learner_of().adapt((torch.ones(2, 4), torch.tensor([0, 2**40]))),
        "label 1099511627776",
    ),
    "a number below 0": (lambda: learner_of().adapt((torch.ones(2, 4), torch.tensor([0, -1]))), "label -1"),
    "no examples": (lambda: learner_of().adapt((torch.ones(0, 4), torch.tensor([], dtype=torch.int64))), "no examples"),
    "names that are the same": (lambda: learner_of().adapt(data(), names=list("aab")), "'a' twice"),
    "other numbers of inputs": (lambda: learner_of().adapt((torch.ones(4, 4), [0, 1, 2])), "4 examples and 3 labels"),
    "no labels": (lambda: learner_of().adapt(torch.ones(4, 4)), r"must be \(items, labels\)"),
    "numbers for classes": (lambda: learner_of().adapt((torch.ones(4, 4), torch.rand(4))), "needs labels of classes"),
    "names of numbers": (
        lambda: learner_of(head=None).adapt((torch.ones(4, 4), torch.rand(4)), names=["a"]),
        "names are of classes",
    ),
    "labels of all kinds": (lambda: learner_of().adapt((torch.ones(2, 4), ["a", 3])), r"labels\[1\] must be a string"),
    "fewer classes than outputs": (
        lambda: learner_of(head=None).adapt(data(2)),
        "2 classes, and the model 3 outputs.*head=mp.Head",
    ),
    "inputs that are too wide": (
        lambda: learner_of().adapt(data()).predict(torch.ones(2, 5)),
        r"can't take inputs of a torch.float32 tensor of shape \(2, 5\)",
    ),
    "one example without a batch": (
        lambda: learner_of().adapt(data()).predict(torch.ones(4)),
        r"shape \(4,\) the model gives .*inputs\[None\]",
    ),
    "no tensors": (lambda: learner_of().adapt(data()).predict("text"), "can't take inputs of a str"),
    "a lam that is too large": (
        lambda: mp.Learner(mlp([4, 3]), cross_entropy, 100.0, SOLVER, 3),
        "lam",
    ),
    "no steps": (lambda: mp.Learner(mlp([4, 3]), cross_entropy, 0.1, SOLVER), "say when the inner solve ends"),
    "no model": (lambda: mp.Learner(None, cross_entropy, 0.1, SOLVER, 3), "model must be a torch.nn.Module"),
    "no solver": (lambda: mp.Learner(mlp([4, 3]), cross_entropy, 0.1, 0.1, 3), "solver"),
    "no function": (lambda: learner_of(preprocessing=3), "preprocessing must be a function"),
    "a builder that is unknown": (lambda: Blueprint("eval"), "unknown builder 'eval'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_is_refused_by_name(name):
    what, message = REFUSED[name]
    with pytest.raises(mp.InputError, match=message):
        what()


def test_no_class_is_named_where_the_model_gives_nan():
    learner = mp.Learner(mlp([2, 3]), cross_entropy, lam=1.0, solver=mp.GradientDescent(0.1), steps=1)
    adapted = learner.adapt((torch.eye(2), [0, 1]), names=("a", "b", "c"))
    with pytest.raises(mp.InputError, match="example 1: the model gives NaN"):
        adapted.predict(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]))


def test_predict_takes_one_example_and_any_number():
    adapted, inputs = learner_of().adapt(data()), data(shots=4)[0]
    whole = adapted.predict(inputs)
    one_by_one = torch.cat([adapted.predict(inputs[i : i + 1]).outputs for i in range(len(inputs))])
    assert torch.allclose(whole.outputs, one_by_one, atol=1e-6)
    assert len(adapted.predict(inputs[:0])) == 0


def test_weights_that_a_forward_pass_writes_on_are_left_alone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4, max_norm=0.5), nn.Linear(4, 2)

        def forward(self, words):
            return self.head(self.embedding(words).mean(1))

    learner = mp.Learner(Counting(), cross_entropy, 0.1, SOLVER, 3)
    support = torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1])
    before = copy.deepcopy(state(learner.model))
    adapted = learner.adapt(support)
    first, again = (adapted.predict(support[0]).outputs for _ in range(2))
    assert torch.equal(first, again)
    assert same(before, state(learner.model))


def test_importing_metaprox_loads_no_other_package_and_saving_is_lazy():
    code = "import sys, metaprox as mp\nmp.Learner, mp.Adapted, mp.load\n"
    code += "print(sorted({'safetensors', 'transformers', 'metaprox.models', 'metaprox.training'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "d")])
def test_names_that_are_not_as_many_as_outputs_are_refused_as_the_learners(names):
    learner = mp.Learner(mlp([2, 3]), cross_entropy, lam=0.1, solver=mp.GradientDescent(0.5), steps=1, names=names)
    with pytest.raises(mp.InputError, match=rf"the learner has {len(names)} names, and its model 3 outputs"):
        learner.adapt((torch.zeros(2, 2), ["a", "b"]))
