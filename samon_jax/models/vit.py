"""Vision Transformer (Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from samon_jax.errors import UserError
from samon_jax.models import layers
from samon_jax.models._registry import register

# timm cuts this normal at ±2, which is 100 standard deviations: not at all.
INIT = nn.initializers.normal(0.02)

# Name -> width and heads (DeiT, https://arxiv.org/abs/2012.12877, Table 1).
SIZES: dict[str, tuple[int, int]] = {"t": (192, 3), "s": (384, 6)}


def _layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=INIT, dtype=dtype, name=name)


class EncoderBlock(nn.Module):
    """Pre-norm Transformer block: norm and self-attention, norm and MLP, each with its shortcut.

    Queries, keys and values are one layer, `qkv`, as in timm; that matters to perturbations that
    are normalized layer by layer.

    Attributes:
      heads: number of heads; divides the width.
      dtype: dtype of the computation. Softmax and the statistics of norms are float32.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, tokens, width] to the same shape."""
        *batch, tokens, width = x.shape
        y = _dense(3 * width, self.dtype, "qkv")(_layer_norm(self.dtype, "norm1")(x))
        y = y.reshape(*batch, tokens, 3, self.heads, width // self.heads)
        y = jax.nn.dot_product_attention(y[..., 0, :, :], y[..., 1, :, :], y[..., 2, :, :])
        x = x + _dense(width, self.dtype, "proj")(y.reshape(*batch, tokens, width))
        y = _dense(4 * width, self.dtype, "fc1")(_layer_norm(self.dtype, "norm2")(x))
        y = nn.gelu(y, approximate=False)
        return x + _dense(width, self.dtype, "fc2")(y)


class VisionTransformer(nn.Module):
    """ViT with a class token; by default patches of 4x4 pixels, 64 tokens of a 32x32 image.

    The paper trains ViT-T and ViT-S from scratch on CIFAR (section 4.2, Table 3), ViT-S/32 from
    scratch on ImageNet, and fine-tunes ViT-S/16 there (Tables 4 and 13; 22,878,952 and 22,050,664
    parameters with 1,000 classes), in its published code with timm's class: learned positions,
    biases everywhere, no dropout, GELU with the error function, and the logits come from the class
    token. That is why it is here, although the mean over tokens would also do.

    Initialized like timm's: linear layers from N(0, 0.02²) with zero bias, positions from
    N(0, 0.02²), the class token from N(0, 1e-12), the patch embedding like any convolution of
    PyTorch; norms from scale 1, bias 0.

    Blocks are called `block{0..}` and hold `norm1`, `qkv`, `proj`, `norm2`, `fc1` and `fc2`. There
    is no "batch_stats" collection: the result of `apply(..., mutable=["batch_stats"])` has an empty
    one.

    Attributes:
      num_classes: number of logits.
      width: number of channels, 192 in ViT-T and 384 in ViT-S.
      heads: number of attention heads, 3 and 6.
      depth: number of blocks.
      patch: side of a patch, in pixels.
      dtype: dtype of the computation up to the last norm; parameters and logits are float32.

    Raises:
      UserError: at the first call, if heads does not divide width, or patch the images.
    """

    num_classes: int
    width: int = 192
    heads: int = 3
    depth: int = 12
    patch: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits float32 [N, num_classes] of normalized images [N, H, W, C].

        Args:
          images: float images; all calls must have the H and W of the first.
          train: changes nothing; here for the signature that all models share.
        """
        n, height, width, channels = images.shape
        if height % self.patch or width % self.patch:
            raise UserError(
                f"images of {height}x{width} pixels cannot be cut into patches of {self.patch}"
            )
        if self.width % self.heads:
            raise UserError(f"heads={self.heads} must divide width={self.width}")
        x = nn.Conv(
            self.width,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            kernel_init=layers.TORCH_LINEAR,
            bias_init=layers.torch_bias(self.patch**2 * channels),
            dtype=self.dtype,
            name="patch_embed",
        )(images.astype(self.dtype))
        x = x.reshape(n, -1, self.width)
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (n, 1, self.width)).astype(x.dtype), x], 1)
        x = x + self.param("pos_embed", INIT, (1, *x.shape[1:])).astype(x.dtype)
        for block in range(self.depth):
            x = EncoderBlock(self.heads, self.dtype, name=f"block{block}")(x)
        x = _layer_norm(self.dtype, "norm_out")(x[:, 0])
        return _dense(self.num_classes, jnp.float32, "head")(x)


for _size, (_width, _heads) in SIZES.items():
    register(f"vit-{_size}", partial(VisionTransformer, width=_width, heads=_heads))


def _small(patch: str, depth: str = "12", **kwargs: Any) -> VisionTransformer:
    width, heads = SIZES["s"]
    return VisionTransformer(width=width, heads=heads, depth=int(depth), patch=int(patch), **kwargs)


register("vit-s-<patch>", _small, pattern=r"vit-s-(16|32)")
register("vit-s-<patch>x<blocks>", _small, pattern=r"vit-s-(16|32)x([1-9]\d?)")
