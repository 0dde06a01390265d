"""What a check found, in words and numbers."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from metaprox.errors import MetaproxError

Verdict = Literal["ok", "note", "wrong"]
WIDTH, NOT_CHECKED = 110, "not checked: "


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    verdict: "ok"; "note": to be known, and no mistake by itself; "wrong": what is computed is not what is wanted.
    text: what was found, what it means, and the remedy. numbers: what it rests on, of the worst task.
    """

    name: str
    verdict: Verdict
    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def not_checked(cls, name: str, why: str, numbers: Mapping[str, float] | None = None) -> "Finding":
        return cls(name, "note", f"{NOT_CHECKED}{why}", numbers or {})


@dataclass(frozen=True)
class Check:
    """The findings on a problem and its tasks, of which there were ``tasks``. ``print`` shows them."""

    findings: tuple[Finding, ...]
    tasks: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong

    @property
    def wrong(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "wrong")

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name. Raises KeyError, listing the names there are."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"{name!r}; there are {', '.join(finding.name for finding in self.findings)}")

    def raise_if_wrong(self) -> None:
        """Raise MetaproxError, with what is wrong, unless ``ok``."""
        if not self.ok:
            raise MetaproxError("\n".join(f"{finding.name}: {finding.text}" for finding in self.wrong))

    def __str__(self) -> str:
        seen = [finding for finding in self.findings if not finding.text.startswith(NOT_CHECKED)]
        unseen: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding not in seen:
                unseen.setdefault(finding.text.removeprefix(NOT_CHECKED), []).append(finding.name)
        notes = sum(finding.verdict == "note" for finding in seen)
        tasks = f"{self.tasks} task{'s' * (self.tasks != 1)}"
        lines = [f"Check on {tasks}: {len(self.wrong) or 'nothing'} wrong, {notes or 'no'} note{'s' * (notes != 1)}."]
        column = max(len(finding.name) for finding in self.findings) + 2
        for finding in seen:
            label = "WRONG" if finding.verdict == "wrong" else finding.verdict
            lines.append(_filled(f"{label:7}{finding.name:{column}}", finding.text))
        lines += [_filled("not checked: ", f"{', '.join(names)}; {why}") for why, names in unseen.items()]
        return "\n".join(lines)


def _filled(start: str, text: str) -> str:
    """``text`` in lines, all as far in as ``start`` is long."""
    return textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)


def percent(share: float) -> str:
    """A share for people: "0.0016%", "36%", "120%"."""
    if abs(share) < 0.995:
        return f"{100 * share:.2g}%"
    return f"{100 * share:.0f}%" if abs(share) < 10 else "more than 1000%"
