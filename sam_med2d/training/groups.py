"""Which rate each trained parameter learns at: the groups of the optimizer."""

from typing import Any

from segment_anything import Sam
from segment_anything.modeling.tuning import BEFORE_THE_BLOCKS, BLOCK, group_of

ADAPTED = ("adapters", "LoRA pairs")  # what learns once a batch, behind a gate that starts at zero

REFINED = "refinement network"


def parameter_groups(
    model: Sam,
    lr: float,
    adapter_lr: float | None = None,
    adapter_norm_lr: float | None = None,
    refine_lr: float | None = None,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups of the parameters that require a gradient; "lr_scale" is a group's share of the learning rate.

    adapter_lr: of adapters and LoRA pairs; None: lr. adapter_norm_lr: of the adapters' last LayerNorm; None:
    adapter_lr. refine_lr: of the refinement network; None: lr.
    layer_decay: what the rate of the encoder's own layers is multiplied by from each block to the one before it
    (ELECTRA, Clark et al. 2020, appendix A; for ViTs BEiT, Bao et al. 2021, appendix H); its neck learns at lr.
    """
    adapter_lr = adapter_lr or lr
    depth = len(model.image_encoder.blocks)
    # in the order in which earlier versions had them: an optimizer's state knows its tensors by their place
    groups: dict[float, dict[str, Any]] = {
        -3.0: {"params": [], "lr_scale": (adapter_norm_lr or adapter_lr) / lr},
        -2.0: {"params": [], "lr_scale": adapter_lr / lr},
        -1.0: {"params": [], "lr_scale": (refine_lr or lr) / lr},
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if group_of(name) in ADAPTED:
            place = -3.0 if ".Adapter.norm." in name else -2.0
        elif group_of(name) == REFINED:
            place = -1.0
        else:
            place = float(blocks_above(name, depth)) if layer_decay < 1 else 0.0
            groups.setdefault(place, {"params": [], "lr_scale": layer_decay**place})
        groups[place]["params"].append(parameter)
    return [groups[place] for place in sorted(groups) if groups[place]["params"]]


def blocks_above(name: str, depth: int) -> int:
    """How many steps of the encoder lie from a parameter to its end: 0 for the neck and everything outside, 1 in the
    last block, depth + 1 before the first.
    """
    block = BLOCK.match(name)
    if block:
        return depth - int(block[1])
    return depth + 1 if BEFORE_THE_BLOCKS.fullmatch(name) else 0
