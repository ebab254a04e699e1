"""What people open to annotate: a picture, a DICOM file or series, or a volume -> its slices.

    scan = read_upload("ct.nii.gz")
    scan.picture(40)                                    # (H, W, 3) uint8, BGR
    store(scan, folder)                                 # by a process that reads files of others
    scan = restored(folder)                             # by the one that asked it to; its slices are mapped, not read

Within a budget of pixels and voxels that is held against the file's header before anything is decoded.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam_med2d.data.reading import read_image
from sam_med2d.errors import DataError
from sam_med2d.json_files import read_json
from sam_med2d.limits import MOST_VOXELS
from sam_med2d.packages import missing_package
from sam_med2d.volumes.dicom_bytes import is_dicom
from segment_anything.images import ImageError, to_bgr

VOLUMES = (".nii", ".nii.gz", ".dcm", ".ima", ".nrrd", ".mha", ".mhd")
SLICES, DESCRIPTION, SERIES = "slices.npy", "scan.json", "slice_{:05d}.dcm"


class Grid(NamedTuple):
    """Where the voxels of a volume lie, without the voxels; as SimpleITK has these. header: of NIfTI, as hex."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    header: str


class Scan(NamedTuple):
    """slices: (Z, H, W), of any numbers, or (Z, H, W, 3) RGB.

    turned, stored: of a volume, its grid turned to the patient, and as the file has it; axis: of the array of
    `turned`, that the slices were cut along; series: of DICOM, the files that the slices of `stored` lie in, where they
    say where in a patient that is.
    """

    name: str
    slices: np.ndarray
    turned: Grid | None = None
    stored: Grid | None = None
    axis: int = 0
    series: tuple[str, ...] = ()

    @property
    def has_window(self) -> bool:
        """Whether its values are a scanner's, which a window turns into a picture; 8 bits are one already."""
        return self.slices.ndim == 3 and self.slices.dtype != np.uint8

    def picture(self, number: int, window: tuple[float, float] | None = None) -> np.ndarray:
        """(H, W, 3) uint8 BGR. More than 8 bits are scaled from `window`, or the slice's own minimum and maximum.

        Raises DataError: values that are not finite.
        """
        values = np.array(self.slices[number])
        try:
            if window is None or not self.has_window:
                return to_bgr(values, "RGB")
            to_bgr(values[:1], "RGB")  # what it refuses in the rows that follow is looked for here
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ImageError("image has values that are not finite; replace them")
        except ImageError as error:
            where = f", slice {number}" if len(self.slices) > 1 else ""
            raise DataError(f"{self.name}{where}: {error}") from error
        from sam_med2d.volumes.intensity import to_8_bits

        return to_bgr(to_8_bits(values, *window), "RGB")


def read_upload(path: str | Path, most_voxels: int = MOST_VOXELS) -> Scan:
    """A picture, or a volume whose axial slices become the pictures; a single slice keeps its plane.

    path: a file, or a folder with one DICOM series. most_voxels: of a volume, above which nothing is decoded.
    Raises DataError.
    """
    path = Path(path)
    if not path.is_dir() and not path.name.lower().endswith(VOLUMES) and not is_dicom(path):
        picture = read_image(str(path), keep_grey=True)
        return Scan(path.name, picture[None] if picture.ndim == 2 else picture[None, ..., ::-1])
    try:
        import SimpleITK

        from sam_med2d.volumes.scans import AXES, as_viewed, files_of, read_scan, slices_along
    except ModuleNotFoundError as error:
        raise DataError(f"{path.name}: is a volume or DICOM; {missing_package(error) or error}") from error
    try:
        found = read_scan(files_of(path), most_voxels=most_voxels)
    except DataError as error:
        if error.kind != "size":
            raise
        raise DataError(f"{str(error).rpartition('; ')[0]}; crop it first", kind="size") from error  # no flag of others
    turned, letter = as_viewed(found)
    axis = 2 - AXES.index(letter)
    here, there = _grid(turned), _grid(found)
    series = _series_of(path, found)
    del found  # its voxels, of which `turned` has a copy
    return Scan(path.name, slices_along(SimpleITK.GetArrayFromImage(turned), axis), here, there, axis, series)


def _series_of(path: Path, stored) -> tuple[str, ...]:
    """Of DICOM, the files in the order of the volume; none where a DICOM-SEG cannot refer to them."""
    files = [path] if path.is_file() else [*path.iterdir()]
    if not any(map(is_dicom, files)):
        return ()
    from sam_med2d.volumes.dicom_seg import slices_of

    try:
        return tuple(str(one.filename) for one in slices_of([*map(str, files)], stored))
    except DataError:
        return ()


def _grid(image) -> Grid:
    from sam_med2d.volumes.scans import HEADER

    header = image.GetMetaData(HEADER) if image.HasMetaDataKey(HEADER) else ""
    return Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(), header)


def write_volume_labels(scan: Scan, labels: np.ndarray, path: Path, compress: bool = True) -> None:
    """labels: (Z, H, W) integers of its slices -> a label volume on the grid of the file that was opened.

    Raises ModuleNotFoundError where SimpleITK is not installed, DataError where the file cannot be written.
    """
    from sam_med2d.volumes.scans import volume_of_slices, write_labels

    turned, stored = (image_of(grid) if grid else None for grid in (scan.turned, scan.stored))
    write_labels(path, volume_of_slices(labels, scan.axis), turned, stored, compress)


def image_of(grid: Grid):
    """An empty volume of SimpleITK's on a grid."""
    import SimpleITK

    from sam_med2d.volumes.scans import HEADER

    image = SimpleITK.Image(grid.size, SimpleITK.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    if grid.header:
        image.SetMetaData(HEADER, grid.header)
    return image


def write_dicom_seg(scan: Scan, labels: np.ndarray, names: Mapping[int, str], path: Path) -> None:
    """labels: (Z, H, W) uint8 of the slices of a scan that has a `series` -> a DICOM-SEG that refers to it.

    names: of the labels. Raises DataError: no label is anywhere; ModuleNotFoundError where highdicom is not installed.
    """
    import SimpleITK

    from sam_med2d.volumes.dicom_seg import slices_of, write_segmentation
    from sam_med2d.volumes.scans import as_stored, volume_of_slices

    assert scan.turned is not None and scan.stored is not None, "DICOM has both"
    turned, stored = image_of(scan.turned), image_of(scan.stored)
    placed = as_stored(np.ascontiguousarray(volume_of_slices(labels, scan.axis)), turned, stored)
    write_segmentation(path, SimpleITK.GetArrayFromImage(placed), slices_of(scan.series, stored), names)


# ---------------------------------------------------------------- from one process to another


def store(scan: Scan, folder: Path) -> None:
    """Into files of plain numbers, which nothing need be trusted to read; DESCRIPTION last, when all is there."""
    np.save(folder / SLICES, scan.slices, allow_pickle=False)
    grids = {name: grid and grid._asdict() for name, grid in (("turned", scan.turned), ("stored", scan.stored))}
    told = {"name": scan.name, "axis": scan.axis, "series": _store_series(scan.series, folder), **grids}
    (folder / DESCRIPTION).write_text(json.dumps(told), encoding="utf-8")


def _store_series(series: tuple[str, ...], folder: Path) -> int:
    """-> how many files there are: all of them, or none where one cannot be written again."""
    if not series:
        return 0
    from sam_med2d.volumes.dicom_seg import write_head

    try:
        for number, path in enumerate(series):
            write_head(path, folder / SERIES.format(number))
    except DataError:
        return 0
    return len(series)


def restored(folder: Path) -> Scan:
    """What `store` wrote. The slices stay on the disk, and are read where they are looked at."""
    slices = np.load(folder / SLICES, mmap_mode="r", allow_pickle=False)
    said = read_json(folder / DESCRIPTION, "open the file again")
    turned, stored = (said[name] and Grid(**said[name]) for name in ("turned", "stored"))
    series = tuple(str(folder / SERIES.format(number)) for number in range(said["series"]))
    return Scan(said["name"], slices, turned, stored, said["axis"], series)
