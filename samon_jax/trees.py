"""Flattening pytrees."""

from typing import Any

import jax


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves of a pytree and its `PyTreeDef`, whose methods type checkers do not know."""
    return jax.tree.flatten(tree)
