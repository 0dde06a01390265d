"""What is mutated, and which tests may kill it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "metaprox"
CACHE = ROOT / ".mutants"  # which tests reach which lines, as long as the texts are the same

# The files whose mutants are held to REQUIRED, and then the rest of the core.
HELD = (
    *("inner/progress.py", "inner/solve.py", "inner/leap.py", "inner/trail.py", "losses/gradients.py"),
    *sorted(f"{folder}/{path.name}" for folder in ("estimators", "solvers") for path in SOURCE.glob(f"{folder}/*.py")),
)
REST = (
    *("inner/proximal.py", "losses/adapted.py", "losses/descent.py", "losses/loop.py", "losses/memory.py"),
    *("losses/passes.py", "losses/second_order.py", "losses/vmap.py"),
    *("vectors/norms.py", "vectors/parameters.py", "vectors/terms.py"),
)
REQUIRED = 0.95

# Tests of texts, trees, runs and what surrounds the core, which say nothing of its numbers or take long to say it.
LEFT_OUT = {
    *("architecture", "cache", "check", "cli", "comparison", "docs", "experiments"),
    *(
        "first_order_only",
        "layout",
        "look",
        "mutants",
        "ops",
        "optim",
        "peers",
        "speed",
        "statistics",
        "tasks",
        "text",
        "training",
        "zoo",
    ),
}
SLOWEST = 20.0  # seconds: tests that take longer are left out


def test_files() -> list[Path]:
    """The test files in use."""
    return [path for path in sorted(ROOT.glob("tests/test_*.py")) if path.stem[5:] not in LEFT_OUT]
