"""The kept results: every mutant in results.json, and a table of files and survivors."""

import functools
import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mutants.campaign import Result, all_mutants
from mutants.targets import HELD, REQUIRED, REST

ALL = (*HELD, *REST)
ACCEPTED = Path(__file__).parent / "accepted.toml"


def accepted() -> dict[tuple[str, str, str, str], str]:
    """Why a survivor may live, by ``Result.key``."""
    rows = tomllib.loads(ACCEPTED.read_text()).get("survivor", [])
    return {(row["file"], row["function"], row["before"], after): row["why"] for row in rows for after in row["after"]}


def verdict(results: Sequence[Result]) -> list[str]:
    """What is wrong: survivors without a reason, and too few killed."""
    reasons, alive = accepted(), [result for result in results if not result.killed]
    wrong = [f"survived: {r.file}:{r.line} {r.before} => {r.after}" for r in alive if r.key not in reasons]
    held = [result for result in results if result.file in HELD]
    if held and share(held) < REQUIRED:
        wrong.append(f"{share(held):.1%} of the mutants of the held files are killed, less than {REQUIRED:.0%}")
    return wrong


def share(results: Sequence[Result]) -> float:
    return sum(result.killed for result in results) / max(1, len(results))


def save(results: Sequence[Result], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    results = sorted(results, key=lambda result: ALL.index(result.file))
    (out / "results.json").write_text(json.dumps([result.row() for result in results], indent=0) + "\n")
    (out / "table.md").write_text(table(results))


def load(out: Path) -> list[Result]:
    path = out / "results.json"
    return [Result(**row) for row in json.loads(path.read_text())] if path.exists() else []


@functools.cache
def _there() -> Counter[str]:
    """How many mutants each file has."""
    return Counter(mutant.file for mutant in all_mutants(ALL))


def table(results: Sequence[Result]) -> str:
    """Markdown: a row for each file that was begun with, then the survivors, with why they may."""
    reasons = accepted()
    there = _there()
    lines = ["| file | mutants | tried | killed | in time | survivors | killed, % |", "|---|---|---|---|---|---|---|"]
    files = list(dict.fromkeys(result.file for result in results))
    groups = [(file, [r for r in results if r.file == file]) for file in files]
    groups.append((f"held to {REQUIRED:.0%}", [r for r in results if r.file in HELD]))
    groups.append(("all", list(results)))
    for name, rows in groups:
        late, dead = sum(r.outcome == "timeout" for r in rows), sum(r.killed for r in rows)
        size = there.get(name) or sum(there[file] for file in (HELD if name.startswith("held") else ALL))
        counts = (size, len(rows), dead, dead - late, len(rows) - dead, f"{100 * share(rows):.1f}")
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    lines += ["", "## Survivors", ""]
    for result in results:
        if not result.killed:
            why = reasons.get(result.key, "NOT EXPLAINED")
            lines.append(f"- {result.file}, `{result.function}`: `{result.before}` -> `{result.after}`: {why}")
    return "\n".join(lines) + "\n"
