"""The same networks in PyTorch, with our names of layers, for a peer that one would write today."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def create(name: str, classes: int) -> nn.Module:
    """A network by its name in `samon_jax.models`, for NCHW images.

    Raises:
      KeyError: there is no counterpart; the message names it.
    """
    if name.startswith("wrn-"):
        depth, width = map(int, name.split("-")[1:])
        return WideResNet((depth - 4) // 6, width, classes)
    return {
        "three-stages": lambda: Toy(classes),
        "imagenet-resnet-50": lambda: ResNet((3, 4, 6, 3), classes),
        "vit-t": lambda: VisionTransformer(192, 3, 4, 32, classes),
        "vit-s": lambda: VisionTransformer(384, 6, 4, 32, classes),
        "vit-s-16": lambda: VisionTransformer(384, 6, 16, 224, classes),
    }[name]()


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def _batch_norm(features: int) -> nn.BatchNorm2d:
    # By the batch alone, as in the steps that it is compared with.
    return nn.BatchNorm2d(features, track_running_stats=False)


class Toy(nn.Module):
    """Convolution, norm and ReLU three times."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        for stage, inputs in (("stage1", 3), ("stage2", 8), ("stage3", 8)):
            self.add_module(f"{stage}_conv", _conv(inputs, 8, 3))
            self.add_module(f"{stage}_norm", _batch_norm(8))
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes]."""
        for stage in ("stage1", "stage2", "stage3"):
            x = functional.relu(getattr(self, f"{stage}_norm")(getattr(self, f"{stage}_conv")(x)))
        return self.head(x.float().mean((2, 3)))


class PreActBlock(nn.Module):
    """Norm, ReLU, convolution, twice, plus the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _batch_norm(inputs), _conv(inputs, outputs, 3, stride)
        self.norm2, self.conv2 = _batch_norm(outputs), _conv(outputs, outputs, 3)
        changes = inputs != outputs or stride != 1
        self.shortcut = _conv(inputs, outputs, 1, stride) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to [N, outputs, H / stride, W / stride]."""
        activated = functional.relu(self.norm1(x))
        y = self.conv2(functional.relu(self.norm2(self.conv1(activated))))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """Three stages of pre-activation blocks."""

    def __init__(self, blocks: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = _conv(3, 16, 3)
        self.names, inputs = [], 16
        for stage in (1, 2, 3):
            outputs = 8 * 2**stage * width
            for block in range(blocks):
                self.names.append(f"stage{stage}_block{block}")
                stride = 2 if stage > 1 and block == 0 else 1
                self.add_module(self.names[-1], PreActBlock(inputs, outputs, stride))
                inputs = outputs
        self.norm_out = _batch_norm(inputs)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes]."""
        x = self.stem(x)
        for name in self.names:
            x = getattr(self, name)(x)
        return self.head(functional.relu(self.norm_out(x)).float().mean((2, 3)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with a norm, plus the shortcut, ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.norm1 = _conv(inputs, width, 1), _batch_norm(width)
        self.conv2, self.norm2 = _conv(width, width, 3, stride), _batch_norm(width)
        self.conv3, self.norm3 = _conv(width, outputs, 1), _batch_norm(outputs)
        self.shortcut: nn.Module | None = None
        if inputs != outputs or stride != 1:
            self.shortcut = _conv(inputs, outputs, 1, stride)
            self.shortcut_norm = _batch_norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to [N, 4 width, H / stride, W / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = functional.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """ImageNet's stem and four stages of bottlenecks."""

    def __init__(self, blocks: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.stem, self.stem_norm = _conv(3, 64, 7, 2), _batch_norm(64)
        self.names, inputs = [], 64
        for stage, count in enumerate(blocks):
            for block in range(count):
                self.names.append(f"stage{stage + 1}_block{block}")
                stride = 2 if stage > 0 and block == 0 else 1
                self.add_module(self.names[-1], Bottleneck(inputs, 64 * 2**stage, stride))
                inputs = 256 * 2**stage
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes]."""
        x = functional.max_pool2d(functional.relu(self.stem_norm(self.stem(x))), 3, 2, 1)
        for name in self.names:
            x = getattr(self, name)(x)
        return self.head(x.float().mean((2, 3)))


class EncoderBlock(nn.Module):
    """Pre-norm Transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, tokens, width] to the same shape."""
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, -1)
        y = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind())
        x = x + self.proj(y.transpose(1, 2).reshape(n, tokens, width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Class token, learned positions, 12 blocks."""

    def __init__(self, width: int, heads: int, patch: int, side: int, classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2 + 1, width))
        self.names = [f"block{i}" for i in range(12)]
        for name in self.names:
            self.add_module(name, EncoderBlock(width, heads))
        self.norm_out = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes]."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], 1) + self.pos_embed
        for name in self.names:
            x = getattr(self, name)(x)
        return self.head(self.norm_out(x[:, 0]).float())


def load(network: nn.Module, params: dict[str, Any]) -> None:
    """Copies the parameters of the Flax network of the same name."""
    from_flax = {}

    def visit(node: dict[str, Any], path: tuple[str, ...]) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                visit(value, (*path, name))
                continue
            tensor = torch.tensor(value)
            if name == "kernel":
                tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
            leaf = {"kernel": "weight", "scale": "weight"}.get(name, name)
            from_flax[".".join((*path, leaf))] = tensor.contiguous()

    visit(params, ())
    network.load_state_dict(from_flax)
