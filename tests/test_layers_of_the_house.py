"""Who may import whom, and how large things may be.

The ground floor needs jax and optax only, and nothing imports upwards.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "samon_jax"
GROUND_PACKAGES = {"methods", "_passes"}
GROUND_FLOOR = sorted(
    [*PACKAGE.glob("*.py"), *(p for name in GROUND_PACKAGES for p in (PACKAGE / name).glob("*.py"))]
)
GROUND_NAMES = {path.stem for path in PACKAGE.glob("*.py")} | GROUND_PACKAGES
UPPER_FLOOR = sorted({path.parent.name for path in PACKAGE.glob("*/*.py")} - GROUND_PACKAGES)

# What each package of the upper floor may import from the others; all may use the ground floor.
ALLOWED: dict[str, set[str]] = {"models": set(), "data": set(), "drawing": set()}
ALLOWED["tasks"] = {"models", "data", "drawing"}
ALLOWED["workdir"] = set()
ALLOWED["processes"] = {"data"}  # its cache folder, where compiled programs lie
ALLOWED["training"] = set(ALLOWED)
ALLOWED["analysis"] = set(ALLOWED)
ALLOWED["paper"] = set(ALLOWED)


def imports(path):
    """Full names of all modules that a file imports, at any depth, names of `from` included."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def python_files():
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "configs").rglob("*.py")]
    return sorted(files + [path for path in [ROOT / "main.py"] if path.exists()])


def test_there_is_something_to_check():
    assert {"labels", "masks", "perturbation", "optimizer", "methods", "_passes"} <= GROUND_NAMES
    assert {"sam.py", "prefix.py", "esam.py", "labels.py"} <= {path.name for path in GROUND_FLOOR}
    assert {"models", "data"} <= set(UPPER_FLOOR) <= set(ALLOWED)
    assert any(name == "samon_jax.labels.label_params" for name in imports(PACKAGE / "__init__.py"))


@pytest.mark.parametrize("path", GROUND_FLOOR, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_ground_floor_imports_jax_optax_numpy_and_the_standard_library(path):
    allowed = {"jax", "optax", "numpy", *sys.stdlib_module_names}
    for name in imports(path):
        if name.partition(".")[0] == "samon_jax":
            assert name == "samon_jax" or name.split(".")[1] in GROUND_NAMES, name
        else:
            assert name.partition(".")[0] in allowed, name


@pytest.mark.parametrize("package", UPPER_FLOOR)
def test_upper_floor_does_not_import_upwards(package):
    for path in (PACKAGE / package).rglob("*.py"):
        for name in imports(path):
            if name.startswith("samon_jax."):
                target = name.split(".")[1]
                if target in UPPER_FLOOR and target != package:
                    assert target in ALLOWED[package], f"{path.name} imports {name}"


def test_tensorflow_is_never_imported():
    """TFDS is named tensorflow_datasets; it reads without TensorFlow."""
    for path in python_files():
        for name in imports(path):
            assert name.partition(".")[0] not in ("tensorflow", "tf", "keras"), f"{path}: {name}"


def test_ground_floor_works_where_nothing_else_is_installed():
    """A fresh interpreter in which everything but jax and optax refuses to be imported."""
    program = """
import sys

BLOCKED = {"flax", "orbax", "haiku", "equinox", "tensorflow", "tensorflow_datasets", "chex",
           "ml_collections", "matplotlib", "sklearn", "tensorboardX", "tqdm", "array_record"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED - allowed:
            raise ImportError(f"{name} is blocked")

allowed = set()
sys.meta_path.insert(0, Refuse())
try:
    import optax
except ImportError:  # what optax itself needs
    allowed = {"chex"}
    import optax
import jax
import jax.numpy as jnp
import samon_jax as samon

params = {"dense": {"kernel": jnp.ones((3, 2))}, "norm": {"scale": jnp.ones(2)}}
ascent = samon.perturbation(0.1, mask=samon.only_norm)
loss_fn = lambda params: jnp.sum((params["dense"]["kernel"] * params["norm"]["scale"]) ** 2)
samon.value_and_grad(loss_fn, ascent)(params, ascent.init(params))
try:
    samon.label_module(object())
except samon.UserError:
    pass
print("loaded", *sorted(BLOCKED & set(sys.modules) - allowed))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["loaded"]


def lines_of_code(path):
    """Numbers of the lines of a file that are no blank line, comment or docstring; and its tree."""
    text = path.read_text()
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    return {i for i, line in lines if line and not line.startswith("#")} - prose, tree


def test_files_and_functions_are_small():
    files = sorted(PACKAGE.rglob("*.py"))
    long = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {name: lines for name, lines in long.items() if lines > 350} == {}
    largest = {}
    for path in files:
        code, tree = lines_of_code(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own = len(code & set(range(node.lineno, node.end_lineno + 1)))
                largest[f"{path.relative_to(ROOT)}: {node.name}"] = own
    assert max(largest.values()) > 40  # lines were counted
    assert {name: lines for name, lines in largest.items() if lines > 60} == {}
    assert len(list((PACKAGE / "training").glob("*.py"))) <= 21
