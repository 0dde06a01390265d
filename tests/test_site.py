"""The documentation site: every page is in it, every public name is in its API reference."""

import re
from pathlib import Path

import pytest

import metaprox as mp

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the text extra")
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = {"index.md", "changelog.md", "contributing.md"}  # by mkdocs_hooks.py, of files at the top


def entries(nav):
    """The pages that a nav lists."""
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, str):
            yield value
        else:
            yield from entries(value)


def test_every_page_is_in_the_navigation_once():
    listed = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted({str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | GENERATED)


def test_every_public_name_is_in_the_api_reference():
    described = re.findall(
        r"^::: metaprox\.(\S+)$", "".join(p.read_text() for p in DOCS.glob("api/*.md")), re.MULTILINE
    )
    assert len(described) == len(set(described))
    modules = {"distributed", "optim"}
    assert set(mp.__all__) - modules <= set(described)
    for module in modules:
        public = getattr(mp, module)
        names = getattr(public, "__all__", [name for name in vars(public) if name.endswith("SGD")])
        assert {f"{module}.{name}" for name in names} <= set(described)


def test_every_page_of_evidence_has_its_command_and_its_raw_file():
    makefile = (ROOT / "Makefile").read_text()
    for path in sorted(set(DOCS.glob("evidence/*.md")) - {DOCS / "evidence" / "index.md"}):
        text = path.read_text()
        command = re.search(r"^\| command \| (.*) \|$", text, re.MULTILINE)[1]
        for target in re.findall(r"`make ([\w-]+)`", command):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        assert "`make" in command or "`metaprox reproduce" in command
        raw = re.search(r"^\| raw results \| (.*) \|$", text, re.MULTILINE)[1]
        assert re.findall(r"\.\./\.\./results/\S+\.jsonl?\)", raw), path
        assert f"({path.name})" in (DOCS / "evidence" / "index.md").read_text()


def test_nothing_is_fetched_from_elsewhere():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings["theme"]["font"] is False
    assert all("://" not in script for script in settings["extra"]["polyfills"])
