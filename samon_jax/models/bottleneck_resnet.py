"""ResNet-18 and ResNet-101 for CIFAR, ResNet-50 for ImageNet, and ResNeXt-29.

Architectures of He et al. (2015, https://arxiv.org/abs/1512.03385, Table 1) and Xie et al. (2017,
https://arxiv.org/abs/1611.05431, Table 2).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from samon_jax.errors import UserError
from samon_jax.models import layers
from samon_jax.models._registry import register
from samon_jax.models.resnet import BasicBlock

# Depth -> blocks of the four stages.
BLOCKS: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
BLOCKS |= {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with a norm, plus the shortcut, ReLU.

    The stride is that of the 3x3 convolution, as in torchvision. Where the shape changes, the
    shortcut is a 1x1 convolution with a norm.

    Attributes:
      width: number of channels of the first two convolutions.
      features: number of output channels.
      stride: stride of the 3x3 convolution and of the shortcut.
      groups: number of groups of the 3x3 convolution, the "cardinality" of ResNeXt.
      last_scale: initializer of the scale of the last norm.
      dtype: dtype of the computation.
    """

    width: int
    features: int
    stride: int = 1
    groups: int = 1
    last_scale: Any = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H / stride, W / stride, features]; `train` as in BatchNorm."""
        init: dict[str, Any] = {"kernel_init": layers.HE_NORMAL_FAN_OUT, "dtype": self.dtype}
        y = layers.conv(self.width, 1, name="conv1", **init)(x)
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm1")(y))
        y = layers.conv(
            self.width, 3, stride=self.stride, groups=self.groups, name="conv2", **init
        )(y)
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm2")(y))
        y = layers.conv(self.features, 1, name="conv3", **init)(y)
        y = layers.batch_norm(train, dtype=self.dtype, scale_init=self.last_scale, name="norm3")(y)
        if x.shape[-1] != self.features or self.stride != 1:
            x = layers.conv(self.features, 1, stride=self.stride, name="shortcut", **init)(x)
            x = layers.batch_norm(train, dtype=self.dtype, name="shortcut_norm")(x)
        return nn.relu(x + y)


class BottleneckResNet(nn.Module):
    """A post-activation ResNet with a 3x3 stem and without max-pooling, or with ImageNet's stem.

    Three configurations are in use for CIFAR: ResNet-18 (Figure 4, Figure 8; 11,173,962 parameters
    with 10 classes) and ResNet-101 (Table 17; 42,512,970), with four stages of `basic` blocks or
    bottlenecks, and ResNeXt-29-32x4d (Tables 1, 10 and 18; 4,775,754), with three stages.

    Initialized like torchvision's: convolutions from He normal in fan-out mode, the head from
    PyTorch's default for linear layers; norms from scale 1, bias 0.

    With `imagenet`, the stem is a 7x7 convolution and max-pooling, each stride 2, for images of
    224x224 pixels in the paper; any size from 32 on works. ResNet-50 with 1,000 classes has
    25,557,032 parameters, 53,120 of them of norm layers. It is timm's, on which Table 2 rests: all
    is as above but for the last norm of each bottleneck, whose scale starts at 0: every block
    begins as its shortcut (Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1).

    Attributes:
      blocks: number of blocks of each stage.
      num_classes: number of logits.
      basic: blocks of two 3x3 convolutions instead of bottlenecks.
      stem_width: number of channels of the stem; stage s has 2^(s-1) times as many in its `basic`
        blocks.
      width: number of channels inside the bottlenecks of stage 1; doubles with every stage.
      features: number of output channels of the bottlenecks of stage 1; doubles likewise.
      groups: number of groups of the bottlenecks' 3x3 convolutions.
      imagenet: ImageNet's stem, and bottlenecks that begin as their shortcuts.
      dtype: dtype of the computation up to the pooling; parameters and logits are float32.
    """

    blocks: tuple[int, ...]
    num_classes: int
    basic: bool = False
    stem_width: int = 64
    width: int = 64
    features: int = 256
    groups: int = 1
    imagenet: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits float32 [N, num_classes] of normalized images [N, H, W, C].

        Args:
          images: float images.
          train: normalize by the batch and update "batch_stats", which must then be mutable.
        """
        size, stride = (7, 2) if self.imagenet else (3, 1)
        last_scale = nn.initializers.zeros if self.imagenet else nn.initializers.ones
        init: dict[str, Any] = {"kernel_init": layers.HE_NORMAL_FAN_OUT, "dtype": self.dtype}
        x = layers.conv(self.stem_width, size, stride=stride, name="stem", **init)(
            images.astype(self.dtype)
        )
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="stem_norm")(x))
        if self.imagenet:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                shared: dict[str, Any] = {
                    "stride": 2 if stage > 0 and block == 0 else 1,
                    "dtype": self.dtype,
                    "name": f"stage{stage + 1}_block{block}",
                }
                if self.basic:
                    x = BasicBlock(
                        self.stem_width * 2**stage,
                        projection=True,
                        kernel_init=layers.HE_NORMAL_FAN_OUT,
                        **shared,
                    )(x, train)
                else:
                    x = Bottleneck(
                        self.width * 2**stage,
                        self.features * 2**stage,
                        groups=self.groups,
                        last_scale=last_scale,
                        **shared,
                    )(x, train)
        head = nn.Dense(
            self.num_classes,
            kernel_init=layers.TORCH_LINEAR,
            bias_init=layers.torch_bias(x.shape[-1]),
            name="head",
        )
        return head(layers.global_average_pool(x))


def resnet(depth: int, **kwargs: Any) -> BottleneckResNet:
    """ResNet-18, -34 or -101 for CIFAR; `kwargs` are num_classes and dtype."""
    return BottleneckResNet(blocks=BLOCKS[depth], basic=depth < 50, **kwargs)


def resnext(depth: int, groups: int, group_width: int, **kwargs: Any) -> BottleneckResNet:
    """ResNeXt for CIFAR: three stages with outputs of 256, 512 and 1024 channels.

    Args:
      depth: number of layers with weights, 9n + 2 with n >= 1 blocks per stage.
      groups: cardinality, 32 in "32x4d".
      group_width: channels of each group in stage 1, 4 in "32x4d".
      **kwargs: num_classes and dtype.

    Raises:
      UserError: one of the numbers is not allowed.
    """
    if depth < 11 or depth % 9 != 2:
        raise UserError(f"depth={depth} of a ResNeXt must be 9n + 2: 11, 20, 29, ...")
    if groups < 1 or group_width < 1:
        raise UserError(f"{groups}x{group_width}d: a ResNeXt needs at least one group and channel")
    n = (depth - 2) // 9
    return BottleneckResNet(blocks=(n, n, n), width=groups * group_width, groups=groups, **kwargs)


for _depth in (18, 34, 101):  # 50 and 152 are depths of `ResNet`, 6n + 2
    register(f"resnet-{_depth}", partial(resnet, _depth))
for _depth in (50, 101, 152):
    register(f"imagenet-resnet-{_depth}", partial(BottleneckResNet, BLOCKS[_depth], imagenet=True))
register(
    "resnext-<depth>-<groups>x<width>d",
    lambda depth, groups, width, **kwargs: resnext(int(depth), int(groups), int(width), **kwargs),
    pattern=r"resnext-(\d+)-(\d+)x(\d+)d",
)
