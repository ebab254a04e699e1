"""From intensities as scanners give them to 8 bits."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from sam_med2d.errors import DataError, UsageError

# (centre, width) in Hounsfield units, as radiologists set them.
WINDOWS = {
    "abdomen": (50, 400),
    "angiography": (300, 600),
    "bone": (400, 1800),
    "brain": (40, 80),
    "liver": (30, 150),
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft_tissue": (50, 400),
    "spine": (50, 250),
    "stroke": (40, 40),
    "subdural": (75, 215),
    "temporal_bone": (600, 2800),
}


@dataclass(frozen=True)
class Intensity:
    """How intensities become 0 .. 255.

    window: (lowest, highest) of the source, the same for all slices; None: from the data.
    windows: the same for images of some modalities (or channels) alone, by their names in lower case.
    by_volume: minimum and maximum of the whole volume instead of each slice.
    percentiles: (low, high) in place of minimum and maximum, so that a few bright voxels do not darken the rest.
    """

    window: tuple[float, float] | None = None
    by_volume: bool = False
    percentiles: tuple[float, float] = (0, 100)
    windows: tuple[tuple[str, tuple[float, float]], ...] = ()

    def of(self, modality: str) -> "Intensity":
        """For the images of one modality."""
        return replace(self, window=dict(self.windows).get(modality.lower(), self.window), windows=())

    def range_of(self, values: np.ndarray) -> tuple[float, float]:
        """What becomes 0 and 255 in an array that is scaled as a whole."""
        if self.window:
            return self.window
        if self.percentiles == (0, 100):
            return float(values.min()), float(values.max())
        low, high = np.percentile(values, self.percentiles)
        return float(low), float(high)


def parse_window(words: list[str]) -> tuple[float, float]:
    """A name of WINDOWS, or centre and width -> (lowest, highest). Raises UsageError."""
    said = " ".join(words)
    try:
        centre, width = WINDOWS[said] if said in WINDOWS else map(float, words)
    except ValueError:
        raise UsageError(
            f"--window {said}: give centre and width, such as 40 400, or one of {', '.join(WINDOWS)}"
        ) from None
    if not width > 0:
        raise UsageError(f"--window {said}: the width must be positive")
    return centre - width / 2, centre + width / 2


def parse_windows(
    words: list[str],
) -> tuple[tuple[float, float] | None, tuple[tuple[str, tuple[float, float]], ...]]:
    """Of --window: one window for all images, or NAME=abdomen and NAME=40,400, one a modality or channel.

    -> `window` and `windows` of an Intensity. Raises UsageError.
    """
    if not any("=" in word for word in words):
        return parse_window(words), ()
    windows = {}
    for word in words:
        name, equals, said = word.partition("=")
        if not equals or not name or name.lower() in windows:
            raise UsageError(f"--window {' '.join(words)}: give each channel one window, such as CT=abdomen PET=5,10")
        windows[name.lower()] = parse_window(said.split(",") if said not in WINDOWS else [said])
    return None, tuple(windows.items())


def check_windows(intensity: Intensity, modalities: Collection[str]) -> None:
    """Raises UsageError: one window for images of several modalities, or a window of a modality that there is not."""
    there = sorted({modality.lower() for modality in modalities})
    shown = ", ".join(name or "no name" for name in there)
    if intensity.window and len(there) > 1:
        raise UsageError(
            f"--window is given once, and the images are of {len(there)} kinds ({shown}), which do not share a range; "
            f"say whose it is, such as --window {there[-1] or 'NAME'}=40,400: the others go from minimum to maximum"
        )
    strange = [name for name, _ in intensity.windows if name not in there]
    if strange:
        raise UsageError(f"--window {strange[0]}=...: no image is of that kind; there are {shown}")


def to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale low .. high to 0 .. 255, rounded; what is outside becomes 0 or 255. A flat array becomes 0."""
    scale = 255 / (high - low) if high > low else 0
    return np.clip(np.rint((values.astype(np.float32) - np.float32(low)) * np.float32(scale)), 0, 255).astype(np.uint8)


def finite(values: np.ndarray, path: str, tally: Counter) -> np.ndarray:
    """Voxels that are no numbers get the lowest intensity there is, and are counted. Raises DataError if all are."""
    if values.dtype.kind != "f":
        return values
    good = np.isfinite(values)
    if good.all():
        return values
    if not good.any():
        raise DataError(f"{path}: has no finite value at all; export it again")
    tally["voxels that are no numbers, set to the lowest value"] += int(values.size - good.sum())
    return np.where(good, values, values[good].min())
