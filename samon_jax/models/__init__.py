"""Models by name. All are Flax Linen modules with the same signature and names of layers.

    module.apply({"params": ..., "batch_stats": ...}, images, train=True, mutable=["batch_stats"])

Blocks are called `stage{1,2,3}_block{0..}`, and hold `norm1`, `conv1`, `norm2`, `conv2` and, where
it has parameters, `shortcut` (with `shortcut_norm` in post-activation networks). Around them are
`stem`, `head`, and `norm_out` (before the pooling of pre-activation networks) or `stem_norm` (after
the stem of the others). So the expression "stage3" selects the norms of block B3 of the paper's
Figure 3.
"""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from samon_jax.errors import UserError
from samon_jax.models import resnet, wide_resnet
from samon_jax.models.digits_resnet import DigitsResNet
from samon_jax.models.resnet import ResNet
from samon_jax.models.wide_resnet import WideResNet

__all__ = ["DigitsResNet", "ResNet", "WideResNet", "create", "names"]


def _wide_resnet(depth: str, width: str, **kwargs: Any) -> nn.Module:
    wide_resnet.blocks_per_stage(int(depth), int(width))
    return WideResNet(depth=int(depth), width=int(width), **kwargs)


def _resnet(depth: str, **kwargs: Any) -> nn.Module:
    resnet.blocks_per_stage(int(depth))
    return ResNet(depth=int(depth), **kwargs)


def _resnet_b(depth: str, **kwargs: Any) -> nn.Module:
    return _resnet(depth, projection=True, **kwargs)


# What messages show -> (pattern of the name, constructor that takes the pattern's groups).
_FAMILIES: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    "wrn-<depth>-<width>": (r"wrn-(\d+)-(\d+)", _wide_resnet),
    "resnet-<depth>": (r"resnet-(\d+)", _resnet),
    "resnet-<depth>b": (r"resnet-(\d+)b", _resnet_b),
    "digits-resnet": (r"digits-resnet", DigitsResNet),
}


def names() -> tuple[str, ...]:
    """What `create` accepts, for messages: ("wrn-<depth>-<width>", ...)."""
    return tuple(_FAMILIES)


def create(name: str, num_classes: int, *, dtype: Any = jnp.float32) -> nn.Module:
    """Creates a model by its name.

    Args:
      name: "wrn-<depth>-<width>" (pre-activation WideResNet, depth 6n + 4), "resnet-<depth>" (CIFAR
        ResNet with option A shortcuts, depth 6n + 2), "resnet-<depth>b" (the same with option B) or
        "digits-resnet" (for 8x8x1 images).
      num_classes: number of logits.
      dtype: dtype of the computation, for example `jnp.bfloat16`. Parameters, BatchNorm statistics
        and logits are always float32.

    Returns:
      A Flax Linen module. `module.apply({"params", "batch_stats"}, images, train)` maps float
      images [N, H, W, C] to float32 logits [N, num_classes]. Trained on several devices, each
      normalizes by the statistics of its own images.

    Raises:
      UserError: there is no such model, or its depth or width is not allowed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = create("digits-resnet", num_classes=10)
      >>> images = jnp.zeros((1, 8, 8, 1))
      >>> variables = model.init(jax.random.key(0), images, train=False)
      >>> model.apply(variables, images, train=False).shape
      (1, 10)
    """
    if num_classes < 1:
        raise UserError(f"num_classes={num_classes} must be at least 1")
    for pattern, constructor in _FAMILIES.values():
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        try:
            return constructor(*match.groups(), num_classes=num_classes, dtype=dtype)
        except UserError as error:
            raise UserError(f"model={name!r}: {error}") from error
    raise UserError(f"model={name!r} does not exist; choose one of {', '.join(names())}")
