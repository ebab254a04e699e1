"""Make the small demonstration data set of real brain MR images.

    python scripts/make_demo_data.py --output data_demo

Cuts axial, coronal and sagittal slices from the ICBM 152 T1 template (the
average of 152 healthy heads, 1 mm voxels, skull already removed) and makes
masks of white matter (of each hemisphere in axial and coronal slices) and, in
coronal and sagittal slices, of the cerebellum and the whole brain, from it and
from its grey- and white-matter probability maps. The volumes are the copies
inside the nilearn package, so nothing is downloaded; nilearn is needed only
for this script (`pip install nilearn`).

Written under --output:

    images/mni152_axial_094.png              8-bit grey slice; 094 = voxel index
    masks/mni152_coronal_058_brain_000.png   0/255, one object a file
    image2label_{train,val,test}.json        {image path: [mask paths]}
    label2image_test.json                    {mask path: image path}
    metadata.csv                             a line a mask: class, axis, slice ...
    LICENSE                                  notice, citations, what was changed

Paths in the indexes are relative to the parent of --output. Nothing is random:
a second run writes the same bytes.

Two properties of this template matter to anyone who uses the images:
  * It is mirror-symmetric to the last bit. The sagittal slices x and -x are the
    same picture, so sagittal slices come from the left side only; "left" and
    "right" in the other planes differ by place, not by looks.
  * All slices are of one (average) brain. Splits are kept apart within a plane
    (SPLIT_GAP_MM), but slices of different planes cross each other. The data
    show that the code works; they say nothing about generalisation.
"""

import argparse
import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from sam_med2d import drawing
from sam_med2d.data.metadata import COLUMNS, METADATA
from sam_med2d.image_files import write_png

# Slices of one plane that belong to different splits are at least this far apart.
SPLIT_GAP_MM = 5.0

# Dealt out to the slices of each plane in order, and repeated. About 54/15/31 %.
SPLIT_PATTERN = (
    "train",
    "test",
    "train",
    "val",
    "train",
    "test",
    "train",
    "test",
    "train",
    "val",
    "train",
    "test",
    "train",
)
SPLITS = ("train", "val", "test")

# A voxel is brain where T1 exceeds this share of its maximum. nilearn's
# load_mni152_brain_mask has the same default.
BRAIN_T1_THRESHOLD = 0.2
# A voxel is white matter where its smoothed probability exceeds this, and tissue
# where that of grey and white matter together does.
TISSUE_THRESHOLD = 0.5
# Gaussian smoothing in the slice before a threshold, in pixels; rounds off
# single-pixel steps and bridges that nobody would draw by hand.
SMOOTHING_SIGMA = 1.0

# What a mask needs to be kept. Together they leave out threads and classes
# that fall apart into islands in that slice.
MIN_AREA_FRACTION = 0.015  # of the image
MIN_MAIN_PIECE = 0.75  # of the class's pixels that the largest piece has
MIN_THICKNESS = 5.0  # pixels; mean thickness, 2 x area / perimeter
# Holes smaller than this are filled, in pixels.
MAX_FILLED_HOLE = 30

# The cerebellum is told from other tissue by its place (MNI coordinates, mm).
CEREBELLUM_MAX_Z_MM = -20.0
CEREBELLUM_MAX_Y_MM = -48.0  # further forward it merges with the brain stem
# The tentorium gap between cerebellum and cerebrum shows at a strict threshold.
CEREBELLUM_THRESHOLD = 0.8

LICENSE_TEXT = """\
The images and masks in this folder are derived from the ICBM 2009a nonlinear
symmetric template (MNI152) and its tissue probability maps. The copy used here
came from the Python package nilearn, whose description of it names no licence;
the ICBM 2009 nonlinear templates are published under this notice:

Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre,
Montreal Neurological Institute, McGill University.
Permission to use, copy, modify, and distribute this software and its
documentation for any purpose and without fee is hereby granted, provided that
the above copyright notice appear in all copies. The authors and McGill
University make no representations about the suitability of this software for
any purpose. It is provided "as is" without express or implied warranty. The
authors are not responsible for any data loss, equipment damage, property loss,
or injury to subjects or patients resulting from the use or misuse of this
software package.

Changes
-------
The starting point was the 8-bit, skull-stripped, 1 mm copy in nilearn 0.14.1.
scripts/make_demo_data.py cut single slices out of it, turned them to
radiological orientation, cropped them and saved them as PNG files with
unchanged grey values. The masks were made by that script from the T1 image and
the grey- and white-matter probability maps by smoothing, thresholds and
selection of connected pieces. No expert drew or checked them.

Please cite
-----------
VS Fonov, AC Evans, K Botteron, CR Almli, RC McKinstry, DL Collins and the Brain
  Development Cooperative Group. Unbiased average age-appropriate atlases for
  pediatric studies. NeuroImage 54(1):313-327, 2011.
  doi:10.1016/j.neuroimage.2010.07.033
VS Fonov, AC Evans, RC McKinstry, CR Almli and DL Collins. Unbiased nonlinear
  average age-appropriate brain templates from birth to adulthood. NeuroImage
  47(Supplement 1):S102, 2009. doi:10.1016/S1053-8119(09)70884-5
DL Collins, AP Zijdenbos, WFC Baare and AC Evans. ANIMAL+INSECT: improved
  cortical structure segmentation. Information Processing in Medical Imaging,
  LNCS 1613, pp. 210-223. Springer, 1999. doi:10.1007/3-540-48714-X_16
"""


@dataclass(frozen=True)
class Plane:
    """One slicing direction of a volume in RAS order (x right, y front, z up).

    Attributes:
        name: as it appears in file names.
        axis: volume axis that the slices are perpendicular to.
        slices: voxel indices of the slices.
        crop: voxel ranges kept on the two other axes, in volume order.
    """

    name: str
    axis: int
    slices: range
    crop: tuple[slice, slice]


# The volume is 197 x 233 x 189 voxels; the brain fills x 26-170, y 27-207,
# z 0-155. The crops are symmetric about the mid-sagittal voxel, x = 98.
CROP_X, CROP_Y, CROP_Z = slice(19, 178), slice(21, 213), slice(0, 160)
PLANES = (
    Plane("axial", 2, range(74, 140, 5), (CROP_X, CROP_Y)),
    Plane("coronal", 1, range(48, 185, 5), (CROP_X, CROP_Z)),
    Plane("sagittal", 0, range(46, 89, 5), (CROP_Y, CROP_Z)),  # x < 98: left
)


@dataclass(frozen=True)
class Volumes:
    """T1 (uint8 grey), grey- and white-matter probability (float32, 0 to 1).

    All are (X, Y, Z) arrays in RAS order on one grid; `affine` (4, 4) takes
    voxel indices to MNI millimetres.
    """

    t1: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    affine: np.ndarray

    def voxel_mm(self, axis: int) -> float:
        return float(abs(self.affine[axis, axis]))

    def coordinates_mm(self, axis: int) -> np.ndarray:
        """MNI coordinate of each voxel index along one axis."""
        return self.affine[axis, axis] * np.arange(self.t1.shape[axis]) + self.affine[axis, 3]


def load_volumes() -> Volumes:
    """Read the template volumes that ship inside nilearn."""
    try:
        import nibabel
        import nilearn.datasets
    except ImportError as error:
        raise SystemExit("This script needs nilearn: pip install nilearn") from error

    folder = Path(nilearn.datasets.__file__).parent / "data"

    def load(name: str):
        path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        return nibabel.as_closest_canonical(nibabel.load(path))

    t1 = load("t1")
    grey, white = (np.asarray(load(name).dataobj, np.float32) / 255 for name in ("gm", "wm"))
    return Volumes(np.asarray(t1.dataobj, np.uint8), grey, white, t1.affine)


def cut(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Slice a RAS volume and turn it as a radiologist expects: (H, W).

    Radiological convention: axial slices are seen from the feet, front up;
    coronal ones from the front, head up; in both the patient's right is on the
    left of the image. Sagittal slices have the head up and face left. In a RAS
    volume all three come out by putting the second in-plane axis upwards and
    reversing the first.
    """
    in_plane = np.take(volume, index, plane.axis)[plane.crop]
    return np.ascontiguousarray(in_plane.T[::-1, ::-1])


def smooth_threshold(probability: np.ndarray, threshold: float = TISSUE_THRESHOLD) -> np.ndarray:
    """Binary (H, W) mask of a probability slice in [0, 1]."""
    smooth = cv2.GaussianBlur(np.float32(probability), (0, 0), SMOOTHING_SIGMA)
    return smooth > threshold


def ellipse(size: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def fill_small_holes(mask: np.ndarray) -> np.ndarray:
    """Fill background pieces of fewer than MAX_FILLED_HOLE pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(np.uint8(~mask), connectivity=4)
    small = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] < MAX_FILLED_HOLE]
    return mask | np.isin(labels, small)


def mean_thickness(mask: np.ndarray) -> float:
    """2 x area / perimeter (holes included), in pixels: the width of a ribbon."""
    contours, _ = cv2.findContours(np.uint8(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return 2 * mask.sum() / sum(cv2.arcLength(contour, True) for contour in contours)


def clean_object(mask: np.ndarray) -> np.ndarray | None:
    """Reduce a class mask (H, W) to its one main piece.

    Opens it with a 3 x 3 cross (drops hairs and specks), keeps the largest
    piece and fills pinholes.

    Returns:
        A binary (H, W) mask, or None where the class makes no coherent object
        in this slice (see the MIN_ constants).
    """
    opened = cv2.morphologyEx(np.uint8(mask), cv2.MORPH_OPEN, ellipse(3))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count == 1:
        return None
    areas = stats[1:, cv2.CC_STAT_AREA]
    if areas.max() < MIN_MAIN_PIECE * areas.sum():
        return None
    main = fill_small_holes(labels == 1 + areas.argmax())
    if main.mean() < MIN_AREA_FRACTION or mean_thickness(main) < MIN_THICKNESS:
        return None
    return main


def cerebellum(tissue: np.ndarray, y_mm: np.ndarray, z_mm: np.ndarray) -> np.ndarray:
    """The cerebellum, where the tentorium parts it from the cerebrum.

    Erodes the tissue until thin bridges break, keeps the pieces whose centre
    lies low and far back, grows them back inside the tissue and closes the
    notches that the folia leave in the outline.

    Args:
        tissue: (H, W) grey + white matter probability, 0 to 1.
        y_mm, z_mm: MNI coordinates of the pixels, broadcastable to (H, W).

    Returns:
        Binary (H, W) mask; empty where the cerebellum is not a piece by itself.
    """
    core = cv2.erode(np.uint8(tissue > CEREBELLUM_THRESHOLD), ellipse(5))
    count, labels = cv2.connectedComponents(core, connectivity=4)
    y_mm, z_mm = (np.broadcast_to(mm, tissue.shape) for mm in (y_mm, z_mm))
    kept = np.zeros(tissue.shape, np.uint8)
    for i in range(1, count):
        piece = labels == i
        if y_mm[piece].mean() < CEREBELLUM_MAX_Y_MM and z_mm[piece].mean() < CEREBELLUM_MAX_Z_MM:
            kept[piece] = 1
    grown = cv2.dilate(kept, ellipse(5)) & np.uint8(tissue > TISSUE_THRESHOLD)
    return cv2.morphologyEx(grown, cv2.MORPH_CLOSE, ellipse(7)) > 0


def pixel_coordinates(volumes: Volumes, plane: Plane, index: int) -> list[np.ndarray]:
    """MNI x, y and z (mm) of each pixel of a slice, three (H, W) arrays."""
    grids = []
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        line = volumes.coordinates_mm(axis).reshape(shape)
        grids.append(cut(np.broadcast_to(line, volumes.t1.shape), plane, index))
    return grids


def make_slice(volumes: Volumes, plane: Plane, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One image and its objects.

    Returns:
        image: (H, W) uint8.
        masks: {class name: (H, W) bool}, only classes that make a coherent
            object here. Left and right are the patient's; the one-voxel
            mid-sagittal plane belongs to neither.
    """
    image = cut(volumes.t1, plane, index)
    grey, white = cut(volumes.grey, plane, index), cut(volumes.white, plane, index)
    x_mm, y_mm, z_mm = pixel_coordinates(volumes, plane, index)

    white_matter = smooth_threshold(white)
    if plane.name == "sagittal":
        classes = {"white_matter": white_matter}
    else:
        classes = {"left_white_matter": white_matter & (x_mm < 0), "right_white_matter": white_matter & (x_mm > 0)}
    # Axial slices do not cut along the tentorium gap; and they have no brain, so that
    # in a third of the slices a click on white matter has one meaning.
    if plane.name != "axial":
        classes["cerebellum"] = cerebellum(grey + white, y_mm, z_mm)
        classes["brain"] = smooth_threshold(image > BRAIN_T1_THRESHOLD * volumes.t1.max())

    cleaned = {name: clean_object(mask) for name, mask in classes.items()}
    return image, {name: mask for name, mask in cleaned.items() if mask is not None}


def plan_slices(volumes: Volumes) -> list[tuple[str, Plane, int]]:
    """List (split, plane, voxel index) of every slice to make."""
    plan = []
    for plane in PLANES:
        if plane.slices.step * volumes.voxel_mm(plane.axis) < SPLIT_GAP_MM:
            raise ValueError(f"{plane.name} slices are closer than {SPLIT_GAP_MM} mm")
        for i, index in enumerate(plane.slices):
            plan.append((SPLIT_PATTERN[i % len(SPLIT_PATTERN)], plane, index))
    return plan


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def metadata_row(volumes: Volumes, plane: Plane, index: int, image: str, mask: str, class_name: str) -> tuple:
    """A line of metadata.csv, of COLUMNS."""
    row, column = (volumes.voxel_mm(axis) for axis in (2, 1, 0) if axis != plane.axis)
    return (mask, image, "mni152", "mr_t1", "mni152", "xyz"[plane.axis], index, class_name, 0, f"{row:g}x{column:g}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make the demonstration data set from the ICBM 152 template in nilearn."
    )
    parser.add_argument("--output", type=Path, default=Path("data_demo"), help="Folder to write. Default: %(default)s.")
    parser.add_argument(
        "--contact_sheet",
        type=Path,
        default=None,
        help="Draw every image with its mask outlines into this PNG.",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    volumes = load_volumes()

    output = args.output.resolve()
    for folder in ("images", "masks"):
        (output / folder).mkdir(parents=True, exist_ok=True)

    image_to_masks = {split: {} for split in SPLITS}
    metadata = [COLUMNS]
    tiles, legend = [], {}
    for split, plane, index in tqdm(plan_slices(volumes), desc="slices"):
        image, masks = make_slice(volumes, plane, index)
        stem = f"mni152_{plane.name}_{index:03d}"
        image_path = f"{output.name}/images/{stem}.png"
        write_png(output.parent / image_path, image, level=9)

        mask_paths = []
        for name, mask in masks.items():
            mask_paths.append(f"{output.name}/masks/{stem}_{name}_000.png")
            write_png(output.parent / mask_paths[-1], mask, level=9)
            metadata.append(metadata_row(volumes, plane, index, image_path, mask_paths[-1], name))
        image_to_masks[split][image_path] = mask_paths
        if args.contact_sheet:
            colours = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
            title = f"{split} {plane.name} {index}"
            own = [legend.setdefault(name, drawing.colour_of(len(legend))) for name in masks]
            tiles.append(drawing.tile_of_masks(colours, [*masks.values()], title, side=400, colours=own))

    for split, index in image_to_masks.items():
        write_json(output / f"image2label_{split}.json", index)
    write_json(
        output / "label2image_test.json",
        {mask: image for image, masks in image_to_masks["test"].items() for mask in masks},
    )
    with open(output / METADATA, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(metadata)
    (output / "LICENSE").write_text(LICENSE_TEXT, encoding="utf-8")
    if args.contact_sheet:
        write_png(args.contact_sheet, drawing.with_legend(drawing.grid(tiles), legend))

    for split, index in image_to_masks.items():
        print(f"{split}: {len(index)} images, {sum(map(len, index.values()))} masks")


if __name__ == "__main__":
    main()
