"""Products with weights, and when a layer may take a shorter way to its numbers.

PyTorch multiplies float32 matrices on a CPU by MKL, whose kernels for processors that are not Intel's reach two thirds
of what oneDNN's reach there (docs/performance.md, "Products"). PyTorch carries both, and oneDNN's product, which its
compiler uses, is asked for here. Its kernels read weights in an order of their own, into which they bring them at
every product; `Packed` weights lie in that order.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

LEAST = 2**21  # multiplications of a product: smaller ones take longer to be started than to be computed
WORTH_PACKING = 2**18  # values of a weight: smaller ones are soon brought into order


def is_recorded() -> bool:
    """Whether a graph is made of what is computed, for another runtime or by a compiler."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def may_be_shortened(x: Tensor) -> bool:
    """Whether a layer may take a shorter way from x to the same numbers: on a CPU, and not recorded.

    On a GPU none was measured, a graph for other runtimes has to hold the layers as they are defined, and autocast
    would round other products.
    """
    return _is_plain(x) and x.dtype in (torch.float32, torch.float64)


def _is_plain(x: Tensor) -> bool:
    return not is_recorded() and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


class Packed:
    """A weight in the order in which oneDNN's kernels read it: the same products, to the bit. It takes as much memory
    again, is used as long as the weight stays as it is, and is not copied with its layer.
    """

    def __init__(self, weight: Tensor) -> None:
        """weight: (out, in), what `linear` is given."""
        self.values = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.made_of, self.version = weight.detach(), weight._version  # kept, or its address might become another's

    def __reduce__(self) -> tuple[type, tuple]:
        return type(None), ()

    def of(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """What x is multiplied by in place of the weight; None where that has changed, or something is learned."""
        is_known = weight.data_ptr() == self.made_of.data_ptr() and weight._version == self.version
        return self.values if is_known and x.dtype == self.values.dtype and not torch.is_grad_enabled() else None


def pack(weight: Tensor) -> Packed | None:
    """The weight of a layer that answers and learns no more, where packing was measured to be faster."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16) or weight.is_inference():
        return None  # what was made in inference mode does not know how often it was written to
    return Packed(weight) if prefers_onednn() and weight.numel() >= WORTH_PACKING else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Packed | None = None) -> Tensor:
    """x W^T + b, as `torch.nn.functional.linear`: (..., in), (out, in), (out,) -> (..., out).

    packed: the same weight, where it was packed. In 16 bits oneDNN is asked for those alone.
    """
    if (
        not _is_plain(x)
        or not prefers_onednn()
        or x.numel() * len(weight) < LEAST
        or is_in_torch_dispatch_mode()  # which counts operations by the names that it knows
    ):
        return F.linear(x, weight, bias)
    if packed is not None and (values := packed.of(x, weight)) is not None:
        return _by_onednn(x, values, bias)
    if {x.dtype, weight.dtype} != {torch.float32}:
        return F.linear(x, weight, bias)
    return _Product.apply(x, weight, bias) if torch.is_grad_enabled() else _by_onednn(x, weight, bias)


@cache
def prefers_onednn() -> bool:
    """Whether this machine's processor is one on which oneDNN was measured to be the faster one."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "AMD" in capabilities.get("cpu_name", "") and has_onednn()


def has_onednn() -> bool:
    """Whether this build of PyTorch has oneDNN's product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """`_by_onednn`, from which something is learned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)  # a frozen weight needs no x
        ctx.is_turned = weight.stride(0) < weight.stride(1)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, of_weight = gradient.flatten(0, -2), None
        if x is not None:  # in the order in which the weight lies, or it would be copied
            x = x.flatten(0, -2)
            of_weight = (x.t() @ rows).t() if ctx.is_turned else rows.t() @ x
        of_x = None if weight is None else linear(gradient, weight.t())
        return of_x, of_weight, rows.sum(dim=0) if ctx.needs_input_grad[2] else None


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    packed: Packed | None = None

    def pack(self) -> None:
        """For answers alone: see `Packed`."""
        self.packed = pack(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, self.packed)
