"""Pretrain a small SAM on generated tasks and on regions of unlabelled pictures (`synthesis.py`).

    python scripts/collect_pictures.py --wheels wheels                      # once: workdir/pictures.npz
    python scripts/pretrain.py --pictures workdir/pictures.npz --steps 5000 # stopped or killed: the same goes on
    python scripts/pretrain.py --pictures workdir/pictures.npz --steps 20000        # the same run, more steps
    python scripts/pretrain.py --steps 4 --batch_size 2 --evaluate_every 2 --run /tmp/run --output /tmp/a.safetensors
    python scripts/pretrain.py --device cuda --use_amp --num_workers 15 --image_size 192 --refine True \\
        --batch_size 128 --lr 8e-4 --steps 2000 --pictures workdir/pictures.npz     # a GPU, and cores that draw for it

A step is a function of --seed and its number: pictures, prompts and the learning rate (warm-up, then a cosine to
--lr_end over --steps). So a run that was killed and goes on ends as one that was not; with another --steps the rate
follows the new cosine from there on.

A batch: half of the objects start from a box, half from a click (in some batches from a stroke, and from a lasso in
place of the box), and after none to four corrections of one click each, which only look ahead, one more correction
learns. Two thirds of the batches keep earlier clicks and boxes, as an annotator works; a quarter replaces them, as the
paper does; a tenth corrects with the last mask alone. Start and last correction share one encoding, and everything
learns. Losses are taken at half the frame's size, on masks whose edges are shares of pixels: the logits have a quarter
of it, and at full size the loss took a third of a step. With --refine a refinement network learns along, from the
answer that is chosen, and its masks are what is corrected.

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
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
from synthesis import Tasks

from sam_med2d.cli import boolean
from sam_med2d.data.datasets import Loader
from sam_med2d.evaluation.metrics import dice
from sam_med2d.prompts.clicks import boxes_of, clicks_in, clicks_on, corrective_clicks, join_clicks
from sam_med2d.seeds import seed_of
from sam_med2d.training.losses import averaged, focal, refinement_loss, weighed
from sam_med2d.training.losses import dice as dice_loss
from sam_med2d.training.pixels import PixelTerms
from sam_med2d.training.rounds import (
    Recipe,
    StartingPrompts,
    Uniform,
    drawn_start,
    predict_start,
    refine_chosen,
    starting_prompts,
    uniform_from,
)
from segment_anything import Prediction, Prompts, Sam, best_of, sam_model_registry
from segment_anything.checkpoint import load_checkpoint, save_weights

VALIDATION_SEED = 10**6  # of the draws that are never trained on
DRAWINGS = Recipe(scribble_share=0.15, lasso_share=0.1)
SETS = {"generated": {"scene": 1.0}, "phantoms": {"phantom": 1.0}, "pictures": {"picture": 1.0}}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("--run", type=Path, default=Path("workdir/pretrain"),
        help="Folder of the checkpoint and the log. Default: %(default)s.")
    parser.add_argument("--output", type=Path, default=Path("pretrain_model/vit_t_small.safetensors"),
        help="The weights to write. Default: %(default)s.")
    parser.add_argument("--start", type=Path, default=Path("pretrain_model/vit_t_phantoms.safetensors"),
        help="The weights of step 0; none: random ones. Default: %(default)s.")
    parser.add_argument("--model_type", default="vit_t", choices=sam_model_registry,
        help="Size of the model. Default: %(default)s.")
    parser.add_argument("--image_size", type=int, default=128,
        help="Side of the frame, in pixels. Default: %(default)s.")
    parser.add_argument("--pictures", type=Path,
        help="The pictures that scripts/collect_pictures.py wrote. Default: none, and tasks are generated alone.")
    parser.add_argument("--steps", type=int, default=5000,
        help="Number of steps, at which the cosine of the learning rate ends. Default: %(default)s.")
    parser.add_argument("--stop_after", type=int, help="End at this step, with a checkpoint, whatever --steps says.")
    parser.add_argument("--batch_size", type=int, default=8, help="Number of pictures of a step. Default: %(default)s.")
    parser.add_argument("--objects", type=int, default=3, help="Number of objects of a picture. Default: %(default)s.")
    parser.add_argument("--lr", type=float, default=2.5e-4,
        help="Learning rate after the warm-up. Default: %(default)s.")
    parser.add_argument("--lr_end", type=float, default=1e-5,
        help="Learning rate at the last step. Default: %(default)s.")
    parser.add_argument("--warm_up", type=int, default=200,
        help="Number of steps over which the learning rate rises. Default: %(default)s.")
    parser.add_argument("--weight_decay", type=float, default=0.01, help="Weight decay of AdamW. Default: %(default)s.")
    parser.add_argument("--ema", type=float, default=0.998,
        help="Share of the averaged weights that stays in each step. Default: %(default)s.")
    parser.add_argument("--evaluate_every", type=int, default=500,
        help="Evaluate, and write --output, after so many steps. Default: %(default)s.")
    parser.add_argument("--held_out", type=int, default=8,
        help="Number of batches of each validation set. Default: %(default)s.")
    parser.add_argument("--save_minutes", type=float, default=3,
        help="Save the checkpoint when so much time has passed. Default: %(default)s.")
    parser.add_argument("--seed", type=int, default=0,
        help="Every draw is a function of this number and of the step. Default: %(default)s.")
    parser.add_argument("--threads", type=int, default=1, help="Number of threads on a CPU. Default: %(default)s.")
    parser.add_argument("--device", default="cpu", help="Where the model runs. Default: %(default)s.")
    parser.add_argument("--use_amp", action="store_true", help="Compute in bfloat16 where it may be.")
    parser.add_argument("--num_workers", type=int, default=0,
        help="Number of processes that draw the tasks; 0 is this one. Default: %(default)s.")
    parser.add_argument("--refine", type=boolean, default=False,
        help="Train a refinement network too. Default: %(default)s.")
    parser.add_argument("--compile", action="store_true",
        help="Compile the encoder, which then takes two thirds of its time, after minutes of a C++ compiler.")
    # fmt: on
    return parser.parse_args(argv)


# ---------------------------------------------------------------- one step


def batch_of(tasks: Tasks, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
    """-> pictures (B, 3, S, S) uint8, masks (B * objects, 1, S, S) bool."""
    images, masks = zip(*(tasks.draw(seed, step * size + i) for i in range(size)))
    return (
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.concatenate(masks)).unsqueeze(1),
    )


class Drawn(NamedTuple):
    """What a step learns from, whatever its place: pictures, masks and starting prompts, see `batch_of`."""

    images: Tensor
    masks: Tensor
    start: StartingPrompts

    def to(self, device: torch.device) -> "Drawn":
        move = lambda tensor: tensor.to(device, non_blocking=True)
        box_rows, boxes, click_rows, clicks = self.start
        start = StartingPrompts(move(box_rows), boxes.to(device), move(click_rows), clicks.to(device))
        return Drawn(move(self.images), move(self.masks), start)


class Steps(Dataset):
    """The draws of steps: a function of the seed and of the step's number."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.tasks = Tasks(args.image_size, args.objects, args.pictures)
        self.seed, self.size = args.seed, args.batch_size

    def __getitem__(self, step: int) -> Drawn:
        images, masks = batch_of(self.tasks, self.seed, step, self.size)
        draw = random.Random(seed_of(self.seed, "start", step))
        uniform = uniform_from(torch.Generator().manual_seed(draw.getrandbits(62)))
        start = starting_prompts(masks, uniform, odd_from_box=draw.random() < 0.5, box_shift=draw.choice((0, 0, 2, 4)))
        return Drawn(images, masks, drawn_start(start, masks, DRAWINGS._replace(seed=self.seed), step))


def uniform_on(device: torch.device, seed: int) -> Uniform:
    """Numbers that are the same on every device."""
    drawn = uniform_from(torch.Generator().manual_seed(seed))
    return lambda rows, columns: drawn(rows, columns).to(device, non_blocking=True)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / args.steps)))
    return min(1.0, (step + 1) / args.warm_up) * (args.lr_end + (args.lr - args.lr_end) * cosine)


def loss_of(prediction: Prediction, masks: Tensor) -> Tensor:
    """As `losses.objective`, at half the frame's size. prediction: all four outputs; masks: (N, 1, S, S) bool."""
    target = F.avg_pool2d(masks.float(), 2)
    logits = F.interpolate(prediction.logits.float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
    target = target.expand_as(logits)
    with torch.no_grad():
        guess, truth = logits > 0, target > 0.5
        iou = (guess & truth).sum((2, 3)) / (guess | truth).sum((2, 3)).clamp(min=1)
    return weighed(averaged(PixelTerms(focal(logits, target), dice_loss(logits, target), iou), prediction.iou))


class Answer(NamedTuple):
    """What the model would give of each object. logits: (N, 1, S/4, S/4), to be fed back; masks: (N, 1, S, S) bool."""

    logits: Tensor
    masks: Tensor


def answered(
    model: Sam, prediction: Prediction, details: Tensor | None, prompts: Prompts, masks: Tensor | None = None
) -> tuple[Answer, Tensor | float]:
    """The guess of outputs 1..3 that the model would give, refined where it can; and with `masks`, (N, 1, S, S) bool,
    the loss of the refinement.

    prediction: all four outputs; details: of each object's picture; prompts: of all objects.
    """
    guesses = Prediction(prediction.logits[:, 1:].detach(), prediction.iou[:, 1:].detach())
    if details is None:
        logits = best_of(guesses).logits
        return Answer(logits, model.upscale(logits) > 0), 0.0
    chosen, refined = refine_chosen(model, guesses, details, prompts)
    loss = 0.0 if masks is None else refinement_loss(refined, masks, prompts)
    return Answer(chosen.logits, refined.detach() > 0), loss


def corrected(last: Answer, masks: Tensor, earlier: Prompts, clicks: int, uniform: Uniform) -> Prompts:
    """The prompts of one more correction: the last mask, and so many clicks on its errors after what was kept."""
    more = corrective_clicks(masks, last.masks, uniform(len(masks), clicks))
    points, labels = join_clicks(clicks_in(earlier), more)
    return earlier._replace(points=points, labels=labels, masks=last.logits.float().sigmoid())


def predict_corrected(model: Sam, embeddings: Tensor, prompts: Prompts, start: StartingPrompts) -> Prediction:
    """All four outputs, where objects that started from a box keep theirs, if `prompts` have boxes at all."""
    if prompts.boxes is None:
        return model.predict(embeddings, prompts, multimask_output=None)
    clicked = prompts.rows(start.click_rows)._replace(boxes=None)
    return predict_start(model, embeddings, start._replace(boxes=prompts.rows(start.box_rows), clicks=clicked))


def losses_of(model: Sam, drawn: Drawn, draw: random.Random, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """Of the start and of the last correction."""
    images, masks, start = drawn
    each = len(masks) // len(images)
    embeddings = model.encode(images).repeat_interleave(each, dim=0)
    details = model.details(images)
    details = None if details is None else details.repeat_interleave(each, dim=0)
    prediction, prompts = predict_start(model, embeddings, start), start.of_all()
    last, refining = answered(model, prediction, details, prompts, masks)
    first = loss_of(prediction, masks) + refining

    plan = draw.random()
    if plan < 0.1:  # the mask alone
        kept = Prompts(masks=last.logits.float().sigmoid())
        prediction = model.predict(embeddings, kept, multimask_output=None)
    else:  # clicks add up, and a box stays, as annotators work; or new clicks replace all before, as in the paper
        keeps = plan < 0.75
        kept = prompts if keeps else Prompts()
        with torch.no_grad():
            for _ in range(draw.choice((0, 0, 1, 2, 4))):
                prompts = corrected(last, masks, kept, 1, uniform)
                last, _ = answered(model, predict_corrected(model, embeddings, prompts, start), details, prompts)
                kept = prompts if keeps else kept
        kept = corrected(last, masks, kept, draw.choice((1, 1, 1, 2, 4)), uniform)
        prediction = predict_corrected(model, embeddings, kept, start)
    _, refining = answered(model, prediction, details, kept, masks)
    return first, loss_of(prediction, masks) + refining


# ---------------------------------------------------------------- validation


@torch.no_grad()
def evaluate(model: Sam, held_out: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Mean Dice from a box, from one click, and after five clicks that were kept."""
    was_training = model.training
    model.eval()
    uniform = uniform_on(model.device, VALIDATION_SEED)
    found: dict[str, list[Tensor]] = {}
    for images, masks in held_out:
        images, masks = images.to(model.device), masks.to(model.device)
        each = len(masks) // len(images)
        embeddings, details = model.encode(images).repeat_interleave(each, dim=0), model.details(images)
        details = None if details is None else details.repeat_interleave(each, dim=0)
        points, labels = clicks_on(masks, uniform(len(masks), 1))
        asked = {"box": Prompts(boxes=boxes_of(masks)), "click": Prompts(points=points, labels=labels)}
        answers = {
            kind: answered(model, model.predict(embeddings, prompts, multimask_output=None), details, prompts)[0]
            for kind, prompts in asked.items()
        }
        prompts, last = asked["click"], answers["click"]
        for _ in range(4):
            prompts = corrected(last, masks, prompts, 1, uniform)
            last, _ = answered(model, model.predict(embeddings, prompts, multimask_output=None), details, prompts)
        for kind, answer in (answers | {"5 clicks": last}).items():
            found.setdefault(kind, []).append(dice(answer.masks, masks, from_logits=False).squeeze(1))
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


def new_model(args: argparse.Namespace) -> Sam:
    model = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=False, refine=args.refine)
    return model.to(args.device)


class Run:
    """The model with its average, the optimizer and the place in the run: what a checkpoint holds, and one step."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.checkpoint = args.run / "last.pt"
        self.model = new_model(args).train()
        self.parameters = self.model.train_for("all")
        self.optimizer = torch.optim.AdamW(self.parameters, lr=args.lr, weight_decay=args.weight_decay)
        self.step = 0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True, map_location=args.device)
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
        remaining = range(self.step, args.steps)
        workers = {"prefetch_factor": 4} if args.num_workers else {}
        pinned = args.device != "cpu"
        loader = Loader(Steps(args), args.num_workers, batch_size=None, sampler=remaining, pin_memory=pinned, **workers)
        self.draws = iter(loader)

    def learn(self) -> Tensor:
        """One step. -> the losses of the start and of the correction, (2,), on the model's device."""
        args = self.args
        drawn = next(self.draws).to(self.model.device)
        draw = random.Random(f"{args.seed} {self.step}")
        uniform = uniform_on(self.model.device, draw.getrandbits(62))
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.step, args)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.use_amp):
            start, correction = losses_of(self.model, drawn, draw, uniform)
        (start + correction).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        keep = min(args.ema, self.step / (self.step + 10))  # the first steps are not averaged with where they began
        with torch.no_grad():
            averages = [self.average[name] for name, _ in self.model.named_parameters()]
            torch._foreach_lerp_(averages, [*self.model.parameters()], 1 - keep)
        return torch.stack([start, correction]).detach()

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict()}
        save(self.checkpoint, {**state, "step": self.step})

    def judged(self, sets: dict) -> dict:
        """Write the averaged weights. -> what they score on held-out tasks."""
        args = self.args
        save_weights(self.average, args.output, dtype=torch.float16)
        judge = new_model(args)
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
        recent: list[Tensor] = []
        end = min(args.steps, args.stop_after or args.steps)
        while state.step < end:
            recent.append(state.learn())
            last = state.step == end
            if state.step % 50 == 0 or last:
                start, correction = torch.stack(recent).mean(dim=0).tolist()  # waits for the device
                if not math.isfinite(start + correction):
                    raise SystemExit(f"the losses are {start, correction} before step {state.step}: lower --lr")
                now = time.monotonic()
                means = {"start": round(start, 4), "correction": round(correction, 4)}
                rate = {"lr": round(state.optimizer.param_groups[0]["lr"], 7)}
                note({"step": state.step, **means, **rate, "seconds_a_step": round((now - logged) / len(recent), 3)})
                recent, logged = [], now
            if (time.monotonic() - saved > 60 * args.save_minutes and not recent) or last:  # never what is not finite
                state.save()
                saved = time.monotonic()
            if state.step % args.evaluate_every == 0 or last:
                judge()
                logged = time.monotonic()
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
