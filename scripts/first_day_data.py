"""Three kinds of source to walk docs/first_day.md with: label maps, NIfTI scans with labels, DICOM with DICOM-SEG.

    python scripts/first_day_data.py --output first_day

Written below --output:

    maps/       images/*.png, slices of data_demo/, and labels/*.png with values 1 to 5; classes.json names them
    scans/      images/{patient}.nii.gz and labels/{patient}.nii.gz, with values 1 and 2
    study/      a DICOM series a patient, with a DICOM-SEG beside it

Patients are made up: a body, an organ and a lesion, of ellipsoids in Hounsfield units with noise. Nothing is random but
by number: a second run writes the same volumes.
Needs the extra "data".
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import cv2
import highdicom
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from sam_med2d.data.index import read_index
from sam_med2d.data.metadata import METADATA, read_metadata
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.image_files import write_png

CLASSES = {"brain": 1, "cerebellum": 2, "white_matter": 3, "left_white_matter": 4, "right_white_matter": 5}
ORGAN, LESION = 1, 2
SHAPE = (16, 96, 96)  # slices, rows, columns
SPACING = (2.0, 2.0, 5.0)  # mm: columns, rows, slices


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("first_day"), help="Folder to write. Default: first_day.")
    parser.add_argument("--data_demo", type=Path, default=ROOT / "data_demo", help="Where the slices come from.")
    parser.add_argument("--patients", type=int, default=8, help="Number of NIfTI scans. Default: %(default)s.")
    parser.add_argument("--studies", type=int, default=3, help="Number of DICOM series. Default: %(default)s.")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    write_maps(args.data_demo, args.output / "maps")
    for number in range(args.patients):
        write_scan(args.output / "scans", f"patient{number + 1:02d}", *map(as_volume, patient(number)))
    for number in range(args.studies):
        write_study(args.output / "study" / f"case{number + 1}", number, *patient(100 + number))
    print(f"{args.output}: maps, scans and study")


def patient(number: int) -> tuple[np.ndarray, np.ndarray]:
    """-> Hounsfield units, int16, and labels, uint8; both of SHAPE."""
    draw = np.random.default_rng(number)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")

    def ellipsoid(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        return sum(((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radii)) < 1

    body = ellipsoid(np.zeros(3), np.array([9, draw.uniform(0.7, 0.9), draw.uniform(0.8, 0.95)]))
    centre = np.array([draw.uniform(-0.1, 0.1), draw.uniform(-0.15, 0.15), draw.uniform(-0.4, -0.2)])
    radii = draw.uniform((0.6, 0.35, 0.3), (0.8, 0.45, 0.4))
    organ = ellipsoid(centre, radii)
    lesion = ellipsoid(centre + draw.uniform(-0.3, 0.3, 3) * radii, radii * draw.uniform(0.35, 0.5))
    bone = ellipsoid(np.array([0, 0.5, 0]), np.array([9, 0.12, 0.12]))
    scan = np.full(SHAPE, -1000.0)
    for mask, value in ((body, 20), (bone, 600), (organ, 110), (lesion, 45)):
        scan[mask] = value
    scan = cv2.GaussianBlur(scan.transpose(1, 2, 0), (0, 0), 0.8).transpose(2, 0, 1) + draw.normal(0, 12, SHAPE)
    labels = np.zeros(SHAPE, np.uint8)
    labels[organ], labels[lesion] = ORGAN, LESION
    return scan.round().astype(np.int16), labels


def as_volume(voxels: np.ndarray) -> sitk.Image:
    volume = sitk.GetImageFromArray(voxels)
    volume.SetSpacing(SPACING)
    return volume


def write_scan(folder: Path, name: str, scan: sitk.Image, labels: sitk.Image) -> None:
    for kind, volume in (("images", scan), ("labels", labels)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(volume, str(folder / kind / f"{name}.nii.gz"))


def write_maps(data: Path, folder: Path) -> None:
    """Later classes lie above: the halves of the white matter in the brain."""
    metadata = read_metadata(data / METADATA)
    for split in ("train", "val", "test"):
        index = read_index(data, split)
        for image, masks in index:
            picture = read_image(index.path(image), keep_grey=True)
            labels = np.zeros(picture.shape[:2], np.uint8)
            for mask in sorted(masks, key=lambda mask: CLASSES[str(metadata[mask]["class"])]):
                labels[read_mask(index.path(mask), labels.shape)] = CLASSES[str(metadata[mask]["class"])]
            for kind, pixels in (("images", picture), ("labels", labels)):
                write_png(folder / kind / Path(image).name, pixels)
    (folder / "classes.json").write_text(json.dumps(CLASSES, indent=1))


def write_study(folder: Path, number: int, scan: np.ndarray, labels: np.ndarray) -> None:
    """A CT series and the DICOM-SEG that was drawn on it."""
    uids = [
        generate_uid(entropy_srcs=[f"{number} {what}"]) for what in ("study", "series", "frame", "seg", "segmentation")
    ]
    slices = []
    for place, pixels in enumerate(scan):
        data = Dataset()
        data.SOPClassUID, data.Modality, data.PatientID = CTImageStorage, "CT", f"case{number + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = uids[:3]
        data.SOPInstanceUID = generate_uid(entropy_srcs=[f"{number} {place}"])
        for name in ("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "PatientName", "PatientBirthDate"):
            setattr(data, name, "")
        data.PatientSex, data.ReferringPhysicianName = "", ""
        data.SeriesNumber, data.InstanceNumber = 1, place + 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, place * SPACING[2]], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = *SHAPE[1:], 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.add_new(0x7FE00010, "OW", pixels.tobytes())
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        folder.mkdir(parents=True, exist_ok=True)
        data.save_as(folder / f"IM{place + 1:04d}.dcm", enforce_file_format=True)
        slices.append(data)
    code = highdicom.sr.CodedConcept("91723000", "SCT", "Anatomical structure")
    algorithm = highdicom.AlgorithmIdentificationSequence("first_day_data.py", code, "1")
    segments = [
        highdicom.seg.SegmentDescription(value, name, code, code, "AUTOMATIC", algorithm)
        for name, value in (("organ", ORGAN), ("lesion", LESION))
    ]
    with warnings.catch_warnings():  # of dates that are left empty
        warnings.simplefilter("ignore")
        highdicom.seg.Segmentation(
            slices, labels, "BINARY", segments, uids[3], 2, uids[4], 1, "none", "first_day_data.py", "1", "1"
        ).save_as(folder / "seg.dcm")


if __name__ == "__main__":
    main()
