"""Every Python block of the README and the docs runs; every command in them is one that the program takes."""

import functools
import re
import shlex
from pathlib import Path

import pytest
import torch

from metaprox import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {"recipes.md": ("lightning", "accelerate")}
WARNINGS_OF_OTHERS = (
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",  # Lightning calls torch so
    "ignore:The '(train|val)_dataloader' does not have many workers:UserWarning",
    "ignore:The number of training batches:UserWarning",
    "ignore:We've integrated functorch:FutureWarning",  # TorchOpt calls it by its old name
)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@functools.cache
def run_blocks(page):
    """The names that the Python blocks of a page, run one after another, leave behind."""
    for package in NEEDS.get(page.name, ()):
        pytest.importorskip(package, reason=f"{page.name} is about {package}, which is not installed")
    namespace = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)
    return namespace


def test_examples_of_models_learn_and_leave_the_running_statistics_alone():
    names = run_blocks(ROOT / "docs" / "models.md")
    for losses in (names["pictures_losses"], names["waves_losses"]):
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    norm = names["conv"][1]
    assert norm.training
    assert int(norm.num_batches_tracked) == norm.running_mean.abs().max() == 0
    series = names["unseen"].query[0]
    assert (names["forecast"][:, :-1] - series[:, 1:]).square().mean() < 0.2  # the series' variance is 0.5


def test_what_each_method_computes_of_a_loss_that_is_no_gradient():
    page = ROOT / "docs" / "models.md"
    names = run_blocks(page)
    rows = {
        "gradient of F": names["true_gradient"],
        "`FOBMAML`": names["estimates"]["FOBMAML"],
        "`Tangent`, `MAML`, `IMAML`": torch.stack([names["estimates"][name] for name in ("Tangent", "MAML", "IMAML")]),
        "`FOMAML`": names["estimates"]["FOMAML"],
    }
    for label, values in rows.items():
        written = re.search(rf"^\| {re.escape(label)} \| (.*), (.*) \|$", page.read_text(), flags=re.MULTILINE)
        assert (values - torch.tensor([float(number) for number in written.groups()])).abs().max() < 1e-3, label
    assert {finding.name for finding in names["semi_verdict"].wrong} == {"field", "meta-gradient"}
    assert names["verdict"].ok


def others(test):
    """A test without the warnings that packages of others give of each other."""
    for one in WARNINGS_OF_OTHERS:
        test = pytest.mark.filterwarnings(one)(test)
    return test


def test_the_example_of_the_readme_prints_before_and_after_and_learns(capsys):
    names = run_blocks(ROOT / "README.md")
    before, after = names["before"], names["after"]
    assert after.mean > before.mean + 0.15  # 31.7 to about 56 %
    assert f"{before} before, {after} after" in capsys.readouterr().out
    assert len(names["answers"]) == 395
    assert len(blocks(ROOT / "README.md", "python")) == (ROOT / "README.md").read_text().count("```python")


def test_the_readme_is_a_page_and_a_half():
    assert len((ROOT / "README.md").read_text()) <= 6500


@others
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in ("README.md", "five_cases.md")],  # which have tests of their own
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(page)
    assert len(blocks(page, "python")) == page.read_text().count("```python")


def test_commands_are_ones_that_exist():
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.strip()]
    assert len(commands) > 5
    makefile = (ROOT / "Makefile").read_text()
    for words in commands:
        if words[0] == "torchrun":
            words = words[words.index("metaprox") :]
        if words[0] == "metaprox":
            _parse(words[1:])
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), words
        else:
            assert words[0] in {"pip", "git", "cd", "python"}, words


def _parse(words):
    """As the command line does, but for what prints help and ends."""
    if words[-1] != "--help":
        assert callable(cli.parse(words).run)
        return
    with pytest.raises(SystemExit) as caught:
        cli.parse(words)
    assert caught.value.code == 0


def test_links_to_files_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
