"""Real unlabelled pictures from installed or unpacked packages, cut into regions: one .npz for `synthesis.py`.

    pip download --no-deps mahotas dipy scikit-learn
    pip download --no-deps --only-binary :all: --python-version 3.7 --platform manylinux1_x86_64 scikit-image==0.16.2
    # unzip each wheel into a folder of its package's name: wheels/mahotas, wheels/dipy, wheels/scikit_learn,
    wheels/scikit_image python scripts/collect_pictures.py --wheels wheels --output workdir/pictures.npz --contact_sheet
    sheet.png

Where each picture comes from and under which licence: pretrain_model/PICTURES.md. No label of a person is read.
Regions are watersheds at several scales, merged where neighbours look alike, and the pieces between grey thresholds. A
region is kept as an object if it differs from what is around it.
"""

import argparse
import gzip
import sys
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent))

LONGEST = 512  # pixels of the longer side
LEAST_REGION = 40  # pixels
LARGEST_REGION = 0.5  # of the picture

# (folder in the unpacked wheels, file in it, weight): medicine and microscopy weigh more than photographs
FILES = [
    ("mahotas", "mahotas/demos/data/nuclear.png", 3),
    ("mahotas", "mahotas/demos/data/DepartmentStore.jpg", 1),
    ("mahotas", "mahotas/demos/data/luispedro.jpg", 0.5),
    *(
        ("scikit_image", f"skimage/data/{name}", weight)
        for name, weight in (
            ("ihc.png", 3),
            ("retina.jpg", 3),
            ("cell.png", 3),
            ("microaneurysms.png", 1),
            ("coins.png", 2),
            ("moon.png", 1),
            ("hubble_deep_field.jpg", 2),
            ("chelsea.png", 1),
            ("coffee.png", 1),
            ("rocket.jpg", 0.5),
            ("camera.png", 1),
            ("gravel.png", 1),
            ("brick.png", 0.5),
            ("grass.png", 0.5),
            ("motorcycle_left.png", 1),
            ("page.png", 0.5),
            ("astronaut.png", 1),
        )
    ),
    ("scikit_learn", "sklearn/datasets/images/china.jpg", 1),
    ("scikit_learn", "sklearn/datasets/images/flower.jpg", 1),
]


def stretched(values: np.ndarray, low: float = 0.002, high: float = 0.998) -> np.ndarray:
    """Any numbers -> uint8, the outermost of them cut."""
    bottom, top = np.quantile(values, [low, high])
    return (np.clip((values - bottom) / max(top - bottom, 1e-6), 0, 1) * 255).astype(np.uint8)


def windowed(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    return (np.clip((values - centre) / width + 0.5, 0, 1) * 255).astype(np.uint8)


def medical() -> list[tuple[str, np.ndarray, float]]:
    """Pictures from the test files of packages that this project has anyway. (name, (h, w[, 3]) uint8, weight)"""
    import matplotlib
    import nibabel
    import pydicom
    from pydicom.data import get_testdata_file

    found = []
    for name in ("693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "CT_small.dcm"):
        data = pydicom.dcmread(get_testdata_file(name, download=False))
        values = data.pixel_array * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
        for centre, width in ((40, 400), (-500, 1500), (300, 1500), (60, 200)):
            found.append(
                (f"{name} {centre} {width}", windowed(values, centre, width), 1.5 if len(values) > 200 else 0.7)
            )
    for name in (
        "MR_small.dcm",
        "examples_overlay.dcm",
        "examples_palette.dcm",
        "examples_jpeg2k.dcm",
        "examples_rgb_color.dcm",
    ):
        data = pydicom.dcmread(get_testdata_file(name, download=False))
        values = data.pixel_array
        if values.ndim == 3:
            values = cv2.cvtColor(values, cv2.COLOR_RGB2BGR)
        found.append((name, values if values.dtype == np.uint8 else stretched(values), 2 if len(values) > 100 else 0.5))
    folder = Path(nibabel.__file__).parent
    found.append(
        (
            "nibabel slice",
            stretched(pydicom.dcmread(folder / "nicom/tests/data/slicethickness_empty_string.dcm").pixel_array),
            2,
        )
    )
    volume = nibabel.load(folder / "tests/data/example4d.nii.gz").get_fdata()[..., 0]
    found += [(f"nibabel example4d {z}", stretched(volume[:, :, z]), 0.5) for z in range(2, 23, 4)]
    sample = Path(matplotlib.get_data_path()) / "sample_data"
    with gzip.open(sample / "s1045.ima.gz") as file:
        found.append(("matplotlib s1045", stretched(np.frombuffer(file.read(), np.uint16).reshape(256, 256)), 2))
    found.append(("matplotlib grace_hopper", cv2.imread(str(sample / "grace_hopper.jpg")), 0.5))
    return found


def from_wheels(folder: Path) -> list[tuple[str, np.ndarray, float]]:
    import nibabel

    found = []
    for package, name, weight in FILES:
        image = cv2.imread(str(folder / package / name), cv2.IMREAD_COLOR)
        if image is None:
            print(f"left out, not there: {package}/{name}")
            continue
        grey = (image[..., :1] == image).all()
        found.append((f"{package} {Path(name).name}", image[..., 0] if grey else image, weight))
    files = folder / "dipy/dipy/data/files"
    if files.is_dir():
        found.append(("dipy t1_coronal", stretched(np.load(files / "t1_coronal_slice.npy")), 2))
        for name, slices in (
            ("S0_10slices", range(0, 10, 3)),
            ("aniso_vox", range(4, 24, 5)),
            ("test_piesno", range(2, 14, 5)),
        ):
            volume = nibabel.load(files / f"{name}.nii.gz").get_fdata()
            volume = volume[..., 0] if volume.ndim == 4 else volume
            found += [(f"dipy {name} {z}", stretched(volume[:, :, z]), 0.4) for z in slices]
    return found


def watershed(grey: np.ndarray, scale: float) -> np.ndarray:
    """Basins of the gradient at a scale in pixels. grey: (h, w) float32 -> ids from 1."""
    smooth = cv2.GaussianBlur(grey, (0, 0), scale)
    gradient = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    gradient = stretched(gradient, 0, 0.995)
    window = 2 * int(1.5 * scale) + 3
    lowest = ndimage.minimum_filter(gradient, window) == gradient
    markers, _ = ndimage.label(lowest, np.ones((3, 3)))
    return ndimage.watershed_ift(gradient, markers.astype(np.int32))


def merged(labels: np.ndarray, colour: np.ndarray, tolerance: float) -> np.ndarray:
    """Neighbouring regions whose mean colours differ by less than `tolerance` become one, the most alike first."""
    number = int(labels.max()) + 1
    area = np.bincount(labels.ravel(), minlength=number).astype(float)
    total = np.stack([np.bincount(labels.ravel(), colour[..., c].ravel(), number) for c in range(colour.shape[2])], 1)
    pairs = np.concatenate(
        [
            np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()], 1),
            np.stack([labels[:-1].ravel(), labels[1:].ravel()], 1),
        ]
    )
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
    mean = total / np.maximum(area, 1)[:, None]
    order = np.linalg.norm(mean[pairs[:, 0]] - mean[pairs[:, 1]], axis=1).argsort()
    parent = np.arange(number)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs[order]:
        a, b = root(a), root(b)
        if a != b and np.linalg.norm(total[a] / area[a] - total[b] / area[b]) < tolerance:
            parent[b] = a
            total[a] += total[b]
            area[a] += area[b]
    return np.unique([root(i) for i in range(number)], return_inverse=True)[1][labels]


def levels(grey: np.ndarray, count: int, blur: float) -> np.ndarray:
    """Connected pieces of what lies between grey thresholds (k means of the greys)."""
    smooth = cv2.GaussianBlur(grey, (0, 0), blur)
    centres = np.quantile(smooth, np.linspace(0.05, 0.95, count))
    for _ in range(15):
        nearest = np.abs(smooth[..., None] - centres).argmin(-1)
        centres = np.array([smooth[nearest == k].mean() if (nearest == k).any() else centres[k] for k in range(count)])
    result = np.zeros(grey.shape, np.int32)
    for k in range(count):
        pieces, _ = ndimage.label(nearest == k)
        result[pieces > 0] = pieces[pieces > 0] + result.max()
    return result


def objects(labels: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Ids of the regions that stand out: their rim inside differs from the rim outside by more than the noise."""
    kept, spread = [], grey.std()
    for region, place in enumerate(ndimage.find_objects(labels + 1)):
        if place is None:
            continue
        place = tuple(slice(max(0, side.start - 4), side.stop + 4) for side in place)
        mask = labels[place] == region
        area = mask.sum()
        if area < LEAST_REGION or area > LARGEST_REGION * labels.size:
            continue
        inner = mask.view(np.uint8)
        kernel = np.ones((5, 5), np.uint8)
        around = cv2.dilate(inner, kernel).view(bool) & ~mask
        rim = mask & ~cv2.erode(inner, kernel).view(bool)
        values = grey[place]
        thick = cv2.distanceTransform(np.pad(inner, 1), cv2.DIST_L2, 3).max()
        if around.any() and thick >= 2.5 and abs(values[rim].mean() - values[around].mean()) > max(0.15 * spread, 5):
            kept.append(region)
    return np.array(kept, np.int32)


def cut(image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Label maps of a picture and the ids in them that are objects."""
    grey = (image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)).astype(np.float32)
    colour = cv2.GaussianBlur(image, (0, 0), 0.8).astype(np.float32)
    colour = colour[..., None] if colour.ndim == 2 else colour
    tries = [
        merged(watershed(grey, scale), colour, tolerance * grey.std())
        for scale, tolerance in ((1.0, 0.35), (1.0, 0.7), (2.0, 0.3), (2.0, 0.6), (3.5, 0.3), (3.5, 0.6), (6.0, 0.4))
        if scale < max(grey.shape) / 40
    ]
    tries += [levels(grey, count, blur) for count, blur in ((2, 1.0), (3, 1.0), (3, 2.5), (5, 2.0))]
    maps = [(labels.astype(np.uint16), objects(labels, grey)) for labels in tries if labels.max() < 65535]
    return [(labels, kept) for labels, kept in maps if len(kept) >= 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--wheels",
        type=Path,
        help="Folder of unpacked wheels to look in. Default: none, and only what is installed is looked at.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("workdir/pictures.npz"), help="The file to write. Default: %(default)s."
    )
    parser.add_argument(
        "--contact_sheet", metavar="FILE.png", help="Draw the pictures with their regions into this file."
    )
    args = parser.parse_args()
    cv2.setNumThreads(1)
    content, tiles = {}, []
    for name, image, weight in medical() + (from_wheels(args.wheels) if args.wheels else []):
        factor = min(LONGEST / max(image.shape[:2]), max(1.0, 192 / max(image.shape[:2])))
        if factor != 1:
            image = cv2.resize(
                image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
            )
        maps = cut(image)
        print(f"{name}: {image.shape}, objects {[len(kept) for _, kept in maps]}", flush=True)
        if not maps:
            continue
        content[f"{name}|image"], content[f"{name}|weight"] = image, np.float32(weight)
        for i, (labels, kept) in enumerate(maps):
            content[f"{name}|labels{i:02d}"], content[f"{name}|kept{i:02d}"] = labels, kept
        if args.contact_sheet:
            bgr = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image
            row = [bgr]
            for labels, kept in maps[1::3]:
                table = np.random.default_rng(0).integers(40, 255, (int(labels.max()) + 1, 3))
                table[np.setdiff1d(np.arange(len(table)), kept)] = 0
                row.append(table[labels].astype(np.uint8))
            tiles.append(np.concatenate([cv2.resize(tile, (160, 160)) for tile in (row + [row[0]] * 5)[:5]], 1))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.output, **content)
    print(f"wrote {args.output}: {len(tiles) or ''} {args.output.stat().st_size / 1e6:.1f} MB")
    if args.contact_sheet:
        tiles += [np.zeros_like(tiles[0])] * (len(tiles) % 2)
        half = len(tiles) // 2
        cv2.imwrite(args.contact_sheet, np.concatenate([np.concatenate(tiles[:half]), np.concatenate(tiles[half:])], 1))


if __name__ == "__main__":
    main()
