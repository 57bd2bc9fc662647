"""WideResNet (Zagoruyko and Komodakis, 2016, https://arxiv.org/abs/1605.07146)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from samon_jax.errors import UserError
from samon_jax.models import layers
from samon_jax.models._registry import register


class PreActBlock(nn.Module):
    """Norm, ReLU, convolution, twice, plus the shortcut.

    Where the width or the resolution changes, the shortcut is a 1x1 convolution of the activated
    input, as in the authors' code.

    Attributes:
      features: number of output channels.
      stride: stride of the first convolution and of the shortcut.
      dtype: dtype of the computation.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H / stride, W / stride, features]; `train` as in BatchNorm."""
        init: dict[str, Any] = {"kernel_init": layers.HE_NORMAL_FAN_OUT, "dtype": self.dtype}
        activated = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm1")(x))
        y = layers.conv(self.features, 3, stride=self.stride, name="conv1", **init)(activated)
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm2")(y))
        y = layers.conv(self.features, 3, name="conv2", **init)(y)
        if x.shape[-1] != self.features or self.stride != 1:
            shortcut = layers.conv(self.features, 1, stride=self.stride, name="shortcut", **init)
            x = shortcut(activated)
        return x + y


class WideResNet(nn.Module):
    """WRN-depth-width for 32x32 images: three stages of pre-activation blocks, no dropout.

    The paper trains WRN-28-10 on CIFAR (section 4.1): 36.5 million parameters, 0.05 % of them
    in normalization layers. "digits-resnet", for tests and quick experiments, is WRN-10-1: 8x8
    grey-level images pass 8x8, 4x4 and 2x2 pixels.

    Convolutions start from He normal in fan-out mode, as in the authors' code; the head from
    PyTorch's default for linear layers with zero bias; norms from scale 1, bias 0.

    Attributes:
      depth: number of layers that count, 6n + 4 with n >= 1 blocks per stage.
      width: widening factor >= 1; the stages have 16, 32 and 64 times as many channels.
      num_classes: number of logits.
      stem_stride: stride of the first convolution, 1 in the paper; with 2, all stages see half the
        resolution, a quarter of the operations.
      dtype: dtype of the computation up to the pooling; parameters and logits are float32.

    Raises:
      UserError: at the first call, if depth or width are not allowed.
    """

    depth: int
    width: int
    num_classes: int
    stem_stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits float32 [N, num_classes] of normalized images [N, H, W, C].

        Args:
          images: float images.
          train: normalize by the batch and update "batch_stats", which must then be mutable.
        """
        blocks = blocks_per_stage(self.depth, self.width)
        stem: dict[str, Any] = {"kernel_init": layers.HE_NORMAL_FAN_OUT, "dtype": self.dtype}
        x = layers.conv(16, 3, stride=self.stem_stride, name="stem", **stem)(
            images.astype(self.dtype)
        )
        for stage, features in enumerate((16, 32, 64), start=1):
            for block in range(blocks):
                x = PreActBlock(
                    features=features * self.width,
                    stride=2 if stage > 1 and block == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x, train)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm_out")(x))
        head = nn.Dense(self.num_classes, kernel_init=layers.TORCH_LINEAR, name="head")
        return head(layers.global_average_pool(x))


def blocks_per_stage(depth: int, width: int) -> int:
    """The n of depth = 6n + 4, for example 4 for WRN-28-10; UserError if there is none."""
    if depth < 10 or depth % 6 != 4:
        raise UserError(f"depth={depth} of a WideResNet must be 6n + 4: 10, 16, 22, 28, 40, ...")
    if width < 1:
        raise UserError(f"width={width} of a WideResNet must be at least 1")
    return (depth - 4) // 6


def _create(depth: str, width: str, **kwargs: Any) -> WideResNet:
    blocks_per_stage(int(depth), int(width))
    return WideResNet(depth=int(depth), width=int(width), **kwargs)


register("digits-resnet", partial(WideResNet, depth=10, width=1))
register("wrn-<depth>-<width>", _create, pattern=r"wrn-(\d+)-(\d+)")
register(
    "wrn-<depth>-<width>-stem2",
    partial(_create, stem_stride=2),
    pattern=r"wrn-(\d+)-(\d+)-stem2",
)
