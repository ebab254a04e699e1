"""One client's volume and the object that is drawn in it: prompts, what they answer, undo.

    session = VolumeSession(service)
    session.take(array, spacing=(5, 1, 1))
    session.click((12, 80, 95), foreground=True)
    change = session.predict()                          # where the mask has changed, and what it is there now

Places are those of the array, in the order of its axes, whole numbers at the centres of voxels; boxes are half-open.
The model sees slices. Across which axis they are cut, the first box, scribble or lasso of an object says, being flat;
clicks do not, and follow what the service or the spacing says.

Prompts of a slice add up, as in the app: a click comes with all earlier ones of its slice and the mask that it had, a
box or a lasso starts its slice anew. What slices with prompts answer goes on to those without, as `segment-volume` does
it, unless an initial segmentation was given: of that, slices without prompts stay as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np

from sam_med2d.errors import DataError, PromptError
from sam_med2d.inference.session import MOST_CLICKS, Packed
from sam_med2d.serve.service import Service
from sam_med2d.volumes.prompts import box_in_slice, in_slice, nearest_voxels
from sam_med2d.volumes.propagation import Slice, Slices
from sam_med2d.volumes.scans import upright
from segment_anything import BACKGROUND, FOREGROUND, ObjectPrompt
from segment_anything.drawings import CLICKS_ALONG, clicks_of_scribbles
from segment_anything.zoom import NEVER

MOST_UNDONE = 50  # interactions
COARSE = 1.5  # times the other spacings: slices lie across such an axis


class Change(NamedTuple):
    """box: first place and one past the last, of each axis of the volume; values: the mask there, uint8 of 0 and 1."""

    box: list[list[int]]
    values: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """The object. All by the number of a slice across `axis`, which is None before anything is drawn.

    marks: prompts; rough: the slice and the box of a thick box, where nothing else says where to start; bounds: first
    slice and one past the last that a thick box allows; given: whether it began as an initial segmentation; low_res:
    (S/4, S/4) logits of what was answered; masks: of slices that have any of it.
    """

    axis: int | None = None
    marks: dict[int, ObjectPrompt] = field(default_factory=dict)
    rough: tuple[int, ObjectPrompt] | None = None
    bounds: tuple[int, int] | None = None
    given: bool = False
    low_res: dict[int, np.ndarray] = field(default_factory=dict)
    masks: dict[int, Packed] = field(default_factory=dict)


class VolumeSession:
    """Not for several threads at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._predictor = service.predictor()
        self._array: np.ndarray | None = None
        self._forget()

    @property
    def scan(self) -> np.ndarray | None:
        """The volume, once there is one."""
        return self._array

    @property
    def shape(self) -> tuple[int, int, int]:
        """Raises DataError: there is no volume yet."""
        if self._array is None:
            raise DataError("there is no image yet; send one with /set_image")
        first, second, third = self._array.shape
        return first, second, third

    @property
    def holds(self) -> int:
        """Bytes of the volume."""
        return 0 if self._array is None else self._array.nbytes

    def take(self, array: np.ndarray, spacing: Sequence[float] | None = None) -> None:
        """Work on a volume, an array of three axes, from now on. Raises DataError, with the session as it was."""
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError("the image has voxels that are no finite numbers; replace them")
        self._default_axis = self._axis_of(array.shape, spacing)
        self._array = array
        self._forget()

    def close(self) -> None:
        """Let go of the volume, and of what is held of it, whoever still knows the session."""
        self._array = None
        self._forget()

    def _forget(self) -> None:
        self._drawn, self._before, self._sliced = Drawn(), list[Drawn](), dict[int, Slices]()

    def _axis_of(self, shape: Sequence[int], spacing: Sequence[float] | None) -> int:
        if 1 in shape:
            return [*shape].index(1)
        if self._service.axis is not None:
            return self._service.axis
        if spacing is not None:
            coarsest = int(np.argmax(spacing))
            if all(spacing[coarsest] >= COARSE * one for axis, one in enumerate(spacing) if axis != coarsest):
                return coarsest
        return 0

    # ---------------------------------------------------------------- what people do

    def click(self, place: Sequence[float], foreground: bool) -> None:
        """Raises DataError, PromptError: outside the volume, too many."""
        (voxel,) = nearest_voxels(np.array([place], float))
        if not ((voxel >= 0) & (voxel < self.shape)).all():
            raise PromptError(f"the click {_text(place)} lies outside the image of {_text(self.shape)} voxels")
        sliced = self._across(None)
        point = np.array([in_slice(voxel[::-1], sliced)], np.float32)
        self._add({int(voxel[sliced.axis]): (point, np.array([FOREGROUND if foreground else BACKGROUND]))}, sliced)

    def draw_box(self, box: Sequence[Sequence[float]], foreground: bool) -> None:
        """box: [first, one past the last] of each axis; one voxel thick across the slice that it is drawn on, or thick:
        then the object is looked for in it alone. Off the object, it is heard as clicks in it. Raises PromptError.
        """
        low, high = (np.array([side[k] for side in box], float) for k in (0, 1))
        if not ((low >= 0) & (low < high) & (high <= self.shape)).all():
            raise PromptError(f"the box {box} is empty or reaches outside the image of {_text(self.shape)} voxels")
        flat = [axis for axis in range(3) if high[axis] - low[axis] <= 1]
        if not foreground:
            corner, end = low.astype(int), np.ceil(high).astype(int)
            if not flat:
                raise PromptError("a box off the object must be one voxel thick: draw it on a slice")
            self.scribble(np.ones(end - corner, bool), corner.tolist(), foreground=False)
            return
        sliced = self._across(flat, exact=True)
        middle = int((low[sliced.axis] + high[sliced.axis]) // 2)
        prompt = ObjectPrompt(box=box_in_slice(np.concatenate([low[::-1], high[::-1]]), sliced))
        if flat:
            self._start(sliced, {middle: prompt})
        else:
            bounds = int(np.ceil(low[sliced.axis] - 0.5)), int(np.ceil(high[sliced.axis] - 0.5))
            self._remember(axis=sliced.axis, rough=(middle, prompt), bounds=bounds)

    def scribble(self, mask: np.ndarray, corner: Sequence[int], foreground: bool) -> None:
        """mask: where it was drawn, with its first voxel at `corner`. Each connected piece of a slice is heard as five
        clicks along it. Raises PromptError.
        """
        planes = self._planes(mask, corner, exact=False)
        sliced = self._across([planes.axis])
        sign = np.int8(1 if foreground else -1)
        for plane in planes.by.values():
            if cv2.connectedComponents(plane.astype(np.uint8), connectivity=8)[0] - 1 > MOST_CLICKS // CLICKS_ALONG:
                raise PromptError(f"{MOST_CLICKS // CLICKS_ALONG} pieces are the most of a scribble on one slice")
        clicks = {number: clicks_of_scribbles(plane * sign, None, plane.shape) for number, plane in planes.by.items()}
        self._add(clicks, sliced)

    def lasso(self, mask: np.ndarray, corner: Sequence[int], foreground: bool) -> None:
        """mask: what it encloses, or its line, as of `scribble`. Heard as the box around it and a mask; off the object
        as clicks in it. Raises PromptError.
        """
        if not foreground:
            self.scribble(mask, corner, foreground=False)
            return
        planes = self._planes(mask, corner, exact=True)
        sliced = self._across([planes.axis], exact=True)
        self._start(sliced, {number: _outlined(sliced, number, plane) for number, plane in planes.by.items()})

    def start_from(self, mask: np.ndarray, refine: bool) -> None:
        """An initial segmentation, as large as the volume, in place of all that there was. refine: each of its slices
        is to be answered by the model, with that mask and its box. Raises PromptError.
        """
        if mask.shape != self.shape:
            raise PromptError(f"the segmentation has the shape {mask.shape}, and the image {self.shape}")
        axis = self._default_axis if self._drawn.axis is None else self._drawn.axis
        sliced = self._slices(axis)
        planes = _cut(mask != 0, (0, 0, 0), sliced)
        marks = {number: _outlined(sliced, number, plane) for number, plane in planes.items()} if refine else {}
        masks = {number: Packed(plane) for number, plane in planes.items()}
        self._push(Drawn(axis=axis, given=True, marks=marks, masks=masks))

    def undo(self) -> Change | None:
        """Take back the last interaction. -> what has changed. Raises DataError where there is none."""
        if not self._before:
            raise DataError("there is nothing to undo")
        old, self._drawn = self._drawn, self._before.pop()
        return self._change(old, self._drawn)

    @property
    def can_undo(self) -> bool:
        return bool(self._before)

    def reset(self) -> None:
        """Forget the object."""
        self._drawn, self._before = Drawn(), []

    @property
    def zooms(self) -> bool:
        return self._predictor.zoom.is_on

    @zooms.setter
    def zooms(self, value: bool) -> None:
        self._predictor.zoom = self._service.zoom if value else NEVER

    @contextmanager
    def or_as_it_was(self) -> Iterator[None]:
        """Whatever is raised in the block leaves the object as it was before it."""
        drawn, before = self._drawn, [*self._before]
        try:
            yield
        except BaseException:
            self._drawn, self._before = drawn, before
            raise

    # ---------------------------------------------------------------- what comes of it

    def predict(self) -> Change | None:
        """Answer all that was said of the object. -> what has changed, or None. Raises PromptError."""
        drawn = self._drawn
        seeds = {number: mark for number, mark in drawn.marks.items() if _says_where(mark)}
        if not seeds and drawn.rough is not None:
            seeds = dict([drawn.rough])
        if drawn.axis is None or not seeds:
            return None
        found = self._found(self._slices(drawn.axis), seeds)
        masks = {number: Packed(mask) for number, one in found.items() if (mask := one.mask).any()}
        low_res = {number: one.low_res for number, one in found.items() if one.low_res is not None}
        if drawn.given:
            kept = {number: mask for number, mask in drawn.masks.items() if number not in found}
            masks, low_res = {**kept, **masks}, {**drawn.low_res, **low_res}
        self._drawn = replace(drawn, masks=masks, low_res=low_res)
        return self._change(drawn, self._drawn)

    def _found(self, sliced: Slices, seeds: dict[int, ObjectPrompt]) -> dict[int, Slice]:
        drawn, service = self._drawn, self._service
        if drawn.given:
            return {number: sliced.predict(number, prompt) for number, prompt in sorted(seeds.items())}
        return service.found(sliced, seeds, drawn.bounds)

    def _change(self, old: Drawn, new: Drawn) -> Change | None:
        if old.axis is not None and new.axis is not None and old.axis != new.axis:  # one is of no slice of the other
            empty = Drawn(axis=old.axis), Drawn(axis=new.axis)
            one, other = self._change(old, empty[0]), self._change(empty[1], new)
            return _joined(one, other)
        axis = new.axis if new.axis is not None else old.axis
        if axis is None:
            return None
        sliced = self._slices(axis)
        empty_plane = np.zeros(sliced.size, bool)
        there: dict[int, np.ndarray] = {}
        different = np.zeros(sliced.size, bool)
        for number in sorted(old.masks.keys() | new.masks.keys()):
            before, after = (one.masks[number].unpacked() if number in one.masks else empty_plane for one in (old, new))
            if (before != after).any():
                there[number] = after
                different |= before != after
        if not there:
            return None
        x, y, width, height = cv2.boundingRect(upright(different, axis).astype(np.uint8))
        rows, columns = slice(y, y + height), slice(x, x + width)
        first, last = min(there), max(there)
        values = np.zeros((last - first + 1, height, width), np.uint8)
        for number in range(first, last + 1):
            if number in new.masks:
                values[number - first] = upright(new.masks[number].unpacked(), axis)[rows, columns]
        box = [[y, y + height], [x, x + width]]
        box.insert(axis, [first, last + 1])
        return Change(box, np.moveaxis(values, 0, axis))

    # ---------------------------------------------------------------- slices and prompts

    def _slices(self, axis: int) -> Slices:
        if axis not in self._sliced:
            assert self._array is not None, "whoever asks has asked for the shape"
            self._sliced[axis] = Slices(
                self._predictor, self._array, axis, self._service.shown.of(self._array.dtype), kept_bytes=0
            )  # the model keeps what was encoded
        return self._sliced[axis]

    def _across(self, flat: Sequence[int] | None, exact: bool = False) -> Slices:
        """The slices that something new belongs to. flat: axes that it is one voxel thick along, None: of a click;
        exact: it means nothing on other slices. Raises PromptError.
        """
        axis = self._drawn.axis
        if axis is None:
            axis = self._default_axis if not flat or self._default_axis in flat else flat[0]
        elif exact and flat and axis not in flat:
            raise PromptError(
                f"the object is drawn on slices across axis {axis} of the image so far: draw there, or reset it"
            )
        return self._slices(axis)

    def _planes(self, mask: np.ndarray, corner: Sequence[int], exact: bool) -> "_Planes":
        """Raises PromptError: nothing drawn, outside the image."""
        end = np.add(corner, mask.shape)
        if mask.ndim != 3 or (np.asarray(corner) < 0).any() or (end > self.shape).any():
            raise PromptError(
                f"the drawing of shape {mask.shape} at {_text(corner)} reaches outside the image of "
                f"{_text(self.shape)} voxels"
            )
        thickness = [int(mask.any(axis=tuple(i for i in range(3) if i != axis)).sum()) for axis in range(3)]
        if 0 in thickness:
            raise PromptError("nothing is drawn: the mask is 0 everywhere")
        flat = [axis for axis in range(3) if thickness[axis] == 1]
        sliced = self._across(flat, exact)
        return _Planes(sliced.axis, _cut(mask, corner, sliced))

    def _add(self, clicks: dict[int, tuple[np.ndarray, np.ndarray]], sliced: Slices) -> None:
        """Clicks (P, 2) and labels (P,) of some slices, to what these have. Raises PromptError: too many."""
        marks = {**self._drawn.marks}
        for number, (points, labels) in clicks.items():
            mark = marks.get(number, ObjectPrompt())
            if mark.points is not None and mark.labels is not None:
                points, labels = np.concatenate([mark.points, points]), np.concatenate([mark.labels, labels])
            if len(points) > MOST_CLICKS:
                raise PromptError(f"{MOST_CLICKS} clicks are the most on one slice; draw a box to start it anew")
            marks[number] = mark._replace(points=points, labels=labels, mask=self._answered(number, mark, sliced))
        self._remember(axis=sliced.axis, marks=marks)

    def _answered(self, number: int, mark: ObjectPrompt, sliced: Slices) -> np.ndarray | None:
        """The mask that a slice has, to be fed back with further clicks."""
        if number in self._drawn.low_res:
            return self._drawn.low_res[number]
        if self._drawn.given and number in self._drawn.masks:
            return sliced.at(number).logits_of(self._drawn.masks[number].unpacked())
        return mark.mask

    def _start(self, sliced: Slices, marks: dict[int, ObjectPrompt]) -> None:
        """Slices begin anew, each with one prompt."""
        low_res = {number: one for number, one in self._drawn.low_res.items() if number not in marks}
        self._remember(axis=sliced.axis, marks={**self._drawn.marks, **marks}, low_res=low_res)

    def _remember(self, **changes) -> None:
        self._push(replace(self._drawn, **changes))

    def _push(self, drawn: Drawn) -> None:
        self._before = [*self._before[-(MOST_UNDONE - 1) :], self._drawn]
        self._drawn = drawn


class _Planes(NamedTuple):
    """by: number of a slice across `axis` -> (h, w) bool, as it is looked at, where anything is drawn."""

    axis: int
    by: dict[int, np.ndarray]


def _cut(mask: np.ndarray, corner: Sequence[int], sliced: Slices) -> dict[int, np.ndarray]:
    """A part of the volume, its first voxel at `corner` -> those of its slices with anything in them, whole."""
    axis = sliced.axis
    rows, columns = (slice(corner[i], corner[i] + mask.shape[i]) for i in range(3) if i != axis)
    planes = {}
    for number in np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis))).tolist():
        plane = np.zeros(sliced.size, bool)
        plane[rows, columns] = np.take(mask, number, axis) != 0
        planes[int(corner[axis]) + number] = upright(plane, axis)
    return planes


def _outlined(sliced: Slices, number: int, plane: np.ndarray) -> ObjectPrompt:
    """A lasso, its line or what it encloses, (h, w) bool -> the box around it, and a mask."""
    filled = np.zeros(plane.shape, np.uint8)
    outlines, _ = cv2.findContours(plane.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    x, y, width, height = cv2.boundingRect(filled)
    box = np.array([x, y, x + width, y + height], np.float32)
    return ObjectPrompt(box=box, mask=sliced.at(number).logits_of(filled > 0))


def _says_where(mark: ObjectPrompt) -> bool:
    """Whether a slice's prompts say where the object is, and not only where it is not."""
    clicked = mark.labels is not None and bool((mark.labels == FOREGROUND).any())
    return clicked or mark.box is not None or mark.mask is not None


def _joined(one: Change | None, other: Change | None) -> Change | None:
    """Two changes, of which the second holds where both say something, as one."""
    if one is None or other is None:
        return one or other
    box = [[min(a[0], b[0]), max(a[1], b[1])] for a, b in zip(one.box, other.box)]
    values = np.zeros([high - low for low, high in box], np.uint8)
    for change in (one, other):
        place = tuple(slice(low - start, high - start) for (low, high), (start, _) in zip(change.box, box))
        values[place] = change.values
    return Change(box, values)


def _text(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
