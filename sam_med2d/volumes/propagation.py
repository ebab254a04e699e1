"""An object through a volume: from prompted slices to their neighbours in both directions, until the object ends.

    sliced = Slices(predictor, array, axis=0, intensity=Intensity())
    found = propagate(sliced, {94: ObjectPrompt(box=np.array([20, 20, 150, 180]))}, Rule())
    volume = sliced.assemble(found.slices)                  # probabilities, as large as the array

Arrays are (Z, Y, X), turned to the patient as `scans.canonical` leaves them; slices are (h, w) as people look at them
(`scans.upright`), and so are the pixels of prompts: x before y, boxes half-open. Axis 0 has axial slices, 1 coronal,
2 sagittal.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from sam_med2d.regions import innermost_pixel
from sam_med2d.volumes.intensity import Intensity, to_8_bits
from sam_med2d.volumes.scans import upright
from segment_anything import ObjectPrompt, Sam, SamPredictor, Seen
from segment_anything.images import to_bgr
from segment_anything.predictor import Likeness, Segmenter
from segment_anything.zoom import Crop

IOU_SHARE = 0.8
FAINT = 3  # of 255: a contrast that says nothing
RING = 0.15  # of the side of a square as large as the object: how far around it counts as what surrounds it
KEPT_BYTES = 1 << 29  # of embeddings: those of 2000 slices at 256 px, of 128 at 1024 px
MOST_AHEAD = 8  # slices that are encoded at once before they are asked for
WIDE = 500  # channels of an encoder: on a CPU one picture keeps such layers busy, and more at once gain nothing
CARRIED = ("box", "mask", "point")
END_OF_VOLUME, END_OF_BOX = "end of the volume", "end of the box"  # why an object ends where it was not the slice
OUT_OF_TIME = "no time was left"
BARELY = np.nextafter(np.float16(0.5), np.float16(1))  # of a pixel whose probability float16 rounds to one half
AGREEMENT = 0.7  # IoU with what is known, below which another axis speaks of something else


class Rule(NamedTuple):
    """How an object goes on to the next slice, and where it ends.

    carry: what the last slice's mask becomes: its "box", its logits ("mask"), its innermost pixel ("point")
    margin: by which the box is widened on each side, as a share of its own side, so that the object can grow
    least_iou: the predicted IoU below which the slice no longer belongs to it; where the prompted slice is not much
        surer itself, IOU_SHARE of its IoU
    least_area: in pixels
    shrink, grow: the least and the largest area, as a share of the last slice's
    least_contrast: by how much it must differ in brightness from what surrounds it on the prompted slice, as a share of
        how much it does there; a mask that is carried on where the object has ended lies on something else
    """

    carry: tuple[str, ...] = ("point", "mask")
    margin: float = 0.03
    least_iou: float = 0.5
    least_area: int = 20
    shrink: float = 0.5
    grow: float = 2.2
    least_contrast: float = 0.4


class Slice(NamedTuple):
    """One object in one slice. probability: (h, w) float16; low_res: (S/4, S/4) logits or unknown; iou: predicted."""

    probability: np.ndarray
    low_res: np.ndarray | None
    iou: float

    @property
    def mask(self) -> np.ndarray:
        return self.probability > 0.5


class Propagated(NamedTuple):
    """slices: number -> Slice; ends: why its first and its last slice are where they are."""

    slices: dict[int, Slice]
    ends: tuple[str, str]


class Reference(NamedTuple):
    """Of an object where it was prompted: the mean brightness around it, how much brighter it is itself, and the
    predicted IoU below which another slice does not belong to it."""

    surrounding: float
    contrast: float
    least_iou: float


class Viewed(Protocol):
    """What following an object needs of a volume; `Slices` offers it."""

    def image(self, number: int) -> np.ndarray: ...

    def predict(self, number: int, prompt: ObjectPrompt, like: np.ndarray | None = None) -> Slice: ...


def best_slice(predictor: SamPredictor, prompt: ObjectPrompt, like: np.ndarray | None = None) -> Slice:
    """The best of the three answers on the image that the predictor holds: see `Slices.predict`."""
    found = predictor.predict_objects([prompt], return_logits=True, best=like is None, like=like)
    logits = found.masks[0, 0]
    probability = (1 / (1 + np.exp(-logits.clip(-30, 30)))).astype(np.float16)
    probability[(logits > 0) & (probability <= 0.5)] = BARELY
    return Slice(probability, found.low_res[0, 0], float(found.iou[0, 0]))


def batches_pay(model: Segmenter) -> bool:
    """Whether several pictures are encoded faster at once than one by one."""
    if not isinstance(model, Sam):
        return False  # exported files take one by one
    return model.device.type != "cpu" or model.image_encoder.pos_embed.shape[-1] < WIDE


class Slices:
    """The slices of a volume along one axis, each encoded once as long as memory allows."""

    def __init__(
        self,
        predictor: SamPredictor,
        array: np.ndarray,
        axis: int,
        intensity: Intensity,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """array: (Z, Y, X) numbers, finite; intensity: how they become 8 bits; kept_bytes: of embeddings."""
        self.predictor = predictor
        self.kept_bytes = kept_bytes
        self.array = array
        self.axis = axis
        self.intensity = intensity
        whole = intensity.by_volume or intensity.window is not None
        self._range = intensity.range_of(array) if whole else None
        self._kept: OrderedDict[int, Seen] = OrderedDict()
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()
        self._ahead: dict[tuple[int, Crop], Seen] = {}  # encoded before it was asked for
        self._reach = 1
        self._picture: np.ndarray | None = None  # what the predictor holds, unless another axis has given it its own
        self._shown = -1

    def __len__(self) -> int:
        return self.array.shape[self.axis]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a slice."""
        height, width = (n for i, n in enumerate(self.array.shape) if i != self.axis)
        return height, width

    def image(self, number: int) -> np.ndarray:
        """(h, w) uint8; do not write into it."""
        if number not in self._images:
            values = np.take(self.array, number, self.axis)
            made = upright(to_8_bits(values, *(self._range or self.intensity.range_of(values))), self.axis)
            self._images[number] = made
            if len(self._images) > 2 * MOST_AHEAD:
                self._images.popitem(last=False)
        return self._images[number]

    def look_ahead(self, numbers: Sequence[int]) -> None:
        """Encode, at once, where the next slices will most likely be looked at: where the last one was.

        numbers: the slice that comes next, and those behind it. As long as that is right, twice as many each time; what
        was encoded for nothing is forgotten.
        """
        if not self.predictor.crops or not batches_pay(self.predictor.model):
            return
        crop = self.predictor.crops[0]
        whole = crop == Crop.whole(self.size)
        if (numbers[0], crop) in self._ahead or (whole and numbers[0] in self._kept):
            return
        self._reach = 2 if self._ahead else min(2 * self._reach, MOST_AHEAD)
        wanted = [n for n in numbers[: self._reach] if not (whole and n in self._kept)]
        pictures = [to_bgr(self.image(number))[crop.pixels] for number in wanted]
        self._ahead = {(n, crop): seen for n, seen in zip(wanted, self.predictor.encode_all(pictures))}

    def predict(self, number: int, prompt: ObjectPrompt, like: np.ndarray | None = None) -> Slice:
        """The best of the three answers: by the predicted IoU, times the IoU with `like` where that is given.

        like: (h, w) bool. A box around a part is often answered with the whole as well: without `like`, an object would
        jump to what it lies in.
        """
        found = best_slice(self.at(number), prompt, like)
        self._keep(number)
        return found

    def at(self, number: int) -> SamPredictor:
        """The predictor, with slice `number` as its picture, which is encoded when that is needed."""
        if self._picture is not None and self.predictor.picture is self._picture and number == self._shown:
            return self.predictor
        picture = to_bgr(self.image(number))
        if number in self._kept:
            self._kept.move_to_end(number)
            self.predictor.set_embedding(self._kept[number], self.size, picture)
        else:
            self.predictor.set_image(picture, "BGR", encode=False)
        for place in [place for place in self._ahead if place[0] == number]:
            seen = self._ahead.pop(place)
            if place[1] == Crop.whole(self.size):
                self.predictor.set_embedding(seen, self.size, picture)
            else:
                self.predictor.keep_crop(place[1], seen)
        self._picture, self._shown = self.predictor.picture, number
        return self.predictor

    def _keep(self, number: int) -> None:
        """What was seen of the whole slice, where it was looked at."""
        if self.predictor.features is None or number in self._kept:
            return
        seen = self.predictor.seen()
        self._kept[number] = seen
        while len(self._kept) > 1 and len(self._kept) * seen.nbytes > self.kept_bytes:
            self._kept.popitem(last=False)

    def assemble(self, slices: dict[int, Slice]) -> np.ndarray:
        """Slices -> (Z, Y, X) float16 probabilities, 0 where there is no slice."""
        volume = np.zeros(self.array.shape, np.float16)
        along = np.moveaxis(volume, self.axis, 0)  # a view
        for number, one in slices.items():
            along[number] = upright(one.probability, self.axis)  # turning twice turns back
        return volume


def propagate(
    sliced: Slices,
    seeds: dict[int, ObjectPrompt],
    rule: Rule,
    bounds: tuple[int, int] | None = None,
    progress: Callable[[], object] = lambda: None,
    late: Callable[[], bool] = lambda: False,
) -> Propagated:
    """One object. seeds: slice -> what is said of the object there; at least one.

    bounds: first slice and one past the last that it may reach. Between two seeds, each reaches half-way.
    progress: called after every slice; late: asked before every slice that no seed lies on, which then is left out.
    Raises PromptError: a prompt that is no prompt, or outside the slice.
    """
    first, end = bounds or (0, len(sliced))
    found = {number: sliced.predict(number, prompt) for number, prompt in sorted(seeds.items())}
    for _ in found:
        progress()
    places = sorted(found)
    ends = ["", ""]
    for place, before, after in zip(places, [None, *places], [*places[1:], None]):
        low = first if before is None else (before + place) // 2 + 1
        high = end if after is None else (place + after) // 2 + 1
        for side, numbers, neighbour in (
            (0, range(place - 1, low - 1, -1), before),
            (1, range(place + 1, high), after),
        ):
            why = _walk(sliced, found, place, numbers, rule, progress, late)
            if neighbour is None:
                limit = END_OF_VOLUME if (first, end)[side] == (0, len(sliced))[side] else END_OF_BOX
                ends[side] = why or limit
    return Propagated(found, (ends[0], ends[1]))


def _walk(
    sliced: Slices,
    found: dict[int, Slice],
    place: int,
    numbers: range,
    rule: Rule,
    progress: Callable[[], object],
    late: Callable[[], bool],
) -> str:
    """Go on from the slice at `place` over `numbers`, adding to `found`. -> why it ended early, or nothing."""
    last = found[place]
    if not last.mask.any():
        return "nothing found where it was prompted"
    reference = reference_of(sliced, place, last, rule)
    for number in numbers:
        if late():
            return OUT_OF_TIME
        sliced.look_ahead(range(number, numbers.stop, numbers.step)[:MOST_AHEAD])
        here, why = follow(sliced, number, last, reference, rule)
        progress()
        if why:
            return why
        found[number] = last = here
    return ""


def reference_of(sliced: Viewed, place: int, prompted: Slice, rule: Rule) -> Reference:
    """What other slices are compared with: the object as it is where it was prompted, its mask not being empty."""
    surrounding, contrast = brightness_around(sliced.image(place), prompted.mask)
    return Reference(surrounding, contrast, min(rule.least_iou, IOU_SHARE * prompted.iou))


def follow(sliced: Viewed, number: int, last: Slice, reference: Reference, rule: Rule) -> tuple[Slice, str]:
    """Look for an object on a slice, from the one beside it. -> what is found, and why that is not the object any more.

    last: the object on the slice beside, with a mask that is not empty.
    """
    here = sliced.predict(number, carried(last, rule), like=last.mask)
    area, before = int(here.mask.sum()), int(last.mask.sum())
    if here.iou < reference.least_iou:
        return here, f"the next has a predicted IoU of {here.iou:.2f}"
    if area < max(rule.least_area, rule.shrink * before):
        return here, f"the next falls from {before} to {area} pixels"
    if area > rule.grow * before:
        return here, f"the next rises from {before} to {area} pixels"
    if abs(reference.contrast) > FAINT:
        share = (float(sliced.image(number)[here.mask].mean()) - reference.surrounding) / reference.contrast
        if share < rule.least_contrast:
            return here, f"the next has {max(0, share):.0%} of its contrast"
    return here, ""


def brightness_around(image: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """-> the mean brightness around an object, and how much brighter the object is; 0 where nothing is around it.

    image: (h, w) uint8; mask: (h, w) bool, not empty.
    """
    reach = max(3, int(RING * mask.sum() ** 0.5))
    wider = cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)) > 0
    around = image[wider & ~mask]
    if not around.size:
        return 0.0, 0.0
    return float(around.mean()), float(image[mask].mean()) - float(around.mean())


def carried(last: Slice, rule: Rule) -> ObjectPrompt:
    """What the last slice says to the next. last: with a mask that is not empty."""
    mask = last.mask.astype(np.uint8)
    points = labels = box = None
    if "box" in rule.carry:
        x, y, width, height = cv2.boundingRect(mask)
        wider, higher = rule.margin * width, rule.margin * height
        right, bottom = min(mask.shape[1], x + width + wider), min(mask.shape[0], y + height + higher)
        box = np.array([max(0, x - wider), max(0, y - higher), right, bottom], np.float32)
    if "point" in rule.carry:
        points, labels = np.array([innermost_pixel(last.mask)], np.float32), np.array([1])
    return ObjectPrompt(points, labels, box, last.low_res if "mask" in rule.carry else None)


def refine_along(
    sliced: Slices, mask: np.ndarray, rule: Rule, progress: Callable[[], object] = lambda: None
) -> dict[int, Slice]:
    """Look at an object again along another axis, slice by slice, prompted with the box of what is known of it there.

    mask: (Z, Y, X) bool. Slices where too little is known, or where the answer does not agree with it, are left out.
    """
    found = {}
    for number in np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != sliced.axis))).tolist():
        known = upright(np.take(mask, number, sliced.axis), sliced.axis)
        if known.sum() >= rule.least_area:
            whole = Slice(known.astype(np.float16), None, 1.0)
            again = sliced.predict(number, carried(whole, rule._replace(carry=("box",))), like=known)
            if Likeness(known).of(again.mask) >= AGREEMENT:
                found[number] = again
        progress()
    return found


def fuse(volumes: list[np.ndarray], covered: list[np.ndarray]) -> np.ndarray:
    """Mean probability of the axes that looked at a voxel. volumes: (Z, Y, X) float16; covered: broadcastable bool."""
    total = np.zeros(volumes[0].shape, np.float32)
    count = np.zeros(volumes[0].shape, np.uint8)
    for volume, where in zip(volumes, covered):
        total += volume * where
        count += where
    return (total / np.maximum(count, 1)).astype(np.float16)
