"""The blocks of docs/five_cases.md as they stand, one after another: accuracies before and after, and seconds.

Every case leaves ``before`` and ``after``, the accuracy on test tasks of classes that it was not trained on. Seconds
are the processor's, of everything from reading the files to the predictions, on one thread.

Writes results.json and table.md. A minute of one core.
"""

import argparse
import json
import os
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from measures import processor_seconds, provenance
from metaprox.reports import show, style

PAGE = Path(__file__).parent.parent / "docs" / "five_cases.md"
PYTHON = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def blocks() -> tuple[str, dict[str, str]]:
    """What makes the data, and the block of each case by its heading."""
    first, *parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {part.partition("\n")[0]: PYTHON.search(part) for part in parts}
    return PYTHON.search(first)[1], {heading: match[1] for heading, match in found.items() if match}


def lines(block: str) -> int:
    """Those that are not empty, imports too."""
    return sum(bool(line.strip()) for line in block.splitlines())


def rows() -> list[dict[str, Any]]:
    """Of each case; in the current folder."""
    data, cases = blocks()
    names: dict[str, Any] = {}
    exec(compile(data, str(PAGE), "exec"), names)
    found = []
    for case, block in cases.items():
        code = compile(block, str(PAGE), "exec")
        seconds = processor_seconds(lambda code=code: exec(code, names))
        accuracies = {when: asdict(names.pop(when)) for when in ("before", "after")}
        found.append({"case": case, "lines": lines(block), **accuracies, "seconds": round(seconds, 1)})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    header = ["case", "lines", "before meta-training", "after", "test tasks", "seconds"]
    cells = [
        [
            row["case"],
            str(row["lines"]),
            *(show("accuracy", row[when]) for when in ("before", "after")),
            str(row["after"]["n"]),
            f"{row['seconds']:.0f}",
        ]
        for row in found
    ]
    return style.markdown(header, cells)


def main() -> None:
    """Run them, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = rows()
        os.chdir(out)
    (out / "results.json").write_text(json.dumps({**provenance(), "rows": found}, indent=1) + "\n")
    (out / "table.md").write_text(table(found))
    print((out / "table.md").read_text())


if __name__ == "__main__":
    main()
