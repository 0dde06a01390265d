"""The description that a package index shows: README.md, with links that stand outside the repository too.

A link to a file of the repository leads to ``repository``, set in pyproject.toml, or, as long as that is empty, is left
out: its text stays, and of a figure its title.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[((?:\[[^]]*\]|[^]])*)\]\((?!https?:|#)([^)]+)\)")


class DescriptionHook(MetadataHookInterface):
    """Sets ``project.readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Read README.md."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        found = standing(text, self.config.get("repository", ""))
        metadata["readme"] = {"content-type": "text/markdown", "text": found}


def standing(text: str, repository: str) -> str:
    """``text``, without links that are relative."""

    def link(found: re.Match[str]) -> str:
        figure, title, place = found.groups()
        if repository:
            return f"{figure}[{title}]({repository}{place})"
        return f"*{title}*" if figure else title

    return LINK.sub(link, text)
