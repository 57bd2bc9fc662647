"""The model "tiny", a small catalog, and caches of our own."""

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "paper_tiny", Path(__file__).parents[1] / "training" / "tiny.py"
)
_tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tiny)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("samon_jax.models.create", _tiny.create)
