"""What one person annotates: an image or a scan, its objects, clicks, boxes, strokes and lassos, undo, and files.

    session = AnnotationSession({"adapters": model})
    session.open("scan.nii.gz")
    session.click(80, 90, foreground=True)
    session.undo()
    session.save(Path("out"))

Coordinates are pixels of the picture, x before y; boxes are x0 y0 x1 y1, x1 and y1 one past the last.
"""

import json
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sam_med2d.coco import Annotations
from sam_med2d.errors import DataError
from sam_med2d.image_files import write_png
from sam_med2d.inference.uploads import Scan, read_upload, write_dicom_seg, write_volume_labels
from sam_med2d.outputs import below
from segment_anything import ObjectPrompt, SamPredictor, Seen
from segment_anything.drawings import CLICKS_ALONG, region_of_lasso
from segment_anything.files import replacing
from segment_anything.predictor import Segmenter
from segment_anything.zoom import AUTO, Crop, Zoom

if TYPE_CHECKING:  # it needs SimpleITK, which is optional
    from sam_med2d.volumes.propagation import Slice

MOST_OBJECTS = 255  # a label map of 8 bits
LONGEST_NAME = 100  # letters of an object's name
MOST_CLICKS = 200  # on one object of a slice; each is a token of the decoder's
MOST_VERTICES = 500  # of a stroke or a lasso
MOST_ACTIONS = 20_000  # of a session
MOST_UNDONE = 200  # actions that are taken back one by one
KEPT_BYTES = 1 << 26  # of a session's embeddings: those of 256 slices at 256 px, of 16 at 1024 px


class Packed:
    """A mask, (H, W) bool, in as little memory as it needs: thousands of them are kept for undo."""

    def __init__(self, mask: np.ndarray) -> None:
        self._shape = mask.shape
        self._bits = zlib.compress(np.packbits(mask).tobytes(), 1)

    @property
    def nbytes(self) -> int:
        return len(self._bits)

    def unpacked(self) -> np.ndarray:
        bits = np.frombuffer(zlib.decompress(self._bits), np.uint8)
        return np.unpackbits(bits, count=self._shape[0] * self._shape[1]).reshape(self._shape).astype(bool)


Line = tuple[tuple[float, float], ...]
Stroke = tuple[Line, int]


@dataclass(frozen=True)
class Action:
    """One click, box, stroke or lasso on an object, all prompts of that object on that slice so far, and what came of
    them. strokes: each a line of places (x, y), and its label, 1 on the object; lasso: its corners, and then the box is
    the one around it.
    """

    object: int
    slice: int
    points: list[tuple[float, float]]
    labels: list[int]
    box: tuple[float, ...] | None
    packed: Packed
    area: int  # pixels of the mask
    iou: float  # predicted
    low_res: np.ndarray  # (S/4, S/4) logits, fed back with the next click
    carried_from: int | None = None  # the slice with the prompts, where this one was reached from there
    closer: bool = False  # whether it was looked at in a crop
    strokes: tuple[Stroke, ...] = ()
    lasso: Line | None = None

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        return self.packed.unpacked()

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.low_res.nbytes


@dataclass
class AnnotationSession:
    """models: by name; the first is used until `model` names another. Every slice is encoded once for each, as long as
    memory allows.

    trained_window: (lowest, highest) value of a scanner's that became 0 and 255 when the model was trained, if one did;
    window: the same of what it sees here; None: each slice's own minimum and maximum.
    """

    models: dict[str, Segmenter]
    trained_window: tuple[float, float] | None = None
    scan: Scan | None = None
    opened: int = 0  # how many scans were, with this one
    slice: int = 0
    window: tuple[float, float] | None = None
    objects: list[str] = field(default_factory=lambda: ["object 1"])  # names
    current: int = 0
    model: str = ""
    actions: list[Action] = field(default_factory=list)
    embeddings: OrderedDict[tuple, Seen] = field(default_factory=OrderedDict)
    zoom: Zoom | str | float = AUTO  # of the predictor: whether small objects are looked at closer
    predictors: dict[str, SamPredictor] = field(default_factory=dict)  # of each model, and
    placed: dict[str, tuple] = field(default_factory=dict)  # what it holds: see `_key`

    def __post_init__(self) -> None:
        self.model = self.model or next(iter(self.models))

    # ---------------------------------------------------------------- what is shown

    def open(self, path: str | Path) -> None:
        """Raises DataError, with the session as it was."""
        self.take(read_upload(path))

    def take(self, scan: Scan) -> None:
        """Annotate a scan from its middle slice on, and forget the one before. Raises DataError as `open` does."""
        window = self.trained_window if scan.has_window else None
        scan.picture(len(scan.slices) // 2, window)
        self.opened += 1
        self._forget()
        self.scan, self.slice, self.window = scan, len(scan.slices) // 2, window

    def close(self) -> None:
        """Let go of the scan, its file and what is held of it, whoever still knows the session."""
        self.scan, self.slice, self.window = None, 0, None
        self._forget()

    def _forget(self) -> None:
        self.objects, self.current, self.actions, self.embeddings = ["object 1"], 0, [], OrderedDict()
        self.predictors, self.placed = {}, {}

    def turn_to(self, number: int) -> None:
        """Show another slice. Raises DataError: there is none of that number, or it cannot be shown."""
        scan = self._opened()
        if not 0 <= number < len(scan.slices):
            raise DataError(f"there is no slice {number}: they are 0 to {len(scan.slices) - 1}")
        scan.picture(number, self.window)
        self.slice = number

    def set_window(self, window: tuple[float, float] | None) -> None:
        """(lowest, highest) value, which the model sees as 0 and 255; None: of each slice. Raises DataError."""
        if not self._opened().has_window:
            raise DataError(f"{self._opened().name}: is a picture of 8 bits, which has no window; use the brightness")
        if window is not None and not (np.isfinite(window).all() and window[0] < window[1]):
            raise DataError("the window's lowest value must be below its highest")
        self.window = window

    def doubt(self) -> str:
        """What to know of the window: that the model was trained with another one; else nothing."""
        if self.scan is None or not self.scan.has_window or self.window == self.trained_window:
            return ""
        if self.trained_window is None:
            return ""
        low, high = self.trained_window
        seen = "{:g} to {:g}".format(*self.window) if self.window else "each slice's own minimum to maximum"
        return f"The model was trained with the window {low:g} to {high:g}, and sees {seen}."

    def add_object(self, name: str = "") -> None:
        """Raises DataError where there are too many, or the name is too long."""
        if len(self.objects) == MOST_OBJECTS:
            raise DataError(f"{MOST_OBJECTS} objects are the most that a label map holds")
        self.objects.append(_name(name) or f"object {len(self.objects) + 1}")
        self.current = len(self.objects) - 1

    def rename(self, name: str) -> None:
        """Raises DataError where the name is too long."""
        self.objects[self.current] = _name(name) or self.objects[self.current]

    def last(self, number: int, on_slice: int | None = None) -> Action | None:
        """What holds for an object on a slice; by default on the one that is shown."""
        wanted = self.slice if on_slice is None else on_slice
        there = (action for action in reversed(self.actions) if (action.object, action.slice) == (number, wanted))
        return next(there, None)

    def shown(self) -> dict[int, Action]:
        """{object: what holds for it on the slice that is shown}."""
        found = {number: self.last(number) for number in range(len(self.objects))}
        return {number: action for number, action in found.items() if action is not None}

    def picture(self) -> np.ndarray:
        """The slice that is shown, without masks: (H, W, 3) uint8 BGR, a copy. Raises DataError: nothing is open."""
        return self._opened().picture(self.slice, self.window)

    def size(self) -> tuple[int, int]:
        """(height, width) of the slices. Raises DataError: nothing is open."""
        height, width = self._opened().slices.shape[1:3]
        return height, width

    def _opened(self) -> Scan:
        if self.scan is None:
            raise DataError("open an image first")
        return self.scan

    # ---------------------------------------------------------------- what people do

    def click(self, x: float, y: float, foreground: bool) -> Action:
        """Added to the earlier prompts of the object on this slice, whose mask is fed back.

        Raises PromptError, DataError.
        """
        return self._go_on(points=((x, y),), labels=(int(foreground),))

    def draw_stroke(self, line: Line, foreground: bool) -> Action:
        """Of a brush: heard as clicks along it, which are added as `click` adds one. Raises PromptError, DataError."""
        return self._go_on(strokes=((line, int(foreground)),))

    def draw_box(self, x0: float, y0: float, x1: float, y1: float) -> Action:
        """Starts the object on this slice anew. Raises PromptError, DataError."""
        return self._predict([], [], (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), None)

    def draw_lasso(self, line: Line) -> Action:
        """A rough outline: starts the object on this slice anew. Raises PromptError, DataError."""
        rows, columns = np.nonzero(region_of_lasso(_within(line), self.size()))
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        return self._predict([], [], tuple(map(float, box)), None, lasso=line)

    def _go_on(self, points: Line = (), labels: tuple[int, ...] = (), strokes: tuple[Stroke, ...] = ()) -> Action:
        """With more prompts than the object has on this slice. Raises PromptError, DataError."""
        before = self.last(self.current)
        earlier = (len(before.points) + CLICKS_ALONG * len(before.strokes)) if before else 0
        if earlier >= MOST_CLICKS:
            raise DataError(f"{MOST_CLICKS} clicks are the most on one object of a slice; draw a box to start it anew")
        for line, _ in strokes:
            _within(line)
        if before is None:
            return self._predict([*points], [*labels], None, None, strokes)
        return self._predict(
            [*before.points, *points],
            [*before.labels, *labels],
            before.box,
            before.low_res,
            (*before.strokes, *strokes),
            before.lasso,
        )

    def undo(self) -> None:
        """Take back the last prompt, or all that was last carried from one; its object and slice are shown.

        Beyond MOST_UNDONE actions it takes back objects of slices rather than their single prompts.
        """
        if not self.actions:
            return
        action = self.actions.pop()
        source = action.carried_from
        if source is not None:
            while self.actions and (self.actions[-1].object, self.actions[-1].carried_from) == (action.object, source):
                self.actions.pop()
        self.current, self.slice = action.object, action.slice if source is None else source

    def reset(self) -> None:
        """Forget all objects, on all slices."""
        self.objects, self.current, self.actions = ["object 1"], 0, []

    def is_encoded(self, number: int | None = None) -> bool:
        """Whether the model knows a slice, by default the one that is shown."""
        return self._key(number) in self.embeddings

    def predictor(self, number: int | None = None) -> SamPredictor:
        """Of a slice, by default the one that is shown; encoded where it was not yet. One a model: it knows the crops
        that it looked at, and the masks that it answered. Raises DataError."""
        scan, key = self._opened(), self._key(number)
        if self.model not in self.predictors:
            self.predictors[self.model] = SamPredictor(self.models[self.model])
        predictor = self.predictors[self.model]
        predictor.zoom = self.zoom
        if self.placed.get(self.model) == key:  # with the crops of it that were looked at
            return predictor
        picture = scan.picture(self.slice if number is None else number, self.window)
        self.placed.pop(self.model, None)
        if key in self.embeddings:
            predictor.set_embedding(self.embeddings[key], self.size(), picture)
            self.embeddings.move_to_end(key)
        else:
            predictor.set_image(picture, "BGR")
            self.embeddings[key] = predictor.seen()
        self.placed[self.model] = key
        while len(self.embeddings) > max(1, KEPT_BYTES // self.embeddings[key].nbytes):
            self.embeddings.popitem(last=False)
        return predictor

    def _key(self, number: int | None) -> tuple:
        return self.model, self.window, self.slice if number is None else number

    def _predict(
        self,
        points: list[tuple[float, float]],
        labels: list[int],
        box: tuple[float, ...] | None,
        low_res: np.ndarray | None,
        strokes: tuple[Stroke, ...] = (),
        lasso: Line | None = None,
    ) -> Action:
        """box: with a lasso, the one around it. low_res: of the answer before, None for the first."""
        predictor = self.predictor()
        lines, kinds = [line for line, _ in strokes], [label for _, label in strokes]
        first = lasso is not None and low_res is None  # hears what the lasso encloses, and so needs no box
        with torch.inference_mode():
            masks, iou, logits = predictor.predict(
                points or None,
                labels or None,
                None if first else box,
                low_res,
                scribbles=lines or None,
                scribble_labels=kinds or None,
                lasso=lasso if first else None,
                best=True,
            )
        closer = predictor.crops != [Crop.whole(self.size())]
        found = Packed(masks[0]), int(masks[0].sum()), float(iou[0]), logits[0].copy()
        action = Action(self.current, self.slice, points, labels, box, *found, closer=closer)
        return self._add(replace(action, strokes=strokes, lasso=lasso))

    def _add(self, action: Action) -> Action:
        if len(self.actions) >= MOST_ACTIONS:
            raise DataError(f"{MOST_ACTIONS} clicks are the most of a session; save, and open the file again")
        self.actions.append(action)
        long_ago = self.actions[:-MOST_UNDONE]
        newest = {(one.object, one.slice): one for one in long_ago}
        self.actions[:-MOST_UNDONE] = [one for one in long_ago if newest[one.object, one.slice] is one]
        return action

    # ---------------------------------------------------------------- memory

    @property
    def encoded_bytes(self) -> int:
        """Of what `forget_encoded` frees."""
        crops = sum(predictor.crop_bytes for predictor in self.predictors.values())
        return crops + sum(seen.nbytes for seen in self.embeddings.values())

    @property
    def drawn_bytes(self) -> int:
        """Of what people did, and what came of it."""
        answers = sum(predictor.answer_bytes for predictor in self.predictors.values())
        return answers + sum(action.nbytes for action in self.actions)

    def forget_encoded(self) -> None:
        """Free what the model saw of slices and crops; where it is needed again, they are encoded again."""
        self.embeddings, self.placed = OrderedDict(), {}
        for predictor in self.predictors.values():
            predictor.reset_image()

    # ---------------------------------------------------------------- from slice to slice

    def carry(self, step: int) -> str:
        """Carry the object's mask to the next slice (step 1) or the one before (-1), and show that.

        By the rules of `segment-volume` (volumes/propagation.py). -> why the object does not go on there, in which case
        nothing changes; or nothing. Raises DataError: nothing to carry.
        """
        from sam_med2d.volumes.propagation import Rule, follow, reference_of

        scan, last = self._opened(), self.last(self.current)
        if last is None or not last.area:
            raise DataError("nothing to carry: mark the object on this slice first")
        number = self.slice + step
        if not 0 <= number < len(scan.slices):
            return "end of the volume"
        there = self.last(self.current, number)
        if there is not None and there.carried_from is None:
            return f"slice {number} has prompts of its own"
        source = self.slice if last.carried_from is None else last.carried_from
        first = self.last(self.current, source) or last
        rule, sliced = Rule(), _Sliced(self)
        with torch.inference_mode():
            reference = reference_of(sliced, first.slice, _slice_of(first), rule)
            here, why = follow(sliced, number, _slice_of(last), reference, rule)
        if why or here.low_res is None:
            return why
        mask = here.mask
        self._add(
            Action(
                self.current, number, [], [], None, Packed(mask), int(mask.sum()), here.iou, here.low_res.copy(), source
            )
        )
        self.slice = number
        return ""

    # ---------------------------------------------------------------- files

    def label_map(self, number: int) -> np.ndarray:
        """(H, W) uint8 of one slice: 1 for the first object, and so on; the later ones lie above."""
        labels = np.zeros(self.size(), np.uint8)
        for place in range(len(self.objects)):
            action = self.last(place, number)
            if action is not None:
                labels[action.mask] = place + 1
        return labels

    def save(self, folder: Path) -> list[Path]:
        """Label maps as PNG (a file a slice with objects), as one NIfTI volume, of DICOM as DICOM-SEG, and COCO.

        -> what was written. Raises DataError: nothing to save.
        """
        scan, slices = self.scan, sorted({action.slice for action in self.actions})
        if scan is None or not slices:
            raise DataError("nothing to save yet: click on the image, or draw a box")
        stem = below(Path(scan.name).name.removesuffix(".gz").rsplit(".", 1)[0])
        many = len(scan.slices) > 1
        annotations, written = Annotations(), []
        for number in slices:
            written.append(folder / (f"{stem}_{number:04d}_labels.png" if many else f"{stem}_labels.png"))
            write_png(written[-1], self.label_map(number))
            file_name = f"{scan.name}#{number}" if many else scan.name
            image = annotations.add_image(file_name, self.size())
            for place, name in enumerate(self.objects):
                action = self.last(place, number)
                if action is not None and action.mask.any():
                    annotations.add_object(image, name, action.mask, action.iou)
        written.append(folder / f"{stem}_coco.json")
        with replacing(written[-1]) as temporary:
            temporary.write_text(json.dumps(annotations.document, indent=1), encoding="utf-8")
        written += self._save_volume(scan, slices, folder / stem)
        return written

    def _save_volume(self, scan: Scan, slices: list[int], base: Path) -> list[Path]:
        """The label volume on the grid of the file that was opened and, of DICOM, a DICOM-SEG beside it.

        -> what was written, without what needs a package that is not installed.
        """
        labels = np.zeros(scan.slices.shape[:3], np.uint8)
        for number in slices:
            labels[number] = self.label_map(number)
        volume, segmentation = (base.with_name(f"{base.name}{ending}") for ending in ("_labels.nii.gz", "_seg.dcm"))
        try:
            write_volume_labels(scan, labels, volume)
            if not scan.series or not labels.any():
                return [volume]
            write_dicom_seg(scan, labels, dict(enumerate(self.objects, start=1)), segmentation)
        except ModuleNotFoundError:
            return [volume] if volume.exists() else []
        except DataError:  # DICOM that lacks what every file has to say; the volume is there all the same
            if not volume.exists():
                raise
            return [volume]
        return [volume, segmentation]


def _name(text: str) -> str:
    """Raises DataError."""
    name = " ".join(text.split())
    if len(name) > LONGEST_NAME:
        raise DataError(f"a name has at most {LONGEST_NAME} letters, not {len(name)}")
    return name


def _within(line: Line) -> Line:
    """Raises DataError where a line has more corners than there are worked at."""
    if len(line) > MOST_VERTICES:
        raise DataError(f"a line has at most {MOST_VERTICES} places, not {len(line)}; draw a shorter one")
    return line


class _Sliced:
    """A session's scan, as propagation looks at one."""

    def __init__(self, session: AnnotationSession) -> None:
        self._session = session

    def image(self, number: int) -> np.ndarray:
        """(h, w) uint8."""
        scan = self._session.scan
        assert scan is not None
        return scan.picture(number, self._session.window)[..., 0]

    def predict(self, number: int, prompt: ObjectPrompt, like: np.ndarray | None = None) -> "Slice":
        from sam_med2d.volumes.propagation import best_slice

        return best_slice(self._session.predictor(number), prompt, like)


def _slice_of(action: Action) -> "Slice":
    from sam_med2d.volumes.propagation import Slice

    return Slice(action.mask.astype(np.float16), action.low_res, action.iou)
