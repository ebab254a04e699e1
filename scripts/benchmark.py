"""Timings, each with a baseline measured in the same run: medians, and the ratio to the baseline.

    python scripts/benchmark.py encoder                 # our attention and adapters, against the plain ones
    python scripts/benchmark.py test --data_path ../data_demo       # four prompt modes against encoder passes alone
    python scripts/benchmark.py click                   # a further click, with and without the refinement network
    python scripts/benchmark.py train --data_path data_demo         # one training batch, and its parts
    python scripts/benchmark.py tuning --help           # embeddings once; what each --tune takes
    python scripts/benchmark.py processes --help        # two processes that share every step, against one
    python scripts/benchmark.py data --help             # reading, the cache, an index of 20 million masks
    python scripts/benchmark.py deploy --help           # ONNX Runtime and OpenVINO against PyTorch

Machines are noisy: the contenders take turns, and only ratios of one run compare. Tables: docs/performance.md.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import by_convolutions, compare

from sam_med2d.data.batch import collate
from sam_med2d.data.datasets import TestingDataset, TrainingDataset
from sam_med2d.device import best_device
from sam_med2d.evaluation.evaluate import evaluate
from sam_med2d.prompts.modes import DEFAULT_MODES, parse_mode
from sam_med2d.training.learner import Learner
from sam_med2d.training.rounds import Recipe, train_batch
from segment_anything import Prompts, answer, look, sam_model_registry
from segment_anything.modeling.image_encoder import Attention

MODEL_AREAS = ("encoder", "test", "click", "train")  # those of this file
OTHER_AREAS = ("data", "deploy", "processes", "tuning")  # each a module benchmark_{area}.py


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    areas = parser.add_subparsers(dest="area", required=True)
    for area in MODEL_AREAS:
        own = areas.add_parser(area)
        own.add_argument("--model_type", default="vit_b", choices=[*sam_model_registry])
        own.add_argument("--image_size", type=int, default=256)
        own.add_argument("--batch_size", type=int, default=1)
        own.add_argument("--data_path", default="data_demo")
        own.add_argument("--rounds", type=int, default=7)
        own.add_argument("--device")
    for area in OTHER_AREAS:
        if area in sys.argv[1:2]:  # its libraries are extras
            importlib.import_module(f"benchmark_{area}").add_arguments(areas.add_parser(area))
        else:
            areas.add_parser(area, add_help=False)
    return parser.parse_args()


def padded_attention(self: Attention, x: Tensor) -> Tensor:
    """The reference: pad with zeros, compute everything on whole windows, crop."""
    window = self.window
    if not window:
        return Attention.forward(self, x)
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.view(batch, rows, window, columns, window, channels).transpose(2, 3).reshape(-1, window, window, channels)
    q, k, v = self.qkv(x).view(len(x), window, window, 3, self.heads, -1).permute(3, 0, 4, 1, 2, 5)
    attended = F.scaled_dot_product_attention(
        q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), attn_mask=self.position_bias(q, window, window)
    )
    x = self.proj(attended.transpose(1, 2).reshape(len(x), window, window, channels))
    x = x.view(batch, rows, columns, window, window, channels).transpose(2, 3)
    return x.reshape(batch, rows * window, columns * window, channels)[:, :height, :width]


@torch.inference_mode()
def encoder(args: argparse.Namespace, device: torch.device) -> None:
    model = sam_model_registry[args.model_type](image_size=args.image_size).to(device)
    images = torch.randint(0, 256, (args.batch_size, 3, args.image_size, args.image_size), device=device)
    attention = [block.attn for block in model.image_encoder.blocks]
    for adapter in model.image_encoder.adapters():  # a fresh one adds nothing, which would hide a difference
        torch.nn.init.ones_(adapter.norm.weight)

    def padded() -> Tensor:
        for layer in attention:
            layer.forward = padded_attention.__get__(layer)
        try:
            return model.encode(images)
        finally:
            for layer in attention:
                del layer.forward

    expected = model.encode(images)
    contenders = {
        "padded tokens computed": padded,
        "adapters as convolutions": by_convolutions(lambda: model.encode(images)),
    }
    for name, other in contenders.items():
        print(f"{name}: largest difference of the embeddings {(other() - expected).abs().max():.1e}")
    compare({"as it is": lambda: model.encode(images), **contenders}, args.rounds, device)


def test(args: argparse.Namespace, device: torch.device) -> None:
    """Decoding and scoring of a test set, beside one encoder pass an image. Reading is left out."""
    model = sam_model_registry[args.model_type](image_size=args.image_size).to(device)
    dataset = TestingDataset(args.data_path, args.image_size, "test")
    items = [dataset[i] for i in range(len(dataset))]
    batches = [collate(items[i : i + args.batch_size]) for i in range(0, len(items), args.batch_size)]
    print(f"{len(items)} images, {sum(len(b.mask_names) for b in batches)} objects")

    @torch.inference_mode()
    def encode() -> None:
        for batch in batches:
            model.encode(batch.images.to(device), batch.content.to(device))

    def score(modes: tuple[str, ...]) -> Callable[[], object]:
        return lambda: list(evaluate(model, batches, [parse_mode(m) for m in modes], device=device))

    compare(
        {"encoder passes alone": encode, "bbox": score(("bbox",)), " ".join(DEFAULT_MODES): score(DEFAULT_MODES)},
        args.rounds,
        device,
    )


@torch.inference_mode()
def click(args: argparse.Namespace, device: torch.device) -> None:
    """A fifth click on a picture that is encoded: the best of three answers, at the full size of the frame."""
    size = args.image_size
    model = sam_model_registry[args.model_type](image_size=size, refine=True).to(device).eval()
    seen = look(model, torch.randint(0, 256, (1, 3, size, size), device=device))
    draw = torch.Generator().manual_seed(0)
    points, labels = torch.rand(1, 5, 2, generator=draw) * size, torch.tensor([[1, 0, 1, 1, 0]])
    prompts = Prompts(points, labels, masks=torch.rand(1, 1, size // 4, size // 4, generator=draw)).to(device)

    def asked(with_parts: bool, best: bool) -> Callable[[], object]:
        own = seen if with_parts else seen._replace(details=None)
        return lambda: model.upscale(answer(model, own, prompts, True, best=best).logits)

    compare(
        {
            "the decoder alone": asked(False, True),
            "with the refinement network": asked(True, True),
            "all three answers refined": asked(True, False),
        },
        args.rounds,
        device,
    )


def train_step(args: argparse.Namespace, device: torch.device) -> None:
    recipe = Recipe()
    dataset = TrainingDataset(args.data_path, args.image_size, "train")
    batch = collate([dataset[0, i % len(dataset)] for i in range(args.batch_size)]).to(device)

    def prepared(adapters: bool, use_amp: bool) -> Callable[[], object]:
        model = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=adapters).to(device)
        model.train_for("adapters")
        learner = Learner(model, lr=1e-4, use_amp=use_amp)
        return lambda: train_batch(model, [batch], learner, recipe, 0)

    print(f"one batch of {args.batch_size} image(s), {len(batch.mask_names)} objects, {recipe.corrections + 1} rounds")
    compare(
        {
            "adapters, float32": prepared(True, False),
            "adapters as convolutions, float32": by_convolutions(prepared(True, False)),
            "decoder side alone (FT-SAM), float32": prepared(False, False),
            "adapters, mixed precision": prepared(True, True),
        },
        args.rounds,
        device,
    )


def main() -> None:
    args = parse_args()
    if args.area in OTHER_AREAS:
        importlib.import_module(f"benchmark_{args.area}").run(args)
        return
    device = best_device(args.device)
    print(
        f"{args.area}: {args.model_type}, {args.image_size} px, batch {args.batch_size}, {device}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {args.rounds}"
    )
    {"encoder": encoder, "test": test, "click": click, "train": train_step}[args.area](args, device)


if __name__ == "__main__":
    main()
