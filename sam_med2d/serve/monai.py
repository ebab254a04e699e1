"""What clients of MONAI Label ask of an image, answered: by the routes of monai_label.py, and by the app folder that
the target `monai` of `sam-med2d export` writes.

    asked = asked_of({"foreground": [[80, 90, 40]], "background": [], "label": "liver"}, scan)
    answer = infer(service, scan, asked)
    answer.write(folder)

Places are voxels of the file as it is stored, x y z from 0 at their centres. Slices are cut across its third axis, as
tools show and number them, whichever way that runs in the patient.
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sam_med2d.errors import DataError, PromptError
from sam_med2d.inference.models import open_model
from sam_med2d.inference.shared import SharedModel
from sam_med2d.inference.uploads import Scan, image_of, read_upload, write_dicom_seg, write_volume_labels
from sam_med2d.inference.windows import Shown
from sam_med2d.serve.pictures import MOST_PROMPTS, Asked, find, numbers_of
from sam_med2d.serve.service import MODEL, Service
from sam_med2d.volumes.prompts import check_inside, object_of, seeds_of
from sam_med2d.volumes.propagation import Slices
from sam_med2d.volumes.scans import AXES, slices_along, volume_of_slices
from sam_med2d.volumes.scans import turned as turned_places

BACKGROUND, OBJECT = "background", "object"
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")  # that a mask is sent in
NUMBERS = ("uint8", "uint16", "int16", "int32", "float32")


class Wanted(NamedTuple):
    """on, off: clicks, x y z each; box: x0 y0 z0 x1 y1 z1, half-open; label: what the object is called.

    ending, dtype, compress: of the file that the mask is sent in.
    """

    on: list[list[float]]
    off: list[list[float]]
    box: list[float] | None
    label: str
    ending: str
    dtype: str
    compress: bool


class Answer(NamedTuple):
    """labels: (Z, H, W) of the slices of the scan, 0 and 1; told: what JSON says of it."""

    scan: Scan
    wanted: Wanted
    labels: np.ndarray
    told: dict[str, Any]

    def write(self, folder: Path) -> Path:
        """The mask, on the grid of the file. -> its path. Raises OutputError."""
        path = folder / f"{MODEL}{self.wanted.ending}"
        write_volume_labels(self.scan, self.labels.astype(self.wanted.dtype), path, self.wanted.compress)
        return path

    def write_dicom_seg(self, folder: Path) -> Path:
        """Raises DataError: nothing was found, or the image is no DICOM that says where in a patient it lies."""
        if not self.scan.series:
            raise DataError(
                f"{self.scan.name}: a DICOM-SEG refers to slices of DICOM that say where in a patient they lie, and "
                "these are none; ask for the output image"
            )
        path = folder / f"{MODEL}.dcm"
        write_dicom_seg(self.scan, self.labels, {1: self.wanted.label}, path)
        return path


class Answers:
    """What the app folder of the target `monai` calls: requests as MONAI Label hands them to an InferTask.

    answers = Answers("model/mine.safetensors")
    path, told = answers({"image": "/studies/ct.nii.gz", "foreground": [[80, 90, 40]]})     # whoever asks removes it
    """

    def __init__(self, weights: str | Path, device: str | None = None) -> None:
        """Raises CheckpointError."""
        model = open_model(str(weights), device=device)
        self._service = Service(SharedModel(model), shown=Shown(trained=model.window))
        self._opened: tuple[tuple[str, int], Scan] | None = None
        self._lock = threading.Lock()

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """-> the file with the mask, and what JSON says of it. Raises DataError, PromptError."""
        image = request.get("image")
        if not isinstance(image, str):
            raise DataError(f"image must be the path of a file, or of the folder of a DICOM series, not {image!r:.40}")
        scan = self._scan(Path(image))
        answer = infer(self._service, scan, asked_of(request, scan))
        with tempfile.TemporaryDirectory() as folder:
            handle, path = tempfile.mkstemp(prefix=f"{MODEL}_", suffix=answer.wanted.ending)
            os.close(handle)
            shutil.move(answer.write(Path(folder)), path)
        return path, answer.told

    def _scan(self, path: Path) -> Scan:
        """Opened once while a person clicks on it."""
        with self._lock:
            key = (str(path), path.stat().st_mtime_ns if path.exists() else 0)
            if self._opened is None or self._opened[0] != key:
                scan = read_upload(path)
                check_scan(scan)
                self._opened = key, scan
            return self._opened[1]


def check_scan(scan: Scan) -> None:
    """Raises DataError: voxels that are no finite numbers."""
    if scan.slices.dtype.kind == "f" and not all(np.isfinite(one).all() for one in scan.slices):
        raise DataError(f"{scan.name}: has voxels that are no finite numbers; replace them")


def asked_of(values: Mapping[str, Any], scan: Scan) -> Wanted:
    """The `params` of a request. Raises DataError."""
    size = scan.stored.size if scan.stored else (*scan.slices.shape[2:0:-1], 1)
    slice = _slice_of(values.get("slice"), size[2])
    on, off = (_places(values.get(name), name, slice) for name in ("foreground", "background"))
    label, ending = values.get("label") or OBJECT, values.get("result_extension") or ENDINGS[0]
    dtype, compress = values.get("result_dtype") or "uint8", values.get("result_compress", True)
    if not isinstance(label, str) or len(label) > 64:
        raise DataError(f"label must be a name of at most 64 letters, not {label!r:.40}")
    if ending not in ENDINGS:
        raise DataError(f"result_extension {ending!r:.20}: choose one of {', '.join(ENDINGS)}")
    if dtype not in NUMBERS:
        raise DataError(f"result_dtype {dtype!r:.20}: choose one of {', '.join(NUMBERS)}")
    if not isinstance(compress, bool):
        raise DataError(f"result_compress must be true or false, not {compress!r:.20}")
    return Wanted(on, off, _within(_box(values.get("roi"), slice), size), label, ending, dtype, compress)


def _slice_of(value: object, count: int) -> int | None:
    """The slice that places of two numbers lie on. Raises DataError."""
    if value is None or value == -1:
        return 0 if count == 1 else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count:
        return value
    raise DataError(f"slice must be a whole number from 0 to {count - 1}, not {value!r:.40}")


def _places(value: object, name: str, slice: int | None) -> list[list[float]]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MOST_PROMPTS:
        raise DataError(f"{name} must be a list of at most {MOST_PROMPTS}, not {value!r:.60}")
    return [_place(one, name, slice) for one in value]


def _place(value: object, name: str, slice: int | None) -> list[float]:
    if isinstance(value, list) and len(value) == 2 and slice is not None:
        return [*numbers_of(value, f"each of {name}", 2), float(slice)]
    return numbers_of(value, f"each of {name}", 3)


def _box(value: object, slice: int | None) -> list[float] | None:
    """Four numbers, x0 y0 x1 y1 with edges, on a slice; or six, x0 x1 y0 y1 z0 z1, the voxels at its corners."""
    if not value:
        return None
    if isinstance(value, list) and len(value) == 4 and slice is not None:
        x0, y0, x1, y1 = numbers_of(value, "roi", 4)
        return [min(x0, x1), min(y0, y1), slice, max(x0, x1), max(y0, y1), slice + 1]
    if isinstance(value, list) and len(value) == 4:
        raise DataError("roi has four numbers, a box on a slice: say which, with slice")
    x0, x1, y0, y1, z0, z1 = numbers_of(value, "roi", 6)
    low = [min(x0, x1), min(y0, y1), min(z0, z1)]
    return [*low, max(x0, x1) + 1, max(y0, y1) + 1, max(z0, z1) + 1]


def _within(box: list[float] | None, size: Sequence[int]) -> list[float] | None:
    """What of a box lies in the image: a person's may reach beyond it."""
    if box is None:
        return None
    return [*(max(0.0, low) for low in box[:3]), *(min(float(most), high) for high, most in zip(box[3:], size))]


def infer(service: Service, scan: Scan, wanted: Wanted) -> Answer:
    """scan: that `check_scan` found to be good. Raises DataError, PromptError: no prompt, or outside."""
    started = time.perf_counter()
    if not wanted.on and wanted.box is None:
        raise PromptError("there is no click on the object and no box around it: add one")
    labels = (_in_volume if scan.stored else _in_picture)(service, scan, wanted)
    told = {
        "label": wanted.label,
        "label_names": {wanted.label: 1},
        "centroids": {wanted.label: ["1", *map(str, _centroid(scan, labels))]} if labels.any() else {},
        "latencies": {"total": round(time.perf_counter() - started, 3)},
    }
    return Answer(scan, wanted, labels, told)


def _in_picture(service: Service, scan: Scan, wanted: Wanted) -> np.ndarray:
    points = [place[:2] for place in (*wanted.on, *wanted.off)]
    box = None if wanted.box is None else [wanted.box[i] for i in (0, 1, 3, 4)]
    asked = Asked(points, [1] * len(wanted.on) + [0] * len(wanted.off), box)
    return find(service, scan.picture(0, service.shown.window), asked).mask[None].astype(np.uint8)


def _in_volume(service: Service, scan: Scan, wanted: Wanted) -> np.ndarray:
    assert scan.stored is not None and scan.turned is not None, "asked of a volume"
    stored, turned = image_of(scan.stored), image_of(scan.turned)
    letter = _across(scan)
    one = object_of(letter, wanted.on, wanted.off, [wanted.box] if wanted.box else [])._replace(name=wanted.label)
    check_inside(one, scan.stored.size, scan.name)
    array = volume_of_slices(scan.slices, scan.axis)
    axis = 2 - AXES.index(letter)
    sliced = Slices(service.predictor(), array, axis, service.shown.of(array.dtype), kept_bytes=0)
    seeds, bounds = seeds_of(one, stored, turned, sliced)
    mask = sliced.assemble(service.found(sliced, seeds, bounds)) > 0.5
    return slices_along(mask, scan.axis).astype(np.uint8)


def _across(scan: Scan) -> str:
    """The axis of the patient, x, y or z, that the third one of a file runs along; of a single slice, its own."""
    assert scan.stored is not None and scan.turned is not None, "asked of a volume"
    if 1 in scan.stored.size:
        return AXES[2 - scan.axis]
    steps = turned_places(np.array([[0, 0, 1.0], [0, 0, 0]]), image_of(scan.stored), image_of(scan.turned))
    return AXES[int(np.abs(steps[0] - steps[1]).argmax())]


def _centroid(scan: Scan, labels: np.ndarray) -> list[int]:
    """The voxel of the file that is nearest to the middle of a mask, x y z."""
    places = np.argwhere(volume_of_slices(labels, scan.axis)).mean(axis=0)[::-1]
    if scan.stored and scan.turned:
        places = turned_places(places[None], image_of(scan.turned), image_of(scan.stored))[0]
    return [round(float(place)) for place in places]
