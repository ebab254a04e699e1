"""Low-rank adaptation (LoRA, Hu et al. 2021, section 4.1): linear layers that learn by a pair of thin matrices.

    add_lora(model, rank=8, alpha=16, targets=("qkv", "proj"))
    ...train...
    merged = merge_lora(model.state_dict())     # a plain SAM's: the same names, the same outputs

A layer keeps its name and its weight; beside them stand `lora_A`, `lora_B` and `lora_alpha`, so that a state dict says
by itself what was added to it.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .products import Linear, linear

DECODER = "decoder"  # as a target: the attention of the mask decoder
TARGETS = {  # what a person calls a target: the names of its layers
    "qkv": re.compile(r"image_encoder\.blocks\.(\d+)\.attn\.qkv"),
    "proj": re.compile(r"image_encoder\.blocks\.(\d+)\.attn\.proj"),
    "mlp": re.compile(r"image_encoder\.blocks\.(\d+)\.mlp\.lin[12]"),
    DECODER: re.compile(r"mask_decoder\.transformer\.(?:.*\.)?\w*attn\w*\.(q|k|v|out)_proj"),
}
PARTS = ("lora_A", "lora_B", "lora_alpha")
PART = re.compile(rf"(?P<layer>.+)\.(?P<part>{'|'.join(PARTS)})")


class LoraLinear(Linear):
    """x W^T + b + alpha / rank * x A^T B^T. A: (rank, in), B: (out, rank), which starts at zero: a no-op.

    alpha is part of the state, so that a file needs no flags to be read.
    """

    lora_alpha: Tensor

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None) -> None:
        """layer: whose weight and bias become those of this one. generator: of A, on the CPU."""
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        drawn = torch.empty(rank, layer.in_features)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)  # as nn.Linear starts its weights
        self.lora_A = nn.Parameter(drawn.to(layer.weight))
        self.lora_B = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        self.register_buffer("lora_alpha", torch.tensor(float(alpha), device=layer.weight.device))
        self.train(layer.training)

    def addition(self, x: Tensor) -> Tensor:
        """What the pair adds. (..., in) -> (..., out)."""
        scale = (self.lora_alpha / len(self.lora_A)).to(x.dtype)
        return linear(linear(x * scale, self.lora_A), self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.addition(x)


def product_of(layer: Linear, x: Tensor) -> Tensor:
    """A linear layer without its bias, whether it has a pair or not."""
    product = linear(x, layer.weight, packed=layer.packed)
    return product + layer.addition(x) if isinstance(layer, LoraLinear) else product


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    targets: Iterable[str],
    last_blocks: int | None = None,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Give a pair to the layers of a Sam that the targets (of TARGETS) name; -> their names. Outputs stay as they were.

    last_blocks: of the encoder's blocks only the last so many; None: all. generator: of the first values.
    """
    wanted = [TARGETS[target] for target in targets]
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    first = 0 if last_blocks is None else _depth([name for name, _ in layers]) - last_blocks
    found = []
    for name, layer in layers:
        match = next((hit for pattern in wanted if (hit := pattern.fullmatch(name))), None)
        if match is None or (match[1].isdigit() and int(match[1]) < first):
            continue
        above, _, own = name.rpartition(".")
        setattr(model.get_submodule(above), own, LoraLinear(layer, rank, alpha, generator))
        found.append(name)
    return found


def _depth(names: list[str]) -> int:
    """Blocks of the encoder."""
    return 1 + max((int(found[1]) for name in names if (found := TARGETS["qkv"].fullmatch(name))), default=-1)


class Pair(NamedTuple):
    """What a state dict holds of one layer's pair."""

    A: Tensor
    B: Tensor
    alpha: Tensor

    @property
    def rank(self) -> int:
        return len(self.A)

    def update(self) -> Tensor:
        """What it adds to the layer's weight: (out, in) float32."""
        return self.alpha.float() / self.rank * (self.B.float() @ self.A.float())


def pairs_in(weights: dict[str, Tensor]) -> Iterator[tuple[str, Pair]]:
    """The pairs of a state dict: (name of the layer, its pair).

    Raises ValueError, which names the layer, for a pair that lacks a part or does not fit its layer's weight.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if found := PART.fullmatch(name):
            layers.setdefault(found["layer"], {})[found["part"]] = tensor
    for layer, parts in layers.items():
        missing = [part for part in PARTS if part not in parts]
        weight = weights.get(f"{layer}.weight")
        if missing or weight is None:
            raise ValueError(f"the LoRA pair of {layer} lacks {', '.join(missing) or 'the weight that it is for'}")
        pair = Pair(*(parts[part] for part in PARTS))
        thin = pair.A.dim() == pair.B.dim() == 2 and pair.A.shape[0] == pair.B.shape[1] > 0
        if not thin or weight.shape != (pair.B.shape[0], pair.A.shape[1]) or pair.alpha.numel() != 1:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (*pair, weight))
            raise ValueError(f"the LoRA pair of {layer} does not fit it: A, B, alpha and the weight are {shapes}")
        yield layer, pair


def merge_lora(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same state dict with every pair added to its layer's weight, in the weight's type. Raises as `pairs_in`."""
    merged = {name: tensor for name, tensor in weights.items() if not PART.fullmatch(name)}
    for layer, pair in pairs_in(weights):
        weight = merged[f"{layer}.weight"]
        merged[f"{layer}.weight"] = (weight.float() + pair.update()).to(weight.dtype)
    return merged
