"""The sizes of a model, by the name that `--model_type` takes: they differ in the image encoder."""

from typing import NamedTuple


class Size(NamedTuple):
    """Of the image encoder: channels, depth, heads, and the blocks that attend globally; the others attend in windows.

    embedding: the channels of what it makes, and of the decoder. Every SAM has 256; a model for tests has less.
    """

    channels: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    embedding: int = 256


SIZES = {
    "vit_t": Size(192, 12, 3, (2, 5, 8, 11)),  # ours: for demos and tests
    "vit_b": Size(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Size(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Size(1280, 32, 16, (7, 15, 23, 31)),
}
