"""Registers the model "tiny" and keeps data and compiled programs of a test session together."""

import importlib.util
import os
import sys
from pathlib import Path

import jax
import pytest

# The tests import modules by path; this one is shared by several of them.
_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
_tiny = importlib.util.module_from_spec(_spec)
sys.modules["tiny"] = _tiny
_spec.loader.exec_module(_tiny)


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory):
    """Digits are prepared once per session, and subprocesses share compiled programs."""
    folder = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMON_CACHE_DIR", str(folder / "cache"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("PYTHONPATH", os.getcwd())
        patch.setattr("samon_jax.models.create", _tiny.create)
        # This process has read these variables already. Programs that come again, as the
        # initialization of the tiny model, are read from disk.
        settings = {
            "jax_compilation_cache_dir": str(folder / "xla"),
            "jax_persistent_cache_min_compile_time_secs": 0,
        }
        before = {name: getattr(jax.config, name) for name in settings}
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory, environment):
    """A data_dir of our own for digits; CIFAR is not needed here."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("TFDS_DATA_DIR", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Runs of single tests draw none: it takes longer than training. Shared ones do."""
    for name in ("learning_curve", "norm_parameters"):
        monkeypatch.setattr(f"samon_jax.drawing.{name}", lambda *args: None)
