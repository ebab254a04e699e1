"""Sources of volumes: scans cut into slices along their axes, with the objects of their labels.

Volumes are turned to the patient first (x to the left, y to the back, z to the head), whatever way they were stored, so
that slices of all scans look alike: axial ones from the feet with the front up, coronal and sagittal ones with the head
up, in both of which the front or the patient's right is on the left. A slice's number counts along that axis, from 0.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from sam_med2d.convert.cases import Case, Picture, Tally
from sam_med2d.convert.classes import Classes, values_in, whole_numbers
from sam_med2d.convert.dicom import label_kind
from sam_med2d.convert.objects import Preparation
from sam_med2d.convert.patterns import below, groups_of, matches, some, stem, walk
from sam_med2d.errors import DataError, UsageError
from sam_med2d.limits import MOST_VOXELS
from sam_med2d.volumes.dicom import ORIENTATION_KEY
from sam_med2d.volumes.dicom_labels import read_segmentation, read_structures
from sam_med2d.volumes.intensity import Intensity, finite, to_8_bits
from sam_med2d.volumes.scans import (
    AXES,
    SUFFIXES,
    TOLERANCE,
    canonical,
    corners_of,
    grids_differ,
    index_in,
    notes_of,
    read_label_volume,
    read_scan,
    rounding_of,
    size_of,
    upright,
)

# ---------------------------------------------------------------- cases


def find_volumes(
    images: Path,
    labels: Path,
    image_pattern: str | None = None,
    label_pattern: str | None = None,
    patient: str | None = None,
    modality: str = "",
) -> list[Case]:
    """Scans and label volumes matched by name.

    image_pattern: of a scan's path below `images`, with the field {case}; a folder of DICOM slices if it ends in a
        slash.
    label_pattern: of the label's path below `labels`, with {case}, and {class} where each class has a file of its own.
    Without patterns, a scan and its label have the same path but for the ending; an nnU-Net _0000 of the scan is
    dropped.
    patient: a regular expression whose first group in the case's name is the patient. None: every case is a patient.
    Raises DataError, UsageError.
    """
    masks: dict[str, list[list[str]]] = defaultdict(list)
    for name, found in _named(walk(labels), label_pattern, ("case", "class")):
        masks[found["case"]].append([below(labels, name), found.get("class", "")])
    taken = {path for members in masks.values() for path, _ in members}
    inside = [name for name in walk(images) if below(images, name) not in taken]
    by_case: list[tuple[str, str | list[str]]] = []
    if image_pattern and image_pattern.endswith("/"):
        slices: dict[str, list[str]] = defaultdict(list)
        for name in inside:
            slices[name.rpartition("/")[0] + "/"].append(below(images, name))
        by_case += [(fields["case"], slices[name]) for name, fields in _named([*slices], image_pattern, ("case",))]
    else:
        for name, fields in _named(inside, image_pattern, ("case",)):
            case = fields["case"] if image_pattern else re.sub(r"_0000$", "", fields["case"])
            by_case.append((case, below(images, name)))
    scans = dict(by_case)
    for case, count in [
        *Counter(case for case, _ in by_case).items(),
        *((case, len(members)) for case, members in masks.items() if len({name for _, name in members}) < len(members)),
    ]:
        if count > 1:
            raise UsageError(
                f"{count} files belong to the case '{case}'; give patterns that tell them apart, or keep one of them"
            )
    both = [name for name in scans if name in masks]
    if not both:
        raise UsageError(
            f"no label in {labels} belongs to a scan in {images}: cases are called {some(scans) or 'nothing'} "
            f"there and {some(masks) or 'nothing'} here; give --image_pattern '{{case}}_image.nii.gz' and "
            "--label_pattern '{case}_label.nii.gz', as your files are called"
        )
    for lacking, what in (
        ([n for n in scans if n not in masks], "label"),
        ([n for n in masks if n not in scans], "scan"),
    ):
        if lacking:
            print(f"{len(lacking)} case(s) have no {what} and are left out: {some(lacking)}")
    groups = groups_of(both, patient or "(.+)", "--patient")
    cases = []
    for name in sorted(both):
        scan = scans[name]
        files = [scan] if isinstance(scan, str) else scan
        cases.append(
            Case(
                name,
                groups[name],
                (*files, *(path for path, _ in masks[name])),
                {"images": [[scan, modality]], "labels": sorted(masks[name])},
            )
        )
    return cases


def _named(names: list[str], pattern: str | None, fields: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """Those that fit the pattern or, without one, all volumes, whose case is the path without its ending."""
    if pattern is None:
        return [(name, {"case": bare}) for name in names if (bare := stem(name, SUFFIXES)) is not None]
    if "{case}" not in pattern:
        raise UsageError(f"pattern '{pattern}': lacks {{case}}, which tells the cases apart")
    return matches(pattern, names, fields)


# ---------------------------------------------------------------- conversion


@dataclass
class Labels:
    """Labels of a volume in as few arrays as they fit in: classes that overlap are in different layers.

    layers: each (Z, Y, X), whole numbers; objects: (class, layer, values) in the order they came; free: of layers that
    were made for single masks, the next value that is not used.
    """

    layers: list[np.ndarray] = field(default_factory=list)
    objects: list[tuple[str, int, tuple[int, ...]]] = field(default_factory=list)
    free: dict[int, int] = field(default_factory=dict)

    def add_map(self, labels: np.ndarray, classes: Classes, path: str) -> None:
        present = sorted({int(value) for slice in labels for value in values_in(slice)})
        self.layers.append(labels)
        self.objects += [
            (name, len(self.layers) - 1, values) for name, values in classes.present(np.array(present), path)
        ]

    def add_mask(self, name: str, mask: np.ndarray) -> None:
        """(Z, Y, X) bool. Put into the first layer where it overlaps nothing."""
        number = next(
            (n for n, value in self.free.items() if value < 256 and not self.layers[n][mask].any()), len(self.layers)
        )
        if number == len(self.layers):
            self.layers.append(np.zeros(mask.shape, np.uint8))
            self.free[number] = 1
        self.layers[number][mask] = self.free[number]
        self.objects.append((name, number, (self.free[number],)))
        self.free[number] += 1

    def of_slice(self, axis: int, index: int) -> Iterator[tuple[str, np.ndarray]]:
        """The classes of a slice, with their masks, (H, W) bool as stored."""
        cuts = [np.ascontiguousarray(np.take(layer, index, axis)) for layer in self.layers]
        present = [set(values_in(cut).tolist()) - {0} for cut in cuts]
        for name, layer, values in self.objects:
            if present[layer] & set(values):
                yield name, np.isin(cuts[layer], values)


@dataclass(frozen=True)
class Volumes:
    """Converter of scans. A case may have several images on one grid, such as the sequences of an MR study.

    axes: out of x, y, z, the slices to cut; step: every so many slices. geometry: what to do where the labels' grid is
    not the scan's: "refuse", "resample" by nearest neighbour, or "ignore" it if the arrays are of one size.
    frame: of a 4D image, and of its labels where they are 4D; None: such an image is refused. straighten, most_voxels:
    as of `read_scan`.
    """

    preparation: Preparation
    intensity: Intensity
    classes: Classes
    axes: str = AXES
    step: int = 1
    geometry: str = "refuse"
    frame: int | None = None
    straighten: bool = False
    most_voxels: int = field(default=MOST_VOXELS, metadata={"limit": True})

    def _read(self, file: str | Sequence[str], tally: Tally) -> sitk.Image:
        """As it is stored."""
        stored = read_scan(file, self.frame, straighten=self.straighten, most_voxels=self.most_voxels)
        tally.notes += [note for note in notes_of(stored) if note not in tally.notes]
        return stored

    def pictures(self, case: Case, tally: Tally) -> Iterator[Picture]:
        if "broken" in case.data:
            raise DataError(case.data["broken"])
        files, modalities = zip(*case.data["images"])
        stored = self._read(files[0], tally)
        scan = canonical(stored)
        labels = self._labels(case, stored, scan, tally)
        del stored  # its voxels, of which `scan` has a copy
        for number, (file, modality) in enumerate(zip(files, modalities)):
            if number:
                scan, first = canonical(self._read(file, tally)), scan
                if difference := grids_differ(scan, first):
                    raise DataError(
                        f"{file}: is not on the grid of {files[0]} ({difference}); register and resample the "
                        "images of a case"
                    )
            array = finite(sitk.GetArrayViewFromImage(scan), _name(file), tally)
            spacing = (
                scan.GetSpacing()[::-1] if not _name(file).endswith(".npy") else None
            )  # an array says nothing of it
            intensity = self.intensity.of(modality)
            whole = intensity.range_of(array) if intensity.by_volume or intensity.window else None
            for name in self.axes:
                axis = 2 - AXES.index(name)
                shape = [n for i, n in enumerate(array.shape) if i != axis]
                if min(shape) < 2 or not self._keeps_shape(array.shape, axis, spacing):
                    tally[f"slices along {name} below --min_aspect"] += array.shape[axis]
                    tally.notes += [note for note in [self._dropped(name, min(shape))] if note not in tally.notes]
                    continue
                in_plane = tuple(round(mm, 4) for i, mm in enumerate(spacing) if i != axis) if spacing else None
                for index in range(0, array.shape[axis], self.step):
                    masks = ((label, upright(mask, axis)) for label, mask in labels.of_slice(axis, index))
                    objects = self.preparation.objects(masks, tally)
                    values = np.take(array, index, axis)
                    image = (
                        upright(to_8_bits(values, *(whole or intensity.range_of(values))), axis) if objects else None
                    )
                    yield Picture("", image, objects, modality, name, index, in_plane)

    def _keeps_shape(self, shape: Sequence[int], axis: int, spacing: Sequence[float] | None) -> bool:
        """Whether --min_aspect keeps slices along an axis, by their sides in millimetres where these are known.

        shape, spacing: (Z, Y, X).
        """
        height, width = (n * mm for i, (n, mm) in enumerate(zip(shape, spacing or (1, 1, 1))) if i != axis)
        return self.preparation.keeps_shape(height, width)

    def _dropped(self, name: str, thinnest: int) -> str:
        """What to say where no slice along an axis is kept."""
        if thinnest < 2:
            return f"no slices along {name}: they would be one voxel thin"
        least = self.preparation.min_aspect
        return f"no slices along {name}: in mm, their short side is under {least:g} of the long one (--min_aspect)"

    def _labels(self, case: Case, stored: sitk.Image, scan: sitk.Image, tally: Tally) -> Labels:
        labels = Labels()
        for path, class_name in case.data["labels"]:
            kind = label_kind(path)
            if kind and stored.GetSize()[2] == 1 and not stored.HasMetaDataKey(ORIENTATION_KEY):
                raise DataError(
                    f"{_name(case.data['images'][0][0])}: does not say how it lies in the patient "
                    f"(ImageOrientationPatient is missing), so that {path} has no place in it; export it again"
                )
            if kind == "SEG":
                for name, frames in read_segmentation(path):
                    mask = np.zeros(scan.GetSize()[::-1], bool)
                    for frame in frames:
                        if not self._add_frame(mask, canonical(frame), scan, path, _name(case.data["images"][0][0])):
                            tally["frames of a DICOM-SEG beyond the scan"] += 1
                    labels.add_mask(name, mask)
            elif kind == "RTSTRUCT":
                for name, mask in read_structures(path, stored, tally):
                    drawn = sitk.GetImageFromArray(mask.astype(np.uint8))
                    drawn.CopyInformation(stored)
                    labels.add_mask(name, sitk.GetArrayFromImage(canonical(drawn)) > 0)
            else:
                self._add_volume(labels, path, class_name, stored, scan, case)
        return labels

    def _add_volume(
        self, labels: Labels, path: str, class_name: str, stored: sitk.Image, scan: sitk.Image, case: Case
    ) -> None:
        layers, named = read_label_volume(path, self.frame, straighten=self.straighten, most_voxels=self.most_voxels)
        for number, layer in enumerate(layers):
            rounding = rounding_of(layer)
            if self.geometry == "ignore":
                if layer.GetSize() != stored.GetSize():
                    raise DataError(
                        f"{path}: has {size_of(layer)} voxels and its scan {size_of(stored)}, so its place cannot "
                        "be ignored; give --geometry resample"
                    )
                layer.CopyInformation(stored)
            layer = self._onto(canonical(layer), scan, path, _name(case.data["images"][0][0]))
            array = whole_numbers(sitk.GetArrayFromImage(layer), path, rounding)
            if class_name:
                labels.add_mask(class_name, array > 0)
            elif named and self.classes.names is None and not self.classes.instances:
                in_layer = tuple((name, (value,)) for name, at, value in named if at == number)
                labels.add_map(array, Classes(in_layer, self.classes.ignored, self.classes.unknown), path)
            else:
                labels.add_map(array, self.classes, path)

    def _onto(self, label: sitk.Image, scan: sitk.Image, path: str, scan_path: str) -> sitk.Image:
        """A label on the scan's grid."""
        difference = grids_differ(label, scan)
        if not difference:
            return label
        self._may_resample(
            f"{path}: is not on the grid of {scan_path} ({difference}); give --geometry ignore if voxels belong "
            "together by their order, or"
        )
        return sitk.Resample(label, scan, sitk.Transform(), sitk.sitkNearestNeighbor, 0)

    def _add_frame(self, mask: np.ndarray, frame: sitk.Image, scan: sitk.Image, path: str, scan_path: str) -> bool:
        """Put a frame of a DICOM-SEG where it lies in the scan, whose voxels it mostly shares.

        mask: (Z, Y, X) bool of the scan, changed in place. -> whether any of it lies in the scan.
        """
        corners = [index_in(scan, frame, corner) for corner in corners_of(frame)]
        start, stop = np.rint(corners[0]).astype(int), np.rint(corners[-1]).astype(int) + 1
        thin = np.array([n == 1 for n in frame.GetSize()])  # across it, a frame is one voxel of the scan, however thick
        off = np.abs(np.array(corners)[[0, -1]] - [start, stop - 1]).max(0)
        if (off <= TOLERANCE).all() and ((stop - start == frame.GetSize()) | thin).all():
            inner, outer = [], []
            for first, last, limit in zip(start, np.where(thin, start + 1, stop), scan.GetSize()):
                inner.append(slice(max(0, first) - first, max(0, min(last, limit) - first)))
                outer.append(slice(max(0, first), max(0, min(last, limit))))
            drawn = sitk.GetArrayViewFromImage(frame)[tuple(inner[::-1])] > 0
            mask[tuple(outer[::-1])] |= drawn
        else:
            self._may_resample(f"{path}: is not on the grid of {scan_path} (its frames lie between the voxels);")
            thick = [
                max(mm) if n == 1 else mm[0] for *mm, n in zip(frame.GetSpacing(), scan.GetSpacing(), frame.GetSize())
            ]
            frame.SetSpacing(thick)  # so that none falls between two slices
            drawn = (
                sitk.GetArrayFromImage(sitk.Resample(frame, scan, sitk.Transform(), sitk.sitkNearestNeighbor, 0)) > 0
            )
            mask |= drawn
        return bool(drawn.any())

    def _may_resample(self, otherwise: str) -> None:
        """Raises DataError unless labels are to be resampled."""
        if self.geometry != "resample":
            raise DataError(
                f"{otherwise} give --geometry resample if both are right about where they lie in the patient"
            )


def _name(file: str | Sequence[str]) -> str:
    return file if isinstance(file, str) else str(Path(file[0]).parent)
