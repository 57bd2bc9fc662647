"""Starting a run from the weights of another: a work directory, or a file of AugReg's."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from samon_jax._fields import Field, text
from samon_jax.data import resolve_data_dir
from samon_jax.errors import UserError
from samon_jax.models import augreg
from samon_jax.workdir import checkpoints
from samon_jax.workdir.progress import say

PyTree = Any

FIELDS: dict[str, Field] = {
    "init_from": Field(
        "",
        text,
        "work directory of a run whose newest checkpoint this one starts from, or an npz file of "
        "AugReg's, which may lie in the TFDS directory; a head of other classes is new",
    ),
}

_HEAD = "params/head/"


def start_from(
    source: str,
    variables: dict[str, PyTree],
    data_dir: str | None = None,
    kept: Mapping[str, bytes] = MappingProxyType({}),
) -> tuple[dict[str, PyTree], list[str]]:
    """Replaces initial variables by those of another run or a file.

    Args:
      source: value of `init_from`.
      variables: parameters and model state as initialized.
      data_dir: value of `data.dir`, where `source` may lie.
      kept: `tasks.files` of the run, as the vocabulary, which the work directory must hold too.

    Returns:
      The variables, and a line for each thing that was not taken as it is.

    Raises:
      UserError: nothing is there, or it is of another architecture.
    """
    path = Path(source).expanduser()
    if not path.exists():
        path = resolve_data_dir(data_dir) / source
    if path.is_file():
        params, notes = augreg.load(path, variables["params"])
        return {**variables, "params": params}, notes
    if not path.is_dir():
        raise UserError(f"init_from={source!r} is neither a work directory nor a file")
    for name, content in kept.items():
        if not (path / name).is_file() or (path / name).read_bytes() != content:
            raise UserError(
                f"init_from={source!r} does not hold the {name} of this run's data: its weights "
                "belong to other sub-words"
            )
    found = checkpoints.restore(path, say=say)
    if found is None:
        raise UserError(f"init_from={source!r} holds no checkpoint")
    return _merged(source, found.leaves, variables)


def _merged(
    source: str, leaves: dict[str, Any], variables: dict[str, PyTree]
) -> tuple[dict[str, PyTree], list[str]]:
    """Leaves of a checkpoint in place of the initial ones."""
    state = {name: tree for name, tree in variables.items() if name != "params"}
    tree = {"params": variables["params"], "model_state": state}
    ours = checkpoints.leaves_by_name(tree)
    theirs = {n: x for n, x in leaves.items() if n.startswith(("params/", "model_state/"))}
    taken, notes = dict(ours), list[str]()
    wrong = [f"it lacks {name}" for name in ours if name not in theirs]
    wrong += [f"it also holds {name}" for name in theirs if name not in ours]
    for name in set(ours) & set(theirs):
        there, here = theirs[name].shape, ours[name].shape
        if there == here:
            taken[name] = jnp.asarray(theirs[name])
        elif name.startswith(_HEAD) and there[:-1] == here[:-1]:
            if name.endswith("bias"):
                notes.append(f"the head is new: {there[-1]} classes there, {here[-1]} here")
        elif name == "params/pos_embed" and there[2] == here[2]:
            taken[name] = augreg.resized_positions(theirs[name], here)
            notes.append(f"positions were interpolated from {there[1] - 1} to {here[1] - 1}")
        else:
            wrong.append(f"{name} is {list(there)} there, {list(here)} in the model")
    if wrong:
        more = f", and {len(wrong) - 3} more" if wrong[3:] else ""
        raise UserError(
            f"init_from={source!r} is of another architecture than the model: "
            f"{', '.join(sorted(wrong)[:3])}{more}"
        )
    merged = jax.tree.unflatten(jax.tree.structure(tree), [taken[name] for name in ours])
    return {"params": merged["params"], **merged["model_state"]}, notes


def announce(source: str, notes: list[str]) -> None:
    """Says what was taken and what was not."""
    say(f"weights from {source}: {'; '.join(notes) or 'all were taken as they are'}")
