"""Embeddings once: with an encoder that does not learn, each picture is encoded once in a whole run.

    remember_embeddings(model, args, images=len(dataset))
    model.encode(images, content)       # from the cache where it is there

An embedding is rounded to the cache's precision whether it comes from the cache or was just computed, and on a CPU
pictures are encoded one by one: what a run learns does not depend on what the cache held when it began.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from xxhash import xxh3_128

from sam_med2d.data.embedding_cache import PRECISIONS, EmbeddingCache, key_of, open_embeddings
from sam_med2d.device import amp_dtype
from segment_anything import Sam
from segment_anything.frames import SAM
from segment_anything.modeling.image_encoder import PATCH_SIZE

AGAIN = "again"  # as --embeddings: the encoder runs for every batch


class RememberedEncoder:
    """`Sam.encode` of a model whose encoder does not learn. encoded: how many pictures went through the encoder."""

    def __init__(self, model: Sam, cache: EmbeddingCache | None, dtype: torch.dtype) -> None:
        self.encoder, self.prepared = model.image_encoder, model.prepared
        self.channels = model.prompt_encoder.embed_dim
        self.cache, self.dtype = cache, dtype
        self.encoded = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, content: Tensor | None) -> Tensor:
        """images: (B, 3, S, S) uint8 -> (B, C, h, w) float32 on the same device."""
        places = range(len(images))
        here, where = images.cpu(), None if content is None else content.cpu()
        keys = [key_of(here[i], None if where is None else where[i]) for i in places]
        found = {key: self.cache.get(key) if self.cache else None for key in keys}
        lacking = [i for i in places if found[keys[i]] is None and i == keys.index(keys[i])]
        for part in [[i] for i in lacking] if images.device.type == "cpu" else [lacking] * bool(lacking):
            own = None if content is None else content[part]
            embeddings = self.encoder(self.prepared(images[part], own)).to(self.dtype).cpu()
            self.encoded += len(part)
            for i, embedding in zip(part, embeddings):
                found[keys[i]] = embedding
                if self.cache:
                    self.cache.put(keys[i], embedding)
        rows = [embedding for key in keys if (embedding := found[key]) is not None]
        if not rows:
            side = images.shape[-1] // PATCH_SIZE
            return images.new_zeros((0, self.channels, side, side), dtype=torch.float32)
        return torch.stack(rows).to(images.device, non_blocking=True).float()


def remember_embeddings(
    model: Sam, args: argparse.Namespace, images: int, say: Callable[[object], None] = print
) -> RememberedEncoder | None:
    """Let a model whose encoder does not learn encode each picture once, as --embeddings says; None: it says again.

    Call it when the model has its weights. images: how many there are.
    """
    if args.embeddings == AGAIN:
        return None
    side = model.image_size // PATCH_SIZE
    computed = str(amp_dtype(model.device) if args.use_amp else torch.float32)
    facts = {"weights": _hash_of(model), "computed": f"{computed} on {model.device.type}"}
    channels = model.prompt_encoder.embed_dim
    shape = (channels, side, side)
    folder = args.cache or Path(args.work_dir) / "cache"
    cache = open_embeddings(folder, facts, shape, args.embeddings, images, int(args.embeddings_gb * 1e9))
    model.remembered = RememberedEncoder(model, cache, PRECISIONS[args.embeddings])
    if cache:
        kept = min(images, cache.count)
        say(
            f"the encoder runs once an image: embeddings of {kept} of {images} image(s) are kept in "
            f"{cache.slots.folder}, {2 * channels * side * side / 1024:.0f} KB each"
        )
    return model.remembered


def _hash_of(model: Sam) -> str:
    """Of all that an embedding depends on in a model."""
    digest = xxh3_128()
    digest.update(model.frame.encode() if model.frame == SAM else b"")
    named = [*model.image_encoder.state_dict().items(), ("mean", model.pixel_mean), ("std", model.pixel_std)]
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
