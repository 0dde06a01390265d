"""What the package says of itself, and how its program starts."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def hook():
    """hatch_build.py."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_metadata_is_complete():
    assert [author["name"] for author in PROJECT["authors"]] == ["The metaprox authors"]
    assert "name: The metaprox authors" in (ROOT / "CITATION.cff").read_text()
    for minor in range(11, 15):
        assert f"Programming Language :: Python :: 3.{minor}" in PROJECT["classifiers"]
    assert PROJECT["requires-python"] == ">=3.11"
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        assert not [one for one in group if "<" in one or "==" in one]


def test_pins_are_of_everything_that_the_project_names():
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    wanted = [*PROJECT["dependencies"], *(one for group in PROJECT["optional-dependencies"].values() for one in group)]
    names = {re.split(r"[>\[]", one)[0] for one in wanted} - {"metaprox"}
    assert names <= pinned


def test_a_description_has_no_relative_links():
    standing = hook().standing
    text = (ROOT / "README.md").read_text()
    relative = re.compile(r"\]\((?!https?:|#)")
    assert len(relative.findall(text)) > 10
    assert not relative.findall(standing(text, ""))
    found = standing(text, "https://example.org/files/")
    assert not relative.findall(found)
    assert "[the method](https://example.org/files/docs/method.md)" in found
    assert "](https://example.org/files/results/accuracy/accuracy.png)" in found
    assert "the method, theory" in standing(text, "")
    assert standing("[a](https://arxiv.org/abs/1) [b](#c)", "") == "[a](https://arxiv.org/abs/1) [b](#c)"


WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tyro":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from metaprox.__main__ import main
main()
"""


def test_the_program_without_what_it_is_made_of_says_so_in_one_line():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "metaprox: error: the command line needs tyro, which comes with: pip install metaprox\n"


def test_the_program_is_what_the_metadata_starts():
    module, _, function = PROJECT["scripts"]["metaprox"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("target", ["lint", "test", "docs", "wheel-test"])
def test_the_workflow_calls_targets_that_there_are(target):
    assert f"make {target}" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
