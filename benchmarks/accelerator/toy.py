"""A network of three stages that compiles in a second: on a CPU it proves that all of it runs."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from samon_jax.models import layers
from samon_jax.models._registry import register

NAME = "three-stages"


class Toy(nn.Module):
    """Convolution, norm and ReLU three times.

    Attributes:
      num_classes: number of logits.
      dtype: of the computation.
    """

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits float32 [N, num_classes] of images [N, H, W, 3]."""
        x, init = images.astype(self.dtype), nn.initializers.normal(0.1)
        for stage in ("stage1", "stage2", "stage3"):
            x = layers.conv(8, 3, kernel_init=init, dtype=self.dtype, name=f"{stage}_conv")(x)
            x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name=f"{stage}_norm")(x))
        return nn.Dense(self.num_classes, name="head")(layers.global_average_pool(x))


register(NAME, Toy)
