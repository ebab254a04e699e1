"""Scans as volumes: slices along their axes, with the objects of their labels.

Volumes are turned to the patient first (x to the left, y to the back, z to the head), whatever way they were stored, so
that slices of all scans look alike: axial ones from the feet with the front up, coronal and sagittal ones with the head
up, in both of which the front or the patient's right is on the left. A slice's number counts along that axis, from 0.
"""

import gzip
import math
import os
import re
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from sam_med2d.convert.cases import Case, Picture
from sam_med2d.convert.classes import Classes, values_in
from sam_med2d.convert.images import whole_numbers
from sam_med2d.convert.objects import Preparation
from sam_med2d.convert.patterns import below, groups_of, matches, some, stem, walk
from sam_med2d.data.reading import DataError
from sam_med2d.utils import UsageError
from sam_med2d.volumes.dicom import LABELS, read_header, read_segmentation, read_series, read_structures, unreadable
from sam_med2d.volumes.intensity import Intensity, finite, to_8_bits

SUFFIXES = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npy", ".dcm")
AXES = "xyz"  # numpy has them the other way round: (Z, Y, X)
TOLERANCE = 0.1  # of a voxel, that the corners of a scan and of its labels may be apart


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

    image_pattern: of a scan's path below `images`, with the field {case}; a folder of DICOM slices if it ends in a slash.
    label_pattern: of the label's path below `labels`, with {case}, and {class} where each class has a file of its own.
    Without patterns, a scan and its label have the same path but for the ending; an nnU-Net _0000 of the scan is dropped.
    patient: a regular expression whose first group in the case's name is the patient. None: every case is a patient.
    Raises DataError, UsageError.
    """
    masks: dict[str, list[list[str]]] = defaultdict(list)
    for name, found in _named(walk(labels), label_pattern, ("case", "class")):
        masks[found["case"]].append([below(labels, name), found.get("class", "")])
    taken = {path for members in masks.values() for path, _ in members}
    inside = [name for name in walk(images) if below(images, name) not in taken]
    if image_pattern and image_pattern.endswith("/"):
        slices = defaultdict(list)
        for name in inside:
            slices[name.rpartition("/")[0] + "/"].append(below(images, name))
        found = [(fields["case"], slices[name]) for name, fields in _named([*slices], image_pattern, ("case",))]
    else:
        found = [(fields["case"], below(images, name)) for name, fields in _named(inside, image_pattern, ("case",))]
        if image_pattern is None:
            found = [(re.sub(r"_0000$", "", case), path) for case, path in found]
    scans = dict(found)
    for case, count in [
        *Counter(case for case, _ in found).items(),
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
        files = scans[name] if isinstance(scans[name], list) else [scans[name]]
        cases.append(
            Case(
                name,
                groups[name],
                (*files, *(path for path, _ in masks[name])),
                {"images": [[scans[name], modality]], "labels": sorted(masks[name])},
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

    layers: each (Z, Y, X), whole numbers; objects: (class, layer, values) in the order they came; free: of layers that were
    made for single masks, the next value that is not used.
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

    axes: out of x, y, z, the slices to cut; step: every so many slices. geometry: what to do where the labels' grid is not
    the scan's: "refuse", "resample" by nearest neighbour, or "ignore" it if the arrays are of one size.
    frame: of a 4D image; None: such an image is refused.
    """

    preparation: Preparation
    intensity: Intensity
    classes: Classes
    axes: str = AXES
    step: int = 1
    geometry: str = "refuse"
    frame: int | None = None

    def pictures(self, case: Case, tally: Counter) -> Iterator[Picture]:
        files, modalities = zip(*case.data["images"])
        stored = read_scan(files[0], self.frame)
        scan = canonical(stored)
        labels = self._labels(case, stored, scan)
        del stored  # its voxels, of which `scan` has a copy
        for number, (file, modality) in enumerate(zip(files, modalities)):
            if number:
                scan, first = canonical(read_scan(file, self.frame)), scan
                if difference := grids_differ(scan, first):
                    raise DataError(
                        f"{file}: is not on the grid of {files[0]} ({difference}); register and resample the "
                        "images of a case"
                    )
            array = finite(sitk.GetArrayViewFromImage(scan), _name(file), tally)
            spacing = (
                scan.GetSpacing()[::-1] if not _name(file).endswith(".npy") else None
            )  # an array says nothing of it
            whole = self.intensity.range_of(array) if self.intensity.by_volume or self.intensity.window else None
            for name in self.axes:
                axis = 2 - AXES.index(name)
                shape = [n for i, n in enumerate(array.shape) if i != axis]
                if not self.preparation.keeps_shape(*shape) or min(shape) < 2:
                    tally[f"slices along {name} below --min_aspect"] += array.shape[axis]
                    continue
                in_plane = tuple(round(mm, 4) for i, mm in enumerate(spacing) if i != axis) if spacing else None
                for index in range(0, array.shape[axis], self.step):
                    masks = ((label, upright(mask, axis)) for label, mask in labels.of_slice(axis, index))
                    objects = self.preparation.objects(masks, tally)
                    values = np.take(array, index, axis)
                    image = (
                        upright(to_8_bits(values, *(whole or self.intensity.range_of(values))), axis)
                        if objects
                        else None
                    )
                    yield Picture("", image, objects, modality, name, index, in_plane)

    def _labels(self, case: Case, stored: sitk.Image, scan: sitk.Image) -> Labels:
        labels = Labels()
        for path, class_name in case.data["labels"]:
            kind = dicom_kind(path)
            if kind == "SEG":
                for name, frames in read_segmentation(path):
                    mask = np.zeros(scan.GetSize()[::-1], bool)
                    for frame in frames:
                        self._add_frame(mask, canonical(frame), scan, path, _name(case.data["images"][0][0]))
                    labels.add_mask(name, mask)
            elif kind == "RTSTRUCT":
                for name, mask in read_structures(path, stored):
                    drawn = sitk.GetImageFromArray(mask.astype(np.uint8))
                    drawn.CopyInformation(stored)
                    labels.add_mask(name, sitk.GetArrayFromImage(canonical(drawn)) > 0)
            else:
                self._add_volume(labels, path, class_name, stored, scan, case)
        return labels

    def _add_volume(
        self, labels: Labels, path: str, class_name: str, stored: sitk.Image, scan: sitk.Image, case: Case
    ) -> None:
        layers, named = read_label_volume(path)
        for number, layer in enumerate(layers):
            if self.geometry == "ignore":
                if layer.GetSize() != stored.GetSize():
                    raise DataError(
                        f"{path}: has {_size(layer)} voxels and its scan {_size(stored)}, so its place cannot "
                        "be ignored; give --geometry resample"
                    )
                layer.CopyInformation(stored)
            layer = self._onto(canonical(layer), scan, path, _name(case.data["images"][0][0]))
            array = whole_numbers(sitk.GetArrayFromImage(layer), path)
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

    def _add_frame(self, mask: np.ndarray, frame: sitk.Image, scan: sitk.Image, path: str, scan_path: str) -> None:
        """Put a frame of a DICOM-SEG where it lies in the scan, whose voxels it mostly shares: mask is (Z, Y, X) bool."""
        corners = [_index_in(scan, frame, corner) for corner in _corners(frame)]
        start, stop = np.rint(corners[0]).astype(int), np.rint(corners[-1]).astype(int) + 1
        thin = np.array([n == 1 for n in frame.GetSize()])  # across it, a frame is one voxel of the scan, however thick
        off = np.abs(np.array(corners)[[0, -1]] - [start, stop - 1]).max(0)
        if (off <= TOLERANCE).all() and ((stop - start == frame.GetSize()) | thin).all():
            inner, outer = [], []
            for first, last, limit in zip(start, np.where(thin, start + 1, stop), scan.GetSize()):
                inner.append(slice(max(0, first) - first, max(0, min(last, limit) - first)))
                outer.append(slice(max(0, first), max(0, min(last, limit))))
            mask[tuple(outer[::-1])] |= sitk.GetArrayViewFromImage(frame)[tuple(inner[::-1])] > 0
        else:
            self._may_resample(f"{path}: is not on the grid of {scan_path} (its frames lie between the voxels);")
            mask |= (
                sitk.GetArrayFromImage(sitk.Resample(frame, scan, sitk.Transform(), sitk.sitkNearestNeighbor, 0)) > 0
            )

    def _may_resample(self, otherwise: str) -> None:
        """Raises DataError unless labels are to be resampled."""
        if self.geometry != "resample":
            raise DataError(
                f"{otherwise} give --geometry resample if both are right about where they lie in the patient"
            )


# ---------------------------------------------------------------- reading


def read_scan(file: str | Sequence[str], frame: int | None = None) -> sitk.Image:
    """A file, or the files of a DICOM series -> a volume of one channel, as it was stored. Raises DataError."""
    if not isinstance(file, str):
        return read_series(file)
    if file.lower().endswith(".dcm") and read_header(file) is not None:
        return read_series([file])
    image = _read(file)
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise DataError(
            f"{file}: has {image.GetNumberOfComponentsPerPixel()} channels a voxel (colour or vectors); give "
            "scans of one, or export its pictures for the masks or the labelmaps subcommand"
        )
    return _three_dimensions(image, file, frame)


def _read(path: str) -> sitk.Image:
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: cannot be read; check the file and its permissions")
    if path.lower().endswith(".npy"):
        return _read_array(path)
    holes = _check_nifti(path) if path.lower().endswith((".nii", ".nii.gz")) else None
    try:
        image = sitk.ReadImage(path)
    except RuntimeError as error:
        raise unreadable(path, error) from error
    if "complex" in image.GetPixelIDTypeAsString():
        raise DataError(f"{path}: holds complex numbers; save their magnitude")
    if holes is not None:
        array = sitk.GetArrayFromImage(image)
        array.reshape(-1)[holes] = np.nan
        filled, image = image, sitk.GetImageFromArray(array)
        image.CopyInformation(filled)
    return image


def _read_array(path: str) -> sitk.Image:
    """A numpy file of (Z, Y, X), which says nothing of place and spacing. Raises DataError."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); it must be a plain array") from error
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise DataError(
            f"{path}: holds {array.dtype} of shape {array.shape}; it must be numbers of (slices, rows, columns)"
        )
    kind = {"b": np.uint8, "f": np.float32 if array.dtype.itemsize < 8 else np.float64}.get(
        array.dtype.kind, array.dtype
    )
    return sitk.GetImageFromArray(array.astype(kind))


def _check_nifti(path: str) -> np.ndarray | None:
    """What SimpleITK does not say of a NIfTI file: it reads voxels that are cut off, and those that are no numbers, as 0.

    -> which voxels are no numbers, (N,) bool, or None. Raises DataError where voxels are missing.
    """
    try:
        with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            header = file.read(540)
            order = "<" if header[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
            (size,) = struct.unpack_from(f"{order}i", header)
            dims, dims_at, kind_at, bits_at, offset, offset_at = {  # NIfTI 1 and 2
                348: ("8h", 40, 70, 72, "f", 108),
                540: ("8q", 16, 12, 14, "q", 168),
            }[size]
            dim = struct.unpack_from(order + dims, header, dims_at)
            (kind,) = struct.unpack_from(f"{order}h", header, kind_at)
            (bits,) = struct.unpack_from(f"{order}h", header, bits_at)
            start = int(struct.unpack_from(order + offset, header, offset_at)[0])
            wanted = math.prod(dim[1 : 1 + max(0, dim[0])]) * bits // 8
            number = {16: f"{order}f4", 64: f"{order}f8"}.get(kind)
            file.seek(start)
            read, holes = 0, []
            while chunk := file.read(min(1 << 20, max(1, wanted - read))):  # to the end, where gzip checks its sum
                read += len(chunk)
                if number and read <= wanted and len(chunk) % (bits // 8) == 0:
                    holes.append(~np.isfinite(np.frombuffer(chunk, number)))
    except (EOFError, OSError, zlib.error, struct.error, KeyError) as error:
        raise DataError(f"{path}: cannot be read, it is cut off or no NIfTI ({error}); copy it again") from error
    if read < wanted:
        raise DataError(
            f"{path}: cannot be read, it is cut off: {read} bytes of voxels instead of {wanted}; copy it again"
        )
    return np.concatenate(holes) if any(part.any() for part in holes) else None


def _three_dimensions(image: sitk.Image, path: str, frame: int | None) -> sitk.Image:
    size = image.GetSize()
    if len(size) == 2:
        return sitk.JoinSeries([image])
    if len(size) == 4:
        if size[3] > 1 and frame is None:
            raise DataError(
                f"{path}: is 4D ({_size(image)}: {size[3]} volumes); choose one with --frame 0 .. {size[3] - 1}"
            )
        if (frame or 0) >= size[3]:
            raise DataError(f"{path}: has {size[3]} volume(s), so --frame goes from 0 to {size[3] - 1}")
        return sitk.Extract(image, [*size[:3], 0], [0, 0, 0, frame or 0])
    if len(size) != 3:
        raise DataError(f"{path}: has {len(size)} dimensions; save it in three")
    return image


def read_label_volume(path: str) -> tuple[list[sitk.Image], list[tuple[str, int, int]]]:
    """-> its layers, and the names that 3D Slicer keeps in a .seg.nrrd: (class, layer, value). Raises DataError."""
    image = _read(path)
    count = image.GetNumberOfComponentsPerPixel()
    named = []
    for key in image.GetMetaDataKeys():
        if match := re.fullmatch(r"(Segment\d+)_Name", key):
            value = _meta(image, f"{match[1]}_LabelValue")
            named.append((image.GetMetaData(key), int(_meta(image, f"{match[1]}_Layer") or 0), int(value or 1)))
    if count > 1 and not named:
        raise DataError(
            f"{path}: has {count} channels a voxel and names no segments; save one label volume, or a file a class"
        )
    layers = [sitk.VectorIndexSelectionCast(image, i) for i in range(count)] if count > 1 else [image]
    return [_three_dimensions(layer, path, None) for layer in layers], sorted(named, key=lambda one: one[1:])


def _meta(image: sitk.Image, key: str) -> str:
    return image.GetMetaData(key) if image.HasMetaDataKey(key) else ""


def dicom_kind(path: str) -> str:
    """ "SEG", "RTSTRUCT", or nothing for any other file."""
    if stem(path, SUFFIXES[:-1]) is not None:
        return ""
    header = read_header(path, ["Modality"])
    kind = str(header.get("Modality", "")) if header is not None else ""
    return kind if kind in LABELS else ""


def canonical(image: sitk.Image) -> sitk.Image:
    """Turned and flipped, without resampling, so that x goes to the patient's left, y to the back and z to the head."""
    return sitk.DICOMOrient(image, "LPS")


def write_labels(path: Path, labels: np.ndarray, turned: sitk.Image | None, stored: sitk.Image | None) -> None:
    """Write labels (Z, Y, X), made on the grid of `turned` (canonical), on that of `stored`, in one step.

    None: labels that no scan belongs to. Raises DataError where the file cannot be written.
    """
    image = sitk.GetImageFromArray(labels)
    if stored is not None:
        image.CopyInformation(turned)
        image = sitk.DICOMOrient(
            image, sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(stored.GetDirection())
        )
        image.CopyInformation(stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp_{path.name}")  # ITK goes by the ending, so that must stay
    try:
        sitk.WriteImage(image, str(temporary), useCompression=True)
        temporary.replace(path)
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be written ({str(error).strip().splitlines()[-1]})") from error
    finally:
        temporary.unlink(missing_ok=True)


def upright(slice: np.ndarray, axis: int) -> np.ndarray:
    """A slice of a canonical volume as it is looked at: coronal and sagittal ones with the head up."""
    return slice if axis == 0 else np.ascontiguousarray(slice[::-1])


def grids_differ(one: sitk.Image, other: sitk.Image) -> str:
    """What differs between two grids, or nothing."""
    if one.GetSize() != other.GetSize():
        return f"{_size(one)} voxels against {_size(other)}"
    apart = max(
        float(np.abs((_index_in(other, one, corner) - corner) * other.GetSpacing()).max()) for corner in _corners(one)
    )
    if apart <= TOLERANCE * min(other.GetSpacing()):
        return ""
    if not np.allclose(one.GetSpacing(), other.GetSpacing(), rtol=1e-3):
        return f"voxels of {_mm(one.GetSpacing())} against {_mm(other.GetSpacing())} mm"
    if not np.allclose(one.GetDirection(), other.GetDirection(), atol=1e-3):
        return "turned against each other"
    return f"{apart:.3g} mm apart"


def _corners(image: sitk.Image) -> list[tuple[int, ...]]:
    """Indices of the eight voxels at the corners, the lowest first and the highest last."""
    return [tuple((n - 1) * bit for n, bit in zip(image.GetSize(), bits)) for bits in np.ndindex(2, 2, 2)]


def _index_in(image: sitk.Image, other: sitk.Image, index: tuple[int, ...]) -> np.ndarray:
    """Where, in voxels of `image`, the voxel of `other` at an index lies."""
    return np.array(image.TransformPhysicalPointToContinuousIndex(other.TransformIndexToPhysicalPoint(index)))


def _size(image: sitk.Image) -> str:
    return " x ".join(map(str, image.GetSize()))


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{mm:.3g}" for mm in spacing)


def _name(file: str | Sequence[str]) -> str:
    return file if isinstance(file, str) else str(Path(file[0]).parent)
