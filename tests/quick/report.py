"""What a campaign leaves: all numbers as JSON, and a table of checks."""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from quick.campaign import Ran, Setting


def save(ran: Iterable[Ran], waiting: Iterable[Setting], out: Path) -> None:
    """Write results.json and table.md."""
    found, left = list(ran), list(waiting)
    out.mkdir(parents=True, exist_ok=True)
    raw = {"machine": machine(), "runs": [asdict(one) for one in found], "not run": [asdict(one) for one in left]}
    (out / "results.json").write_text(json.dumps(raw, indent=1) + "\n")
    (out / "table.md").write_text(table(found, left))


def load(out: Path) -> list[Ran]:
    """What an earlier campaign left of the same machine; of another one, nothing."""
    file = out / "results.json"
    raw: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"machine": None}
    if raw["machine"] != machine():
        return []
    return [Ran(**one | {"setting": Setting(**one["setting"])}) for one in raw["runs"]]


def machine() -> dict[str, Any]:
    """What may move a result where nothing else changes."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    processor = {"processor": model or platform.processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"machine": platform.machine(), **processor, "cores": os.cpu_count(), **versions}


def table(ran: list[Ran], waiting: list[Setting]) -> str:
    """Markdown: a row for each check, over all settings; then each that failed, with its setting."""
    by_check: dict[tuple[str, str], list[tuple[Setting, dict[str, Any]]]] = {}
    for one in ran:
        for check in one.checks:
            by_check.setdefault((one.setting.experiment, check["name"]), []).append((one.setting, check))
    rows = [_row(*key, [check for _, check in found]) for key, found in sorted(by_check.items())]
    heads = "| experiment | check | settings that pass | least | most | expected |\n|---|---|---|---|---|---|"
    counts = len({one.setting for one in ran}), len(by_check), len(wrong(ran)), len(waiting)
    parts = [
        ", ".join(f"{name} {value}" for name, value in machine().items()),
        "{} runs, {} checks; failed: {}; not run: {}".format(*counts),
        "\n".join([heads, *rows]),
        "\n".join(f"- {line}" for line in wrong(ran)) or "No check failed.",
    ]
    return "\n\n".join(parts) + "\n"


def _row(experiment: str, name: str, checks: list[dict[str, Any]]) -> str:
    values = [check["value"] for check in checks]
    passed = f"{sum(check['passed'] for check in checks)} of {len(checks)}"
    expected = f"{checks[0]['low']:g} to {checks[0]['high']:g}"
    return f"| {experiment} | {name} | {passed} | {min(values):.3g} | {max(values):.3g} | {expected} |"


def wrong(ran: Iterable[Ran]) -> list[str]:
    """A line for each check that failed, and for each run without any."""
    lines = []
    for one in ran:
        if one.failure is not None:
            lines.append(f"{one.setting}: no checks: " + one.failure.replace("\n", " / "))
        lines += [
            f"{one.setting}: {check['name']}: {check['value']:.4g}, expected {check['low']:g} to {check['high']:g}"
            for check in one.checks
            if not check["passed"]
        ]
    return lines
