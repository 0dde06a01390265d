"""What the site has beside docs/: README.md as its first page, what else pages link to, and formulas as MathML.

Pages link to files of the repository by relative paths, so that they can be read there. In the site a table that is
kept becomes a page, source code a page that shows it, and figures and raw numbers are copied. Nothing is fetched.
"""

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent
FRONT = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)#\s]+)(#[^)\s]*)?(\))")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
DISPLAYED, INLINE = re.compile(r"\$\$(.+?)\$\$", re.DOTALL), re.compile(r"\$([^$\n]+)\$")
KEPT = "repository"  # the folder of the site for what lies outside docs/
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".cff": "yaml", "": "text"}
NOT_SEARCHED = "---\nsearch:\n  exclude: true\nhide: [navigation]\n---\n"


class Examples(griffe.Extension):
    """A section "Example:" of a docstring is shown as the session that it is, as "Examples:" would be."""

    def on_object(self, *, obj: griffe.Object, **more: Any) -> None:
        """Before its docstring is parsed."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the first page and what pages link to, directly or by another."""
    for uri, source in FRONT.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))
    waiting = [(source_of(page.src_uri), page.content_string) for page in files.documentation_pages()]
    while waiting:
        source, text = waiting.pop()
        for target in linked(source, text):
            uri = uri_of(target)
            if uri is None or files.get_file_from_path(uri):
                continue
            if uri.endswith(".md"):
                content = shown(target)
                files.append(File.generated(config, uri, content=content))
                waiting.append((target, content))
            else:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the site."""
    source = source_of(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(source), found[2]))
        uri = uri_of(target)
        if uri is None:
            return found[0]
        place = os.path.relpath(uri, os.path.dirname(page.file.src_uri) or ".")
        return f"{found[1]}{place}{found[3] or ''}{found[4]}"

    fences = FENCED.findall(markdown)
    rest = [LINK.sub(moved, part) for part in FENCED.split(markdown)]
    if "$$" in markdown:  # a page with formulas; elsewhere a dollar is a dollar
        rest = [INLINE.sub(r"\\(\1\\)", DISPLAYED.sub(r"\\[\1\\]", part)) for part in rest]
    return "".join(part for pair in zip(rest, [*fences, ""], strict=True) for part in pair)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas between dollar signs as MathML."""

    def drawn(found: re.Match[str]) -> str:
        block, text = found[1] == "div", html.unescape(found[2])
        try:
            formula = convert(text, display="block" if block else "inline")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: not a formula: {text}") from error
        return f'<span class="formula">{formula}</span>' if block else formula

    return FORMULA.sub(drawn, content)


def source_of(uri: str) -> str:
    """The file of the repository that a page of the site is."""
    if uri in FRONT:
        return FRONT[uri]
    if uri.startswith(f"{KEPT}/"):
        place = uri.removeprefix(f"{KEPT}/")
        return place if (ROOT / place).exists() else place.removesuffix(".md")
    return f"docs/{uri}"


def uri_of(target: str) -> str | None:
    """Where a file of the repository is in the site; None where there is none, which the strict build then reports."""
    known = {source: uri for uri, source in FRONT.items()}
    if target in known:
        return known[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    path = ROOT / target
    if path.is_dir():
        return f"{KEPT}/{target}.md"
    if not path.is_file():
        return None
    return f"{KEPT}/{target}" if path.suffix in (".md", ".png", ".json", ".jsonl", ".csv") else f"{KEPT}/{target}.md"


def linked(source: str, text: str) -> Iterator[str]:
    """The files of the repository to which a page links."""
    for found in LINK.finditer(FENCED.sub("", text)):
        yield os.path.normpath(os.path.join(os.path.dirname(source), found[2]))


def shown(target: str) -> str:
    """A page for a file or folder of the repository."""
    path = ROOT / target
    if path.is_dir():
        names = sorted(
            f"{one.name}/" if one.is_dir() else one.name for one in path.iterdir() if one.name[0] not in "._"
        )
        return f"{NOT_SEARCHED}# {target}\n\n" + "\n".join(f"- `{name}`" for name in names)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return f"{NOT_SEARCHED}# {target}\n\n{text}"
    return f"{NOT_SEARCHED}# {target}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"
