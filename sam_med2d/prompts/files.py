"""Prompts of a test run as a JSON file, written for every run and read back with --prompt_path.

    {"image_size": 256, "click_strategy": "random",
     "a_liver.png": {"boxes": [[x0, y0, x1, y1]], "point_coords": [[x, y], ...], "point_labels": [1, 0, ...],
                     "others": {"5shot": {...}, "bbox": {...}, "bbox_jitter5": {...}}}, ...}

An object's own three keys are what the original writes and reads: the exact box, and the clicks of one sequence in the
S x S frame. `others` holds those of further sequences (`Mode.sequence`): clicks placed at once, jittered boxes,
corrections that follow a box. The mask prompt is made from the truth and is not written. `"protocol": "exact"` beside
`image_size` says how the run brought masks back from the frame (files without it: as in the paper); prompts are in the
frame either way, so that both kinds of run read both.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from sam_med2d.errors import DataError
from sam_med2d.json_files import LARGE, read_json
from sam_med2d.prompts.clicks import clicks_of, mask_prompts
from sam_med2d.prompts.modes import Mode
from segment_anything import ABSENT, BACKGROUND, FOREGROUND, Prompts
from segment_anything.frames import SAM_MED2D

ObjectPrompts = dict[str, Any]  # boxes, point_coords, point_labels: lists; others: {sequence: the same}

SETTINGS = ("image_size", "click_strategy", "protocol", "frame")  # beside the objects; files of the original have none


def record_prompts(into: dict[str, ObjectPrompts], mode: Mode, names: list[str], prompts: Prompts) -> None:
    """Add the prompts of some objects in one mode to what a prompts file will hold.

    names: the keys of the objects in the file, one for each row of `prompts`.
    """
    for i, name in enumerate(names):
        entry = into.setdefault(name, {})
        box = None if prompts.boxes is None else [prompts.boxes[i].tolist()]
        if mode.sequence != "clicks" and (mode.sequence != "bbox" or mode.clicks):
            if mode.sequence == "bbox":
                entry["boxes"] = box
            entry = entry.setdefault("others", {}).setdefault(mode.sequence, {})
        if box is not None:
            entry["boxes"] = box
        if prompts.points is None or prompts.labels is None:
            continue
        if clicks_of(prompts) > len(entry.get("point_labels", ())):  # of one sequence the longest part says all
            entry |= {"point_coords": prompts.points[i].tolist(), "point_labels": prompts.labels[i].tolist()}


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
        self.objects: dict[str, ObjectPrompts] = content
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
        entry = self._other(name, mode) if mode.jitter else self._object(name)
        box = self._coordinates(name, entry.get("boxes"), 4, 1, "box")[0]
        if box[0] >= box[2] or box[1] >= box[3]:
            raise DataError(
                f"{self.path}: {name} has a box without any pixel; it must be x0 y0 x1 y1 with x0 < x1 and y0 < y1"
            )
        return box

    def _clicks(self, name: str, mode: Mode, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` clicks of the mode's sequence: (count, 2) and (count,)."""
        entry = self._object(name)
        # a file of the original holds clicks placed at once where iterative ones are
        if mode.start == "box" or (mode.start == "at_once" and "others" in entry):
            entry = self._other(name, mode)
        points = self._coordinates(name, entry.get("point_coords"), 2, count, "click")
        labels = self._numbers(name, entry.get("point_labels"), 1, count, "click label")[:, 0]
        if not np.isin(labels, (FOREGROUND, BACKGROUND, ABSENT)).all():
            raise DataError(f"{self.path}: {name} has a click label other than 1, 0 and -1 (absent); correct it")
        return points, labels

    def _other(self, name: str, mode: Mode) -> ObjectPrompts:
        others = self._object(name).get("others", {})
        entry = others.get(mode.sequence, {}) if isinstance(others, dict) else {}
        return entry if isinstance(entry, dict) else {}

    def _coordinates(self, name: str, values: object, width: int, count: int, what: str) -> np.ndarray:
        rows = self._numbers(name, values, width, count, what)
        if not ((rows >= 0) & (rows <= self.image_size)).all():  # not a number fails this as well
            raise DataError(
                f"{self.path}: {name} has a {what} outside the frame of {self.image_size} x {self.image_size} "
                "pixels; use the --image_size that the file was made with"
            )
        return rows

    def _numbers(self, name: str, values: object, width: int, count: int, what: str) -> np.ndarray:
        """The first `count` rows of `width` numbers, whatever nesting they were written with."""
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
        return rows[:count]
