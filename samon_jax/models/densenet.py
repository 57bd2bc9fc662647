"""DenseNet-BC for CIFAR (Huang et al., 2017, https://arxiv.org/abs/1608.06993, section 3)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from samon_jax.errors import UserError
from samon_jax.models import layers
from samon_jax.models._registry import register


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution; appended to the input.

    Attributes:
      growth: number of channels that are appended; the 1x1 convolution has four times as many.
      dtype: dtype of the computation.
    """

    growth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H, W, C + growth]; `train` as in BatchNorm."""
        init: dict[str, Any] = {"kernel_init": layers.HE_NORMAL_FAN_IN, "dtype": self.dtype}
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm1")(x))
        y = layers.conv(4 * self.growth, 1, name="conv1", **init)(y)
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm2")(y))
        y = layers.conv(self.growth, 3, name="conv2", **init)(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution to half of the channels, 2x2 average pooling.

    Attributes:
      dtype: dtype of the computation.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H / 2, W / 2, C / 2]; `train` as in BatchNorm."""
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm1")(x))
        y = layers.conv(
            x.shape[-1] // 2, 1, kernel_init=layers.HE_NORMAL_FAN_IN, dtype=self.dtype, name="conv1"
        )(y)
        return nn.avg_pool(y, (2, 2), strides=(2, 2))


class DenseNet(nn.Module):
    """DenseNet-BC-depth: three stages of dense layers with a `Transition` between them.

    The paper's DenseNet-100 (Table 11) is not in its published code. This is the variant with
    bottlenecks and compression 1/2 and growth 12, the only DenseNet-100 of homura, the library that
    the code takes its models from: 769,162 parameters with 10 classes (0.8 M in Table 2 of Huang et
    al.). As in the original, convolutions pad with zeros (homura reflects), without dropout.

    Initialized like torchvision's: convolutions from He normal in fan-in mode, the kernel of the
    head from PyTorch's default for linear layers, its bias from 0; norms from scale 1, bias 0.

    The dense layers are called `stage{1,2,3}_block{0..}`, what comes after stages 1 and 2
    `transition1` and `transition2`.

    Attributes:
      depth: number of layers with weights, 6n + 4 with n >= 1 dense layers per stage.
      num_classes: number of logits.
      growth: number of channels that each dense layer appends; the stem has twice as many.
      dtype: dtype of the computation up to the pooling; parameters and logits are float32.

    Raises:
      UserError: at the first call, if depth is not allowed.
    """

    depth: int
    num_classes: int
    growth: int = 12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits float32 [N, num_classes] of normalized images [N, H, W, C].

        Args:
          images: float images.
          train: normalize by the batch and update "batch_stats", which must then be mutable.
        """
        blocks = blocks_per_stage(self.depth)
        x = layers.conv(
            2 * self.growth, 3, kernel_init=layers.HE_NORMAL_FAN_IN, dtype=self.dtype, name="stem"
        )(images.astype(self.dtype))
        for stage in (1, 2, 3):
            for block in range(blocks):
                x = DenseLayer(self.growth, self.dtype, name=f"stage{stage}_block{block}")(x, train)
            if stage < 3:
                x = Transition(self.dtype, name=f"transition{stage}")(x, train)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm_out")(x))
        head = nn.Dense(self.num_classes, kernel_init=layers.TORCH_LINEAR, name="head")
        return head(layers.global_average_pool(x))


def blocks_per_stage(depth: int) -> int:
    """The n of depth = 6n + 4, for example 16 for DenseNet-100; UserError if there is none."""
    if depth < 10 or depth % 6 != 4:
        raise UserError(f"depth={depth} of a DenseNet-BC must be 6n + 4: 10, 16, ..., 100, ...")
    return (depth - 4) // 6


def _create(depth: str, **kwargs: Any) -> DenseNet:
    blocks_per_stage(int(depth))
    return DenseNet(depth=int(depth), **kwargs)


register("densenet-<depth>", _create, pattern=r"densenet-(\d+)")
