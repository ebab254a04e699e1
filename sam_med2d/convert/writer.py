"""What is left on disk: a folder of pictures a case, a receipt a case, and the indexes made from the receipts.

    images/{case}/{modality}--{data set}--{case}--{axis}_{slice}.png        or ...--{picture}--2d_none.png
    masks/{case}/{the same}--{class}_{instance}.png                         0 and 255
    image2label_{train,val,test}.json   label2image_test.json   metadata.csv
    fold_0/ ...                         with folds, the same files a fold, with paths relative to the folder above
    .cases/{case}.json                  the receipt: the case was converted whole, from what, into what

A case is written in `.partial`, moved to its place and only then given its receipt: a run that is killed at any moment
loses the cases it was in, and a second run does those alone. Nothing depends on the order of cases, nor on time.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from sam_med2d.convert.cases import Case, Picture, Tally
from sam_med2d.convert.saturation import Ends, add_picture
from sam_med2d.convert.splits import SPLITS
from sam_med2d.data.metadata import COLUMNS, METADATA
from sam_med2d.errors import DataError, UsageError
from sam_med2d.image_files import encode_png
from sam_med2d.json_files import LARGE, parse_json
from segment_anything.files import replacing

RECEIPTS = ".cases"
PARTIAL = ".partial"
WRITTEN = ("images", "masks", RECEIPTS, PARTIAL)  # folders of the output; cases in them are written over
LONGEST_NAME = 60  # characters of a part of a file name
MOST_BYTES = 230  # of all parts together; file systems allow 255, with the number and the ending


def check_apart(output: Path, sources: Iterable[Path]) -> None:
    """Raises UsageError where the output would lie inside a source: sources are only read."""
    for source in sources:
        if output.resolve().is_relative_to(source.resolve()):
            raise UsageError(f"--output {output} lies inside {source}, which is only read; choose a folder beside it")


def safe_name(text: str) -> str:
    """A part of a file name that says `text`: letters of any script, digits and - _ . stay; the rest becomes _.

    Where that changes anything, a hash of the text is added, so that no two texts become one name.
    """
    name = re.sub(r"[^\w.-]|-{2,}", "_", unicodedata.normalize("NFC", text))[:LONGEST_NAME].strip("._")
    if name == text:
        return name
    return f"{name or 'unnamed'}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def fitting(name: str) -> str:
    """A file name without its ending, cut so that a number and an ending fit after it.

    With a hash of the whole where it was cut, so that no two become one.
    """
    data = name.encode()
    if len(data) <= MOST_BYTES:
        return name
    return f"{data[: MOST_BYTES - 9].decode(errors='ignore')}-{_digest(name)}"


def folder_of(dataset: str, case: Case) -> str:
    return fitting(f"{safe_name(dataset)}--{safe_name(case.name)}")


def read_receipt(output: Path, folder: str) -> dict | None:
    """The receipt of a case that was converted whole, else None."""
    try:
        return parse_json((output / RECEIPTS / f"{folder}.json").read_bytes(), LARGE)
    except FileNotFoundError:
        return None
    except ValueError:
        return None  # not written by us; convert the case again


def write_case(
    output: Path, dataset: str, case: Case, pictures: Iterable[Picture], fingerprint: str, tally: Tally
) -> None:
    """Write the pictures that have objects, and the receipt.

    Raises what `pictures` raises; then nothing has changed.
    """
    folder = folder_of(dataset, case)
    staging = output / PARTIAL / folder
    shutil.rmtree(staging, ignore_errors=True)
    for kind in ("images", "masks"):
        (staging / kind).mkdir(parents=True)
    entries: list[dict] = []
    written: set[str] = set()
    ends: Ends = {}
    flat = 0
    for picture in pictures:  # written without `write_png`: the folder is put in place as a whole, once
        if not picture.objects or picture.image is None:
            tally["pictures without objects"] += 1
            continue
        place = f"{picture.axis}_{picture.slice:04d}" if picture.axis else "2d_none"
        parts = map(safe_name, (picture.modality or "unknown", dataset, picture.name or case.name))
        stem = fitting("--".join([*parts, place]))
        if stem in written:
            raise DataError(f"{case.name}: two of its pictures are called {stem}; give them names of their own")
        written.add(stem)
        (staging / "images" / f"{stem}.png").write_bytes(encode_png(picture.image))
        add_picture(ends, picture)
        flat += bool(picture.image.min() == picture.image.max())
        masks = []
        for class_name, instance, mask in picture.objects:
            mask_name = f"{fitting(f'{stem}--{safe_name(class_name)}')}_{instance:03d}.png"
            (staging / "masks" / mask_name).write_bytes(encode_png(mask))
            masks.append([f"masks/{folder}/{mask_name}", class_name, instance])
        entries.append(
            {
                "image": f"images/{folder}/{stem}.png",
                "modality": picture.modality,
                "axis": picture.axis,
                "slice": picture.slice,
                "spacing": picture.spacing,
                "masks": masks,
            }
        )

    receipt = output / RECEIPTS / f"{folder}.json"
    receipt.unlink(missing_ok=True)  # from here until the new one is there, the case counts as not converted
    for kind in ("images", "masks"):
        target = output / kind / folder
        shutil.rmtree(target, ignore_errors=True)
        if entries:
            target.parent.mkdir(exist_ok=True)
            os.rename(staging / kind, target)
    shutil.rmtree(staging)
    with replacing(receipt) as path:
        path.write_text(
            json.dumps(
                {
                    "fingerprint": fingerprint,
                    "dataset": dataset,
                    "case": case.name,
                    "group": case.group,
                    "split": case.split,
                    "pictures": entries,
                    "left_out": dict(sorted(tally.items())),
                    "notes": tally.notes,
                    "ends": ends,
                    "flat": flat,
                }
            ),
            encoding="ascii",  # names of files may hold bytes that are no text
        )


def remove_case(output: Path, folder: str) -> None:
    """The receipt first: without it the rest is not there."""
    (output / RECEIPTS / f"{folder}.json").unlink(missing_ok=True)
    for place in (output / PARTIAL, output / "images", output / "masks"):
        shutil.rmtree(place / folder, ignore_errors=True)


def receipts(output: Path, skip: Container[str] = ()) -> Iterator[tuple[str, dict]]:
    """(folder of the case, its receipt) of everything converted so far, in the order of their names.

    skip: folders, without regard to case, that are not wanted.
    """
    names = sorted(path.name[: -len(".json")] for path in (output / RECEIPTS).glob("*.json"))
    for name in (name for name in names if name.casefold() not in skip):
        receipt = read_receipt(output, name)
        if receipt is not None:
            yield name, receipt


# ---------------------------------------------------------------- indexes


class IndexFiles:
    """The JSON indexes and the metadata table of one folder, written line by line, and put in place together."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        folder.mkdir(parents=True, exist_ok=True)

        def opened(name: str) -> TextIO:
            return stack.enter_context(_if_any(folder / name))

        self._lists = {split: _JsonObject(opened(f"image2label_{split}.json")) for split in SPLITS}
        self._by_mask = _JsonObject(opened("label2image_test.json"))
        self._metadata = csv.writer(opened(METADATA), lineterminator="\n")
        self._metadata.writerow(COLUMNS)
        self.counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}

    def add(self, split: str, image: str, rows: list[dict]) -> None:
        """An image with its masks: rows of COLUMNS without the image, what is missing or None being unknown."""
        self._lists[split].add(image, [row["mask"] for row in rows])
        self.counts[split].update(images=1, masks=len(rows))
        for row in rows:
            if split == "test":
                self._by_mask.add(row["mask"], image)
            values = {**row, "image": image}
            self._metadata.writerow(["" if values.get(column) is None else values[column] for column in COLUMNS])

    def finish(self) -> None:
        for entries in (*self._lists.values(), self._by_mask):
            entries.finish()


@contextmanager
def index_files(folders: list[Path]) -> Iterator[list[IndexFiles]]:
    """IndexFiles of every folder. All old files stay until all new ones are complete; those of empty splits go."""
    with ExitStack() as stack:
        files = [IndexFiles(folder, stack) for folder in folders]
        yield files
        for one in files:
            one.finish()


def remove_stale_indexes(output: Path, keep: list[Path]) -> None:
    """Indexes that an earlier run wrote for another number of folds."""
    for folder in [output, *output.glob("fold_*")]:
        if folder in keep:
            continue
        for path in [*folder.glob("image2label_*.json"), folder / "label2image_test.json", folder / "metadata.csv"]:
            path.unlink(missing_ok=True)
        if folder != output and not any(folder.iterdir()):
            folder.rmdir()


class _JsonObject:
    """{key: value, ...}, a line an entry; nothing at all if there is no entry."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._between = "{\n"

    def add(self, key: str, value: str | list[str]) -> None:
        self._file.write(
            f"{self._between}{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        )
        self._between = ",\n"

    def finish(self) -> None:
        if self._between != "{\n":
            self._file.write("\n}\n")


@contextmanager
def _if_any(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path`; if nothing was written to it, `path` is removed."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file
    if not path.stat().st_size:
        path.unlink()
