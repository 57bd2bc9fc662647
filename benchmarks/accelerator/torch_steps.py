"""SGD, SAM and SAM-ON in PyTorch, as fast as PyTorch can: compiled, and replayed as CUDA graphs.

SAM-ON asks in its first pass for the gradients of the norms only, so that PyTorch, too, leaves out
what is not needed. (The code that the authors of SAM-ON published computes all of them.)
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

MOMENTUM = 0.9
RHO = 0.5


class Trainer:
    """A network and one method that trains it on one batch.

    Args:
      network: on the device.
      method: "SGD", "SAM" or "SAM-ON".
      images: [N, C, H, W].
      labels: [N].
      dtype: of the computation; weights are float32.
      lr: learning rate.
      compiled: use `torch.compile`.
    """

    def __init__(
        self,
        network: nn.Module,
        method: str,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        lr: float = 0.1,
        compiled: bool = False,
    ) -> None:
        self.method, self.lr, self.images, self.labels = method, lr, images, labels
        self.params: dict[str, torch.Tensor] = dict(network.named_parameters())
        self.norms = {
            f"{name}.{leaf}"
            for name, module in network.named_modules()
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)
            for leaf, _ in module.named_parameters()
        }
        self.velocity = [torch.zeros_like(p) for p in self.params.values()]
        kind, mixed = images.device.type, dtype != torch.float32

        def loss_fn(params: dict[str, torch.Tensor], x: Any, y: Any) -> torch.Tensor:
            context = torch.autocast(kind, dtype) if mixed else contextlib.nullcontext()
            with context:
                logits = torch.func.functional_call(network, params, (x,))
            return functional.cross_entropy(logits.float(), y)

        self.loss_fn = torch.compile(loss_fn) if compiled else loss_fn

    def gradients(self, wanted: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Of the parameters in `wanted`; the others are constants."""
        params = {name: wanted.get(name, p.detach()) for name, p in self.params.items()}
        loss = self.loss_fn(params, self.images, self.labels)
        return list(torch.autograd.grad(loss, list(wanted.values())))

    def step(self) -> None:
        """One step, in place."""
        if self.method == "SGD":
            grads = self.gradients(self.params)
        else:
            names = self.norms if self.method == "SAM-ON" else set(self.params)
            chosen = {name: p for name, p in self.params.items() if name in names}
            first = self.gradients(chosen)
            with torch.no_grad():
                values = list(chosen.values())
                lengths = torch.stack(torch._foreach_norm(first))
                scale = RHO / torch.linalg.vector_norm(lengths)
                epsilon = [g * scale for g in first]
                torch._foreach_add_(values, epsilon)
            grads = self.gradients(self.params)
            with torch.no_grad():
                torch._foreach_sub_(values, epsilon)
        with torch.no_grad():
            torch._foreach_mul_(self.velocity, MOMENTUM)
            torch._foreach_add_(self.velocity, grads)
            values = list(self.params.values())
            torch._foreach_add_(values, self.velocity, alpha=-self.lr)


def captured(trainer: Trainer, pool: Any) -> Callable[[], None]:
    """The step of a trainer as a CUDA graph; runs it a few times before.

    Args:
      trainer: of the step.
      pool: `torch.cuda.graph_pool_handle()`, whose memory graphs share that never run at once.

    Raises:
      RuntimeError: something in it cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            trainer.step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        trainer.step()
    return graph.replay
