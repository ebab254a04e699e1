"""What one person annotates: an image or a scan, its objects, clicks and boxes, undo, and files to take away.

    session = AnnotationSession({"adapters": model})
    session.open("scan.nii.gz")
    session.click(80, 90, foreground=True)
    session.undo()
    session.save(Path("out"))

Coordinates are pixels of the picture, x before y; boxes are x0 y0 x1 y1, x1 and y1 one past the last.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sam_med2d.coco import Annotations
from sam_med2d.data.reading import read_image
from sam_med2d.errors import DataError
from sam_med2d.image_files import write_png
from sam_med2d.outputs import below
from sam_med2d.packages import missing_package
from sam_med2d.volumes.dicom_bytes import is_dicom
from segment_anything import SamPredictor, Seen
from segment_anything.files import replacing
from segment_anything.images import ImageError, to_bgr
from segment_anything.predictor import Segmenter
from segment_anything.zoom import AUTO, Crop, Zoom

if TYPE_CHECKING:  # it is optional
    import SimpleITK

VOLUMES = (".nii", ".nii.gz", ".dcm", ".nrrd", ".mha", ".mhd")
MOST_PIXELS = 2**29  # of an upload with all its slices
MOST_OBJECTS = 255  # a label map of 8 bits


class Scan(NamedTuple):
    """slices: (Z, H, W), of any numbers, or (Z, H, W, 3) RGB.

    turned, stored: of a volume, SimpleITK images: turned to the patient, and as the file has it; axis: of the array of
    `turned`, that the slices were cut along.
    """

    name: str
    slices: np.ndarray
    turned: "SimpleITK.Image | None" = None
    stored: "SimpleITK.Image | None" = None
    axis: int = 0

    def picture(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8 BGR. More than 8 bits are scaled from the slice's own minimum and maximum."""
        return to_bgr(self.slices[number], "RGB")


def read_upload(path: str | Path) -> Scan:
    """A picture, or a volume whose axial slices become the pictures; a single slice keeps its plane.

    Raises DataError.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(VOLUMES) and not is_dicom(path):
        return Scan(path.name, read_image(str(path))[None, ..., ::-1])
    try:
        import SimpleITK

        from sam_med2d.volumes.scans import AXES, as_viewed, read_scan, slices_along
    except ModuleNotFoundError as error:
        raise DataError(f"{path.name}: is a volume or DICOM; {missing_package(error) or error}") from error
    try:
        stored = read_scan(str(path), most_voxels=MOST_PIXELS)
    except DataError as error:
        if error.kind != "size":
            raise
        raise DataError(f"{str(error).rpartition('; ')[0]}; crop it first") from error  # no flag raises it here
    if np.prod(stored.GetSize()) > MOST_PIXELS:
        raise DataError(f"{path.name}: has more than {MOST_PIXELS // 10**6} million voxels; crop it first")
    turned, letter = as_viewed(stored)
    axis = 2 - AXES.index(letter)
    return Scan(path.name, slices_along(SimpleITK.GetArrayViewFromImage(turned), axis), turned, stored, axis)


@dataclass
class Action:
    """One click or box on an object, all prompts of that object on that slice so far, and what came of them."""

    object: int
    slice: int
    points: list[tuple[float, float]]
    labels: list[int]
    box: tuple[float, ...] | None
    mask: np.ndarray  # (H, W) bool
    iou: float  # predicted
    low_res: np.ndarray  # (S/4, S/4) logits, fed back with the next click
    closer: bool = False  # whether it was looked at in a crop


@dataclass
class AnnotationSession:
    """models: by name; the first is used until `use` chooses another. Every slice is encoded once for each."""

    models: dict[str, Segmenter]
    scan: Scan | None = None
    slice: int = 0
    objects: list[str] = field(default_factory=lambda: ["object 1"])  # names
    current: int = 0
    model: str = ""
    actions: list[Action] = field(default_factory=list)
    embeddings: dict[tuple[str, int], Seen] = field(default_factory=dict)
    zoom: Zoom | str | float = AUTO  # of the predictor: whether small objects are looked at closer
    predictors: dict[str, SamPredictor] = field(default_factory=dict)  # of each model, and
    placed: dict[str, int] = field(default_factory=dict)  # the slice that it holds
    saved_in: object | None = None  # a TemporaryDirectory that lives as long as the session

    def __post_init__(self) -> None:
        self.model = self.model or next(iter(self.models))

    # ---------------------------------------------------------------- what is shown

    def open(self, path: str | Path) -> None:
        """Raises DataError, with the session as it was."""
        scan = read_upload(path)
        try:
            scan.picture(len(scan.slices) // 2)
        except ImageError as error:
            raise DataError(f"{scan.name}: {error}") from error
        self.scan, self.slice = scan, len(scan.slices) // 2
        self.objects, self.current, self.actions, self.embeddings = ["object 1"], 0, [], {}
        self.placed = {}

    def add_object(self, name: str = "") -> None:
        """Raises DataError where there are too many."""
        if len(self.objects) == MOST_OBJECTS:
            raise DataError(f"{MOST_OBJECTS} objects are the most that a label map holds")
        self.objects.append(name.strip() or f"object {len(self.objects) + 1}")
        self.current = len(self.objects) - 1

    def rename(self, name: str) -> None:
        self.objects[self.current] = name.strip() or self.objects[self.current]

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
        return self._opened().picture(self.slice).copy()

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
        before = self.last(self.current)
        points, labels = ([*before.points], [*before.labels]) if before else ([], [])
        return self._predict(
            [*points, (x, y)],
            [*labels, int(foreground)],
            before.box if before else None,
            before.low_res if before else None,
        )

    def draw_box(self, x0: float, y0: float, x1: float, y1: float) -> Action:
        """Starts the object on this slice anew. Raises PromptError, DataError."""
        return self._predict([], [], (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), None)

    def undo(self) -> None:
        """Take back the last click or box, whichever object it was for; its object and slice are shown."""
        if self.actions:
            action = self.actions.pop()
            self.current, self.slice = action.object, action.slice

    def reset(self) -> None:
        """Forget all objects, on all slices."""
        self.objects, self.current, self.actions = ["object 1"], 0, []

    def predictor(self) -> SamPredictor:
        """Of the slice that is shown, which is encoded where it was not yet. One a model: it knows the crops that it
        looked at, and the masks that it answered. Raises DataError."""
        scan = self._opened()
        if self.model not in self.predictors:
            self.predictors[self.model] = SamPredictor(self.models[self.model])
        predictor, key = self.predictors[self.model], (self.model, self.slice)
        predictor.zoom = self.zoom
        if self.placed.get(self.model) == self.slice:  # with the crops of it that were looked at
            return predictor
        try:
            if key in self.embeddings:
                predictor.set_embedding(self.embeddings[key], self.size(), scan.picture(self.slice))
            else:
                predictor.set_image(scan.picture(self.slice), "BGR")
        except ImageError as error:
            raise DataError(f"{scan.name}, slice {self.slice}: {error}") from error
        self.embeddings[key] = predictor.seen()
        self.placed[self.model] = self.slice
        return predictor

    def _predict(
        self,
        points: list[tuple[float, float]],
        labels: list[int],
        box: tuple[float, ...] | None,
        low_res: np.ndarray | None,
    ) -> Action:
        predictor = self.predictor()
        with torch.inference_mode():
            masks, iou, logits = predictor.predict(points or None, labels or None, box, low_res)
        best, closer = int(iou.argmax()), predictor.crops != [Crop.whole(self.size())]
        given = points, labels, box
        action = Action(self.current, self.slice, *given, masks[best], float(iou[best]), logits[best], closer)
        self.actions.append(action)
        return action

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
        """Label maps as PNG (a file a slice with objects), as one NIfTI volume, and COCO.

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
        written += self._save_volume(scan, slices, folder / f"{stem}_labels.nii.gz")
        return written

    def _save_volume(self, scan: Scan, slices: list[int], path: Path) -> list[Path]:
        """The label volume on the grid of the file that was opened.

        -> [path], or nothing where SimpleITK is not installed.
        """
        try:
            from sam_med2d.volumes.scans import volume_of_slices, write_labels
        except ImportError:
            return []
        labels = np.zeros(scan.slices.shape[:3], np.uint8)
        for number in slices:
            labels[number] = self.label_map(number)
        write_labels(path, volume_of_slices(labels, scan.axis), scan.turned, scan.stored)
        return [path]
