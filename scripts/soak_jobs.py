"""What scripts/soak.py disturbs: commands on small data, what holds of the files that they leave, and their bits."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import numpy as np
import torch
from first_day_data import ORGAN, as_volume, patient, write_maps, write_scan, write_study

from sam_med2d.coco import polygons
from sam_med2d.data.cache import open_cache
from sam_med2d.data.index import read_index
from sam_med2d.image_files import write_png
from sam_med2d.training.state import SavedRun

SIDE = 32  # of the frame of the small model
TRAINING = (
    *("--model_type", "mini", "--image_size", str(SIDE), "--sam_checkpoint", "none", "--mask_num", "2"),
    *("--iter_point", "2", "--prompt_modes", "bbox", "--device", "cpu", "--epochs", "3", "--save_every", "1"),
    *("--lr_scheduler", "cosine", "--resume", "auto", "--keep_last", "1", "--replay", "none"),
)
ALL_OF_IT = (
    *("--batch_size", "1", "--num_workers", "2", "--augment", "--ema", "0.9", "--accumulate", "2", "--cache", "CACHE"),
    *("--tune", "lora", "--use_amp", "--checkpoint_encoder", "--clip_norm", "1", "--save_minutes", "0.05"),
)
JOIN = 60  # seconds that a process may take to start: one that is killed before it has started is waited for
COMPILING = 600  # seconds that a step which compiles may take on a busy machine; a signal waits for its end
CONFIGURATIONS: dict[str, tuple[int, tuple[str, ...]]] = {  # processes, flags beside TRAINING
    "plain": (1, ("--batch_size", "2", "--num_workers", "0")),
    "workers, augmented, averaged": (1, ("--batch_size", "2", "--num_workers", "2", "--augment", "--ema", "0.9")),
    "cached, accumulated": (1, ("--batch_size", "1", "--accumulate", "2", "--num_workers", "0", "--cache", "CACHE")),
    "two processes, averaged": (2, ("--batch_size", "1", "--num_workers", "0", "--ema", "0.9")),
    "two processes, all of it": (2, ALL_OF_IT),
    "two processes, all of it, compiled": (2, (*ALL_OF_IT, "--compile")),
}


@dataclass(frozen=True)
class Job:
    """A command that is disturbed, and started anew until it has reached its end.

    program: train or test, with one more size of model (`scripts/soak.py --run`), or a script of this folder. words:
    its flags, for the folder that it writes. held: what of that folder is whole after a disturbance, for people; raises
    AssertionError, or what a reader raises, where something is not. It gets the folder of the undisturbed run too.
    bits: what both must have in the end.
    """

    name: str
    part: str
    program: str
    words: Callable[[Path], list[object]]
    held: Callable[[Path, Path], str]
    bits: Callable[[Path], dict[str, object]]
    processes: int = 1
    patience: float = 180  # seconds that a process may take to end: ten on a machine with nothing else to do

    def command(self, folder: Path) -> list[str]:
        if self.program in PROGRAMS:
            start = [str(ROOT / "scripts/soak.py"), "--run", self.program]
        else:
            start = [str(ROOT / "scripts" / self.program)]
        return [sys.executable, *start, *map(str, self.words(folder))]


# ---------------------------------------------------------------- programs with a small model


def with_small_model() -> None:
    """Add a size of model of which a checkpoint takes few megabytes; its encoder is narrow too."""
    from segment_anything import build_sam, sam_model_registry, sizes

    sizes.SIZES["mini"] = sizes.Size(channels=16, depth=2, heads=2, global_blocks=(1,), embedding=32)
    sam_model_registry["mini"] = partial(build_sam, model_type="mini")
    torch.set_num_threads(1)


def train(words: list[str]) -> None:
    import train
    from sam_med2d import distributed

    distributed.JOIN = distributed.CONNECT = JOIN
    train.main(words)


def test(words: list[str]) -> None:
    import test
    from sam_med2d import distributed

    distributed.JOIN = distributed.CONNECT = JOIN
    test.main(words)


PROGRAMS = {"train": train, "test": test}


# ---------------------------------------------------------------- data


def make_squares(folder: Path, pictures: int, masks: int, splits: tuple[str, ...]) -> Path:
    """Pictures of noise with squares on it, the same ones in each split; also as annotations of COCO."""
    if (folder / "made").exists():
        return folder
    draw = np.random.default_rng(0)
    groups: dict[str, list[str]] = {}
    annotations = []
    for i in range(pictures):
        picture = draw.integers(0, 90, (40, 48, 3), dtype=np.uint8)
        groups[f"images/{i}.png"] = [f"masks/{i}_{k}.png" for k in range(masks)]
        for name in groups[f"images/{i}.png"]:
            mask = np.zeros((40, 48), np.uint8)
            x, y, side = draw.integers(4, 24), draw.integers(4, 20), draw.integers(8, 16)
            mask[y : y + side, x : x + side] = 255
            picture[mask > 0] = picture[mask > 0] // 2 + 100
            write_png(folder / name, mask)
            shape = {"image_id": i, "category_id": 1, "segmentation": polygons(mask > 0), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **shape, "bbox": [0, 0, 1, 1], "area": 1})
        write_png(folder / f"images/{i}.png", picture)
    for split in splits:
        (folder / f"image2label_{split}.json").write_text(json.dumps(groups))
    by_mask = {mask: image for image, those in groups.items() for mask in those}
    (folder / "label2image_test.json").write_text(json.dumps(by_mask))
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 48} for i in range(pictures)]
    told = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "coco.json").write_text(json.dumps(told))
    (folder / "made").touch()
    return folder


def make_sources(folder: Path) -> Path:
    """Label maps, NIfTI scans, a dataset of nnU-Net of the same, and DICOM series with DICOM-SEG."""
    if (folder / "made").exists():
        return folder
    write_maps(ROOT / "data_demo", folder / "maps")
    for number in range(8):
        scan, labels = map(as_volume, patient(number))
        write_scan(folder / "scans", f"patient{number:02d}", scan, labels)
        for kind, name in (("imagesTr", f"case_{number:03d}_0000"), ("labelsTr", f"case_{number:03d}")):
            target = folder / "Dataset001_Soak" / kind / f"{name}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            source = folder / "scans" / {"imagesTr": "images", "labelsTr": "labels"}[kind]
            target.write_bytes((source / f"patient{number:02d}.nii.gz").read_bytes())
    told = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": ORGAN, "lesion": 2}, "numTraining": 8}
    (folder / "Dataset001_Soak/dataset.json").write_text(json.dumps({**told, "file_ending": ".nii.gz"}))
    for number in range(4):
        write_study(folder / "study" / f"case{number}", number, *patient(100 + number))
    (folder / "made").touch()
    return folder


# ---------------------------------------------------------------- training

MODELS = "models/sam-med2d"


def _training(name: str, data: Path) -> Job:
    processes, flags = CONFIGURATIONS[name]

    def words(folder: Path) -> list[object]:
        own = [folder / "cache" if flag == "CACHE" else flag for flag in flags]
        return [*TRAINING, *own, "--data_path", data, "--work_dir", folder]

    compiled = "--compile" in flags
    part, patience = ("compiled", COMPILING) if compiled else ("training", 180)
    return Job(f"training: {name}", part, "train", words, _states_held, _states, processes, patience)


def _states_held(folder: Path, undisturbed: Path) -> str:
    last = folder / MODELS / "last.pth"
    if not last.exists():
        return "no last.pth yet"
    return f"last.pth of step {SavedRun(str(last)).content['progress']['step']} is whole"


def _states(folder: Path) -> dict[str, object]:
    """The checkpoints without what says where they were made, and the names of all that is left."""
    found: dict[str, object] = {"names": sorted(path.name for path in (folder / MODELS).iterdir())}
    for name in ("last.pth", "best.pth", "epoch_3.pth"):
        content = torch.load(folder / MODELS / name, weights_only=True)
        found[name] = {key: value for key, value in content.items() if key not in ("flags", "made_by", "digest")}
    return found


# ---------------------------------------------------------------- caches


def _cached(cache: Path, data: Path) -> dict[str, object]:
    """A hash of each picture and mask that is in the cache of the training split."""
    index = read_index(data, "train")
    slots = open_cache(cache, index, SIDE)
    assert slots is not None, "the cache cannot be opened"
    found: dict[str, object] = {}
    for i in range(len(index)):
        picture = slots.image(i)
        if picture is None:
            continue
        found[f"picture {i}"] = _hash(picture[0])
        for k in range(len(index[i][1])):
            mask = slots.mask(i, k, picture[0].shape[:2])
            if mask is not None:
                found[f"mask {i} {k}"] = _hash(mask)
    return found


def _cache_held(folder: Path, undisturbed: Path, *, data: Path) -> str:
    if not (folder / "cache").is_dir() or not any((folder / "cache").iterdir()):
        return "no cache yet"
    found, expected = _cached(folder / "cache", data), _cached(undisturbed / "cache", data)
    assert found.items() <= expected.items(), "another picture or mask in the cache"
    return f"{len(found)} of {len(expected)} pictures and masks are in the cache, each right"


def _packing(data: Path, workers: int) -> Job:
    def words(folder: Path) -> list[object]:
        return ["--cache", folder / "cache", "--data_path", data, "--image_size", SIDE, "--num_workers", workers]

    bits = partial(_bits_of_cache, data=data)
    name = f"pack-dataset, {workers} workers"
    return Job(name, "packing", "pack_dataset.py", words, partial(_cache_held, data=data), bits)


def _filling(data: Path) -> Job:
    def words(folder: Path) -> list[object]:
        own = ("--batch_size", 2, "--num_workers", 2, "--cache", folder / "cache", "--epochs", 1)
        return [*TRAINING, *own, "--data_path", data, "--work_dir", folder]

    def held(folder: Path, undisturbed: Path) -> str:
        return f"{_states_held(folder, undisturbed)}; {_cache_held(folder, undisturbed, data=data)}"

    bits = partial(_bits_of_cache, data=data)
    return Job("train.py fills a cache", "caching", "train", words, held, bits)


def _bits_of_cache(folder: Path, *, data: Path) -> dict[str, object]:
    return _cached(folder / "cache", data)


# ---------------------------------------------------------------- conversions


def _converting(name: str, workers: int, *words: object) -> Job:
    def all_of_them(folder: Path) -> list[object]:
        return [*words, "--output", folder / "data", "--dataset", "soak", "--num_workers", workers]

    return Job(f"make-index {name}", "converters", "make_index.py", all_of_them, _conversion_held, _files)


def _conversion_held(folder: Path, undisturbed: Path) -> str:
    """Every picture and mask in its place is that of the undisturbed run; what indexes name is there."""
    files, indexes = 0, 0
    for path in (path for kind in ("images", "masks") for path in (folder / "data" / kind).rglob("*.png")):
        twin = undisturbed / path.relative_to(folder)
        assert path.read_bytes() == twin.read_bytes(), f"{path} is not whole"
        files += 1
    for index in (folder / "data").glob("image2label_*.json"):
        for image, masks in json.loads(index.read_text()).items():
            assert all((folder / "data" / name).is_file() for name in (image, *masks)), (
                f"{index} names what is not there"
            )
        indexes += 1
    return f"{files} files in their place are whole, {indexes} indexes name what is there"


def _files(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): _hash(path.read_bytes())
        for path in sorted((folder / "data").rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------- scoring

RESULTS = ("rows.csv", "prompts.json", "cases.csv")


def _scoring(data: Path, weights: Path, processes: int) -> Job:
    def words(folder: Path) -> list[object]:
        flags = ("--prompt_modes", "bbox", "5pts", "--save_pred", "--num_workers", 2, "--batch_size", 4)
        where = ("--data_path", data, "--work_dir", folder, "--run_name", "run")
        return [*where, "--model_type", "mini", "--sam_checkpoint", weights, "--device", "cpu", *flags]

    name = f"test.py, {processes} process{'es' * (processes > 1)}"
    return Job(name, "testing", "test", words, _results_held, _results, processes)


def _results_held(folder: Path, undisturbed: Path) -> str:
    there = [name for name in RESULTS if (folder / "run" / name).exists()]
    for name in there:
        assert (folder / "run" / name).read_bytes() == (undisturbed / "run" / name).read_bytes(), f"{name} is not whole"
    return f"whole: {', '.join(there)}" if there else "no results yet"


def _results(folder: Path) -> dict[str, object]:
    """What does not depend on the clock, and the names of all that is left."""
    run = folder / "run"
    found: dict[str, object] = {name: _hash((run / name).read_bytes()) for name in RESULTS if (run / name).exists()}
    found["names"] = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    for path in sorted((run / "masks").rglob("*.png")):
        found[str(path.relative_to(run))] = _hash(path.read_bytes())
    return found


def _hash(content: bytes | np.ndarray) -> str:
    return hashlib.sha1(content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()).hexdigest()


# ---------------------------------------------------------------- all of them


def small_weights(work: Path) -> Path:
    """Where the undisturbed plain training leaves its best weights."""
    return work / place_of("training: plain") / "undisturbed" / MODELS / "best.pth"


def place_of(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def all_jobs(work: Path) -> Iterator[Job]:
    """Of all parts, in turns. work: for data, which is made where it is missing."""
    few = make_squares(work / "few", 6, 2, ("train", "val"))
    many = make_squares(work / "many", 150, 4, ("train", "test"))
    sources = make_sources(work / "sources")
    *training, compiled = (_training(name, few) for name in CONFIGURATIONS)
    masks = ("--masks", many / "masks", "--pattern", "{image}_{instance}.png")
    scans = (
        "--images",
        sources / "scans/images",
        "--labels",
        sources / "scans/labels",
        "--classes",
        "organ=1",
        "lesion=2",
    )
    maps = ("--labels", sources / "maps/labels", "--classes", sources / "maps/classes.json")
    others = [
        _converting("masks", 0, "masks", "--images", many / "images", *masks, "--case", r"(\d+)"),
        _packing(many, 0),
        _converting("volumes", 2, "volumes", *scans),
        _filling(many),
        _converting("dicom", 0, "volumes", "--dicom", sources / "study"),
        _scoring(many, small_weights(work), 1),
        _converting("labelmaps", 2, "labelmaps", "--images", sources / "maps/images", *maps, "--case", r"(.+)_\d+"),
        _packing(many, 2),
        _converting("nnunet", 0, "nnunet", sources / "Dataset001_Soak"),
        _scoring(many, small_weights(work), 2),
        _converting(
            "coco", 2, "coco", "--annotations", many / "coco.json", "--images", many / "images", "--case", r"(\d+)"
        ),
    ]
    for place, other in enumerate(others):
        yield training[place % len(training)]
        yield other
    yield compiled


def differences(a: object, b: object, where: str = "") -> list[str]:
    """The places where two nested values differ, tensors bitwise."""
    if isinstance(a, dict) and isinstance(b, dict):
        missing = [f"{where}/{key} is in one of them" for key in a.keys() ^ b.keys()]
        return missing + [
            place
            for key in sorted(a.keys() & b.keys(), key=str)
            for place in differences(a[key], b[key], f"{where}/{key}")
        ]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [place for i in range(len(a)) for place in differences(a[i], b[i], f"{where}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [where]
