"""Every reader of files that others wrote, with a small valid input each, for scripts/fuzz.py."""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from PIL import Image

from sam_med2d.cli import boolean
from sam_med2d.convert import coco, dicom, nnunet
from sam_med2d.convert.classes import Classes, parse_classes
from sam_med2d.convert.objects import Preparation
from sam_med2d.convert.splits import read_split_file
from sam_med2d.convert.volumes import Volumes
from sam_med2d.data import arrow_copy
from sam_med2d.data.cache import open_cache
from sam_med2d.data.index import Index, read_index
from sam_med2d.data.metadata import COLUMNS as METADATA_COLUMNS
from sam_med2d.data.metadata import read_metadata
from sam_med2d.data.names import read_class_names
from sam_med2d.data.reading import read_image, read_label_map, read_mask
from sam_med2d.errors import DataError
from sam_med2d.evaluation.results import Results, read_results, write_results
from sam_med2d.evaluation.rows import COLUMNS, read_rows, write_rows
from sam_med2d.inference.prompt_tables import wanted_by_file
from sam_med2d.prompts.files import FrozenPrompts
from sam_med2d.prompts.modes import parse_mode
from sam_med2d.training.state import SavedRun
from sam_med2d.volumes.dicom_labels import read_segmentation, read_structures
from sam_med2d.volumes.intensity import Intensity
from sam_med2d.volumes.prompts import check_inside, objects_of_file
from sam_med2d.volumes.scans import files_of, notes_of, read_label_volume, read_scan
from segment_anything.checkpoint import check_is_sam, open_weights
from segment_anything.weight_files import save_checkpoint, save_weights


class Reader(NamedTuple):
    """make writes a valid input into an empty folder; read opens it and finishes whatever the library does lazily.

    files: patterns of those that are spoiled, one at a time. kind: a key of fuzz_mutations.FORMATS, or "bytes".
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    files: str
    kind: str = "bytes"


# ---------------------------------------------------------------- pictures

SIZE = (24, 32)  # rows, columns


def picture() -> np.ndarray:
    rows, columns = np.indices(SIZE)
    return np.stack([rows * 8, columns * 7, (rows * columns) % 256], -1).astype(np.uint8)


def mask_of_box() -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[6:15, 8:20] = 255
    return mask


def _image(name: str, *, mode: str = "RGB", **options: Any) -> Callable[[Path], object]:
    return lambda folder: Image.fromarray(picture()).convert(mode).save(folder / name, **options)


def _grey_of_16_bits(folder: Path) -> None:
    cv2.imwrite(str(folder / "deep.tif"), picture()[..., 0].astype(np.uint16) * 200)


def _turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(folder / "turned.jpg", exif=exif)


def _read_picture(folder: Path) -> object:
    (path,) = folder.iterdir()
    return read_image(str(path)), read_image(str(path), keep_grey=True)


def _mask_on_colour(folder: Path) -> None:
    mask = mask_of_box()
    Image.fromarray(np.stack([mask, mask, mask, mask], -1)).save(folder / "mask.png")


def _palette_mask(folder: Path) -> None:
    image = Image.fromarray((mask_of_box() > 0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(folder / "mask.png")


def _read_mask(folder: Path) -> object:
    (path,) = folder.iterdir()
    with suppress(DataError):
        read_mask(str(path), SIZE, "its image", 128)
    return read_mask(str(path), SIZE)


def _label_map(folder: Path) -> None:
    Image.fromarray(mask_of_box() // 85).save(folder / "labels.png")


def _read_label_map(folder: Path) -> object:
    (path,) = folder.iterdir()
    with suppress(DataError):
        read_label_map(str(path), SIZE, "its image", True)
    return read_label_map(str(path), SIZE, "its image", False)


# ---------------------------------------------------------------- volumes


def volume(depth: int = 4) -> np.ndarray:
    return np.arange(depth * 8 * 10, dtype=np.int16).reshape(depth, 8, 10)


def _volume(name: str, labels: bool = False) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        image = sitk.GetImageFromArray((volume() % 3).astype(np.uint8) if labels else volume())
        image.SetSpacing((0.5, 0.75, 2))
        if ".seg" in name:
            for key, value in (("Name", "liver"), ("LabelValue", "1"), ("Layer", "0")):
                image.SetMetaData(f"Segment0_{key}", value)
        sitk.WriteImage(image, str(folder / name), useCompression=name.endswith(".gz"))

    return make


def _array(folder: Path) -> None:
    np.save(folder / "scan.npy", volume())


def _read_volume(folder: Path) -> object:
    image = read_scan(files_of(next(folder.iterdir())))
    return notes_of(image), sitk.GetArrayFromImage(image)


def _read_detached(name: str) -> Callable[[Path], object]:
    """A header whose data lie in another file."""
    return lambda folder: sitk.GetArrayFromImage(read_scan(str(folder / name)))


def _read_straightened(folder: Path) -> object:
    return sitk.GetArrayFromImage(read_scan(files_of(next(folder.iterdir())), 0, straighten=True))


def _read_labels(folder: Path) -> object:
    layers, names = read_label_volume(str(next(folder.iterdir())))
    return [sitk.GetArrayFromImage(layer) for layer in layers], names


def _make_series(folder: Path, count: int = 3) -> list[Path]:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    paths = []
    for i, pixels in enumerate(volume(count)):
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"1.2.3.1.{i + 1}"
        data.StudyDate = data.StudyTime = data.AccessionNumber = data.StudyID = ""
        data.PatientName = data.PatientBirthDate = data.PatientSex = data.ReferringPhysicianName = ""
        data.Modality, data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID = "CT", "p1", "1.2.3", "1.2.3.1"
        data.FrameOfReferenceUID, data.SeriesNumber, data.InstanceNumber = "1.2.9", 1, i + 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2 * i], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness, data.SamplesPerPixel = [1.0, 1.0], 2.0, 1
        data.Rows, data.Columns = pixels.shape
        data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored = "MONOCHROME2", 16, 16
        data.HighBit, data.PixelRepresentation, data.RescaleSlope, data.RescaleIntercept = 15, 1, 1, -24
        data.add_new(0x7FE00010, "OW", pixels.tobytes())
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        paths.append(folder / f"s{i}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def _read_series(folder: Path) -> object:
    return sitk.GetArrayFromImage(read_scan(files_of(folder)))


def _make_structures(folder: Path) -> None:
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    data = dcmread(_make_series(folder)[0])
    for name in ("PixelData", "Rows", "Columns", "ImagePositionPatient", "PixelSpacing", "FrameOfReferenceUID"):
        delattr(data, name)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    data.SOPInstanceUID, data.Modality, data.SeriesInstanceUID = "1.2.3.7.1", "RTSTRUCT", "1.2.3.7"
    series, study, frame, roi, drawn = (Dataset() for _ in range(5))
    series.SeriesInstanceUID = "1.2.3.1"
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = "1.2.9", [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber, drawn.ContourSequence = 1, "liver", 1, []
    for height in (0, 2):
        contour = Dataset()
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
        contour.ContourData = [1.0, 1, height, 6, 1, height, 6, 5, height, 1, 5, height]
        drawn.ContourSequence.append(contour)
    data.StructureSetROISequence, data.ROIContourSequence = [roi], [drawn]
    data.save_as(folder / "label.dcm", enforce_file_format=True)


def _make_segmentation(folder: Path) -> None:
    import highdicom
    from pydicom import dcmread

    source = [dcmread(path) for path in _make_series(folder)]
    code = highdicom.sr.CodedConcept("91723000", "SCT", "Anatomical structure")
    algorithm = highdicom.AlgorithmIdentificationSequence("test", code, "1")
    segment = highdicom.seg.SegmentDescription(1, "liver", code, code, "AUTOMATIC", algorithm)
    maker = ("1.2.3.8", 8, "1.2.3.8.1", 1, "maker", "model", "1", "1")
    made = highdicom.seg.Segmentation(source, volume(3) % 3 == 0, "BINARY", [segment], *maker)
    made.ContentDate, made.ContentTime, made.InstanceCreationDate, made.InstanceCreationTime = "20250101", "0", "", ""
    made.DimensionOrganizationSequence[0].DimensionOrganizationUID = "1.2.3.8.2"
    for item in made.DimensionIndexSequence:
        item.DimensionOrganizationUID = "1.2.3.8.2"
    made.save_as(folder / "label.dcm")


SCAN = sitk.GetImageFromArray(volume(3))


def _read_structures(folder: Path) -> object:
    return [*read_structures(str(folder / "label.dcm"), SCAN, Counter())]


def _read_segmentation(folder: Path) -> object:
    return [(name, [*frames]) for name, frames in read_segmentation(str(folder / "label.dcm"))]


def _read_labelled_series(folder: Path) -> object:
    """As make-index dicom does: the series and its label are found, matched and cut into pictures."""
    converter = Volumes(Preparation(), Intensity(), Classes())
    pictures, refused = [], []
    for case in dicom.find_dicom(folder):
        try:
            pictures += [*converter.pictures(case, _tally())]
        except DataError as error:
            refused.append(error)
    if refused:
        raise refused[0]
    return pictures


def _tally() -> Any:
    from sam_med2d.convert.cases import Tally

    return Tally()


# ---------------------------------------------------------------- tables and JSON


def _text(name: str, content: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def _make_pairs(folder: Path) -> None:
    """images/ and masks/ of two pictures."""
    for name in ("images/a.png", "images/b.png", "masks/a_liver.png", "masks/b_liver.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(mask_of_box() if "masks" in name else picture()).save(folder / name)


GROUPS = {"images/a.png": ["masks/a_liver.png"], "images/b.png": ["masks/b_liver.png"]}


def _make_index(name: str, content: object) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        _make_pairs(folder)
        (folder / name).write_text(json.dumps(content))

    return make


def _read_index(split: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        index = read_index(folder, split)
        return [index.mask(number) for number in range(index.mask_count)], [*index]

    return read


def _make_arrow_copy(folder: Path) -> None:
    _make_index("image2label_train.json", GROUPS)(folder)
    _read_arrow_copy(folder)


def _read_arrow_copy(folder: Path) -> None:
    """However it is spoiled, what comes of it is what the text says."""
    small, arrow_copy.COPY_FROM = arrow_copy.COPY_FROM, 0  # so that a copy is made of a small index too
    try:
        assert dict(read_index(folder, "train")) == GROUPS, "another index"
    finally:
        arrow_copy.COPY_FROM = small


def _open_cache(folder: Path) -> tuple[Index, Any]:
    index = read_index(folder, "train")
    index.root = "."  # a name of the cache's folder that does not depend on this one's
    index.source = "image2label_train.json"
    return index, open_cache(folder / "cache", index, 16)


def _make_cache(folder: Path) -> None:
    _make_index("image2label_train.json", GROUPS)(folder)
    index, cache = _open_cache(folder)
    for i in range(len(index)):
        cache.put_image(i, picture()[:12, :16], SIZE, 5)
        cache.put_mask(i, 0, mask_of_box()[:12, :16] > 0, 5)


def _read_cache(folder: Path) -> None:
    """However it is spoiled, it holds what was put there, or nothing."""
    index, cache = _open_cache(folder)
    for i in range(len(index)):
        found = cache.image(i) if cache else None
        if found is not None:
            assert (found[0] == picture()[:12, :16]).all() and found[1] == SIZE, "another picture"
            mask = cache.mask(i, 0, found[0].shape[:2], 5)
            assert mask is None or (mask == (mask_of_box()[:12, :16] > 0)).all(), "another mask"


METADATA = ",".join(METADATA_COLUMNS) + (
    "\nmasks/a_liver.png,images/a.png,set,ct,p1,z,3,liver,0,0.5x0.75"
    "\nmasks/b_liver.png,images/b.png,set,mr,p2,,,liver,0,\n"
)


def _read_metadata(folder: Path) -> object:
    table = read_metadata(folder / "metadata.csv")
    with suppress(DataError):
        table["masks/a_liver.png"]
    return [table.column(name).to_pylist() for name in METADATA_COLUMNS]


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
    "categories": [{"id": 1, "name": "liver"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[3, 3, 20, 3, 20, 15, 3, 15]]},
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": {"size": [*SIZE], "counts": [100, 40, 628]}},
    ],
}


def _make_coco(folder: Path) -> None:
    _make_pairs(folder)
    (folder / "coco.json").write_text(json.dumps(COCO))


def _read_coco(folder: Path) -> object:
    cases = coco.find_coco(folder / "coco.json", folder / "images")
    return [[*coco.CocoPictures(Preparation()).pictures(case, Counter())] for case in cases]


NNUNET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "both": [1, 2], "ignore": 3},
    "numTraining": 1,
    "file_ending": ".png",
}


def _make_nnunet(folder: Path) -> None:
    for name, pixels in (("imagesTr/a_0000.png", picture()), ("labelsTr/a.png", mask_of_box() // 255)):
        (folder / name).parent.mkdir()
        Image.fromarray(pixels).save(folder / name)
    (folder / "dataset.json").write_text(json.dumps(NNUNET))


def _read_nnunet(folder: Path) -> object:
    content = nnunet.read_dataset(folder)
    return nnunet.classes_of(content), nnunet.find_nnunet(folder, content)


CLICKS = {"point_coords": [[3, 4], [5, 6], [7, 8]], "point_labels": [1, 0, 1]}
PROMPTS = {
    "image_size": 64,
    "click_strategy": "random",
    "a_liver.png": {"boxes": [[1, 2, 30, 40]], **CLICKS, "others": {"3shot": CLICKS, "bbox": CLICKS}},
    "b_liver.png": {"boxes": [[1, 2, 30, 40]], **CLICKS, "others": {"3shot": CLICKS, "bbox": CLICKS}},
}


def _read_prompts(folder: Path) -> object:
    frozen = FrozenPrompts(folder / "prompts.json", 64)
    names = ["a_liver.png", "b_liver.png"]
    modes = [parse_mode(name) for name in ("bbox", "3pts", "3shot", "bbox+2pts")]
    frozen.check(names, modes)
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    for mode in modes:
        frozen.start(mode, masks, names)
        for number in range(1, mode.clicks) if mode.start == "click" else ():
            frozen.correct(mode, number, masks, masks, names)
    return frozen.strategy


PROMPT_TABLE = {
    "a.png": [{"name": "liver", "box": [1, 2, 20, 21], "points": [[3, 4], [5, 6]], "labels": [1, 0]}],
    "b.png": [{"name": "liver", "mask": "masks/b_liver.png"}],
}
PROMPT_CSV = "image,name,x0,y0,x1,y1,x,y,label,mask\na.png,liver,1,2,20,21,3,4,1,\na.png,liver,,,,,5,6,0,\n"
PROMPTS_3D = {
    "objects": [
        {"label": 1, "name": "liver", "axis": "z", "points": [[3, 4, 1], [5, 6, 1]], "point_labels": [1, 0]},
        {"label": 2, "name": "box", "boxes": [[1, 1, 0, 6, 6, 2]]},
    ]
}


def _read_prompt_table(name: str) -> Callable[[Path], object]:
    return lambda folder: wanted_by_file(folder / name, folder, ["a.png", "b.png"])


def _read_prompts_3d(folder: Path) -> object:
    objects = objects_of_file(folder / "prompts.json", "z")
    for one in objects:
        check_inside(one, (10, 8, 3), "prompts.json")
    return objects


# ---------------------------------------------------------------- what runs leave


def _make_rows(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        row: dict[str, object] = dict.fromkeys(COLUMNS)
        row |= {"image": "a.png", "dataset": "set", "class": "liver", "mode": "bbox", "status": "ok", "slice": 3}
        row |= {"dice": 0.5, "iou": 1 / 3, "true_area": 100, "image_area": 768, "predicted_area": 90}
        write_rows(folder / name, [{**row, "mask": f"m{i}.png", "slice": i or None} for i in range(4)])

    return make


def _read_rows(folder: Path) -> pd.DataFrame:
    return read_rows(next(folder.iterdir()))


def _make_results(folder: Path) -> None:
    table = {"overall": [{"metric": "dice", "mode": "bbox", "mean": 0.5}]}
    results = Results({"dice": {"bbox": 0.5}}, 4, 1, 0, 2.5, 0, "vit_b", 1, {"versions": {"torch": "2"}}, {}, table)
    write_results(folder, results)


def _read_results(folder: Path) -> object:
    found = read_results(folder)
    return found and (found.facts(), found.content(), found.data_hash, found.device, found.image_size, found.protocol)


# ---------------------------------------------------------------- weights


def tensors() -> dict[str, torch.Tensor]:
    """As much of a model as tells that it is one."""
    made = {
        "image_encoder.pos_embed": torch.zeros(1, 4, 4, 192),
        "image_encoder.patch_embed.proj.bias": torch.ones(192),
    }
    for i in range(12):
        made[f"image_encoder.blocks.{i}.norm1.weight"] = torch.arange(8.0)
    return made | {"mask_decoder.iou_token.weight": torch.ones(1, 8, dtype=torch.float16)}


def _make_pth(folder: Path) -> None:
    save_checkpoint({"model": tensors(), "epoch": 3, "args": {"lr": 0.1, "name": "x"}}, folder / "weights.pth")


def _make_old_pth(folder: Path) -> None:
    torch.save({"model": tensors()}, folder / "weights.pth", _use_new_zipfile_serialization=False)


def _make_safetensors(folder: Path) -> None:
    save_weights(tensors(), folder / "weights.safetensors")


def _read_weights(folder: Path) -> object:
    return check_is_sam(open_weights(next(folder.iterdir())))


FLAGS = {"model_type": "vit_t", "image_size": 64, "encoder_adapter": True, "lr": 1e-4, "run_name": "x", "epochs": 3}


def _make_last(folder: Path) -> None:
    moments = {name: torch.zeros(3) for name in ("step", "exp_avg", "exp_avg_sq")}
    group = {"params": [0], "lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0}
    progress: dict[str, Any] = dict.fromkeys(("steps_an_epoch", "epoch", "step", "loss_count", "best_epoch"), 1)
    progress |= {"steps_an_epoch": 4, "step": 5, "loss_sum": 0.5, "best": 0.5, "best_name": "loss"}
    content = {"model": tensors(), "optimizer": {"state": {0: moments}, "param_groups": [group]}, "scaler": {}}
    save_checkpoint({**content, "progress": progress, "flags": FLAGS}, folder / "last.pth")


def _read_last(folder: Path) -> object:
    parser = argparse.ArgumentParser()
    for name, value in FLAGS.items():
        parser.add_argument(f"--{name}", type=boolean if isinstance(value, bool) else type(value))
    return SavedRun(str(folder / "last.pth")).flags_to_go_on_with(parser)


READERS = {
    "image-png": Reader(_image("a.png"), _read_picture, "*", "png"),
    "image-grey-png": Reader(_image("a.png", mode="L"), _read_picture, "*", "png"),
    "image-jpeg": Reader(_image("a.jpg"), _read_picture, "*"),
    "image-progressive-jpeg": Reader(_image("a.jpg", progressive=True), _read_picture, "*"),
    "image-turned-jpeg": Reader(_turned, _read_picture, "*"),
    "image-tiff": Reader(_image("a.tif", compression="tiff_lzw"), _read_picture, "*"),
    "image-deep-tiff": Reader(_grey_of_16_bits, _read_picture, "*"),
    "image-bmp": Reader(_image("a.bmp"), _read_picture, "*"),
    "image-gif": Reader(_image("a.gif"), _read_picture, "*"),
    "mask-alpha": Reader(_mask_on_colour, _read_mask, "*", "png"),
    "mask-palette": Reader(_palette_mask, _read_mask, "*", "png"),
    "mask-tiff": Reader(lambda folder: Image.fromarray(mask_of_box()).save(folder / "m.tif"), _read_mask, "*"),
    "mask-gif": Reader(lambda folder: Image.fromarray(mask_of_box()).save(folder / "m.gif"), _read_mask, "*"),
    "label-map": Reader(_label_map, _read_label_map, "*", "png"),
    "nifti": Reader(_volume("scan.nii"), _read_volume, "*"),
    "nifti-straightened": Reader(_volume("scan.nii"), _read_straightened, "*"),
    "nifti-gz": Reader(_volume("scan.nii.gz"), _read_volume, "*", "gzip"),
    "nifti-labels": Reader(_volume("labels.nii.gz", True), _read_labels, "*", "gzip"),
    "nrrd": Reader(_volume("scan.nrrd"), _read_volume, "*", "header"),
    "seg-nrrd": Reader(_volume("labels.seg.nrrd", True), _read_labels, "*", "header"),
    "mha": Reader(_volume("scan.mha"), _read_volume, "*", "header"),
    "nhdr": Reader(_volume("scan.nhdr"), _read_detached("scan.nhdr"), "scan.nhdr", "header"),
    "mhd": Reader(_volume("scan.mhd"), _read_detached("scan.mhd"), "scan.mhd", "header"),
    "npy": Reader(_array, _read_volume, "*"),
    "dicom": Reader(lambda folder: _make_series(folder, 1), _read_volume, "*", "dicom"),
    "dicom-series": Reader(_make_series, _read_series, "*", "dicom"),
    "rtstruct": Reader(_make_structures, _read_structures, "label.dcm", "dicom"),
    "rtstruct-series": Reader(_make_structures, _read_labelled_series, "*", "dicom"),
    "dicom-seg": Reader(_make_segmentation, _read_segmentation, "label.dcm", "dicom"),
    "dicom-seg-series": Reader(_make_segmentation, _read_labelled_series, "*", "dicom"),
    "image2label": Reader(_make_index("image2label_train.json", GROUPS), _read_index("train"), "*.json", "json"),
    "label2image": Reader(
        _make_index("label2image_test.json", {mask: image for image, masks in GROUPS.items() for mask in masks}),
        _read_index("test"),
        "*.json",
        "json",
    ),
    "arrow-copy": Reader(_make_arrow_copy, _read_arrow_copy, ".arrow/*"),
    "packed-cache": Reader(_make_cache, _read_cache, "cache/*/*"),
    "metadata": Reader(_text("metadata.csv", METADATA), _read_metadata, "*", "csv"),
    "classes-json": Reader(
        _text("c.json", {"liver": 1, "both": [1, 2], "spleen": 3}),
        lambda at: parse_classes([f"{at}/c.json"]),
        "*",
        "json",
    ),
    "classes-csv": Reader(
        _text("c.csv", "name,value\nliver,1\nspleen,2\n"), lambda at: parse_classes([f"{at}/c.csv"]), "*", "csv"
    ),
    "class-ids": Reader(
        _text("c.json", {"ct": {"liver": 1, "spleen": "2"}}), lambda at: read_class_names(at / "c.json"), "*", "json"
    ),
    "coco": Reader(_make_coco, _read_coco, "coco.json", "json"),
    "nnunet": Reader(_make_nnunet, _read_nnunet, "dataset.json", "json"),
    "splits": Reader(
        _text("s.json", [{"train": ["a", "b"], "val": ["c"]}]), lambda at: read_split_file(at / "s.json"), "*", "json"
    ),
    "prompts": Reader(_text("prompts.json", PROMPTS), _read_prompts, "*", "json"),
    "prompt-table-json": Reader(_text("p.json", PROMPT_TABLE), _read_prompt_table("p.json"), "*", "json"),
    "prompt-table-csv": Reader(_text("p.csv", PROMPT_CSV), _read_prompt_table("p.csv"), "*", "csv"),
    "prompts-3d": Reader(_text("prompts.json", PROMPTS_3D), _read_prompts_3d, "*", "json"),
    "rows-csv": Reader(_make_rows("rows.csv"), _read_rows, "*", "csv"),
    "rows-parquet": Reader(_make_rows("rows.parquet"), _read_rows, "*"),
    "results": Reader(_make_results, _read_results, "*", "json"),
    "weights-pth": Reader(_make_pth, _read_weights, "*", "checkpoint"),
    "weights-old-pth": Reader(_make_old_pth, _read_weights, "*"),
    "weights-safetensors": Reader(_make_safetensors, _read_weights, "*", "safetensors"),
    "last-pth": Reader(_make_last, _read_last, "*", "checkpoint"),
}
