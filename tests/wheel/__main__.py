"""The package as others get it: sdist and wheel, tried outside the checkout. ``make wheel-test``.

The sdist is built from the checkout, the wheel from the sdist, and both in a folder that is deleted at the end. On each
Python the wheel is installed with what it needs alone, and has to work: import, the Python blocks of the first pages,
the command line on the default job, and one line where a package is missing that an extra brings. On the first of the
Pythons the tests that the sdist brings are run on the installed wheel: all are collected, a fast part is run, or, with
--full, all of them.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIRST_PAGES = ("README.md", "docs/quickstart.md")
FAST = ("test_contract.py", "test_oracle.py", "test_estimators.py", "test_usage.py", "test_citation.py")
SMALL = ["--hidden", "8", "--meta-steps", "6", "--meta-batch", "2", "--eval-tasks", "4", "--test-tasks", "5"]
BLOCKS = """
import re, sys, metaprox
assert "site-packages" in metaprox.__file__, metaprox.__file__
for page in sys.argv[1:]:
    names = {"__name__": "__main__"}
    for block in re.findall(r"^```python\\n(.*?)^```", open(page, encoding="utf-8").read(), re.MULTILINE | re.DOTALL):
        exec(compile(block, page, "exec"), names)
"""


def main() -> None:
    """Build, and try on each Python; the first failure ends it with its output."""
    parser = argparse.ArgumentParser(prog="tests/wheel", description=__doc__.split("\n")[0])
    parser.add_argument("--pythons", nargs="+", default=pythons(), help="interpreters; default: those that are found")
    parser.add_argument("--full", action="store_true", help="run all tests of the sdist, not a fast part")
    parser.add_argument("--core-only", action="store_true", help="leave out the tests of the sdist")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        sdist, wheel = build(Path(place) / "dist")
        for python in asked.pythons:
            try_core(python, wheel, Path(place) / f"core {Path(python).name}")
        if not asked.core_only:
            try_tests(asked.pythons[0], sdist, wheel, Path(place) / "tests", full=asked.full)
    print("the package is as it should be")


def pythons() -> list[str]:
    """This one, and the newest of each other version from 3.11 on that is on the path or pyenv's."""
    places = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    places += sorted(Path.home().glob(".pyenv/versions/3.*/bin"), reverse=True)
    found = {sys.version_info[:2]: sys.executable}
    for place in places:
        for minor in range(11, 20):
            python = place / f"python3.{minor}"
            if (3, minor) not in found and python.is_file() and runs(python):
                found[3, minor] = str(python)
    return list(found.values())


def runs(python: Path) -> bool:
    """Whether it makes environments; pyenv's stand-ins and bare system Pythons do not."""
    return subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode == 0


def build(out: Path) -> tuple[Path, Path]:
    """The sdist of the checkout, and the wheel of the sdist."""
    say("build")
    call([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(out)], ROOT)
    (sdist,) = out.glob("*.tar.gz")
    call([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(sdist)], out)
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


def environment(python: str, place: Path, wanted: str) -> Path:
    """The scripts of a new environment with ``wanted`` in it."""
    call([python, "-m", "venv", str(place / "venv")], place.parent)
    call(
        [str(place / "venv/bin/python"), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), wanted],
        place,
    )
    return place / "venv/bin"


def try_core(python: str, wheel: Path, place: Path) -> None:
    """The wheel and what it needs alone."""
    say(f"core alone: {python}")
    scripts = environment(python, place, str(wheel))
    program, python, work = str(scripts / "metaprox"), str(scripts / "python"), place / "work"
    work.mkdir()
    print(call([program, "env"], work))
    call([python, "-c", BLOCKS, *(str(ROOT / page) for page in FIRST_PAGES)], work)
    call([program, "train", "mnist1d", "--out", "run", *SMALL], work)
    assert "query accuracy" in call([python, "-m", "metaprox", "evaluate", "run", "--count", "5"], work)
    rows = "".join(f"question {i} of {kind},{kind}\n" for kind in range(40) for i in range(20))
    (work / "questions.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    refused = call([program, "train", "text", "--data", "questions.csv", "--out", "text"], work, status=1)
    said = [line for line in refused.splitlines() if not line.startswith("starting")]
    assert len(said) == 1, refused
    assert "pip install 'metaprox[text]'" in said[0], refused


def try_tests(python: str, sdist: Path, wheel: Path, place: Path, *, full: bool) -> None:
    """The tests of the sdist, on the installed wheel."""
    say(f"the tests of the sdist: {python}")
    scripts = environment(python, place, f"{wheel}[all,dev]")
    with tarfile.open(sdist) as file:
        file.extractall(place, filter="data")
    (source,) = (path for path in place.iterdir() if path.name != "venv")
    pytest = [str(scripts / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    print(call([*pytest, "--collect-only", "tests"], source).splitlines()[-1])
    chosen = ["tests"] if full else [f"tests/{name}" for name in FAST if (source / "tests" / name).is_file()]
    print(call([*pytest, *chosen], source).splitlines()[-1])


def call(command: list[str], folder: Path, status: int = 0) -> str:
    """What a command prints, run in ``folder`` with nothing of the checkout on its path, on one thread of torch."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    if done.returncode != status:
        sys.exit(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
