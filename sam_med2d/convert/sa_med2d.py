"""The source SA-Med2D-20M as published: its masks are single objects already, so only indexes are written.

File names tell modality, data set, case, axis, slice, class and instance; splits are made by case.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from sam_med2d.convert.splits import SPLITS, Splits
from sam_med2d.convert.writer import check_apart, index_files, remove_stale_indexes
from sam_med2d.data.names import CLASS_NAMES, Name, parse_name, read_class_names
from sam_med2d.errors import DataError, UsageError
from sam_med2d.json_files import JsonError, entries_of

INDEX = "SAMed2D_v1.json"


@dataclass(frozen=True)
class Defect:
    """A part of the published data that users found wrong.

    begins: of the case's name; empty: all cases of the data set.
    """

    dataset: str
    begins: str
    what: str
    source: str

    def __str__(self) -> str:
        return f"image(s) of {self.dataset}{f' {self.begins}*' if self.begins else ''}: {self.what} ({self.source})"

    def fits(self, name: Name) -> bool:
        return name.dataset == self.dataset and name.case.startswith(self.begins)


KNOWN_DEFECTS = (
    Defect(
        "Brain_PTM",
        "",
        "some images are a binary mask of the brain instead of the scan",
        "OpenGVLab/SAM-Med2D issue 63",
    ),
    Defect("QUBIQ2020", "1_brain-growth", "images look like masks", "OpenGVLab/SAM-Med2D issue 63"),
    Defect(
        "ichallenge_adam_task2",
        "",
        "masks are inverted: the optic disc is 0 and the rest is 1",
        "torch-em's loader of SA-Med2D-20M",
    ),
)
NO_MASKS = "images without a mask"
OTHER_IMAGE = "masks whose name is not that of their image"
TWICE = "masks listed twice for an image"
NO_NAME = "images whose name does not follow SA-Med2D-20M"


def index_sa_med2d(
    root: Path,
    output: Path,
    splits: Splits,
    *,
    exclude_defects: bool = False,
    datasets: tuple[str, ...] = (),
    modalities: tuple[str, ...] = (),
) -> None:
    """Write indexes of the folder that holds SAMed2D_v1.json, in one pass: memory does not grow with their length.

    Paths are relative to the folder above `output` where `root` lies in that, so that both can be moved together, else
    absolute. Known defects are counted, and with exclude_defects left out.
    datasets, modalities (ct, or ct_00): only these; empty: all. Raises DataError, UsageError.
    """
    check_apart(output, [root])
    above, root_there = output.resolve().parent, root.resolve()
    prefix = f"{root_there.relative_to(above) if root_there.is_relative_to(above) else root_there}/"
    classes = read_class_names(root / CLASS_NAMES) if (root / CLASS_NAMES).is_file() else {}
    names_of = {dataset: {number: name for name, number in ids.items()} for dataset, ids in classes.items()}
    folders = [output / f"fold_{fold}" for fold in range(splits.folds)] or [output]
    found: Counter[object] = Counter()  # of defects and of other reasons
    seen_datasets: set[str] = set()
    seen_modalities: set[str] = set()
    with index_files(folders) as files:
        for image, masks in _entries(root / INDEX):
            name = parse_name(image)
            if name is None:
                found[NO_NAME] += 1
                continue
            modality = f"{name.modality}_{name.sub_modality}"
            seen_datasets.add(name.dataset)
            seen_modalities |= {name.modality, modality}
            if (datasets and name.dataset not in datasets) or (
                modalities and not {name.modality, modality} & set(modalities)
            ):
                continue
            masks = _sound(image, masks, found, exclude_defects)
            defects = [defect for defect in KNOWN_DEFECTS if defect.fits(name)]
            found.update(defects)
            if not masks or (defects and exclude_defects):
                continue
            rows = [_row(prefix + mask, mask, name, modality, names_of) for mask in masks]
            for one, split in zip(files, splits.of(name.dataset, name.case, name.case)):
                one.add(split, prefix + image, rows)
        for flag, chosen, there in (
            ("--datasets", datasets, seen_datasets),
            ("--modalities", modalities, seen_modalities),
        ):
            if strange := sorted(set(chosen) - there):
                raise UsageError(
                    f"{flag} {' '.join(strange)}: not in {root / INDEX}, which has {', '.join(sorted(there)[:20])}"
                )
        if not any(one.counts[split]["masks"] for one in files for split in SPLITS):
            raise DataError(f"{root / INDEX}: lists no mask that is wanted")
    remove_stale_indexes(output, keep=folders)
    for folder, one in zip(folders, files):
        print(
            f"{folder}: "
            + "; ".join(
                f"{split} {one.counts[split]['images']} images, {one.counts[split]['masks']} masks" for split in SPLITS
            )
        )
    for what, count in found.items():
        kept = not exclude_defects and what not in (NO_MASKS, NO_NAME, TWICE)
        print(f"{count} {what}: " + ("kept; --exclude_defects leaves them out" if kept else "left out"))
    if not classes:
        print(f"no {CLASS_NAMES} in {root}: classes are given by their numbers")


def _sound(image: str, masks: list[str], found: Counter, exclude: bool) -> list[str]:
    """The masks of an image, defects among them counted and, with `exclude`, left out."""
    if not masks:
        found[NO_MASKS] += 1
    beginning = PurePosixPath(image).stem + "--"
    foreign = [mask for mask in masks if not mask.rpartition("/")[2].startswith(beginning)]
    found.update({OTHER_IMAGE: len(foreign)} if foreign else {})
    distinct = list(dict.fromkeys(masks))
    found.update({TWICE: len(masks) - len(distinct)} if len(distinct) < len(masks) else {})
    # Listed twice, a mask would have two rows in the table and two entries under one key: never kept.
    return [mask for mask in distinct if mask not in foreign] if exclude else distinct


def _row(path: str, mask: str, name: Name, modality: str, names_of: dict[str, dict[int, str]]) -> dict:
    own = parse_name(mask)
    class_names, number = names_of.get(name.dataset, {}), own.class_id if own else None
    return {
        "mask": path,
        "dataset": name.dataset,
        "modality": modality,
        "case": name.case,
        "axis": name.axis,
        "slice": name.slice,
        "class": number if number is None else class_names.get(number, number),
        "instance": own.instance if own else None,
    }


def _entries(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The entries of {image: [mask, ...], ...} one by one, while a bar shows how far the file is read.

    Raises DataError.
    """
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            with tqdm.wrapattr(file, "read", total=size, desc="reading", dynamic_ncols=True) as watched:
                for image, masks in entries_of(watched):
                    if not isinstance(masks, list) or not all(isinstance(mask, str) for mask in masks):
                        raise DataError(
                            f"{path}: wrong value for {image!r}; the file must be {{image path: [mask path, ...]}}"
                        )
                    yield image, masks
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the folder that holds it") from error
    except JsonError as error:
        raise DataError(f"{path}: not valid JSON ({error}); copy it again") from error
