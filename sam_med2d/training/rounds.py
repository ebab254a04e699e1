"""Rounds of simulated interaction: what one training batch does with its objects (SAM-Med2D paper, section 3.3).

Round 0 starts from a box or a click, with the encoder in the graph; in the rounds that follow the annotator
corrects the last prediction. Masks are (N, 1, S, S) bool, one row an object.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from sam_med2d.training.teacher import Lesson, Others, Teacher, distance, lesson_of, others_in, taught
from segment_anything import ABSENT, MULTIPLE, SINGLE, Prediction, Prompts, Sam, best_of, low_resolution, ranked
from segment_anything.frames import SAM_MED2D, mask_prompt


class Recipe(NamedTuple):
    """What a batch does with its objects.

    corrections: rounds that follow the first prompt; click_counts: of a correction, one is drawn from these;
    keep_clicks: a correction's clicks join those before them (as in test.py) instead of replacing them (the paper);
    box_shift: by how many pixels of the frame a starting box may be moved; multimask: corrections follow the best of
    outputs 1 to 3, else output 0; seed: of every draw, together with the number of the batch in the run.
    scribble_share: of the starts from clicks, and of the corrections, that are strokes instead, one an object;
    lasso_share: of the starts from boxes that are lassos instead. rank_weight: of the loss by which the guesses are
    ranked; coin_a_batch: all objects of a batch start from a box, or all from a click; loss: in place of
    `losses.objective`; teacher: whose answers are kept to on pictures of other kinds.
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
    coin_a_batch: bool = False
    loss: Loss | None = None
    teacher: Teacher | None = None


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
            points = points.to(own[0].dtype)
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


Uniform = Callable[[int, int], Tensor]  # (rows, columns) -> numbers in [0, 1)


def uniform_from(generator: torch.Generator) -> Uniform:
    return lambda rows, columns: torch.rand(rows, columns, generator=generator, device=generator.device)


class StartDraws(NamedTuple):
    """Which of a batch's objects start from a box, which from a click, and the numbers in [0, 1) that say where.

    box_rows: (M,) and box_numbers: (M, 2); click_rows: (N - M,) and click_numbers: (N - M, 1). On the CPU, where a
    process can take its own objects of a batch that it shares with others without asking its device.
    """

    box_rows: Tensor
    box_numbers: Tensor
    click_rows: Tensor
    click_numbers: Tensor

    def rows(self, first: int, count: int) -> "StartDraws":
        """Those of some neighbouring objects, which are counted from 0."""
        boxes, clicks = (
            np.flatnonzero((rows >= first) & (rows < first + count))
            for rows in (self.box_rows.numpy(), self.click_rows.numpy())
        )
        own = self.box_rows[boxes] - first, self.box_numbers[boxes]
        return StartDraws(*own, self.click_rows[clicks] - first, self.click_numbers[clicks])

    def to(self, device: torch.device) -> "StartDraws":
        return StartDraws(*(tensor.to(device, non_blocking=True) for tensor in self))


def draw_start(rows: int, uniform: Uniform, odd_from_box: bool, alike: bool = False) -> StartDraws:
    """Both kinds in every batch: the paper tosses a coin a batch, which is the same on average but noisier.

    odd_from_box: what an odd object starts from; toss a coin, or an object alone would always start from the same.
    alike: every object starts from what an odd one does, as in the paper.
    """
    from_box = rows * odd_from_box if alike else (rows + odd_from_box) // 2
    box_rows, click_rows = uniform(rows, 1).squeeze(1).argsort().split([from_box, rows - from_box])
    numbers = uniform(len(box_rows), 2), uniform(len(click_rows), 1)
    return StartDraws(box_rows, numbers[0], click_rows, numbers[1])


def starting_prompts(masks: Tensor, uniform: Uniform, odd_from_box: bool, box_shift: int = 5) -> StartingPrompts:
    """Of all objects of a batch, see `draw_start` and `prompts_of`."""
    return prompts_of(masks, draw_start(masks.shape[0], uniform, odd_from_box), box_shift)


def prompts_of(masks: Tensor, drawn: StartDraws, box_shift: int = 5) -> StartingPrompts:
    """box_shift: boxes are moved by up to so many pixels, see `shift_boxes`."""
    box_rows, box_numbers, click_rows, click_numbers = drawn.to(masks.device)
    boxes = shift_boxes(boxes_of(masks[box_rows]), box_numbers, masks.shape[-1], box_shift)
    points, labels = clicks_on(masks[click_rows], click_numbers)
    return StartingPrompts(box_rows, Prompts(boxes=boxes), click_rows, Prompts(points=points, labels=labels))


def drawn_start(start: StartingPrompts, masks: Tensor, recipe: Recipe, step: int, first: int = 0) -> StartingPrompts:
    """With strokes in place of clicks, and lassos in place of boxes, as often as the recipe has them. first: the number
    of the first object in the step.
    """
    coin = random.Random(seed_of(recipe.seed, "drawings", step))
    strokes, lassos = coin.random() < recipe.scribble_share, coin.random() < recipe.lasso_share
    if strokes and len(start.click_rows):
        own = masks[start.click_rows]
        seed = seed_of(recipe.seed, "strokes", step, 0)
        drawings = strokes_on(own, torch.zeros_like(own), seed, (first + start.click_rows).tolist())
        start = start._replace(clicks=with_drawings(Prompts(), drawings, masks.shape[-1], masks.device))
    if lassos and len(start.box_rows):
        drawings = [
            Drawing(lasso=lasso(mask, np.random.default_rng(seed_of(recipe.seed, "lassos", step, place))))
            for place, mask in zip((first + start.box_rows).tolist(), masks[start.box_rows, 0].cpu().numpy())
        ]
        start = start._replace(boxes=with_drawings(Prompts(), drawings, masks.shape[-1], masks.device))
    return start


def strokes_on(masks: Tensor, predicted: Tensor, seed: int, places: Sequence[int]) -> list[Drawing]:
    """One stroke an object through its largest error. masks, predicted: (N, 1, S, S) bool; places: of the objects
    among all that are drawn from this seed.
    """
    pairs = zip(masks[:, 0].cpu().numpy(), predicted[:, 0].cpu().numpy())
    return [
        Drawing(corrective_scribble(mask, guess, np.random.default_rng(seed_of(seed, place))))
        for place, (mask, guess) in zip(places, pairs)
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


@torch.no_grad()
def taught_start(teacher: Teacher, lesson: Lesson, start: StartingPrompts, drawn: StartDraws) -> Prediction:
    """All four outputs that the teacher gives of its M objects. start: of all objects; drawn: of the same, on the CPU,
    so that nothing is read from the device.
    """
    rows, device = lesson.others.rows.numpy(), lesson.rows.device

    def own(of_part: Tensor, prompts: Prompts) -> tuple[Tensor, Prompts]:
        here = np.flatnonzero(np.isin(of_part.numpy(), rows))
        places = np.searchsorted(rows, of_part.numpy()[here])
        on_device = [torch.from_numpy(one).to(device, non_blocking=True) for one in (places, here)]
        return on_device[0], prompts.rows(on_device[1])

    both = *own(drawn.box_rows, start.boxes), *own(drawn.click_rows, start.clicks)
    return predict_start(teacher.model, lesson.embeddings, StartingPrompts(*both))


def correction_prompts(
    last: Round,
    masks: Tensor,
    clicks: int,
    uniform: Uniform,
    earlier: Prompts | None = None,
    strokes_seed: int = -1,
    first: int = 0,
    frame: str = SAM_MED2D,
) -> Prompts:
    """The last mask as the frame has it, with `clicks` clicks on what is wrong with it (0: the mask alone).

    earlier: prompts whose clicks and strokes are kept before them. strokes_seed: from 0 on, one stroke an object in
    place of the clicks, drawn from this seed; first: the place of the first object among all that are drawn from it.
    frame: of the model, one of segment_anything.frames.FRAMES.
    """
    mask_input = mask_prompt(frame, last.chosen.logits)
    if not clicks:
        return Prompts(masks=mask_input)
    kept = Prompts(masks=mask_input)
    if earlier is not None:
        kept = kept._replace(points=earlier.points, labels=earlier.labels, strokes=earlier.strokes)
    if strokes_seed >= 0:
        places = range(first, first + len(masks))
        return with_drawings(
            kept,
            strokes_on(masks, last.masks, strokes_seed, places),
            masks.shape[-1],
            masks.device,
        )
    points, labels = join_clicks(clicks_in(kept), corrective_clicks(masks, last.masks, uniform(masks.shape[0], clicks)))
    return kept._replace(points=points, labels=labels)


def refine_chosen(model: Sam, guesses: Prediction, details: Tensor, prompts: Prompts) -> tuple[Prediction, Tensor]:
    """-> what goes on to the next round, logits (N, 1, S/4, S/4), and the refined logits (N, 1, S, S) with their graph.

    guesses: (N, K, S/4, S/4), which get no gradient: it would pull every guess towards the truth of an object that was
    meant otherwise, until the guesses are one. details, prompts: of all objects.
    """
    with torch.no_grad():
        chosen = best_of(ranked(guesses, prompts))  # without `choosing`, which was measured on weights that learned so
    refined = model.refined(details, chosen, prompts).logits
    return Prediction(low_resolution(refined.detach(), model.image_size), chosen.iou), refined


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
    answer goes on (`refine_chosen`).
    """
    logits = model.upscale(prediction.logits)
    losses = loss(prediction, logits, masks) if loss else objective(prediction, logits, masks, rank_weight)
    outputs = MULTIPLE if multimask else SINGLE
    with torch.no_grad():
        guesses = Prediction(prediction.logits[:, outputs], prediction.iou[:, outputs])
        if details is None or prompts is None:
            best = best_of(Prediction(logits[:, outputs], guesses.iou)).logits > 0
            return Round(kind, losses, best_of(guesses), best, dice(best, masks, from_logits=False).squeeze(1))
    chosen, refined = refine_chosen(model, guesses, details, prompts)
    losses["refined"] = refinement_loss(refined, masks, prompts)
    losses["loss"] = losses["loss"] + losses["refined"]
    best = refined.detach() > 0
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


class Share(NamedTuple):
    """Which objects of a step are worked on in this process: its first one is number `first` of `total`.

    everywhere: whether every process has one.
    """

    first: int
    total: int
    everywhere: bool = True


class Turn(NamedTuple):
    """A part of a step between two rounds. number: of its first object in the step; embeddings: (N, C, h, w), one an
    object; earlier: the prompts whose clicks and strokes are kept; lesson: what the teacher saw, if it saw anything.
    """

    batch: Batch
    number: int
    embeddings: Tensor
    last: Round
    earlier: Prompts | None
    lesson: Lesson | None


def train_batch(
    model: Sam, parts: Iterable[Batch], learner: Learner, recipe: Recipe, step: int, share: Share | None = None
) -> dict[str, Tensor]:
    """A start from boxes and clicks, which trains everything that is trained, then the recipe's corrections, each with
    a step of its own for the decoder side (SAM-Med2D paper, section 3.3).

    parts: the batches whose gradients a step of the optimizer adds up, each with an object, or none: the graph of one
    is gone before the next one's is made, and all together learn what one large batch would.
    step: the number of the step in the run, which with the recipe's seed decides every draw, an object's by its place.
    share: where the objects are among those of all processes; None: they are all.
    Returns detached scalars over the objects of all processes: the loss and its terms as means over rounds, Dice by
    kind of prompt and by round, the norm of the first gradient and the largest of the others. Nothing is read from
    the device.
    """
    own = [(part.to(model.device), others_in(part) if recipe.teacher else None) for part in parts]
    share = share or Share(0, sum(len(part.mask_names) for part, _ in own))
    uniform = uniform_from(torch.Generator().manual_seed(seed_of(recipe.seed, "prompts", step)))
    draw = random.Random(seed_of(recipe.seed, "corrections", step))
    drawn = draw_start(share.total, uniform, odd_from_box=draw.random() < 0.5, alike=recipe.coin_a_batch)
    plan = [*plan_of_corrections(recipe.corrections, recipe.click_counts, draw)]
    rounds = Rounds(model, learner, recipe, step, share, drawn, plan)

    turns, number = [], share.first
    for part, others in own:
        turns.append(rounds.start(part, number, others))
        number += len(part.mask_names)
    norms = [learner.step()]
    coin = random.Random(seed_of(recipe.seed, "stroke or clicks", step))
    for place, clicks in enumerate(plan, start=1):
        seed = seed_of(recipe.seed, "strokes", step, place) if coin.random() < recipe.scribble_share else -1
        numbers = uniform(share.total, 0 if seed >= 0 else clicks)
        turns = [rounds.correct(turn, place, clicks, numbers, seed) for turn in turns]
        norms.append(learner.step())

    scalars = rounds.scalars() | {"grad/norm_start": norms[0]}
    if plan:
        scalars["grad/norm_corrections"] = torch.stack(norms[1:]).amax()
    return scalars


class Rounds:
    """Those of one step, for its parts one by one: up to their gradients, which are divided by all its objects."""

    def __init__(
        self, model: Sam, learner: Learner, recipe: Recipe, step: int, share: Share, drawn: StartDraws, plan: list[int]
    ) -> None:
        """drawn: for all objects of the step. plan: clicks of each correction."""
        self.model, self.learner, self.recipe, self.step = model, learner, recipe, step
        self.share, self.drawn, self.plan = share, drawn, plan
        self.sums: dict[str, Tensor] = {}
        self.terms: list[str] = []  # of the loss

    def start(self, batch: Batch, number: int, others: Others | None = None) -> Turn:
        """The first round. number: of the part's first object in the step; others: what the teacher shall see."""
        with self.learner.autocast():
            embeddings = self.learner.encode(batch.images, batch.content)[batch.image_index]
            drawn = self.drawn.rows(number, len(batch.mask_names))
            start = prompts_of(batch.masks, drawn, self.recipe.box_shift)
            start = drawn_start(start, batch.masks, self.recipe, self.step, number)
            prediction = predict_start(self.model, embeddings, start)
            lesson, wanted = None, None
            if self.recipe.teacher and others:
                lesson = lesson_of(self.recipe.teacher, batch, others)
                wanted = taught_start(self.recipe.teacher, lesson, start, drawn)
            last = self._judged("start", prediction, batch, start.of_all(), lesson, wanted)
        last = self._learn_from(last)
        for kind, rows, of_all in (
            ("box", start.box_rows, self.drawn.box_rows),
            ("click", start.click_rows, self.drawn.click_rows),
        ):
            if len(rows):
                self._add(f"dice/start_{kind}", last.dice[rows].mean(), len(rows) / len(of_all))
        earlier = start.of_all() if self.recipe.keep_clicks else None
        return Turn(batch, number, embeddings.detach(), last, earlier, lesson)

    def correct(self, turn: Turn, place: int, clicks: int, numbers: Tensor, strokes_seed: int) -> Turn:
        """One of the rounds that follow. place: counted from 1; numbers: (all objects of the step, clicks);
        strokes_seed: as of `correction_prompts`.
        """
        batch, number, embeddings, last, earlier, lesson = turn
        own = numbers[number : number + len(batch.mask_names)].to(batch.masks.device, non_blocking=True)
        with self.learner.autocast():
            drawn = lambda *_: own
            frame = self.model.frame
            prompts = correction_prompts(last, batch.masks, clicks, drawn, earlier, strokes_seed, number, frame)
            if clicks and self.recipe.keep_clicks:
                earlier = prompts
            prediction = self.model.predict(embeddings, prompts, multimask_output=None)
            wanted = taught(self.recipe.teacher, lesson, prompts) if self.recipe.teacher and lesson else None
            last = self._judged("clicks" if clicks else "mask", prediction, batch, prompts, lesson, wanted)
        last = self._learn_from(last)
        self._add(f"dice/round_{place}", last.dice.mean(), len(batch.mask_names) / self.share.total)
        return Turn(batch, number, embeddings, last, earlier, lesson)

    def _judged(
        self,
        kind: str,
        prediction: Prediction,
        batch: Batch,
        prompts: Prompts,
        lesson: Lesson | None,
        wanted: Prediction | None,
    ) -> Round:
        """lesson, wanted: of the pictures of other kinds, if there are any, and what the teacher answers."""
        details = self.model.details(batch.images, batch.content)
        own = None if details is None else details[batch.image_index]
        ways = self.recipe.rank_weight, self.recipe.loss
        last = judge(self.model, kind, prediction, batch.masks, self.recipe.multimask, own, prompts, *ways)
        if self.recipe.teacher is None:
            return last
        pull = torch.zeros((), device=batch.masks.device)  # a term of every round, whatever its pictures are
        if lesson and wanted:
            ours = Prediction(*(part[lesson.rows] for part in prediction))
            pull = distance(ours, wanted).sum() / len(batch.mask_names)
        loss = last.losses["loss"] + self.recipe.teacher.weight * pull
        return last._replace(losses=last.losses | {"loss": loss, "pull": pull})

    def _learn_from(self, round: Round) -> Round:
        """-> the round without its graph, so that the rounds of a step do not pile up in memory."""
        share = len(round.dice) / self.share.total
        self.learner.backward(round.losses["loss"] * share)
        self.terms = [*round.losses]
        for name, value in round.losses.items():
            self._add(f"loss/{name}", value.detach(), share / (1 + len(self.plan)))
        return round._replace(losses={})

    def _add(self, name: str, mean: Tensor, share: float) -> None:
        """share: of the objects that the name is about, how many this mean is of."""
        value = mean.float() * share
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def scalars(self) -> dict[str, Tensor]:
        """Means over the objects of all processes."""
        processes = self.learner.processes
        terms = self.terms
        if not self.share.everywhere:  # whoever has no object has not seen what the loss is made of
            terms = next(filter(None, processes.gather(terms)))
        names = [f"loss/{name}" for name in terms]
        names += ["dice/start_box"] * bool(len(self.drawn.box_rows))
        names += ["dice/start_click"] * bool(len(self.drawn.click_rows))
        names += [f"dice/round_{place}" for place in range(1, len(self.plan) + 1)]
        nothing = torch.zeros((), device=self.model.device)
        values = processes.sum(torch.stack([self.sums.get(name, nothing) for name in names]))
        scalars = dict(zip(names, values))
        for place, clicks in enumerate(self.plan, start=1):  # of each kind the last one
            scalars[f"dice/correction_{'clicks' if clicks else 'mask'}"] = scalars[f"dice/round_{place}"]
        return scalars
