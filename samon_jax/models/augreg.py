"""Weights of "How to train your ViT?" (Steiner et al. 2021, https://arxiv.org/abs/2106.10270).

The authors publish them as npz files. The fine-tuning of Table 13 starts from their ViT-S/16,
trained on ImageNet-21k.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from samon_jax.errors import UserError

PyTree = Any
_PREFIX = "opt/target/"
_HEAD = ("head/kernel", "head/bias")


class _Part(NamedTuple):
    """What a parameter is made of.

    Attributes:
      names: of arrays in the file; several are put side by side along the last axis.
      shape: of each of them.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]


def load(path: Path, params: PyTree) -> tuple[PyTree, list[str]]:
    """Reads an AugReg file into the parameters of a `VisionTransformer`.

    Positions of another grid are interpolated bilinearly, the class token's is kept. A head of
    another number of classes is replaced by zeros.

    Args:
      path: npz file; its arrays may be called "opt/target/...".
      params: parameters of the model, or their shapes; gives the number of heads, too, by way of
        the file's own shapes.

    Returns:
      The parameters, float32, and a line for each thing that was not taken as it is.

    Raises:
      UserError: the file cannot be read, or arrays are missing, unknown or of another shape.
    """
    arrays = _read(path)
    shapes = {name: tuple(x.shape) for name, x in flatten_dict(params, sep="/").items()}
    _check_model(shapes)
    heads = np.shape(arrays.get(f"{_block(0)}/{_ATTENTION}/query/bias", ()))[:1]
    parts = _parts(shapes, max((1, *heads)))
    _check(path, arrays, parts)
    notes: list[str] = []
    found = {name: _assembled(arrays, part, shapes[name]) for name, part in parts.items()}
    found["pos_embed"] = _positions(arrays, shapes["pos_embed"], notes)
    for ours, theirs in (("head/kernel", _HEAD[0]), ("head/bias", _HEAD[1])):
        same = theirs in arrays and arrays[theirs].shape == shapes[ours]
        found[ours] = arrays[theirs] if same else np.zeros(shapes[ours], np.float32)
    if not (_HEAD[1] in arrays and arrays[_HEAD[1]].shape == shapes["head/bias"]):
        notes.append(_about_head(arrays, shapes["head/bias"][0]))
    floats = {name: jnp.asarray(array, jnp.float32) for name, array in found.items()}
    return unflatten_dict(floats, sep="/"), notes


_POSITIONS = "Transformer/posembed_input/pos_embedding"
_ATTENTION, _MLP = "MultiHeadDotProductAttention_1", "MlpBlock_3"


def _block(index: int) -> str:
    return f"Transformer/encoderblock_{index}"


def _parts(shapes: Mapping[str, tuple[int, ...]], heads: int) -> dict[str, _Part]:
    """Our parameter to what it is made of, but for positions and head."""
    width = shapes["cls_token"][-1]
    parts = {
        "cls_token": _Part(("cls",), shapes["cls_token"]),
        **_layer("patch_embed", "embedding", "kernel", shapes),
        **_layer("norm_out", "Transformer/encoder_norm", "scale", shapes),
    }
    depth = sum(name.endswith("/qkv/bias") for name in shapes)
    for i in range(depth):
        ours, theirs = f"block{i}", _block(i)
        parts |= _layer(f"{ours}/norm1", f"{theirs}/LayerNorm_0", "scale", shapes)
        parts |= _layer(f"{ours}/norm2", f"{theirs}/LayerNorm_2", "scale", shapes)
        parts |= _layer(f"{ours}/fc1", f"{theirs}/{_MLP}/Dense_0", "kernel", shapes)
        parts |= _layer(f"{ours}/fc2", f"{theirs}/{_MLP}/Dense_1", "kernel", shapes)
        for leaf, front in (("kernel", (width,)), ("bias", ())):
            names = tuple(f"{theirs}/{_ATTENTION}/{x}/{leaf}" for x in ("query", "key", "value"))
            parts[f"{ours}/qkv/{leaf}"] = _Part(names, (*front, heads, width // heads))
        out = f"{theirs}/{_ATTENTION}/out"
        parts[f"{ours}/proj/kernel"] = _Part((f"{out}/kernel",), (heads, width // heads, width))
        parts[f"{ours}/proj/bias"] = _Part((f"{out}/bias",), (width,))
    return parts


def _layer(
    ours: str, theirs: str, weight: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, _Part]:
    return {
        f"{ours}/{leaf}": _Part((f"{theirs}/{leaf}",), shapes[f"{ours}/{leaf}"])
        for leaf in (weight, "bias")
    }


def _assembled(arrays: Mapping[str, np.ndarray], part: _Part, shape: tuple[int, ...]) -> np.ndarray:
    # Heads and their channels become one axis.
    each = [arrays[name] for name in part.names]
    if len(each) > 1:
        each = [x.reshape(*x.shape[:-2], -1) for x in each]
    return np.concatenate(each, axis=-1).reshape(shape)


def _positions(
    arrays: Mapping[str, np.ndarray], shape: tuple[int, ...], notes: list[str]
) -> np.ndarray:
    found = arrays[_POSITIONS]
    if found.shape == shape:
        return found
    old, new = round((found.shape[1] - 1) ** 0.5), round((shape[1] - 1) ** 0.5)
    notes.append(f"positions were interpolated from {old}x{old} to {new}x{new}")
    return np.asarray(resized_positions(found, shape))


def resized_positions(positions: Any, shape: tuple[int, ...]) -> jax.Array:
    """Positions of a square grid, after the class token's, for another one.

    Args:
      positions: [1, 1 + n², width].
      shape: (1, 1 + m², width) of the result, which is interpolated bilinearly.
    """
    old, new = round((positions.shape[1] - 1) ** 0.5), round((shape[1] - 1) ** 0.5)
    grid = jnp.asarray(positions[:, 1:], jnp.float32).reshape(1, old, old, shape[2])
    grid = jax.image.resize(grid, (1, new, new, shape[2]), "bilinear", antialias=False)
    return jnp.concatenate([positions[:, :1], grid.reshape(1, new * new, shape[2])], axis=1)


def _about_head(arrays: Mapping[str, np.ndarray], classes: int) -> str:
    if _HEAD[1] not in arrays:
        return "the head starts at 0: the file has none"
    return f"the head starts at 0: {len(arrays[_HEAD[1]])} classes there, {classes} here"


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # NumPy and zipfile raise many types on what is no npz file
        reason = " ".join(str(error).split())
        raise UserError(
            f"init_from={str(path)!r} is no npz file that can be read: {reason}"
        ) from error
    if any(name.startswith(_PREFIX) for name in arrays):
        return {
            name.removeprefix(_PREFIX): array
            for name, array in arrays.items()
            if name.startswith(_PREFIX)
        }
    return arrays


def _check_model(shapes: Mapping[str, tuple[int, ...]]) -> None:
    if not {"cls_token", "pos_embed", "block0/qkv/bias"} <= set(shapes):
        raise UserError(
            "init_from names an npz file, which holds a Vision Transformer; model is none"
        )


def _check(path: Path, arrays: Mapping[str, np.ndarray], parts: Mapping[str, _Part]) -> None:
    """UserError that names arrays which are missing, unknown or of another shape."""
    wanted = {name: part.shape for part in parts.values() for name in part.names}
    width = parts["cls_token"].shape[-1]
    missing = [name for name in (*wanted, _POSITIONS) if name not in arrays]
    extra = [name for name in arrays if name not in wanted and name not in (_POSITIONS, *_HEAD)]
    strange = [
        f"{name} is {arrays[name].shape} instead of {shape}"
        for name, shape in wanted.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if not missing:
        shape = arrays[_POSITIONS].shape
        square = len(shape) == 3 and round((shape[1] - 1) ** 0.5) ** 2 == shape[1] - 1
        if not square or (shape[0], shape[2]) != (1, width):
            strange.append(f"{_POSITIONS} is {shape} instead of (1, 1 + n², {width})")
    for what, names in (("lacks", missing), ("also holds", extra), ("does not fit:", strange)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"init_from={str(path)!r} is of another architecture than the model: it {what} "
                f"{', '.join(names[:3])}{more}"
            )
