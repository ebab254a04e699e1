"""What people open to annotate: a picture, a DICOM file or series, or a volume -> its slices.

    scan = read_upload("ct.nii.gz")
    scan.picture(40)                                    # (H, W, 3) uint8, BGR
    store(scan, folder)                                 # by a process that reads files of others
    scan = restored(folder)                             # by the one that asked it to; its slices are mapped, not read

Within a budget of pixels and voxels that is held against the file's header before anything is decoded.
"""

import json
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
SLICES, DESCRIPTION = "slices.npy", "scan.json"


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
    `turned`, that the slices were cut along.
    """

    name: str
    slices: np.ndarray
    turned: Grid | None = None
    stored: Grid | None = None
    axis: int = 0

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
    del found  # its voxels, of which `turned` has a copy
    return Scan(path.name, slices_along(SimpleITK.GetArrayFromImage(turned), axis), here, there, axis)


def _grid(image) -> Grid:
    from sam_med2d.volumes.scans import HEADER

    header = image.GetMetaData(HEADER) if image.HasMetaDataKey(HEADER) else ""
    return Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(), header)


def write_volume_labels(scan: Scan, labels: np.ndarray, path: Path) -> None:
    """labels: (Z, H, W) uint8 of its slices -> a NIfTI file on the grid of the file that was opened.

    Raises ModuleNotFoundError where SimpleITK is not installed, DataError where the file cannot be written.
    """
    from sam_med2d.volumes.scans import volume_of_slices, write_labels

    turned, stored = (_empty(grid) if grid else None for grid in (scan.turned, scan.stored))
    write_labels(path, volume_of_slices(labels, scan.axis), turned, stored)


def _empty(grid: Grid):
    import SimpleITK

    from sam_med2d.volumes.scans import HEADER

    image = SimpleITK.Image(grid.size, SimpleITK.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    if grid.header:
        image.SetMetaData(HEADER, grid.header)
    return image


# ---------------------------------------------------------------- from one process to another


def store(scan: Scan, folder: Path) -> None:
    """Into files of plain numbers, which nothing need be trusted to read."""
    np.save(folder / SLICES, scan.slices, allow_pickle=False)
    grids = {name: grid and grid._asdict() for name, grid in (("turned", scan.turned), ("stored", scan.stored))}
    (folder / DESCRIPTION).write_text(json.dumps({"name": scan.name, "axis": scan.axis, **grids}), encoding="utf-8")


def restored(folder: Path) -> Scan:
    """What `store` wrote. The slices stay on the disk, and are read where they are looked at."""
    slices = np.load(folder / SLICES, mmap_mode="r", allow_pickle=False)
    said = read_json(folder / DESCRIPTION, "open the file again")
    turned, stored = (said[name] and Grid(**said[name]) for name in ("turned", "stored"))
    return Scan(said["name"], slices, turned, stored, said["axis"])
