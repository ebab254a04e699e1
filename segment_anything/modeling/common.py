"""Layers that both the image encoder and the decoder side use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_recorded() -> bool:
    """Whether a graph is made of what is computed, for another runtime or by a compiler."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def on_cpu_alone(x: Tensor) -> bool:
    """Whether x is only to be answered, in float32 on a CPU: nothing is learned from it, traced or compiled.

    There layers may take a shorter way to the same numbers. On a GPU none was measured, a graph for other runtimes
    has to hold the layers as they are defined, and autocast would round other products.
    """
    return (
        not is_recorded()
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of a (N, C, H, W) map, each pixel on its own."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # channels last is where layer_norm has a fused kernel
        normalised = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return normalised.permute(0, 3, 1, 2)


class MLPBlock(nn.Module):
    """Linear, activation, Linear over the last dimension; back to the width it came with."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))
