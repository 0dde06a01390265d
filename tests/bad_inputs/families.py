"""Families of tasks, small models, texts."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

import metaprox as mp
from bad_inputs import values
from bad_inputs.rows import Float64, Row, refused, taken, within
from metaprox import text
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.tasks import BANKING77, MNIST1D, Quadratic, Sinusoid

NO_SEEDS = [-1, 1.5, "0", None, True, values.NAN, [0], torch.tensor(-1), np.float64(1.0), 2**64]
NO_IDS = [5, None, "01", 0.5, {0: 1}, torch.tensor(3), b"01"]
BAD_IDS = [[-1], [0.5], ["a"], [True], [None], [values.NAN], [[0]], torch.ones(2), np.array([0.5]), np.array([True])]
IDS = [(np.arange(2), [0, 1]), (torch.arange(2), [0, 1]), (range(2), [0, 1]), (iter([0, 1]), [0, 1])]
DATA = Path(os.environ.get("METAPROX_DATA", ".")) / "banking77"
NET = nn.Linear(3, 2)


def rows() -> list[Row]:
    return _families() + _models() + _texts()


def _families() -> list[Row]:
    found: list[Row] = []
    for family in (Sinusoid, Quadratic, MNIST1D):
        found += refused(family, "seed", NO_SEEDS) + refused(family, "split", [*values.NO_CHOICES, "dev"])
        found += taken(family, "seed", values.COUNTS)
        made = family(split="test")
        name = f"{family.__name__}().batch"
        found += refused(made.batch, "ids", NO_IDS, where=name)
        found += [
            Row(f"{name}({shown})", lambda m=made, i=i: m.batch(i), r"ids\[0\]|ids must be >= 0")
            for shown, i in named_ids()
        ]
        found += [Row(f"{name}([])", lambda m=made: m.batch([]), "ids is empty")]
        found += taken(made.batch, "ids", [(ids, plain) for ids, plain in IDS[:3]], where=name)
        found += [
            Row(
                f"{name} under {context}",
                lambda m=made, enter=enter: within(enter, lambda: m.batch([0, 1])),
                reference=lambda m=made: m.batch([0, 1]),
            )
            for context, enter in CONTEXTS.items()
        ]
    for family, names in (
        (Sinusoid, ("shots", "queries")),
        (MNIST1D, ("ways", "shots", "queries")),
        (Quadratic, ("dim",)),
    ):
        for name in names:
            found += refused(family, name, values.NO_COUNTS) + taken(family, name, values.COUNTS)
    for family in (Sinusoid, MNIST1D):
        found += refused(family, "train_shots", [value for value in values.NO_COUNTS if value is not None])
        found += taken(family, "train_shots", values.COUNTS)
        found += refused(family, "hidden", [5, None, "88", {8: 8}, 0.5, True])
    found += refused(Quadratic, "condition", [*values.NOT_POSITIVE, 0.5]) + taken(
        Quadratic, "condition", [(np.float32(2), 2.0)]
    )
    found += refused(Quadratic().problem, "lam", values.NEGATIVE, where="Quadratic().problem")
    found += [
        Row("MNIST1D(ways=11, test)", lambda: MNIST1D(ways=11, split="test"), "11-way tasks need 11 classes"),
        Row("MNIST1D(shots=100)", lambda: MNIST1D(shots=100), "100 shots and 15 queries"),
    ]
    found += refused(BANKING77, "data", [5, 0.5, b"x", ["a"], True, ""])
    found += refused(BANKING77, "encoder", [*values.NO_CHOICES, "half"], data=DATA)
    found += refused(BANKING77, "adapt", [*values.NO_CHOICES, "body"], data=DATA)
    found += refused(BANKING77, "tokens", [*values.NO_COUNTS, 2, 513], data=DATA)
    found += refused(BANKING77, "seed", NO_SEEDS, data=DATA)
    found += refused(BANKING77, "split", [*values.NO_CHOICES, "dev"], data=DATA)
    found += [Row("BANKING77(nowhere)", lambda: BANKING77("/nowhere"), "/nowhere/train.csv is missing")]
    if DATA.is_dir():
        found += [Row("BANKING77(str)", lambda: BANKING77(str(DATA)), reference=lambda: BANKING77(DATA))]
        found += [Row("BANKING77(ways=48)", lambda: BANKING77(DATA, ways=48), "48-way tasks need 48 classes")]
    return found


def named_ids():
    return [(f"{type(ids).__name__} {i}", ids) for i, ids in enumerate(BAD_IDS)]


CONTEXTS = {
    "default device meta": lambda: torch.device("meta"),
    "default dtype float64": Float64,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def _models() -> list[Row]:
    found = refused(mlp, "sizes", [5, None, "ab", [], [3], 0.5, {1: 2}, torch.tensor(3), (3,)])
    some = [[3, 0], [3, -1], [3, 1.5], [3, "1"], [3, None], [3, True], [3, values.NAN]]
    found += [Row(f"mlp({sizes})", lambda s=sizes: mlp(s), r"sizes\[1\] must be an integer >= 1") for sizes in some]
    found += refused(mlp, "seed", NO_SEEDS, sizes=[3, 1])
    found += taken(mlp, "seed", values.COUNTS, sizes=[3, 1])
    found += taken(mlp, "sizes", [(torch.tensor([3, 1]), [3, 1]), (np.array([3, 1]), [3, 1]), ((3, 1), [3, 1])])
    found += [
        Row(f"mlp under {name}", lambda enter=enter: within(enter, lambda: mlp([3, 1])), reference=lambda: mlp([3, 1]))
        for name, enter in CONTEXTS.items()
    ]
    x, labels = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    bad_labels = {
        "floats": labels.float(),
        "probabilities": torch.ones(4, 2),
        "one too few": labels[:3],
        "a column": labels[:, None],
        "a scalar": labels[0],
    }
    found += [
        Row(f"cross_entropy: {name}", lambda y=y: cross_entropy(NET, (x, y)), "labels must be integers of shape")
        for name, y in bad_labels.items()
    ]
    bad_targets = {
        "a row": torch.ones(4),
        "a scalar": torch.tensor(1.0),
        "one output": torch.ones(4, 1),
        "fewer": torch.ones(3, 2),
    }
    found += [
        Row(f"mean_squared_error: {name}", lambda y=y: mean_squared_error(NET, (x, y)), "targets have shape")
        for name, y in bad_targets.items()
    ]
    for loss in (cross_entropy, mean_squared_error):
        for batch in (x, (x,), (x, labels, x), None, {"x": x, "y": labels}, (x, [0, 0, 0, 0])):
            label = f"{loss.__name__}: a {type(batch).__name__} of {0 if batch is None else len(batch)}"
            found.append(Row(label, lambda f=loss, b=batch: f(NET, b), "a batch must be a pair"))
    return found


def _texts() -> list[Row]:
    found = refused(text.tokenize, "texts", [5, None, "one text", b"ab", {"a": 1}, 0.5])
    found += [
        Row(f"tokenize({v})", lambda v=v: text.tokenize(v), r"texts\[0\] must be a string")
        for v in ([5], [None], [b"a"], [["a"]])
    ]
    found += [Row("tokenize([])", lambda: text.tokenize([]), "texts is empty")]
    found += refused(text.tokenize, "tokens", [*values.NO_COUNTS, 2, 513], texts=["a"])
    found += refused(text.head_classifier, "ways", values.NO_COUNTS)
    found += refused(text.minilm_classifier, "ways", values.NO_COUNTS)
    found += [
        Row(f"minilm_classifier(learned={v!r})", lambda v=v: text.minilm_classifier(2, v), "unknown encoder")
        for v in values.NO_CHOICES
    ]
    no_modules = [None, "bert", 5, nn.Linear]
    found += refused(text.EncoderClassifier, "encoder", no_modules, width=3, ways=2)
    found += refused(text.EncoderClassifier, "width", values.NO_COUNTS, encoder=NET, ways=2)
    found += refused(text.with_lora, "encoder", no_modules) + refused(
        text.with_lora, "rank", values.NO_COUNTS, encoder=NET
    )
    found += refused(text.with_lora, "seed", NO_SEEDS, encoder=NET)
    found += refused(text.nearest_mean_accuracy, "encoder", no_modules, tasks=mp.Task((1, 2), (3, 4)))
    no_tasks = [
        None,
        5,
        (torch.ones(2), torch.ones(2)),
        mp.Task(torch.ones(2), torch.ones(2)),
        mp.Task((1, 2, 3), (1, 2)),
    ]
    found += refused(text.nearest_mean_accuracy, "tasks", no_tasks, encoder=NET)
    ids, mask = torch.ones(2, 4, dtype=torch.int64), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    bad = {
        "a list": [1, 2],
        "no mask": {"input_ids": ids},
        "shapes": {"input_ids": ids, "attention_mask": mask[:1]},
        "no texts": {"input_ids": ids[:0], "attention_mask": mask[:0]},
        "one text": {"input_ids": ids[0], "attention_mask": mask[0]},
    }
    for what, call in (("pooled", lambda i: text.mean_pooled(NET, i)), ("features", text.minilm_features)):
        found += [Row(f"{what}: {n}", lambda c=call, i=i: c(i), "input_ids and attention_mask") for n, i in bad.items()]
    empty = {"input_ids": ids, "attention_mask": mask}
    found += [Row("pooled: no tokens", lambda: text.mean_pooled(Embedding(), empty), "text 1 has no tokens")]
    left = {"input_ids": torch.arange(4).expand(1, 4), "attention_mask": torch.tensor([[0, 0, 1, 1]])}
    found += [
        Row(
            "pooled: padded left",
            lambda: text.mean_pooled(Embedding(), left),
            reference=lambda: torch.tensor([[2.5]]),
        )
    ]
    found += refused(
        text.minilm_features, "at_once", values.NO_COUNTS, inputs={"input_ids": ids, "attention_mask": ids}
    )
    return found


class Embedding(nn.Module):
    """The features of a token are its number."""

    def forward(self, input_ids, attention_mask):
        from types import SimpleNamespace

        return SimpleNamespace(last_hidden_state=input_ids[..., None].float())
