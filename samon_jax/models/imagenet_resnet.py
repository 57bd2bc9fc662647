"""ResNet-50 for ImageNet (He et al. 2015, https://arxiv.org/abs/1512.03385, Table 1)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from samon_jax.models import layers
from samon_jax.models._registry import register
from samon_jax.models.bottleneck_resnet import Bottleneck

# Depth -> blocks of the four stages.
BLOCKS: dict[int, tuple[int, ...]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ImageNetResNet(nn.Module):
    """A ResNet of bottlenecks with ImageNet's stem: 7x7 convolution and max-pooling, each stride 2.

    ResNet-50 with 1,000 classes has 25,557,032 parameters, 53,120 of them of norm layers. It is
    timm's, on which Table 2 rests: the stride is in the 3x3 convolutions, convolutions start from
    He normal in fan-out mode, the head from PyTorch's default, norms from scale 1 and bias 0 but
    for the last one of each block, whose scale starts at 0: every block begins as its shortcut
    (Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1).

    Attributes:
      num_classes: number of logits.
      blocks: number of blocks of each stage.
      dtype: dtype of the computation up to the pooling; parameters and logits are float32.
    """

    num_classes: int
    blocks: tuple[int, ...] = BLOCKS[50]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits float32 [N, num_classes] of normalized images [N, H, W, C].

        Args:
          images: float images, of 224x224 pixels in the paper; any size from 32 on works.
          train: normalize by the batch and update "batch_stats", which must then be mutable.
        """
        init = layers.HE_NORMAL_FAN_OUT
        x = layers.conv(64, 7, stride=2, kernel_init=init, dtype=self.dtype, name="stem")(
            images.astype(self.dtype)
        )
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="stem_norm")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = Bottleneck(
                    64 * 2**stage,
                    256 * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    last_scale=nn.initializers.zeros,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block}",
                )(x, train)
        head = nn.Dense(
            self.num_classes,
            kernel_init=layers.TORCH_LINEAR,
            bias_init=layers.torch_bias(x.shape[-1]),
            name="head",
        )
        return head(layers.global_average_pool(x))


for _depth, _blocks in BLOCKS.items():
    register(f"imagenet-resnet-{_depth}", partial(ImageNetResNet, blocks=_blocks))
