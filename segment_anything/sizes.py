"""The sizes of the image encoder, by the name that `--model_type` takes."""

from typing import NamedTuple


class Size(NamedTuple):
    """global_blocks: the blocks that attend globally; the others attend in windows."""

    channels: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


SIZES = {
    "vit_t": Size(192, 12, 3, (2, 5, 8, 11)),  # ours: for demos and tests
    "vit_b": Size(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Size(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Size(1280, 32, 16, (7, 15, 23, 31)),
}
