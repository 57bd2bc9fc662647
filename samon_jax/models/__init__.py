"""Models by name. All are Flax Linen modules with the same signature and names of layers.

    module.apply({"params": ..., "batch_stats": ...}, images, train=True, mutable=["batch_stats"])

Blocks are called `stage{1,2,3}_block{0..}`, and hold `norm1`, `conv1`, `norm2`, `conv2` and, where
it has parameters, `shortcut` (with `shortcut_norm` in post-activation networks). Around them are
`stem`, `head`, and `norm_out` (before the pooling of pre-activation networks) or `stem_norm` (after
the stem of the others). So the expression "stage3" selects the norms of block B3 of the paper's
Figure 3. ResNet-18, -101 and ImageNet's have four stages and VGG five; between the stages of
DenseNet are `transition1` and `transition2`; a Vision Transformer has no stages but `block{0..11}`.

Vision Transformers have no "batch_stats", only "params"; the call above is the same.
`transformer-<size>` translates sentences: its call and its layers are in `models.transformer`.

A family is a file here that registers the names of its models; the import below is all that it
needs elsewhere.
"""

from samon_jax.models._registry import create, names, register
from samon_jax.models.bottleneck_resnet import BottleneckResNet
from samon_jax.models.densenet import DenseNet
from samon_jax.models.resnet import ResNet
from samon_jax.models.transformer import Transformer
from samon_jax.models.vgg import VGG
from samon_jax.models.vit import VisionTransformer
from samon_jax.models.wide_resnet import WideResNet

__all__ = [
    "VGG",
    "BottleneckResNet",
    "DenseNet",
    "ResNet",
    "Transformer",
    "VisionTransformer",
    "WideResNet",
    "create",
    "names",
    "register",
]
