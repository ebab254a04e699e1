"""What the model takes: pictures encoded, clicks answered, batches trained, test sets scored; for
scripts/benchmark.py encode, decode, train and evaluate.

Weights are random: they change nothing about the work.
"""

import argparse
import os
import time
import unittest.mock
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timing import (
    Contender,
    Sheet,
    Work,
    by_convolutions,
    by_mkl,
    decoder_as_defined,
    gflop_of,
    products_in_tf32,
    shares_of,
)
from torch import Tensor

from sam_med2d.data.batch import Batch, collate
from sam_med2d.data.datasets import TestingDataset, TrainingDataset, train_loader
from sam_med2d.device import amp_dtype
from sam_med2d.evaluation.evaluate import evaluate
from sam_med2d.evaluation.metrics import iou
from sam_med2d.memory import keep_freed_memory
from sam_med2d.prompts.modes import DEFAULT_MODES, parse_mode
from sam_med2d.training import losses
from sam_med2d.training.learner import Learner
from sam_med2d.training.losses import dice, focal
from sam_med2d.training.pixels import PixelTerms
from sam_med2d.training.rounds import Recipe, train_batch
from segment_anything import Prompts, Sam, answer, flops, look, sam_model_registry
from segment_anything.modeling import refinement, transformer
from segment_anything.modeling.image_encoder import Attention
from segment_anything.modeling.lora import product_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # fmt: off
    parser.add_argument("--model_type", default="vit_b", choices=[*sam_model_registry],
        help="Size of the model. Default: %(default)s.")
    parser.add_argument("--image_size", type=int, default=256,
        help="Side of the frame, in pixels. Default: %(default)s.")
    parser.add_argument("--batch_sizes", type=int, nargs="+",
        help="Numbers of pictures that are encoded at once. Default: 1 8, on a GPU 1 8 64.")
    parser.add_argument("--data_path", default="data_demo",
        help="Folder of the data that is trained on and scored. Default: %(default)s.")
    parser.add_argument("--mask_num", type=int, default=5,
        help="Number of masks of each training image. Default: %(default)s.")
    parser.add_argument("--train_images", type=int,
        help="Number of images of a training batch. Default: 2, on a GPU 16.")
    parser.add_argument("--compile", action="store_true",
        help="Measure compiled contenders too, whose start takes minutes.")
    parser.add_argument("--references", action="store_true", help="Measure the plain ways that ours replaced too.")
    # fmt: on


def model_of(args: argparse.Namespace, device: torch.device, **parts: bool) -> Sam:
    parts = {"encoder_adapter": True, **parts}
    return sam_model_registry[args.model_type](image_size=args.image_size, **parts).to(device).eval()


def pictures(args: argparse.Namespace, count: int, device: torch.device) -> Tensor:
    return torch.randint(0, 256, (count, 3, args.image_size, args.image_size), device=device)


# ---------------------------------------------------------------- encode


def encode(args: argparse.Namespace, sheet: Sheet) -> None:
    device = sheet.device
    plain = model_of(args, device)
    ways: dict[str, tuple[Sam, str, bool]] = {"float32": (plain, "float32", False)}
    if device.type == "cuda":
        ways["tf32"] = (plain, "tf32", True)
        ways["float16, prepared"] = (model_of(args, device).for_inference(torch.float16), "float16", False)
    ways["bfloat16, prepared"] = (model_of(args, device).for_inference(torch.bfloat16), "bfloat16", False)
    if args.compile:
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            ways[f"{name}, compiled"] = (model_of(args, device).for_inference(dtype, compiled=True), name, False)
    for count in args.batch_sizes or ([1, 8, 64] if device.type == "cuda" else [1, 8]):
        images = pictures(args, count, device)
        gflop = count * flops.count(plain).picture / 1e9
        print(f"\nencode: {count} picture(s), {gflop / count:.1f} GFLOP each")
        contenders = {
            name: Contender(encoding(model, images, tf32), kind, gflop, count)
            for name, (model, kind, tf32) in ways.items()
        }
        with_autocast = encoding(plain, images, False, amp_dtype(device))
        contenders["bfloat16, autocast"] = Contender(with_autocast, "bfloat16", gflop, count)
        if args.references:
            contenders["products by MKL"] = Contender(by_mkl(encoding(plain, images)))
            contenders["adapters as convolutions"] = Contender(by_convolutions(encoding(plain, images)))
            for name, computed in (("padded tokens ask too", False), ("... and are computed", True)):
                attend = partial(whole_windows, computed=computed)
                contenders[name] = Contender(with_attention(attend, encoding(plain, images), plain))
            contenders["padded tokens ask too, by MKL: as before"] = Contender(former_encoding(plain, images))
        sheet.compare(f"encode {count}", contenders)


def encoding(model: Sam, images: Tensor, tf32: bool = False, autocast: torch.dtype | None = None) -> Work:
    @torch.inference_mode()
    def work() -> Tensor:
        with products_in_tf32(tf32), torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            return model.encode(images)

    return work


def with_attention(attend: Callable[[Attention, Tensor], Tensor], work: Work, model: Sam) -> Work:
    """The same with another attention in every block of the encoder."""
    attention = [block.attn for block in model.image_encoder.blocks]

    def other() -> object:
        for layer in attention:
            layer.forward = partial(attend, layer)
        try:
            return work()
        finally:
            for layer in attention:
                del layer.forward

    return other


def former_encoding(model: Sam, images: Tensor) -> Work:
    """The encoder's pass that docs/performance.md counts in: an eighth of it over eight pictures is one `u`."""
    return by_mkl(with_attention(partial(whole_windows, computed=False), encoding(model, images), model))


def whole_windows(self: Attention, x: Tensor, computed: bool) -> Tensor:
    """Padded tokens ask too: all windows are alike. computed: and are computed, as in the original; else they are
    filled in, as in version 1.0.
    """
    height, width = x.shape[1:3]
    side_h, side_w = (self.window, self.window) if self.window else (height, width)
    rest = (0, 0, 0, -width % side_w, 0, -height % side_h)
    qkv = self.qkv(F.pad(x, rest)) if computed else F.pad(product_of(self.qkv, x), rest) + self.qkv.bias
    windows = qkv.unflatten(1, (-1, side_h)).unflatten(3, (-1, side_w)).unflatten(-1, (3, self.heads, -1))
    n_h, n_w = windows.shape[1], windows.shape[3]
    windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7)
    q, k, v = windows.reshape(3, len(x) * n_h * n_w, self.heads, side_h, side_w, -1).unbind(0)
    attended = F.scaled_dot_product_attention(
        q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), attn_mask=self.position_bias(q, side_h, side_w)
    )
    attended = attended.view(len(x), n_h, n_w, self.heads, side_h, side_w, -1).permute(0, 1, 4, 2, 5, 3, 6)
    return self.proj(attended.reshape(len(x), n_h * side_h, n_w * side_w, -1)[:, :height, :width])


# ---------------------------------------------------------------- decode


def decode(args: argparse.Namespace, sheet: Sheet) -> None:
    """A fifth click on a picture that is encoded: the best of three answers, at the full size of the frame."""
    size, device = args.image_size, sheet.device
    model = model_of(args, device, refine=True)
    with torch.no_grad():
        seen = look(model, pictures(args, 1, device))
    draw = torch.Generator().manual_seed(0)
    for objects in (1, 10):
        points = torch.rand(objects, 5, 2, generator=draw) * size
        labels = torch.tensor([[1, 0, 1, 1, 0]]).expand(objects, -1)
        masks = torch.rand(objects, 1, size // 4, size // 4, generator=draw)
        prompts = Prompts(points, labels, masks=masks).to(device)

        def asked(with_parts: bool, best: bool, prompts: Prompts = prompts, objects: int = objects) -> Contender:
            own = (seen if with_parts else seen._replace(details=None)).for_each(objects)

            def work() -> Tensor:
                return model.upscale(answer(model, own, prompts, True, best=best).logits)

            return Contender(torch.inference_mode()(work), gflop=gflop_of(work), items=objects)

        print(f"\ndecode: a fifth click on {objects} object(s)")
        sheet.compare(
            f"decode {objects}",
            {
                "the decoder alone": asked(False, True),
                "with the refinement network": asked(True, True),
                "all three answers refined": asked(True, False),
            },
        )


# ---------------------------------------------------------------- train


def train(args: argparse.Namespace, sheet: Sheet) -> None:
    keep_freed_memory(all_of_it=True)  # as train.py does
    device, recipe = sheet.device, Recipe()
    count = args.train_images or (16 if device.type == "cuda" else 2)
    dataset = TrainingDataset(args.data_path, args.image_size, "train", args.mask_num)
    batch = collate([dataset[0, i % len(dataset)] for i in range(count)]).to(device)
    print(f"\ntrain: {count} images, {len(batch.mask_names)} objects, {recipe.corrections + 1} rounds")

    def way(name: str, tf32: bool = False, **learning) -> Contender:
        step = training(args, batch, recipe, device, **learning)

        def work() -> None:
            with products_in_tf32(tf32):
                step()

        return Contender(work, name, items=count)

    contenders = {
        "adapters, float32": way("float32"),
        "and a refinement network, float32": way("float32", refine=True),
        "decoder side alone (FT-SAM), float32": way("float32", adapters=False),
        "adapters, mixed precision (bfloat16)": way("bfloat16", use_amp=True),
        "the same, blocks computed again": way("bfloat16", use_amp=True, again=True),
    }
    if args.references:
        plain = model_of(args, device)
        contenders |= {
            **{f"{name}: as before": Contender(as_before(contenders[name].work)) for name in [*contenders][:4]},
            "adapters as convolutions, float32": Contender(by_convolutions(contenders["adapters, float32"].work)),
            "8 pictures encoded, as before": Contender(former_encoding(plain, pictures(args, 8, device))),
        }
    if device.type == "cuda":
        contenders["adapters, tf32"] = way("tf32", tf32=True)
        contenders["adapters, mixed precision (float16)"] = way("float16", use_amp=True, amp_type=torch.float16)
    if args.compile:
        contenders["mixed precision, compiled"] = way("bfloat16", use_amp=True, compiled=True)
    sheet.compare("train", contenders)
    if device.type == "cuda":
        read_alone(args, dataset, count)
        return
    print("where the time goes:")
    for name, contender in contenders.items():
        shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares_of(contender.work).items())
        print(f"{name:46} {shares}")


def training(
    args: argparse.Namespace,
    batch: Batch,
    recipe: Recipe,
    device: torch.device,
    adapters: bool = True,
    refine: bool = False,
    again: bool = False,
    **learning,
) -> Callable[[], object]:
    model = model_of(args, device, encoder_adapter=adapters, refine=refine).train()
    model.train_for("adapters")
    model.image_encoder.checkpointing = again
    learner = Learner(model, lr=1e-6, **learning)
    return lambda: train_batch(model, [batch], learner, recipe, 0)


def as_before(work: Work) -> Work:
    """The same step as version 2.0 began with: products by MKL, the decoder and the losses by their definitions,
    attention in bfloat16 where products are, and the refinement network map by map."""

    def by_definition(logits: Tensor, masks: Tensor) -> PixelTerms:
        target = masks.float().expand_as(logits)
        return PixelTerms(focal(logits, target), dice(logits, target), iou(logits.detach(), target, from_logits=True))

    def before() -> object:
        with (
            unittest.mock.patch.object(losses, "pixel_terms", by_definition),
            unittest.mock.patch.object(transformer, "_attended", F.scaled_dot_product_attention),
            unittest.mock.patch.object(refinement, "_by_pixels", lambda x: x),
        ):
            return work()

    return by_mkl(decoder_as_defined(before))


def read_alone(args: argparse.Namespace, dataset: TrainingDataset, count: int) -> None:
    """How many training images a second the loader brings, which must be more than are trained on."""
    workers = os.cpu_count() or 1
    loader = train_loader(dataset, count, workers, seed=0)
    for epoch in range(2):  # the first starts the workers
        started, images = time.perf_counter(), 0
        for repeat in range(20):
            loader.batch_sampler.set_epoch(20 * epoch + repeat)  # type: ignore[union-attr]
            images += sum(len(part.images) for part in loader)
    print(f"the loader alone, {workers} workers: {images / (time.perf_counter() - started):.0f} images/s")


# ---------------------------------------------------------------- evaluate


def score(args: argparse.Namespace, sheet: Sheet) -> None:
    """Decoding and scoring of a test set, beside one encoder pass an image. Reading is left out."""
    device = sheet.device
    model = model_of(args, device)
    dataset = TestingDataset(args.data_path, args.image_size, "test")
    items = [dataset[i] for i in range(len(dataset))]
    size = 16 if device.type == "cuda" else 1
    batches = [collate(items[i : i + size]) for i in range(0, len(items), size)]
    objects = sum(len(batch.mask_names) for batch in batches)
    print(f"\nevaluate: {len(items)} images, {objects} objects")

    @torch.inference_mode()
    def passes() -> None:
        for batch in batches:
            model.encode(batch.images.to(device), batch.content.to(device))

    def modes(*names: str) -> Contender:
        parsed = [parse_mode(name) for name in names]
        return Contender(lambda: [*evaluate(model, batches, parsed, device=device)], items=objects * len(names))

    contenders = {"encoder passes alone": passes, "bbox": modes("bbox"), " ".join(DEFAULT_MODES): modes(*DEFAULT_MODES)}
    sheet.compare("evaluate", contenders)


RUN = {"encode": encode, "decode": decode, "train": train, "evaluate": score}
