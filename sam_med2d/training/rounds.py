"""Rounds of simulated interaction: what one training batch does with its objects (SAM-Med2D paper, section 3.3).

Round 0 starts from a box or a click, with the encoder in the graph; in the rounds that follow the annotator
corrects the last prediction. Masks are (N, 1, S, S) bool, one row an object.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sam_med2d.data.batch import Batch
from sam_med2d.evaluation.metrics import dice
from sam_med2d.prompts.annotators import with_drawings
from sam_med2d.prompts.clicks import Clicks, boxes_of, clicks_in, clicks_on, corrective_clicks, join_clicks, shift_boxes
from sam_med2d.prompts.strokes import Drawing, corrective_scribble, lasso
from sam_med2d.seeds import seed_of
from sam_med2d.training.learner import Learner
from sam_med2d.training.losses import objective, refinement_loss
from sam_med2d.training.own_parts import Loss
from segment_anything import ABSENT, MULTIPLE, SINGLE, Prediction, Prompts, Sam, best_of, look, low_resolution, ranked
from segment_anything.frames import SAM_MED2D, mask_prompt


class Recipe(NamedTuple):
    """What a batch does with its objects.

    corrections: rounds that follow the first prompt; click_counts: of a correction, one is drawn from these;
    keep_clicks: a correction's clicks join those before them (as in test.py) instead of replacing them (the paper);
    box_shift: by how many pixels of the frame a starting box may be moved; multimask: corrections follow the best of
    outputs 1 to 3, else output 0; seed: of every draw, together with the number of the batch in the run.
    scribble_share: of the starts from clicks, and of the corrections, that are strokes instead, one an object;
    lasso_share: of the starts from boxes that are lassos instead. rank_weight: of the loss by which the guesses are
    ranked; loss: in place of `losses.objective`.
    """

    corrections: int = 8
    click_counts: tuple[int, ...] = (1, 3, 5, 9)
    keep_clicks: bool = False
    box_shift: int = 5
    multimask: bool = True
    seed: int = 0
    scribble_share: float = 0.0
    lasso_share: float = 0.0
    rank_weight: float = 0.0
    loss: Loss | None = None


class Round(NamedTuple):
    """What came of one round.

    kind: "start", "clicks" or "mask"; losses: the scalars of `losses.objective`; chosen: the output that goes on
    to the next round, logits (N, 1, S/4, S/4); masks: (N, 1, S, S) bool, the same at full size; dice: (N,).
    """

    kind: str
    losses: dict[str, Tensor]
    chosen: Prediction
    masks: Tensor
    dice: Tensor


class StartingPrompts(NamedTuple):
    """Half of the objects start from a box, or a lasso, the others from one foreground click, or a stroke."""

    box_rows: Tensor
    boxes: Prompts
    click_rows: Tensor
    clicks: Prompts

    def clicks_of_all(self) -> Clicks:
        """Of every object, in order: absent ones where it started from a box."""
        rows, device = len(self.box_rows) + len(self.click_rows), self.click_rows.device
        own = clicks_in(self.clicks)
        many = 1 if own is None else own[1].shape[1]
        points, labels = torch.zeros(rows, many, 2, device=device), torch.full((rows, many), ABSENT, device=device)
        if own is not None:
            points[self.click_rows], labels[self.click_rows] = own
        return points, labels

    def of_all(self) -> Prompts:
        """Of every object, in order: a box without any area, and a mask of zeros, where it started from a click."""
        points, labels = self.clicks_of_all()

        def of_all(own: Tensor | None, rows: Tensor) -> Tensor | None:
            if own is None:
                return None
            values = own.new_zeros(len(points), *own.shape[1:])
            values[rows] = own
            return values

        boxes, masks = (of_all(own, self.box_rows) for own in (self.boxes.boxes, self.boxes.masks))
        return Prompts(points, labels, boxes, masks, of_all(self.clicks.strokes, self.click_rows))


Uniform = Callable[[int, int], Tensor]  # (rows, columns) -> numbers in [0, 1) on the device


def uniform_from(generator: torch.Generator) -> Uniform:
    return lambda rows, columns: torch.rand(rows, columns, generator=generator, device=generator.device)


def starting_prompts(masks: Tensor, uniform: Uniform, odd_from_box: bool, box_shift: int = 5) -> StartingPrompts:
    """Both kinds in every batch: the paper tosses a coin a batch, which is the same on average but noisier.

    box_shift: boxes are moved by up to so many pixels, see `shift_boxes`.
    odd_from_box: what an odd object starts from; toss a coin, or an object alone would always start from the same.
    """
    rows = masks.shape[0]
    from_box = (rows + odd_from_box) // 2
    box_rows, click_rows = uniform(rows, 1).squeeze(1).argsort().split([from_box, rows - from_box])
    boxes = shift_boxes(boxes_of(masks[box_rows]), uniform(len(box_rows), 2), masks.shape[-1], box_shift)
    points, labels = clicks_on(masks[click_rows], uniform(len(click_rows), 1))
    return StartingPrompts(box_rows, Prompts(boxes=boxes), click_rows, Prompts(points=points, labels=labels))


def drawn_start(start: StartingPrompts, masks: Tensor, recipe: Recipe, step: int) -> StartingPrompts:
    """With strokes in place of clicks, and lassos in place of boxes, as often as the recipe has them."""
    coin = random.Random(seed_of(recipe.seed, "drawings", step))
    strokes, lassos = coin.random() < recipe.scribble_share, coin.random() < recipe.lasso_share
    if strokes and len(start.click_rows):
        own = masks[start.click_rows]
        drawings = strokes_on(own, torch.zeros_like(own), seed_of(recipe.seed, "strokes", step, 0))
        start = start._replace(clicks=with_drawings(Prompts(), drawings, masks.shape[-1], masks.device))
    if lassos and len(start.box_rows):
        drawings = [
            Drawing(lasso=lasso(mask, np.random.default_rng(seed_of(recipe.seed, "lassos", step, row))))
            for row, mask in enumerate(masks[start.box_rows, 0].cpu().numpy())
        ]
        start = start._replace(boxes=with_drawings(Prompts(), drawings, masks.shape[-1], masks.device))
    return start


def strokes_on(masks: Tensor, predicted: Tensor, seed: int) -> list[Drawing]:
    """One stroke an object through its largest error. masks, predicted: (N, 1, S, S) bool."""
    pairs = zip(masks[:, 0].cpu().numpy(), predicted[:, 0].cpu().numpy())
    return [
        Drawing(corrective_scribble(mask, guess, np.random.default_rng(seed_of(seed, row))))
        for row, (mask, guess) in enumerate(pairs)
    ]


def predict_start(model: Sam, embeddings: Tensor, start: StartingPrompts) -> Prediction:
    """All four outputs of every object. embeddings: (N, C, h, w)."""
    rows = torch.cat([start.box_rows, start.click_rows])
    parts = [
        model.predict(embeddings[own], prompts, multimask_output=None)
        for own, prompts in ((start.box_rows, start.boxes), (start.click_rows, start.clicks))
        if len(own)
    ]
    order = rows.argsort()
    return Prediction(*(torch.cat(values)[order] for values in zip(*parts)))


def correction_prompts(
    last: Round,
    masks: Tensor,
    clicks: int,
    uniform: Uniform,
    earlier: Prompts | None = None,
    strokes_seed: int = -1,
    frame: str = SAM_MED2D,
) -> Prompts:
    """The last mask as the frame has it, with `clicks` clicks on what is wrong with it (0: the mask alone).

    earlier: prompts whose clicks and strokes are kept before them. strokes_seed: from 0 on, one stroke an object in
    place of the clicks, drawn from this seed. frame: of the model, one of segment_anything.frames.FRAMES.
    """
    mask_input = mask_prompt(frame, last.chosen.logits)
    if not clicks:
        return Prompts(masks=mask_input)
    kept = Prompts(masks=mask_input)
    if earlier is not None:
        kept = kept._replace(points=earlier.points, labels=earlier.labels, strokes=earlier.strokes)
    if strokes_seed >= 0:
        return with_drawings(kept, strokes_on(masks, last.masks, strokes_seed), masks.shape[-1], masks.device)
    points, labels = join_clicks(clicks_in(kept), corrective_clicks(masks, last.masks, uniform(masks.shape[0], clicks)))
    return kept._replace(points=points, labels=labels)


def judge(
    model: Sam,
    kind: str,
    prediction: Prediction,
    masks: Tensor,
    multimask: bool,
    details: Tensor | None = None,
    prompts: Prompts | None = None,
    rank_weight: float = 0.0,
    loss: Loss | None = None,
) -> Round:
    """Score a prediction (all four outputs) and choose the output that the next round corrects.

    details, prompts: of all objects, for a model with a refinement network. It learns to refine that output, and its
    answer goes on. The decoder's answer is given to it without a gradient, which would pull every guess towards the
    truth of an object that was meant otherwise, until the guesses are one.
    """
    logits = model.upscale(prediction.logits)
    losses = loss(prediction, logits, masks) if loss else objective(prediction, logits, masks, rank_weight)
    outputs = MULTIPLE if multimask else SINGLE
    with torch.no_grad():
        guesses = Prediction(prediction.logits[:, outputs], prediction.iou[:, outputs])
        if details is None or prompts is None:
            best = best_of(Prediction(logits[:, outputs], guesses.iou)).logits > 0
            return Round(kind, losses, best_of(guesses), best, dice(best, masks, from_logits=False).squeeze(1))
        chosen = best_of(ranked(guesses, prompts))
    refined = model.refined(details, chosen, prompts).logits
    losses["refined"] = refinement_loss(refined, masks, prompts)
    losses["loss"] = losses["loss"] + losses["refined"]
    with torch.no_grad():
        best = refined > 0
        chosen = Prediction(low_resolution(refined, model.image_size), chosen.iou)
        return Round(kind, losses, chosen, best, dice(best, masks, from_logits=False).squeeze(1))


def plan_of_corrections(rounds: int, click_counts: Sequence[int], draw: random.Random) -> Iterator[int]:
    """How many clicks each correction has; 0 (the mask alone) in the last and in one of rounds 1 .. rounds - 2.

    Plans shorter than the paper's 8 keep most of their rounds for clicks: below 5 only the last has the mask alone,
    below 3 none.
    """
    alone = {rounds - 1} if rounds > 2 else set()
    if rounds > 4:
        alone.add(draw.randrange(1, rounds - 1))
    for i in range(rounds):
        yield 0 if i in alone else draw.choice(click_counts)


def train_batch(model: Sam, batch: Batch, learner: Learner, recipe: Recipe, step: int) -> dict[str, Tensor]:
    """A start from boxes and clicks, which trains everything that is trained, then the recipe's corrections, each with
    a step of its own for the decoder side (SAM-Med2D paper, section 3.3).

    step: the number of the batch in the run, which with the recipe's seed decides every draw.
    Returns detached scalars: the loss and its terms as means over rounds, and Dice by kind of prompt and by round.
    """
    uniform = uniform_from(torch.Generator(model.device).manual_seed(seed_of(recipe.seed, "prompts", step)))
    draw = random.Random(seed_of(recipe.seed, "corrections", step))
    masks = batch.masks

    with learner.autocast():
        seen = look(model, batch.images, batch.content).rows(batch.image_index)
        start = starting_prompts(masks, uniform, odd_from_box=draw.random() < 0.5, box_shift=recipe.box_shift)
        start = drawn_start(start, masks, recipe, step)
        prediction = predict_start(model, seen.embeddings, start)
        asked = start.of_all()
        ways = recipe.rank_weight, recipe.loss
        last = judge(model, "start", prediction, masks, recipe.multimask, seen.details, asked, *ways)
    learner.step(last.losses["loss"])
    rounds = [detached(last)]
    dice = {
        kind: last.dice[rows].mean()
        for kind, rows in (("box", start.box_rows), ("click", start.click_rows))
        if len(rows)
    }

    embeddings = seen.embeddings.detach()
    earlier = start.of_all() if recipe.keep_clicks else None
    coin = random.Random(seed_of(recipe.seed, "stroke or clicks", step))
    for number, clicks in enumerate(plan_of_corrections(recipe.corrections, recipe.click_counts, draw), start=1):
        strokes = coin.random() < recipe.scribble_share
        with learner.autocast():
            seed = seed_of(recipe.seed, "strokes", step, number) if strokes else -1
            prompts = correction_prompts(last, masks, clicks, uniform, earlier, seed, model.frame)
            if clicks and recipe.keep_clicks:
                earlier = prompts
            prediction = model.predict(embeddings, prompts, multimask_output=None)
            details = model.details(batch.images, batch.content)
            own = None if details is None else details[batch.image_index]
            kind = "clicks" if clicks else "mask"
            last = judge(model, kind, prediction, masks, recipe.multimask, own, prompts, *ways)
        learner.step(last.losses["loss"])
        rounds.append(detached(last))

    scalars = {f"loss/{name}": torch.stack([r.losses[name] for r in rounds]).mean() for name in last.losses}
    scalars |= {f"dice/start_{kind}": value for kind, value in dice.items()}
    for number, round in enumerate(rounds[1:], start=1):
        scalars[f"dice/round_{number}"] = round.dice.mean()
        scalars[f"dice/correction_{round.kind}"] = round.dice.mean()
    return scalars


def detached(round: Round) -> Round:
    """Without the graph, so that the rounds of a batch do not pile up in memory."""
    return round._replace(losses={name: value.detach() for name, value in round.losses.items()})
