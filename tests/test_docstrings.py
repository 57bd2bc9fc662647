"""Examples in docstrings run, and every public function says what goes in and what comes out."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import samon_jax as samon

PACKAGE = Path(samon.__file__).parent
FILES = PACKAGE.rglob("*.py")
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in FILES
    if path != PACKAGE / "__init__.py"
)
FUNCTIONS = [name for name in samon.__all__ if inspect.isfunction(getattr(samon, name))]
WITH_EXAMPLE = ["label_module", "label_params", "only_norm", "perturbation", "sam"]
WITH_EXAMPLE += ["value_and_grad", "variant"]


@pytest.fixture(autouse=True)
def directories(tmp_path, monkeypatch):
    """Examples that load data write nothing at home."""
    monkeypatch.setenv("SAMON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    failed, _ = doctest.testmod(importlib.import_module(module.removesuffix(".__init__")))
    assert failed == 0


def test_no_docstring_holds_html():
    """Markdown would make tags of `<table>` and the like, and the site another page of the rest."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            for line in re.sub(r"`[^`]*`", "", text or "").splitlines():
                if not line.strip().startswith((">>>", "...", "<BLANKLINE>")):
                    assert not re.search(r"<[a-z]+>", line), f"{path.name}: {line}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_are_documented(name):
    function = getattr(samon, name)
    text = inspect.getdoc(function) or ""
    refers = "Args and returns as in" in text
    assert refers or re.search(r"^Args:$", text, re.M), text
    assert refers or re.search(r"^Returns:$", text, re.M), text
    if not refers:
        for argument in inspect.signature(function).parameters:
            assert re.search(rf"^  \**{argument}: ", text, re.M), argument


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_examples_exist(name):
    assert ">>> " in (inspect.getdoc(getattr(samon, name)) or "")


def test_all_is_complete_and_sorted():
    assert {"UserError", "SamState", "PerturbationState", "sam", "value_and_grad"} <= set(
        samon.__all__
    )
    for name in samon.__all__:
        assert hasattr(samon, name)
        if inspect.isclass(getattr(samon, name)):
            assert inspect.getdoc(getattr(samon, name))
