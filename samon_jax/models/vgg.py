"""VGG with BatchNorm for CIFAR (Simonyan and Zisserman, 2015, https://arxiv.org/abs/1409.1556)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from samon_jax.errors import UserError
from samon_jax.models import layers
from samon_jax.models._registry import register

# Depth -> convolutions of the five stages (Table 1 of the VGG paper, columns B, D and E).
BLOCKS: dict[int, tuple[int, ...]] = {13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
FEATURES = (64, 128, 256, 512, 512)


class ConvBlock(nn.Module):
    """3x3 convolution, norm, ReLU.

    Attributes:
      features: number of output channels.
      dtype: dtype of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H, W, features]; `train` as in BatchNorm."""
        x = layers.conv(
            self.features, 3, kernel_init=layers.HE_NORMAL_FAN_OUT, dtype=self.dtype, name="conv1"
        )(x)
        return nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm1")(x))


class VGG(nn.Module):
    """VGG-depth: five stages of convolutions, each followed by 2x2 max-pooling, and one head.

    The paper's VGGs (Table 11) have no published code. As usual for CIFAR, the two hidden linear
    layers of 4096 units are left out: 32x32 images arrive at the head as one pixel of 512 channels.
    The convolutions have no bias, which the norm behind would remove again; PyTorch codes that keep
    it have 14,728,266 parameters for VGG-16 with 10 classes, 4,224 more than this.

    Initialized like torchvision's: convolutions from He normal in fan-out mode, the kernel of the
    head from N(0, 0.01²), its bias from 0; norms from scale 1, bias 0.

    Attributes:
      depth: 13, 16 or 19.
      num_classes: number of logits.
      dtype: dtype of the computation up to the pooling; parameters and logits are float32.

    Raises:
      UserError: at the first call, if depth or the size of the images is not allowed.
    """

    depth: int
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits float32 [N, num_classes] of normalized images [N, H, W, C].

        Args:
          images: float images of at least 32x32 pixels; the last maps are averaged.
          train: normalize by the batch and update "batch_stats", which must then be mutable.
        """
        blocks = blocks_of_stages(self.depth)
        if min(images.shape[1:3]) < 32:
            raise UserError(
                f"images of shape {images.shape[1:]}: a VGG needs at least 32x32 pixels"
            )
        x = images.astype(self.dtype)
        for stage, (number, features) in enumerate(zip(blocks, FEATURES, strict=True), start=1):
            for block in range(number):
                x = ConvBlock(features, self.dtype, name=f"stage{stage}_block{block}")(x, train)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head")
        return head(layers.global_average_pool(x))


def blocks_of_stages(depth: int) -> tuple[int, ...]:
    """The number of convolutions of each stage; UserError if there is no such VGG."""
    if depth not in BLOCKS:
        raise UserError(f"depth={depth} of a VGG must be one of {', '.join(map(str, BLOCKS))}")
    return BLOCKS[depth]


def _create(depth: str, **kwargs: Any) -> VGG:
    blocks_of_stages(int(depth))
    return VGG(depth=int(depth), **kwargs)


register("vgg-<depth>", _create, pattern=r"vgg-(\d+)")
