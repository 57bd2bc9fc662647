"""Models by name: what each family's file registers, and how a name finds its constructor."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from samon_jax.errors import UserError

# What messages show -> (pattern of the name, constructor that takes the pattern's groups).
_MODELS: dict[str, tuple[str, Callable[..., nn.Module]]] = {}


def register(
    name: str, constructor: Callable[..., nn.Module], *, pattern: str | None = None
) -> None:
    """Adds a model, or a family of them; called by the file that defines it.

    Args:
      name: what users write, for example "resnet-18"; of a family, what messages show, for example
        `wrn-<depth>-<width>`.
      constructor: `constructor(*groups, num_classes=, dtype=)` returns a Flax Linen module; groups
        are those of the pattern, as strings. It raises a UserError for numbers that are not
        allowed.
      pattern: regular expression of the whole names of a family; by default `name` itself. A model
        registered without a pattern comes before all families, whatever the order.

    Raises:
      UserError: there is one of that name.

    Example:
      >>> from flax import linen as nn
      >>> class Linear(nn.Module):
      ...   num_classes: int
      ...   dtype: object = None
      ...
      ...   @nn.compact
      ...   def __call__(self, images, train):
      ...     return nn.Dense(self.num_classes)(images.reshape(len(images), -1))
      >>> register("linear", Linear)
      >>> create("linear", 10).num_classes
      10
    """
    if name in _MODELS:
        raise UserError(f"model {name!r} exists already")
    _MODELS[name] = (re.escape(name) if pattern is None else pattern, constructor)


def names() -> tuple[str, ...]:
    """What `create` accepts, for messages: `(..., "wrn-<depth>-<width>")`."""
    return tuple(sorted(_MODELS))


def create(name: str, num_classes: int, *, dtype: Any = jnp.float32) -> nn.Module:
    """Creates a model by its name.

    Args:
      name: one of `names()`, with numbers for what is in angle brackets. The class of a family says
        which numbers there are: `WideResNet`, `ResNet`, `BottleneckResNet`, `DenseNet`, `VGG`,
        `VisionTransformer`. "resnet-50" could be CIFAR's or ImageNet's, and is refused: say
        "cifar-resnet-50" or "imagenet-resnet-50".
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
    for shown in sorted(_MODELS, key=lambda shown: shown != name):
        pattern, constructor = _MODELS[shown]
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        try:
            return constructor(*match.groups(), num_classes=num_classes, dtype=dtype)
        except UserError as error:
            raise UserError(f"model={name!r}: {error}") from error
    raise UserError(f"model={name!r} does not exist; choose one of {', '.join(names())}")
