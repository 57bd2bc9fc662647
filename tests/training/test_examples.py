import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module", ["batches", "compare", "config", "norm_dropout", "optimizers", "trainable"]
)
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"samon_jax.training.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
