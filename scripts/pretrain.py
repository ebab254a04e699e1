"""Pretrain a small SAM on generated tasks and on regions of unlabelled pictures (`synthesis.py`).

    python scripts/collect_pictures.py --wheels wheels                      # once: workdir/pictures.npz
    python scripts/pretrain.py --pictures workdir/pictures.npz --steps 5000 # stopped or killed: the same goes on
    python scripts/pretrain.py --pictures workdir/pictures.npz --steps 20000        # the same run, more steps
    python scripts/pretrain.py --steps 4 --batch_size 2 --evaluate_every 2 --run /tmp/run --output /tmp/a.safetensors

A step is a function of --seed and its number: pictures, prompts and the learning rate (warm-up, then a cosine to
--lr_end over --steps). So a run that was killed and goes on ends as one that was not; with another --steps the rate
follows the new cosine from there on.

A batch: half of the objects start from a box, half from a click, and after none to three corrections of one click each,
which only look ahead, one more correction learns. Two thirds of the batches keep earlier clicks and boxes, as an
annotator works; a quarter replaces them, as the paper does; a tenth corrects with the last mask alone. Start and last
correction share one encoding, and everything learns. Losses are taken at half the frame's size, on masks whose edges
are shares of pixels: the logits have a quarter of it, and at full size the loss took a third of a step.

Left: RUN/last.pt (weights, their average, optimizer, step; replaced whole), RUN/log.jsonl, and every --evaluate_every
steps the averaged weights, float16, in --output, with a copy of the log beside them.
"""

import argparse
import json
import math
import os
import random
import shutil
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
from synthesis import Tasks

from sam_med2d.evaluation.metrics import dice
from sam_med2d.prompts.clicks import Clicks, clicks_on, corrective_clicks, join_clicks
from sam_med2d.training.losses import WEIGHTS, focal, output_shares
from sam_med2d.training.losses import dice as dice_loss
from sam_med2d.training.rounds import predict_start, starting_prompts, uniform_from
from segment_anything import Prediction, Prompts, Sam, best_of, sam_model_registry
from segment_anything.checkpoint import load_checkpoint, save_weights

VALIDATION_SEED = 10**6  # of the draws that are never trained on
SETS = {"generated": {"scene": 1.0}, "phantoms": {"phantom": 1.0}, "pictures": {"picture": 1.0}}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, default=Path("workdir/pretrain"), help="folder of the checkpoint and the log"
    )
    parser.add_argument("--output", type=Path, default=Path("pretrain_model/vit_t_general.safetensors"))
    parser.add_argument(
        "--start", type=Path, default=Path("pretrain_model/vit_t_phantoms.safetensors"), help="weights of step 0"
    )
    parser.add_argument("--model_type", default="vit_t", choices=sam_model_registry)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument(
        "--pictures", type=Path, help="of scripts/collect_pictures.py; without it generated tasks alone"
    )
    parser.add_argument("--steps", type=int, default=5000, help="where the cosine ends")
    parser.add_argument("--stop_after", type=int, help="end here, with a checkpoint, whatever --steps says")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures a step")
    parser.add_argument("--objects", type=int, default=3, help="objects a picture")
    parser.add_argument("--lr", type=float, default=2.5e-4)
    parser.add_argument("--lr_end", type=float, default=1e-5)
    parser.add_argument("--warm_up", type=int, default=200, help="steps")
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--ema", type=float, default=0.998, help="share of the averaged weights that stays each step")
    parser.add_argument("--evaluate_every", type=int, default=500, help="steps")
    parser.add_argument("--held_out", type=int, default=8, help="batches of each validation set")
    parser.add_argument("--save_minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="the encoder: two thirds of its time, after minutes of a C++ compiler"
    )
    return parser.parse_args(argv)


# ---------------------------------------------------------------- one step


def batch_of(tasks: Tasks, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
    """-> pictures (B, 3, S, S) uint8, masks (B * objects, 1, S, S) bool."""
    images, masks = zip(*(tasks.draw(seed, step * size + i) for i in range(size)))
    return (
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.concatenate(masks)).unsqueeze(1),
    )


def learning_rate(step: int, args: argparse.Namespace) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / args.steps)))
    return min(1.0, (step + 1) / args.warm_up) * (args.lr_end + (args.lr - args.lr_end) * cosine)


def loss_of(prediction: Prediction, masks: Tensor) -> Tensor:
    """As `losses.objective`, at half the frame's size. prediction: all four outputs; masks: (N, 1, S, S) bool."""
    target = F.avg_pool2d(masks.float(), 2)
    logits = F.interpolate(prediction.logits.float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
    target = target.expand_as(logits)
    focal_terms, dice_terms = focal(logits, target), dice_loss(logits, target)
    share = output_shares((WEIGHTS["focal"] * focal_terms + WEIGHTS["dice"] * dice_terms).detach())
    with torch.no_grad():
        guess, truth = logits > 0, target > 0.5
        iou = (guess & truth).sum((2, 3)) / (guess | truth).sum((2, 3)).clamp(min=1)
    error = (prediction.iou.float() - iou) ** 2
    return (share * (WEIGHTS["focal"] * focal_terms + WEIGHTS["dice"] * dice_terms)).sum(1).mean() + WEIGHTS[
        "iou"
    ] * error.mean()


def chosen(prediction: Prediction) -> Tensor:
    """Logits (N, 1, S/4, S/4) of the guess of outputs 1..3 that the model would give."""
    return best_of(Prediction(prediction.logits[:, 1:], prediction.iou[:, 1:])).logits.detach()


def corrected(
    model: Sam, last: Tensor, masks: Tensor, earlier: Clicks | None, clicks: int, uniform
) -> tuple[Prompts, Clicks]:
    """The prompts of one more correction: the last mask, and so many clicks on its errors after the earlier ones."""
    points, labels = join_clicks(
        earlier, corrective_clicks(masks, model.upscale(last) > 0, uniform(len(masks), clicks))
    )
    return Prompts(points=points, labels=labels, masks=last.float().sigmoid()), (points, labels)


def predict_corrected(model: Sam, embeddings: Tensor, prompts: Prompts, box_rows: Tensor, boxes: Tensor) -> Prediction:
    """All four outputs, where the objects of `box_rows` keep their boxes. box_rows: (M,); boxes: (M, 4)."""
    rest = torch.ones(len(embeddings), dtype=torch.bool)
    rest[box_rows] = False
    rows = torch.cat([box_rows, rest.nonzero().squeeze(1)])
    parts = [
        model.predict(embeddings[own], prompts.rows(own)._replace(boxes=own_boxes), multimask_output=None)
        for own, own_boxes in ((box_rows, boxes), (rows[len(box_rows) :], None))
        if len(own)
    ]
    order = rows.argsort()
    return Prediction(*(torch.cat(values)[order] for values in zip(*parts)))


def losses_of(model: Sam, images: Tensor, masks: Tensor, draw: random.Random, uniform) -> tuple[Tensor, Tensor]:
    """Of the start and of the last correction."""
    embeddings = model.encode(images).repeat_interleave(len(masks) // len(images), dim=0)
    start = starting_prompts(masks, uniform, odd_from_box=True, box_shift=draw.choice((0, 0, 2, 4)))
    prediction = predict_start(model, embeddings, start)
    first, last = loss_of(prediction, masks), chosen(prediction)

    plan = draw.random()
    if plan < 0.1:  # the mask alone
        alone = Prompts(masks=last.float().sigmoid())
        return first, loss_of(model.predict(embeddings, alone, multimask_output=None), masks)
    # as annotators work: clicks add up, and a box stays; or as in the paper: new clicks in the place of all before
    keeps = plan < 0.75
    clicks = start.clicks_of_all() if keeps else None
    box_rows = start.box_rows if keeps else start.box_rows[:0]
    boxes = start.boxes.boxes[: len(box_rows)]
    with torch.no_grad():
        for _ in range(draw.choice((0, 0, 1, 2, 3))):
            prompts, clicks = corrected(model, last, masks, clicks, 1, uniform)
            last = chosen(predict_corrected(model, embeddings, prompts, box_rows, boxes))
    prompts, _ = corrected(model, last, masks, clicks, draw.choice((1, 1, 1, 2, 4)), uniform)
    return first, loss_of(predict_corrected(model, embeddings, prompts, box_rows, boxes), masks)


# ---------------------------------------------------------------- validation


@torch.no_grad()
def evaluate(model: Sam, held_out: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Mean Dice from a box, from one click, and after five clicks that were kept."""
    was_training = model.training
    model.eval()
    uniform = uniform_from(torch.Generator().manual_seed(VALIDATION_SEED))
    found: dict[str, list[Tensor]] = {"box": [], "click": [], "5 clicks": []}
    full = lambda logits, masks: dice(model.upscale(logits) > 0, masks, from_logits=False).squeeze(1)
    for images, masks in held_out:
        embeddings = model.encode(images).repeat_interleave(len(masks) // len(images), dim=0)
        boxes = starting_prompts(masks, uniform, odd_from_box=True, box_shift=0)
        start = chosen(predict_start(model, embeddings, boxes))
        found["box"].append(full(start, masks)[boxes.box_rows])
        points, labels = clicks_on(masks, uniform(len(masks), 1))
        last = chosen(model.predict(embeddings, Prompts(points=points, labels=labels), multimask_output=None))
        found["click"].append(full(last, masks))
        clicks = (points, labels)
        for _ in range(4):
            prompts, clicks = corrected(model, last, masks, clicks, 1, uniform)
            last = chosen(model.predict(embeddings, prompts, multimask_output=None))
        found["5 clicks"].append(full(last, masks))
    model.train(was_training)
    return {name: round(torch.cat(values).mean().item(), 4) for name, values in found.items()}


def validation_sets(args: argparse.Namespace) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Draws of the validation's seed, one set a source. Pictures are the trained ones in other crops."""
    sets = {}
    for name, shares in SETS.items():
        if name == "pictures" and args.pictures is None:
            continue
        tasks = Tasks(args.image_size, args.objects, args.pictures if name == "pictures" else None)
        tasks.shares = shares
        sets[name] = [batch_of(tasks, VALIDATION_SEED, i, 8) for i in range(args.held_out)]
    return sets


# ---------------------------------------------------------------- the run


def save(path: Path, content: dict) -> None:
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


class Run:
    """The model with its average, the optimizer and the place in the run: what a checkpoint holds, and one step."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.checkpoint = args.run / "last.pt"
        self.model = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=False).train()
        self.parameters = self.model.train_for("all")
        self.optimizer = torch.optim.AdamW(self.parameters, lr=args.lr, weight_decay=args.weight_decay)
        self.step = 0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step = state["average"], state["step"]
            print(f"goes on at step {self.step}")
        else:
            if str(args.start) not in ("none", "."):
                print(load_checkpoint(self.model, args.start))
            self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if args.compile:
            self.model.image_encoder.compile()
        self.tasks = Tasks(args.image_size, args.objects, args.pictures)

    def learn(self) -> tuple[float, float]:
        """One step. -> the losses of the start and of the correction. Ends the script where they are not finite."""
        args = self.args
        images, masks = batch_of(self.tasks, args.seed, self.step, args.batch_size)
        draw = random.Random(f"{args.seed} {self.step}")
        uniform = uniform_from(torch.Generator().manual_seed(draw.getrandbits(62)))
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.step, args)
        start, correction = losses_of(self.model, images, masks, draw, uniform)
        (start + correction).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        keep = min(args.ema, self.step / (self.step + 10))  # the first steps are not averaged with where they began
        with torch.no_grad():
            for name, tensor in self.model.named_parameters():
                self.average[name].lerp_(tensor, 1 - keep)
        losses = start.item(), correction.item()
        if not all(map(math.isfinite, losses)):
            raise SystemExit(f"the losses are {losses} at step {self.step}: lower --lr")
        return losses

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict()}
        save(self.checkpoint, {**state, "step": self.step})

    def judged(self, sets: dict) -> dict:
        """Write the averaged weights. -> what they score on held-out tasks."""
        args = self.args
        save_weights(self.average, args.output, dtype=torch.float16)
        judge = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=False)
        judge.load_state_dict(self.average)
        return {"step": self.step, **{name: evaluate(judge, held_out) for name, held_out in sets.items()}}


def main(argv: list[str] | None = None) -> None:
    run(parse_args(argv))


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    args.run.mkdir(parents=True, exist_ok=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    state, sets = Run(args), validation_sets(args)
    with open(args.run / "log.jsonl", "a") as log:

        def note(line: dict) -> None:
            print(json.dumps(line), file=log, flush=True)
            print(json.dumps(line), flush=True)

        def judge() -> None:
            note(state.judged(sets))
            shutil.copyfile(args.run / "log.jsonl", args.output.with_suffix(".log.jsonl"))

        flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        note(flags | {"from_step": state.step, "torch": torch.__version__})
        if not state.step:
            judge()
        saved = logged = time.monotonic()
        recent: list[tuple[float, float]] = []
        end = min(args.steps, args.stop_after or args.steps)
        while state.step < end:
            recent.append(state.learn())
            last = state.step == end
            if state.step % 50 == 0 or last:
                now = time.monotonic()
                start, correction = np.mean(recent, axis=0)
                means = {"start": round(float(start), 4), "correction": round(float(correction), 4)}
                rate = {"lr": round(state.optimizer.param_groups[0]["lr"], 7)}
                note({"step": state.step, **means, **rate, "seconds_a_step": round((now - logged) / len(recent), 3)})
                recent, logged = [], now
            if time.monotonic() - saved > 60 * args.save_minutes or last:
                state.save()
                saved = time.monotonic()
            if state.step % args.evaluate_every == 0 or last:
                judge()
                logged = time.monotonic()
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
