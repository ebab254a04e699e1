"""One pass over a test set: each image is encoded once, then decoded for every object and prompt mode.

Modes by name:
    bbox     the exact box of the true mask in the S x S frame
    1pt 3pts ...   iterative clicks: one random foreground pixel, then each time one random wrong pixel of the last
             prediction, added to the earlier clicks, with the last mask fed back. 1pt, 3pts and 5pts are scored
             along one and the same sequence.
    1shot 5shot ... clicks placed at once: half of them (rounded down, at least one) on the object, the rest off it

Every draw depends on the seed and the mask's file name alone. Scores are taken at the original resolution.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from DataLoader import Batch, DataError
from metrics import METRICS
from prompts import boxes_of, clicks_on, corrective_clicks, one_shot_clicks
from segment_anything import Prediction, Prompts, Sam, best_of
from segment_anything.modeling.prompt_encoder import ABSENT, BACKGROUND, FOREGROUND
from utils import amp_dtype, seed_of

DEFAULT_MODES = ("bbox", "1pt", "3pts", "5pts")
PIXELS_AT_ONCE = 2**24      # of masks worked on together, 256 objects at 256 px (about 2 GB), however many an image has
IMAGE_SIZE = "image_size"    # in a prompts file: the frame, beside the objects; not in the original's

# What a prompts file holds of an object, in the S x S frame: {"boxes": [[x0, y0, x1, y1]], "point_coords":
# [[x, y], ...], "point_labels": [...]} as the original writes it, and ours {"one_shot": {"5": {points as above}}}.
ObjectPrompts = dict[str, list | dict]


class Mode(NamedTuple):
    """kind: "box", "iterative" or "one_shot"; clicks: 0 for a box."""

    name: str
    kind: str
    clicks: int


def parse_mode(name: str) -> Mode:
    """Raises ValueError for a name that is no mode."""
    if name == "bbox":
        return Mode(name, "box", 0)
    match = re.fullmatch(r"([1-9]\d*)(pts?|shot)", name)
    if not match:
        raise ValueError(f"unknown prompt mode {name!r}: use bbox, clicks such as 1pt or 5pts, or 5shot")
    clicks = int(match[1])
    if match[2] == "shot":
        return Mode(name, "one_shot", clicks)
    return Mode(f"{clicks}pt{'s' * (clicks > 1)}", "iterative", clicks)


class Row(NamedTuple):
    """One object in one mode."""

    image: str
    mask: str
    mode: str
    dice: float
    iou: float
    predicted_iou: float
    true_area: int          # pixels at the original resolution
    predicted_area: int


class Scored(NamedTuple):
    """The n objects of one image in one mode.

    masks, truth: (n, H, W) bool at the original size; prompts: the rows of these objects, in the S x S frame.
    """

    mode: Mode
    image: int              # its place in the batch
    rows: list[Row]
    masks: Tensor
    truth: Tensor
    prompts: Prompts


@torch.inference_mode()
def evaluate(model: Sam, batches: Iterable[Batch], modes: list[Mode], *, device: torch.device, seed: int = 0,
             multimask: bool = True, use_amp: bool = False, frozen: "FrozenPrompts | None" = None,
             ) -> Iterator[tuple[Batch, list[Scored]]]:
    """Yields each batch with the scores of its images, mode by mode.

    frozen: prompts to use instead of drawing them. Raises DataError where it lacks one.
    """
    model.eval()
    for batch in batches:
        here = batch.to(device)
        with torch.autocast(device.type, amp_dtype(device), enabled=use_amp):
            embeddings = model.encode(here.images, here.content)
            parts = [
                predict_modes(model, embeddings[here.image_index[rows]], here.masks[rows], names, modes,
                              seed=seed, multimask=multimask, frozen=frozen)
                for rows, names in ((rows, batch.mask_names[rows]) for rows in _chunks(len(here.masks), model.image_size**2))
            ]
        scored = []
        for mode in modes if parts else []:
            predictions, prompts = zip(*(part[mode] for part in parts))
            prediction = Prediction(*(torch.cat(values) for values in zip(*predictions)))
            prompts = Prompts(*(None if values[0] is None else torch.cat(values) for values in zip(*prompts)))
            scored += score(model, batch, mode, prediction, prompts)
        yield batch, scored


def _chunks(rows: int, pixels: int) -> Iterator[slice]:
    """Slices of rows, of so many pixels each, that are worked on together."""
    step = max(1, PIXELS_AT_ONCE // pixels)
    return (slice(start, start + step) for start in range(0, rows, step))


def predict_modes(model: Sam, embeddings: Tensor, masks: Tensor, names: list[str], modes: list[Mode], *, seed: int,
                  multimask: bool, frozen: "FrozenPrompts | None") -> dict[Mode, tuple[Prediction, Prompts]]:
    """embeddings: (N, C, h, w), one for each object; masks: (N, 1, S, S) bool, the truth that prompts come from.

    -> for each mode the chosen output, logits (N, 1, S/4, S/4), and the prompts that led to it.
    """
    def predict(prompts: Prompts) -> tuple[Prediction, Prompts]:
        return best_of(model.predict(embeddings, prompts, multimask)), prompts

    results = {}
    longest = max((mode.clicks for mode in modes if mode.kind == "iterative"), default=0)
    if longest:
        given = frozen.clicks(names, longest).to(masks.device) if frozen else None
        uniform = None if frozen else _uniform_by_name(names, seed, "iterative", longest).to(masks.device)
        prompts = prediction = None
        for number in range(longest):
            if given is not None:
                points, labels = given.points[:, : number + 1], given.labels[:, : number + 1]
            elif number == 0:
                points, labels = clicks_on(masks, uniform[:, :1])
            else:
                predicted = model.upscale(prediction.logits) > 0
                more = corrective_clicks(masks, predicted, uniform[:, number : number + 1])
                points, labels = torch.cat([points, more[0]], dim=1), torch.cat([labels, more[1]], dim=1)
            fed_back = None if prediction is None else prediction.logits.float().sigmoid()
            prediction, prompts = predict(Prompts(points, labels, masks=fed_back))
            for mode in modes:
                if mode.kind == "iterative" and mode.clicks == number + 1:
                    results[mode] = prediction, prompts
    for mode in modes:
        if mode.kind == "box":
            results[mode] = predict(frozen.boxes(names).to(masks.device) if frozen else Prompts(boxes=boxes_of(masks)))
        elif mode.kind == "one_shot":
            if frozen:
                prompts = frozen.one_shot(names, mode.clicks).to(masks.device)
            else:
                uniform = _uniform_by_name(names, seed, mode.name, mode.clicks).to(masks.device)
                prompts = Prompts(*one_shot_clicks(masks, uniform))
            results[mode] = predict(prompts)
    return results


def _uniform_by_name(names: list[str], seed: int, use: str, columns: int) -> Tensor:
    """(N, columns) in [0, 1), each row from the seed, the use and the mask's file name alone."""
    draws = [np.random.default_rng(seed_of(seed, use, os.path.basename(name))).random(columns, np.float32) for name in names]
    return torch.from_numpy(np.stack(draws))


def score(model: Sam, batch: Batch, mode: Mode, prediction: Prediction, prompts: Prompts) -> list[Scored]:
    """Bring the chosen outputs, logits (N, 1, S/4, S/4), to each image's size and compare with its true masks."""
    scored = []
    owner = batch.image_index.cpu()
    for image, truth in enumerate(batch.original_masks):
        rows = (owner == image).nonzero().squeeze(1)
        if not len(rows):
            continue
        here = rows.to(prediction.logits.device)
        content, size = batch.content[image].tolist(), truth.shape[-2:]
        masks = torch.cat([
            (restore(model.upscale(prediction.logits[here[chunk]]), content, size) > 0).squeeze(1).cpu()
            for chunk in _chunks(len(here), max(size[0] * size[1], model.image_size**2))
        ])
        values = {name: metric(masks, truth, from_logits=False).tolist() for name, metric in METRICS.items()}
        areas = zip(truth.sum(dim=(1, 2)).tolist(), masks.sum(dim=(1, 2)).tolist())
        predicted_iou = prediction.iou[here].squeeze(1).float().tolist()
        scored.append(Scored(
            mode, image,
            [Row(batch.image_names[image], batch.mask_names[row], mode.name, values["dice"][i], values["iou"][i],
                 predicted_iou[i], *area) for i, (row, area) in enumerate(zip(rows.tolist(), areas))],
            masks, truth, prompts.rows(here).to("cpu"),
        ))
    return scored


def restore(logits: Tensor, content: list[int], size: tuple[int, int]) -> Tensor:
    """From the S x S frame to the original picture: crop the padding, or bilinear where it was resized.

    logits: (n, 1, S, S); content: top, left, height, width in the frame -> (n, 1, *size).
    """
    top, left, height, width = content
    logits = logits[..., top:top + height, left:left + width]
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def to_original_frame(prompts: Prompts, content: list[int], size: tuple[int, int]) -> Prompts:
    """Points and boxes of one image, from the S x S frame to pixels of the original picture (height, width)."""
    top, left, height, width = content
    offset = torch.tensor([left, top])
    scale = torch.tensor([size[1] / width, size[0] / height])
    points = None if prompts.points is None else (prompts.points - offset) * scale
    boxes = None if prompts.boxes is None else (prompts.boxes - offset.repeat(2)) * scale.repeat(2)
    return prompts._replace(points=points, boxes=boxes)


class FrozenPrompts:
    """The prompts of an earlier run, read from its file; the original's files are read too."""

    def __init__(self, path: str | os.PathLike, image_size: int) -> None:
        """image_size: the side S of the frame that the prompts were made in, in pixels.

        Raises DataError: missing, not JSON, or not {mask name: prompts}.
        """
        self.path = path
        self.image_size = image_size
        try:
            with open(path, encoding="utf-8") as file:
                self.objects: dict[str, ObjectPrompts] = json.load(file)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); give a prompts file of an earlier run") from error
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error}); give a prompts file of an earlier run") from error
        made_at = self.objects.pop(IMAGE_SIZE, image_size) if isinstance(self.objects, dict) else None
        if not isinstance(self.objects, dict) or not all(isinstance(o, dict) for o in self.objects.values()):
            raise DataError(f"{path}: must hold {{mask file name: prompts}}; give a prompts file of an earlier run")
        if made_at != image_size:
            raise DataError(f"{path}: was made in a frame of {made_at} pixels; use --image_size {made_at}")

    def check(self, names: list[str], modes: list[Mode]) -> None:
        """Raises DataError where the prompts of an object are missing or unusable: before a run, not in its middle.

        An entry without any prompt stands for an object that the earlier run skipped as empty, as this one will.
        """
        names = [name for name in names if self._object(name)]
        if not names:
            return
        look = {"box": lambda mode: self.boxes(names), "iterative": lambda mode: self.clicks(names, mode.clicks),
                "one_shot": lambda mode: self.one_shot(names, mode.clicks)}
        for mode in modes:
            look[mode.kind](mode)

    def boxes(self, names: list[str]) -> Prompts:
        found = [self._coordinates(name, self._object(name).get("boxes"), 4, 1, "box")[0] for name in names]
        return Prompts(boxes=torch.from_numpy(np.stack(found)).float())

    def clicks(self, names: list[str], count: int) -> Prompts:
        """The first `count` of each object's sequence of clicks."""
        return self._points(names, [self._object(name) for name in names], count)

    def one_shot(self, names: list[str], count: int) -> Prompts:
        """Clicks placed at once. A file of the original holds them where the iterative ones are."""
        objects = []
        for name in names:
            entry = self._object(name)
            at_once = entry.get("one_shot", {str(count): entry})
            objects.append(at_once.get(str(count), {}) if isinstance(at_once, dict) else {})
        return self._points(names, objects, count)

    def _object(self, name: str) -> ObjectPrompts:
        for key in (name, os.path.basename(name)):
            if key in self.objects:
                return self.objects[key]
        raise DataError(f"{self.path}: has no prompts for {name}; make the file anew on this test set")

    def _points(self, names: list[str], objects: list[ObjectPrompts], count: int) -> Prompts:
        points, labels = [], []
        for name, entry in zip(names, objects):
            points.append(self._coordinates(name, entry.get("point_coords"), 2, count, "click"))
            label = self._numbers(name, entry.get("point_labels"), 1, count, "click label")[:, 0]
            if not np.isin(label, (FOREGROUND, BACKGROUND, ABSENT)).all():
                raise DataError(f"{self.path}: {name} has a click label other than 1, 0 and -1 (absent); correct it")
            labels.append(label)
        return Prompts(torch.from_numpy(np.stack(points)).float(), torch.from_numpy(np.stack(labels)).long())

    def _coordinates(self, name: str, values: object, width: int, count: int, what: str) -> np.ndarray:
        rows = self._numbers(name, values, width, count, what)
        if not ((rows >= 0) & (rows <= self.image_size)).all():     # not a number fails this as well
            raise DataError(f"{self.path}: {name} has a {what} outside the frame of {self.image_size} x {self.image_size} "
                            "pixels; use the --image_size that the file was made with")
        return rows

    def _numbers(self, name: str, values: object, width: int, count: int, what: str) -> np.ndarray:
        """The first `count` rows of `width` numbers, whatever nesting they were written with."""
        try:
            rows = np.array(values if values is not None else [], dtype=float).reshape(-1, width)
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.path}: {name} has no readable {what}; make the file anew") from error
        if len(rows) < count:
            raise DataError(f"{self.path}: {name} has {len(rows)} of the {count} {what}(s) that this mode needs; "
                            "make the file anew with this mode")
        return rows[:count]


def record_prompts(into: dict[str, ObjectPrompts], scored: Scored, key_of) -> None:
    """Add the prompts of some objects in one mode to what a prompts file will hold.

    key_of: mask path of the index -> its key in the file.
    """
    for i, row in enumerate(scored.rows):
        entry = into.setdefault(key_of(row.mask), {})
        if scored.prompts.boxes is not None:
            entry["boxes"] = [scored.prompts.boxes[i].tolist()]
            continue
        points = {"point_coords": scored.prompts.points[i].tolist(), "point_labels": scored.prompts.labels[i].tolist()}
        if scored.mode.kind == "one_shot":
            entry.setdefault("one_shot", {})[str(scored.mode.clicks)] = points
        elif len(points["point_labels"]) > len(entry.get("point_labels", ())):
            entry.update(points)        # of one sequence the longest part says all


def mean_by_mode(rows: list[Row], metric: str) -> dict[str, float]:
    """Unweighted mean over objects of "dice" or "iou" for each mode, in the order of the rows."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row.mode, []).append(getattr(row, metric))
    return {mode: float(np.mean(v)) for mode, v in values.items()}
