"""Prompts of a test run as a JSON file, written for every run and read back with --prompt_path.

    {"image_size": 256, "click_strategy": "random",
     "a_liver.png": {"boxes": [[x0, y0, x1, y1]], "point_coords": [[x, y], ...], "point_labels": [1, 0, ...],
                     "others": {"5shot": {...}, "bbox": {...}, "bbox_jitter5": {...}}}, ...}

An object's own three keys are what the original writes and reads: the exact box, and the clicks of one sequence in the
S x S frame. `others` holds those of further sequences (`Mode.sequence`): clicks placed at once, jittered and drawn
boxes, corrections that follow a box, strokes and lassos:

    "others": {"scribbles": {"scribbles": [{"lines": [[[x, y], ...], ...], "label": 1, "width": 3}, ...]},
               "lasso": {"lasso": [[x, y], ...]}}
 The mask prompt is made from the truth and is not written. Sequences that end in @zoom are in pixels of the
picture. `"protocol": "exact"` beside
`image_size` says how the run brought masks back from the frame (files without it: as in the paper); prompts are in the
frame either way, so that both kinds of run read both.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from sam_med2d.data.names import with_slashes
from sam_med2d.errors import DataError
from sam_med2d.json_files import LARGE, read_json
from sam_med2d.prompts.clicks import clicks_of, mask_prompts
from sam_med2d.prompts.modes import Mode
from sam_med2d.prompts.strokes import Drawing, Stroke
from segment_anything import ABSENT, BACKGROUND, FOREGROUND, Prompts
from segment_anything.frames import SAM_MED2D

ObjectPrompts = dict[str, Any]  # boxes, point_coords, point_labels: lists; others: {sequence: the same}

SETTINGS = ("image_size", "click_strategy", "protocol", "frame")  # beside the objects; files of the original have none


def record_prompts(
    into: dict[str, ObjectPrompts],
    mode: Mode,
    names: list[str],
    prompts: Prompts,
    drawings: Sequence[Sequence[Drawing]] = (),
) -> None:
    """Add the prompts of some objects in one mode to what a prompts file will hold.

    names: the keys of the objects in the file, one for each row of `prompts`. drawings: of each object all that was
    drawn, in modes of strokes or lassos.
    """
    for i, name in enumerate(names):
        entry = into.setdefault(name, {})
        box = None if prompts.boxes is None else [prompts.boxes[i].tolist()]
        if mode.sequence != "clicks" and (mode.sequence != "bbox" or mode.clicks):
            if mode.sequence == "bbox":
                entry["boxes"] = box
            entry = entry.setdefault("others", {}).setdefault(mode.sequence, {})
        if mode.start == "lasso":
            entry["lasso"] = next(one.lasso.tolist() for one in drawings[i] if one.lasso is not None)
            continue
        if box is not None:
            entry["boxes"] = box
        if mode.by_strokes:  # the clicks along them are made from them again
            strokes = [_written(one.stroke) for one in drawings[i] if one.stroke is not None]
            if len(strokes) > len(entry.get("scribbles", ())):
                entry["scribbles"] = strokes
            continue
        if prompts.points is None or prompts.labels is None:
            continue
        if clicks_of(prompts) > len(entry.get("point_labels", ())):  # of one sequence the longest part says all
            entry |= {"point_coords": prompts.points[i].tolist(), "point_labels": prompts.labels[i].tolist()}


def _written(stroke: Stroke) -> dict[str, object]:
    return {"lines": [line.tolist() for line in stroke.lines], "label": stroke.label, "width": stroke.width}


def write_prompts(file: TextIO, settings: dict[str, object], objects: Iterator[tuple[str, ObjectPrompts]]) -> None:
    """Write a prompts file object by object, so that memory does not grow with their number."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in settings.items()]
    file.write("{\n" + ",\n".join(lines))
    for name, entry in objects:
        file.write(f",\n {json.dumps(name)}: {json.dumps(entry)}")
    file.write("\n}\n")


class FrozenPrompts:
    """An annotator that repeats the prompts of an earlier run; the original's files are read too."""

    def __init__(self, path: str | os.PathLike, image_size: int, frame: str = SAM_MED2D) -> None:
        """image_size: the side S of the frame that the prompts were made in, in pixels; frame: one of
        segment_anything.frames.FRAMES.

        Raises DataError: missing, not JSON, or not {mask name: prompts}.
        """
        self.path = path
        self.image_size = image_size
        content = read_json(path, "give a prompts file of an earlier run", most=LARGE)
        settings = (
            {name: content.pop(name) for name in SETTINGS if name in content} if isinstance(content, dict) else {}
        )
        if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
            raise DataError(f"{path}: must hold {{mask file name: prompts}}; give a prompts file of an earlier run")
        if settings.get("image_size", image_size) != image_size:
            raise DataError(
                f"{path}: was made in a frame of {settings['image_size']} pixels; "
                f"use --image_size {settings['image_size']}"
            )
        if (found := settings.get("frame", SAM_MED2D)) != frame:
            raise DataError(f"{path}: was made in the frame {found!r:.20}, but this run has {frame}; see --frame")
        self.objects: dict[str, ObjectPrompts] = {with_slashes(name): entry for name, entry in content.items()}
        self.strategy = settings.get("click_strategy", "random")

    def check(self, names: list[str], modes: list[Mode]) -> None:
        """Raises DataError where the prompts of an object are missing or unusable: before a run, not in its middle.

        An entry without any prompt stands for an object that the earlier run skipped as empty, as this one will.
        """
        for name in names:
            if self._object(name):
                for mode in modes:
                    if mode.start == "box":
                        self._box(name, mode)
                    if mode.start == "lasso":
                        self._lasso(name, mode)
                    elif mode.by_strokes:
                        self._strokes(name, mode, mode.clicks)
                    else:
                        self._clicks(name, mode, mode.clicks)

    def start(self, mode: Mode, masks: Tensor, names: list[str]) -> Prompts:
        if mode.start == "mask":
            return Prompts(masks=mask_prompts(masks))
        if mode.start == "box":
            return Prompts(
                boxes=torch.from_numpy(np.stack([self._box(name, mode) for name in names])).float().to(masks.device)
            )
        return Prompts(*self._points(mode, slice(0, mode.clicks if mode.start == "at_once" else 1), masks, names))

    def correct(
        self, mode: Mode, number: int, masks: Tensor, predicted: Tensor, names: list[str]
    ) -> tuple[Tensor, Tensor]:
        return self._points(mode, slice(number, number + 1), masks, names)

    def draw(self, mode: Mode, number: int, masks: Tensor, predicted: Tensor, names: list[str]) -> list[Drawing]:
        if mode.start == "lasso":
            return [Drawing(lasso=self._lasso(name, mode)) for name in names]
        return [Drawing(self._strokes(name, mode, number + 1)[number]) for name in names]

    def _lasso(self, name: str, mode: Mode) -> np.ndarray:
        outline = self._coordinates(name, self._other(name, mode).get("lasso"), 2, 3, "lasso corner", all_of=True)
        return outline.astype(np.float32)

    def _strokes(self, name: str, mode: Mode, count: int) -> list[Stroke]:
        """The first `count` strokes of the mode's sequence."""
        given = self._other(name, mode).get("scribbles", [])
        if not isinstance(given, list) or len(given) < count:
            has = len(given) if isinstance(given, list) else 0
            raise DataError(
                f"{self.path}: {name} has {has} of the {count} scribble(s) that this mode needs; "
                "make the file anew with this mode"
            )
        return [self._stroke(name, one) for one in given[:count]]

    def _stroke(self, name: str, given: object) -> Stroke:
        parts = given if isinstance(given, dict) else {}
        lines, label, width = parts.get("lines"), parts.get("label"), parts.get("width", 1)
        if label not in (FOREGROUND, BACKGROUND, ABSENT) or not isinstance(lines, list):
            raise DataError(f"{self.path}: {name} has a scribble without lines or with a label other than 1, 0 and -1")
        if not isinstance(width, int) or not 1 <= width <= self.image_size:
            raise DataError(
                f"{self.path}: {name} has a scribble of width {width!r}; it is a number of pixels from 1 on"
            )
        read = [self._coordinates(name, line, 2, 1, "scribble place", all_of=True) for line in lines]
        return Stroke(tuple(line.astype(np.float32) for line in read), label, width)

    def _points(self, mode: Mode, which: slice, masks: Tensor, names: list[str]) -> tuple[Tensor, Tensor]:
        points, labels = zip(*(self._clicks(name, mode, which.stop) for name in names))
        return (
            torch.from_numpy(np.stack(points))[:, which].float().to(masks.device),
            torch.from_numpy(np.stack(labels))[:, which].long().to(masks.device),
        )

    def _object(self, name: str) -> ObjectPrompts:
        for key in (name, os.path.basename(name)):
            if key in self.objects:
                return self.objects[key]
        raise DataError(f"{self.path}: has no prompts for {name}; make the file anew on this test set")

    def _box(self, name: str, mode: Mode) -> np.ndarray:
        """Of a mode that starts with a box."""
        entry = (
            self._other(name, mode)
            if mode.jitter or mode.drawn or mode.by_strokes or mode.zoomed
            else self._object(name)
        )
        box = self._coordinates(name, entry.get("boxes"), 4, 1, "box", in_picture=mode.zoomed)[0]
        if box[0] >= box[2] or box[1] >= box[3]:
            raise DataError(
                f"{self.path}: {name} has a box without any pixel; it must be x0 y0 x1 y1 with x0 < x1 and y0 < y1"
            )
        return box

    def _clicks(self, name: str, mode: Mode, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` clicks of the mode's sequence: (count, 2) and (count,)."""
        entry = self._object(name)
        # a file of the original holds clicks placed at once where iterative ones are
        if mode.zoomed or mode.start == "box" or (mode.start == "at_once" and "others" in entry):
            entry = self._other(name, mode)
        points = self._coordinates(name, entry.get("point_coords"), 2, count, "click", in_picture=mode.zoomed)
        labels = self._numbers(name, entry.get("point_labels"), 1, count, "click label")[:, 0]
        if not np.isin(labels, (FOREGROUND, BACKGROUND, ABSENT)).all():
            raise DataError(f"{self.path}: {name} has a click label other than 1, 0 and -1 (absent); correct it")
        return points, labels

    def _other(self, name: str, mode: Mode) -> ObjectPrompts:
        others = self._object(name).get("others", {})
        entry = others.get(mode.sequence, {}) if isinstance(others, dict) else {}
        return entry if isinstance(entry, dict) else {}

    def _coordinates(
        self,
        name: str,
        values: object,
        width: int,
        count: int,
        what: str,
        all_of: bool = False,
        in_picture: bool = False,
    ) -> np.ndarray:
        """in_picture: in pixels of the picture, whose size is known when it is asked."""
        rows = self._numbers(name, values, width, count, what, all_of)
        limit = np.inf if in_picture else self.image_size
        if not ((rows >= 0) & (rows <= limit)).all():  # not a number fails this as well
            raise DataError(
                f"{self.path}: {name} has a {what} outside the frame of {self.image_size} x {self.image_size} "
                "pixels; use the --image_size that the file was made with"
            )
        return rows

    def _numbers(
        self, name: str, values: object, width: int, count: int, what: str, all_of: bool = False
    ) -> np.ndarray:
        """The first `count` rows of `width` numbers, whatever nesting they were written with.

        all_of: all rows, of which there are at least so many.
        """
        if not count:
            return np.zeros((0, width))
        try:
            rows = np.array(values if values is not None else [], dtype=float).reshape(-1, width)
        except (TypeError, ValueError, OverflowError) as error:  # Overflow: a number of 400 digits
            raise DataError(f"{self.path}: {name} has no readable {what}; make the file anew") from error
        if len(rows) < count:
            raise DataError(
                f"{self.path}: {name} has {len(rows)} of the {count} {what}(s) that this mode needs; "
                "make the file anew with this mode"
            )
        return rows if all_of else rows[:count]
