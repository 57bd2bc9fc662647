"""A newcomer's errand touches one room: each is done with a toy, and what it took is counted.

The package is copied; a toy of `tests/errands/` becomes a new file of its room, its registration
one or two lines of that room's list. Then one run uses all toys at once.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOYS = ROOT / "tests" / "errands"

# Errand: the file where it is registered, and the lines added there after the one named.
REGISTRATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "variant": (
        "perturbation.py",
        {
            '    "fisher": lambda': '    "double": lambda w, *_: jnp.full((), 2.0, w.dtype),',
            '    "fisher": {"operator"': '    "toy": {"operator": "double"},',
        },
    ),
    "method": (
        "methods/__init__.py",
        {
            "from samon_jax.methods import ": "from samon_jax.methods import toy",
            "    looksam.MEMBER,": "    toy.MEMBER,",
        },
    ),
    "model": (
        "models/__init__.py",
        {"from samon_jax.models._registry": "from samon_jax.models import toy"},
    ),
    "data": (
        "data/__init__.py",
        {
            "from samon_jax.errors import": "from samon_jax.data import toy",
            "    register(_name,": 'register("toy", resident_set(toy.DESCRIPTION, toy.read))',
        },
    ),
    "task": (
        "tasks/__init__.py",
        {
            "from samon_jax.tasks import": "from samon_jax.tasks import toy",
            'register("classification"': 'register("toy", Entry(toy.create, toy.FIELDS))',
        },
    ),
}
ROOMS = {errand: Path(file).parent for errand, (file, _) in REGISTRATIONS.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a run with all toys finds."""
    folder = tmp_path_factory.mktemp("errands")
    package = folder / "samon_jax"
    shutil.copytree(ROOT / "samon_jax", package, ignore=shutil.ignore_patterns("__pycache__"))
    for errand, (file, additions) in REGISTRATIONS.items():
        if errand != "variant":
            shutil.copy(TOYS / f"{errand}.py", package / ROOMS[errand] / "toy.py")
        lines = (package / file).read_text().splitlines()
        for start, added in additions.items():
            last = max(i for i, line in enumerate(lines) if line.startswith(start))
            lines.insert(last + 1, added)
        (package / file).write_text("\n".join(lines) + "\n")
    result = subprocess.run(
        [sys.executable, TOYS / "run.py", folder / "run"],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(folder), "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=1")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("errand", REGISTRATIONS)
def test_an_errand_is_one_file_and_its_registration(errand):
    file, additions = REGISTRATIONS[errand]
    assert len(additions) <= 2
    assert ROOMS[errand] == Path(file).parent
    text = (ROOT / "samon_jax" / file).read_text()
    assert all(f"\n{start}" in text for start in additions)
    assert (TOYS / f"{errand}.py").exists() != (errand == "variant")
    page = (ROOT / "docs" / "where.md").read_text()
    assert f"`samon_jax/{file}`" in page


def test_a_variant(found):
    assert found["variant"] == pytest.approx([0.6, -0.8])  # ρ T² g / ‖T g‖, T = 2


def test_a_method_with_fields_state_and_a_rhythm_of_its_own(found):
    assert found["kinds"] == ["sharp", "rest", "rest", "rest", "sharp"]
    assert found["sharp_steps"] == 9  # of 6 epochs of 6 steps
    assert found["described"].endswith("perturbed every 4 steps")
    summary = found["summary"]
    extra = summary["flops_per_step"] / summary["flops_per_step_base"] - 1
    assert 0.2 < extra < 0.35  # one more gradient in four steps, and ε


def test_a_model(found):
    assert (found["model"], found["width"]) == ("Toy", 8)


def test_a_data_set(found):
    assert found["test_images"] == len(found["data"]) == 10
    assert set(found["data"]) <= {0, 1, 2, 3}


def test_a_task(found):
    """With a loss, metrics and a section of the config of its own; the rest takes them as given."""
    assert found["task"] == "toy"
    assert len(found["losses"]) == 6
    assert found["losses"][-1] < 0.2 * found["losses"][0]
    assert found["summary"]["test_closeness"] == -found["summary"]["test_loss"]
    assert 2 * found["losses"][0] > -found["train_closeness"] > 0
    assert found["identity_of_the_default"] == {}  # new fields change no run that is there


def test_how_to_shard_is_said_in_one_place():
    """More hosts or another layout touch `training/devices.py`: elsewhere only its methods show."""
    layouts = {"pmap", "shard_map", "Mesh", "NamedSharding", "PartitionSpec", "make_mesh"}
    upper = [p for p in (ROOT / "samon_jax").glob("*/**/*.py") if p.parent.name != "_passes"]
    used: dict[str, set[str]] = {}
    for path in upper:
        names = {
            getattr(node, "attr", None) or getattr(node, "name", None)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute | ast.alias)
        }
        if names & layouts:
            used[path.relative_to(ROOT).as_posix()] = names & layouts
    assert set(used) == {"samon_jax/training/devices.py"}, used
