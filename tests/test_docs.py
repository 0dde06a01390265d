"""Every Python block of the README and the docs runs; every command in them is one that the program takes."""

import re
import shlex
from pathlib import Path

import pytest

from metaprox import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks(page, "python")
    namespace = {"__name__": "__main__"}
    for block in code:
        exec(compile(block, str(page), "exec"), namespace)
    assert len(code) == page.read_text().count("```python")


def test_commands_are_ones_that_exist():
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.strip()]
    assert len(commands) > 5
    makefile = (ROOT / "Makefile").read_text()
    for words in commands:
        if words[0] == "metaprox":
            assert isinstance(cli.parse(words[1:]), tuple(cli.COMMANDS.values()))
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), words
        else:
            assert words[0] in {"pip", "git", "cd", "python"}, words


def test_links_to_files_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
