"""Pretrain a small SAM on generated phantoms: the "SAM" that the demo starts from.

    python scripts/pretrain_phantoms.py --minutes 62 --compile       # what made pretrain_model/
    python scripts/pretrain_phantoms.py --minutes 1 --output /tmp/vit_t.safetensors

Boxes, clicks, corrections and mask prompts, on all four outputs. Writes float16 weights without adapters, and
beside them a log: one JSON line an evaluation on held-out phantoms, the first line being the flags.
After the warm-up the learning rate follows the time, not the steps, so that the run ends when it was asked to.
"""

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sam_med2d.cli import add_flag
from sam_med2d.data.phantoms import phantom
from sam_med2d.device import amp_dtype, best_device, seed_everything
from sam_med2d.prompts.clicks import clicks_on
from sam_med2d.training import rounds as training_rounds
from sam_med2d.training.rounds import Round, correction_prompts, judge, predict_start, starting_prompts, uniform_from
from segment_anything import Prompts, Sam, sam_model_registry
from segment_anything.checkpoint import load_checkpoint, save_weights

WARM_UP = 200  # steps
CLICK_COUNTS = (0, 1, 2, 4)  # of a correction, beside the first click; 0 is the mask alone
HELD_OUT_SEED = 10**6  # phantoms of the evaluation; the run would draw this seed after a million batches


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("--output", type=Path, default=Path("pretrain_model/vit_t_phantoms.safetensors"),
        help="The weights to write. Default: %(default)s.")
    parser.add_argument("--model_type", default="vit_t", choices=sam_model_registry,
        help="Size of the model. Default: %(default)s.")
    parser.add_argument("--start", type=Path, help="The weights to go on from. Default: random ones.")
    parser.add_argument("--image_size", type=int, default=128,
        help="Side of the frame, in pixels. Default: %(default)s.")
    parser.add_argument("--minutes", type=float, default=60, help="How long to train. Default: %(default)s.")
    parser.add_argument("--batch_size", type=int, default=8, help="Number of images of a step. Default: %(default)s.")
    parser.add_argument("--objects", type=int, default=4, help="Number of objects of an image. Default: %(default)s.")
    parser.add_argument("--lr", type=float, default=1e-3, help="Learning rate. Default: %(default)s.")
    parser.add_argument("--weight_decay", type=float, default=0.01, help="Weight decay of AdamW. Default: %(default)s.")
    parser.add_argument("--evaluate_every", type=int, default=250,
        help="Evaluate after so many steps. Default: %(default)s.")
    parser.add_argument("--num_workers", type=int, default=1,
        help="Number of processes that draw images. Default: %(default)s.")
    parser.add_argument("--seed", type=int, default=0,
        help="The images are a function of this number. Default: %(default)s.")
    parser.add_argument("--device", default=None, help="Where the model runs. Default: the best there is.")
    add_flag(parser, "--use_amp", True, "Train in mixed precision where the device has bfloat16.")
    add_flag(parser, "--compile", False, "Compile the loss: a step takes a sixth less time; needs a C++ compiler.")
    # fmt: on
    return parser.parse_args()


class Phantoms(IterableDataset):
    """Batches without end: images (B, 3, S, S) uint8, masks (B * objects, 1, S, S) bool."""

    def __init__(self, size: int, batch_size: int, objects: int, seed: int) -> None:
        self.size, self.batch_size, self.objects, self.seed = size, batch_size, objects, seed

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            yield self.batch(self.seed + number)
            number += workers

    def batch(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(seed)
        images, masks = zip(*(phantom(rng, self.size, self.objects) for _ in range(self.batch_size)))
        return (
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(np.concatenate(masks)).unsqueeze(1),
        )


def two_rounds(
    model: Sam, images: torch.Tensor, masks: torch.Tensor, clicks: int, joined: bool, uniform
) -> tuple[Round, Round]:
    """A start (half boxes, half clicks) and one correction, both with the encoder in the graph.

    joined: the corrective clicks join a first click somewhere on the object, as at test time, instead of standing
    alone, as in fine-tuning.
    """
    embeddings = model.encode(images).repeat_interleave(len(masks) // len(images), dim=0)
    start = judge(
        model,
        "start",
        predict_start(model, embeddings, starting_prompts(masks, uniform, odd_from_box=True)),
        masks,
        True,
    )
    first = clicks_on(masks, uniform(len(masks), 1)) if clicks and joined else None
    prompts = correction_prompts(start, masks, clicks, uniform, Prompts(*first) if first else None)
    correction = judge(model, "clicks", model.predict(embeddings, prompts, multimask_output=None), masks, True)
    return start, correction


@torch.no_grad()
def evaluate(model: Sam, held_out: list, device: torch.device) -> dict[str, float]:
    """Mean Dice on held-out phantoms: from a box, from a click, and after a correction of four clicks."""
    model.eval()
    uniform = uniform_from(torch.Generator(device).manual_seed(HELD_OUT_SEED))
    dice = {"box": [], "click": [], "corrected": []}
    for images, masks in held_out:
        images, masks = images.to(device), masks.to(device)
        embeddings = model.encode(images).repeat_interleave(len(masks) // len(images), dim=0)
        prompts = starting_prompts(masks, uniform, odd_from_box=True)
        start = judge(model, "start", predict_start(model, embeddings, prompts), masks, True)
        correction = model.predict(embeddings, correction_prompts(start, masks, 4, uniform), multimask_output=None)
        dice["box"].append(start.dice[prompts.box_rows])
        dice["click"].append(start.dice[prompts.click_rows])
        dice["corrected"].append(judge(model, "clicks", correction, masks, True).dice)
    model.train()
    return {name: round(torch.cat(values).mean().item(), 4) for name, values in dice.items()}


def main() -> None:
    args = parse_args()
    seed_everything(args.seed)
    device = best_device(args.device)
    cv2.setNumThreads(1)  # the pictures are too small to share out
    if args.compile:
        training_rounds.objective = torch.compile(training_rounds.objective)
    model = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=False).to(device).train()
    if args.start:
        print(load_checkpoint(model, args.start))
    parameters = model.train_for("all")
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=args.weight_decay)
    source = Phantoms(args.image_size, args.batch_size, args.objects, args.seed)
    held_out = [source.batch(HELD_OUT_SEED + i) for i in range(16)]
    uniform = uniform_from(torch.Generator(device).manual_seed(args.seed))
    draw = random.Random(args.seed)
    dtype = amp_dtype(device)

    log_path = args.output.with_suffix(".log.jsonl")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log = open(log_path, "w")  # noqa: SIM115 (open until the end of the run)
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    print(json.dumps({**flags, "torch": torch.__version__}), file=log, flush=True)
    started = time.monotonic()
    recent = []
    bar = tqdm(DataLoader(source, batch_size=None, num_workers=args.num_workers), unit="step")
    for step, (images, masks) in enumerate(bar):
        progress = (time.monotonic() - started) / (60 * args.minutes)
        if progress < 1:
            factor = min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * progress)))
            optimizer.param_groups[0]["lr"] = args.lr * factor
            with torch.autocast(device.type, dtype, enabled=args.use_amp and dtype == torch.bfloat16):
                rounds = two_rounds(
                    model, images.to(device), masks.to(device), draw.choice(CLICK_COUNTS), draw.random() < 0.5, uniform
                )
            loss = sum(r.losses["loss"] for r in rounds)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            recent.append(loss.item())
        if progress >= 1 or (step + 1) % args.evaluate_every == 0:
            if not math.isfinite(recent[-1]):
                raise SystemExit(f"the loss is {recent[-1]} at step {step}: lower --lr")
            line = {
                "step": step + 1,
                "minutes": round((time.monotonic() - started) / 60, 1),
                "loss": round(float(np.mean(recent)), 4),
                **evaluate(model, held_out, device),
            }
            recent = recent[-1:]
            print(json.dumps(line), file=log, flush=True)
            bar.set_postfix({name: line[name] for name in ("loss", "box", "click", "corrected")})
            save_weights(model.state_dict(), args.output.resolve(), dtype=torch.float16)  # the default is a link
        if progress >= 1:
            break
    log.close()
    print(f"wrote {args.output} and {log_path}")


if __name__ == "__main__":
    main()
