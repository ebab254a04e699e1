"""What is trained, in one table: `TUNE`, what a person chooses -> the groups of parameters that learn.

parameters = choose_trained(model, "lora", last_blocks=4)
count_trained(model)        # {"LoRA pairs": 221184, "prompt encoder": 6220, ...}
"""

import re
from collections import Counter

from torch import nn

from .lora import LoraLinear

GROUPS = {  # the first whose pattern a parameter's name has
    "adapters": re.compile(r"image_encoder\..*\.Adapter\..*"),
    "LoRA pairs": re.compile(r".*\.lora_[AB]"),
    "image encoder": re.compile(r"image_encoder\..*"),
    "prompt encoder": re.compile(r"prompt_encoder\..*"),
    "mask decoder": re.compile(r"mask_decoder\..*"),
    "refinement network": re.compile(r"refinement\..*"),
}
DECODER_SIDE = ("prompt encoder", "mask decoder", "refinement network")
TUNE = {
    "adapters": ("adapters", *DECODER_SIDE),  # SAM-Med2D (paper, section 3.2)
    "decoder": DECODER_SIDE,  # the paper's FT-SAM
    "lora": ("LoRA pairs", *DECODER_SIDE),
    "all": tuple(GROUPS),
}
BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")
BEFORE_THE_BLOCKS = re.compile(r"image_encoder\.(patch_embed|pos_embed).*")


def group_of(name: str) -> str:
    """The group, of GROUPS, of the parameter of a Sam with this name."""
    return next(group for group, pattern in GROUPS.items() if pattern.fullmatch(name))


def is_tuned(name: str, tune: str, first_block: int = 0) -> bool:
    """Whether the parameter learns under `tune`, of TUNE. first_block: of the encoder, those before it do not learn."""
    block = BLOCK.match(name)
    early = int(block[1]) < first_block if block else bool(first_block and BEFORE_THE_BLOCKS.fullmatch(name))
    return group_of(name) in TUNE[tune] and not early


def choose_trained(model: nn.Module, tune: str, last_blocks: int | None = None) -> list[nn.Parameter]:
    """Let the parameters of a Sam learn that `tune`, of TUNE, means, and no others. -> them.

    last_blocks: in the encoder only what is in its last so many blocks and behind them; None: all of it. A layer with a
    LoRA pair learns by the pair: its own weight and bias stay. Raises ValueError for what the table does not have.
    """
    if tune not in TUNE:
        raise ValueError(f"what is tuned must be one of {', '.join(TUNE)}, not {tune!r}")
    named = dict(model.named_parameters())
    depth = 1 + max((int(found[1]) for name in named if (found := BLOCK.match(name))), default=-1)
    first = 0 if last_blocks is None else max(0, depth - last_blocks)
    for name, parameter in named.items():
        parameter.requires_grad_(is_tuned(name, tune, first))
    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            layer.weight.requires_grad_(False)
            if layer.bias is not None:
                layer.bias.requires_grad_(False)
    return [parameter for parameter in named.values() if parameter.requires_grad]


def count_trained(model: nn.Module) -> dict[str, int]:
    """How many numbers learn, by group; groups of which nothing does are left out."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[group_of(name)] += parameter.numel()
    return {group: counts[group] for group in GROUPS if counts[group]}
