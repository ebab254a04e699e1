"""How scans are shown to a model: by the flags --window and --scale, else in the window that it was trained with."""

import argparse
import sys
from typing import NamedTuple

import numpy as np

from sam_med2d.data.windows import Window, shown
from sam_med2d.volumes.intensity import WINDOWS, Intensity, parse_window
from segment_anything.predictor import Segmenter

SCANNERS = np.dtype(np.int16)  # a kind of voxels that a window is for


class Shown(NamedTuple):
    """asked: by flags, without any minimum to maximum of each slice; trained: the window of the model's training, where
    it says one; by_flags: whether a flag was given, which then holds.
    """

    asked: Intensity = Intensity()
    trained: Window | None = None
    by_flags: bool = False

    def of(self, kind: np.dtype) -> Intensity:
        """kind: of the voxels; 8 bits are a picture already, which the window of a training did not make."""
        if self.trained and not self.by_flags and kind != np.uint8:
            return Intensity(self.trained)
        return self.asked

    @property
    def window(self) -> Window | None:
        """With which scans are opened; None: each slice's own range."""
        return self.asked.window if self.by_flags else self.trained

    def say(self, kind: np.dtype = SCANNERS) -> None:
        """That the window of the training is taken, or warn that another one is."""
        if not self.by_flags and self.trained and kind != np.uint8:
            print(f"window: {shown(self.trained)}, as in the training (--window for another)", flush=True)
        if doubt := self.doubt(kind):
            print(f"warning: {doubt}", file=sys.stderr)

    def doubt(self, kind: np.dtype) -> str:
        """What to say where the model sees another window than that of its training; else nothing."""
        seen = self.of(kind)
        if self.trained is None or seen.window == self.trained:
            return ""
        said = shown(seen.window) if seen.window else f"minimum to maximum of each {_scale(seen)}"
        return f"the model was trained with the window {shown(self.trained)}, and sees {said}"


def _scale(intensity: Intensity) -> str:
    return "volume" if intensity.by_volume else "slice"


def add_window_flag(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--window",
        nargs="+",
        metavar="WORD",
        help="The window that scans are shown in: centre and width, such as 40 400, or one of "
        f"{', '.join(WINDOWS)}. Default: that which the model was trained with, if it says one, else each "
        "slice's own range.",
    )


def add_scale_flag(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--scale",
        choices=["slice", "volume"],
        help="Show scans from the minimum to the maximum of each slice, or of the volume, in place of a window.",
    )


def shown_by(args: argparse.Namespace, model: Segmenter) -> Shown:
    """args: of `add_window_flag` and, where there is one, `add_scale_flag`. Raises UsageError."""
    window, scale = parse_window(args.window) if args.window else None, getattr(args, "scale", None)
    by_flags = window is not None or scale is not None
    return Shown(Intensity(window, scale == "volume"), getattr(model, "window", None), by_flags)
