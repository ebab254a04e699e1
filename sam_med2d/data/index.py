"""The JSON index of a data folder: which images there are, and which masks each has.

    python -c "from index import *; print(read_index('data_demo', 'train')[0])"

JSON is what people write and read. From a large index a columnar copy is made once (see copies.py) and memory-mapped:
SA-Med2D-20M lists 24 million paths, which as Python strings would be copied into every worker, page by page, as
reference counts change. Paths are kept as they stand in the index; `Index.path` turns them into paths that open.
"""

import json
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import BinaryIO

import ijson
import numpy as np
import pyarrow as pa
from tqdm import tqdm
from xxhash import xxh3_64_intdigest

from sam_med2d.data import arrow_copy as copies
from sam_med2d.data.arrow_copy import Columns, Write, columns_of, in_memory
from sam_med2d.data.reading import DataError
from segment_anything.files import replacing

# Names are kept as bytes: a file name need not be valid Unicode.
SCHEMA = pa.schema({"image": pa.binary(), "masks": pa.list_(pa.binary())})
ROWS = 1 << 14  # images a record batch; all but the last have so many
MISSING_SHOWN = 3  # missing paths an error lists; the rest are counted
JUST_NOW = 2.0  # seconds; a folder that changed since may change again without a new time stamp


class Index:
    """Images and the paths of their masks: `index[i]` is (image, [mask, ...]) as written in the JSON file.

    Images without masks are left out and counted in `images_without_masks`; `mask_count` counts the masks.
    """

    def __init__(self, root: str, source: str, groups: dict[str, list[str]] | Columns) -> None:
        """groups: {image: [mask, ...]}, in order, or the columns of an index."""
        if not isinstance(groups, Columns):
            groups = in_memory(SCHEMA, partial(_write_groups, groups.items()))
        self.root = root
        self.source = source
        self.columns = groups
        self.mask_count: int = groups.facts["masks"]
        self.images_without_masks: int = groups.facts["images_without_masks"]
        self._length: int = groups.facts["images"]
        self._first_masks = np.cumsum(
            [0, *(len(batch["masks"].flatten()) for batch in groups.batches)]
        )  # of the batches

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> tuple[str, list[str]]:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        images, masks = self.columns.batches[i // ROWS].columns
        return os.fsdecode(images[i % ROWS].as_py()), [os.fsdecode(mask) for mask in masks[i % ROWS].as_py()]

    def first_mask(self, i: int) -> int:
        """The number of an image's first mask, where the masks of all images are counted in order. i may be len(self)."""
        if i == len(self):
            return self.mask_count
        return int(self._first_masks[i // ROWS]) + self.columns.batches[i // ROWS]["masks"].offsets[i % ROWS].as_py()

    def path(self, name: str) -> str:
        """A path of the index -> a path that opens, wherever the process has moved to since."""
        return os.path.join(self.root, name)


def read_index(data_path: str | os.PathLike, split: str) -> Index:
    """Read and check `image2label_{split}.json` or `label2image_{split}.json` of the folder data_path.

    Both say the same; should both be there, "test" takes label2image and any other split image2label.

    Raises DataError: no index, not JSON or of another shape, no masks in it, or files in it that do not exist.
    """
    folder = os.path.abspath(data_path)
    source = find_index(folder, split)
    columns = index_columns(source)
    root = root_of(source, folder, os.fsdecode(columns.batches[0]["image"][0].as_py()))
    _check_files(source, root, columns)
    return Index(root, source, columns)


def find_index(folder: str, split: str) -> str:
    """The path of the index that read_index reads. Raises DataError: there is none."""
    kinds = ["image2label", "label2image"]
    if split == "test":
        kinds.reverse()
    candidates = [os.path.join(folder, f"{kind}_{split}.json") for kind in kinds]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise DataError(
        f"no index of split '{split}': looked for {' and '.join(candidates)}; check the data path and the split's name"
    )


def index_columns(source: str) -> Columns:
    """The columns of an index file, whether or not the files it lists exist. Raises DataError as read_index does."""
    try:
        return columns_of(source, SCHEMA, partial(_build, source, _write_groups))
    except _Interleaved:  # rare: scripts write the masks of an image together
        return columns_of(source, SCHEMA, partial(_build, source, _write_joined))


def root_of(source: str, folder: str, first_image: str) -> str:
    """The folder that paths of the index are relative to, by its first image alone.

    One root for the whole index: resolving file by file would mix two copies of a data set without a word.
    """
    roots = list(dict.fromkeys([folder, os.path.dirname(folder), os.getcwd()]))
    for root in roots:
        if os.path.isfile(os.path.join(root, first_image)):
            return root
    raise DataError(
        f"{source}: its first image {first_image} is not found under {', '.join(roots)}; "
        "write paths relative to one of these, or absolute"
    )


# ---------------------------------------------------------------- JSON -> columns


class _Interleaved(Exception):
    """An image comes again after another one, so its masks have to be gathered first."""


def _build(source: str, write_groups: Callable, file: BinaryIO, write: Write, scratch: str | None) -> dict:
    """Either kind of index -> record batches of SCHEMA, images in the order of their first appearance."""
    by_mask = os.path.basename(source).startswith("label2image")
    shape = "{mask path: image path}" if by_mask else "{image path: [mask path, ...]}"

    def groups() -> Iterator[tuple[str, list[str]]]:
        image, members = "", []
        for key, value in _entries(source, file, shape):
            # not isinstance: an inner JSON object is a list too, of pairs
            if (
                type(value) is not (str if by_mask else list)
                or not by_mask
                and not all(isinstance(name, str) for name in value)
            ):
                raise DataError(f"{source}: wrong value for '{key}'; the file must be {shape}")
            if not by_mask:
                yield key, value
            elif value == image:
                members.append(key)
            else:
                if members:
                    yield image, members
                image, members = value, [key]
        if members:
            yield image, members

    try:
        facts = write_groups(groups(), write, scratch)
    except UnicodeEncodeError as error:
        raise DataError(f"{source}: {error.object!r} cannot be a file name; write the index again") from error
    if not facts["masks"]:
        raise DataError(f"{source}: lists no masks; give at least one image with a mask")
    return facts


class _Pairs(list):
    """The entries of a JSON object, all of them: a dict would keep only the last of those with one key."""


def _entries(source: str, file: BinaryIO, shape: str) -> Iterable[tuple[str, object]]:
    """Key and value of each entry of the JSON object in a file; a large file is parsed as it is read."""
    try:
        if os.stat(source).st_size < copies.COPY_FROM:
            entries = json.loads(file.read(), object_pairs_hook=_Pairs)
            if not isinstance(entries, _Pairs):
                raise DataError(f"{source}: holds a {type(entries).__name__}; it must be {shape}")
            yield from entries
        else:
            with open(source, "rb") as start:
                if not start.read(1 << 10).lstrip().startswith(b"{"):
                    raise DataError(f"{source}: does not start with {{; it must be {shape}")
            yield from ijson.kvitems(file, "", buf_size=1 << 20)
    except DataError:
        raise
    except (ijson.JSONError, ValueError) as error:  # bad JSON and bad UTF-8 alike
        said = str(error).splitlines()[0]
        raise DataError(f"{source}: not valid JSON ({said}); write the index again") from error


def _write_groups(groups: Iterable[tuple[str, list[str]]], write: Write, scratch: str | None = None) -> dict:
    """(image, its masks) -> batches of ROWS images. -> facts. Raises _Interleaved where an image comes again."""
    seen = array("Q")
    facts = _write_rows(groups, write, seen)
    hashes = np.sort(np.frombuffer(seen, np.uint64))
    if (hashes[1:] == hashes[:-1]).any():
        raise _Interleaved
    return facts


def _write_rows(groups: Iterable[tuple[str, list[str]]], write: Write, seen: array) -> dict:
    """The same, but an image may come again. The hash of each image is added to seen."""
    facts = {"images": 0, "masks": 0, "images_without_masks": 0}
    images: list[bytes] = []
    masks: list[list[bytes]] = []

    def flush() -> None:
        write(pa.record_batch([pa.array(images, SCHEMA.types[0]), pa.array(masks, SCHEMA.types[1])], schema=SCHEMA))
        facts["images"] += len(images)
        seen.extend(map(xxh3_64_intdigest, images))
        images.clear()
        masks.clear()

    for image, members in groups:
        if not members:
            facts["images_without_masks"] += 1
            continue
        images.append(os.fsencode(image))
        masks.append([os.fsencode(name) for name in members])
        facts["masks"] += len(members)
        if len(images) == ROWS:
            flush()
    if images:
        flush()
    return facts


def _write_joined(groups: Iterable[tuple[str, list[str]]], write: Write, scratch: str | None) -> dict:
    """As _write_groups, with the masks of an image gathered from wherever they are: through a file in the folder scratch."""
    seen = array("Q")
    if scratch is None:
        facts: dict = {}
        rows = in_memory(SCHEMA, lambda write: facts.update(_write_rows(groups, write, seen)) or facts)
        return facts | _write_in_order(lambda: rows.batches, seen, write)
    with tempfile.NamedTemporaryFile(dir=scratch, prefix=".rows-") as file:
        with pa.OSFile(file.name, "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            facts = _write_rows(groups, writer.write_batch, seen)

        def batches() -> list[pa.RecordBatch]:
            reader = pa.ipc.open_file(pa.memory_map(file.name))
            return [reader.get_batch(i) for i in range(reader.num_record_batches)]

        return facts | _write_in_order(batches, seen, write)


def _write_in_order(batches: Callable[[], list[pa.RecordBatch]], seen: array, write: Write) -> dict:
    """Rows of which some have the same image -> batches of ROWS images, in the order of their first rows."""
    _, first, image_of = np.unique(np.frombuffer(seen, np.uint64), return_index=True, return_inverse=True)
    first = first[image_of]  # of each row, the first row of its image
    order = np.argsort(first, kind="stable")
    starts = np.flatnonzero(np.diff(first[order], prepend=-1))
    del first, image_of
    for k in range(0, len(starts), ROWS):
        cuts = starts[k : k + ROWS + 1] if k + ROWS < len(starts) else np.append(starts[k:], len(order))
        rows = order[cuts[0] : cuts[-1]]
        cuts = cuts - cuts[0]
        taken, places, opened = [], [], batches()  # mapped anew: pages of an old mapping count as ours
        for number in np.unique(rows // ROWS):
            here = np.flatnonzero(rows // ROWS == number)
            taken.append(opened[number].take(pa.array(rows[here] % ROWS)))
            places.append(here)
        back = pa.array(np.argsort(np.concatenate(places)))
        table = pa.Table.from_batches(taken).combine_chunks().take(back).combine_chunks()
        lists = table["masks"].chunk(0)
        masks = pa.ListArray.from_arrays(pa.array(lists.offsets.to_numpy()[cuts]), lists.flatten())
        write(pa.record_batch([table["image"].chunk(0).take(pa.array(cuts[:-1])), masks], schema=SCHEMA))
    return {"images": len(starts)}


# ---------------------------------------------------------------- do the files exist?


def _check_files(source: str, root: str, columns: Columns) -> None:
    """Raise DataError if a path of the index does not exist. Lists each folder once: no stat a file.

    Of an index with a copy, the time stamps of its folders are kept beside the copy: while they stay as they are, no file
    was removed, and nothing is listed.
    """
    known = _read_checked(columns, root)
    current = {folder: _changed_at(root, folder) for folder in known}
    unchanged = {folder for folder, stamp in known.items() if stamp is not None and current[folder] == stamp}
    if known and len(unchanged) == len(known):
        return
    hashes: dict[bytes, array] = {}  # of the files of each folder; of 24 million files 190 MB
    for names in _names(columns):
        for name in names:
            cut = name.rfind(b"/") + 1
            of_folder = hashes.get(name[:cut])
            if of_folder is None:
                of_folder = hashes[name[:cut]] = array("Q")
            of_folder.append(xxh3_64_intdigest(name[cut:]))
    wanted = {os.fsdecode(folder): of_folder for folder, of_folder in hashes.items()}
    stamps = {folder: _changed_at(root, folder) for folder in wanted}  # before they are listed

    missing = {}
    for folder, of_folder in tqdm(
        wanted.items(),
        desc="looking for the files",
        unit="folder",
        leave=False,
        dynamic_ncols=True,
        disable=columns.path is None,
    ):
        if folder not in unchanged and len(not_listed := _not_listed(os.path.join(root, folder), _distinct(of_folder))):
            missing[folder] = not_listed
    if missing:
        _raise_if_missing(source, root, columns, missing)
    if columns.path:
        _write_checked(columns, root, stamps)


def _names(columns: Columns) -> Iterator[list[bytes]]:
    """Every path, in parts: images, then their masks."""
    for batch in columns.read_batches():
        yield batch["image"].to_pylist()
        yield batch["masks"].flatten().to_pylist()


def _distinct(hashes: array) -> np.ndarray:
    """Ascending. By sorting: numpy.unique makes a hash table, many times as large."""
    ordered = np.sort(np.frombuffer(hashes, np.uint64))
    return ordered[np.append(True, ordered[1:] != ordered[:-1])]


def _not_listed(folder: str, wanted: np.ndarray) -> np.ndarray:
    """Those of the hashes that are of no file name in the folder. Both are distinct and ascending."""
    found = np.zeros(len(wanted), bool)
    listed, enough = array("Q"), max(1 << 10, len(wanted)) // 4

    def mark() -> None:
        places, present = _look_up(np.sort(np.frombuffer(listed, np.uint64)), wanted)
        found[places[present]] = True

    try:
        with os.scandir(os.fsencode(folder) or b".") as entries:
            for entry in entries:
                listed.append(xxh3_64_intdigest(entry.name))
                # A small index of a folder with millions of files ends early.
                if len(listed) >= enough:
                    mark()
                    listed = array("Q")
                    if found.all():
                        return wanted[:0]
        mark()
    except (OSError, ValueError):  # ValueError: a null character in the path
        pass  # the folder is missing or cannot be listed; the files decide
    return wanted[~found]


def _look_up(hashes: np.ndarray, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-> of each hash its place in `ordered`, and whether it is there."""
    places = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    return places, ordered[places] == hashes


def _raise_if_missing(source: str, root: str, columns: Columns, suspects: dict[str, np.ndarray]) -> None:
    """suspects: of each folder, hashes of names that it does not list, ascending."""
    shown: dict[str, list[str]] = {folder: [] for folder in suspects}
    count = 0
    for names in _names(columns):
        in_folder: dict[bytes, list[bytes]] = {}
        for name in names:
            in_folder.setdefault(name[: name.rfind(b"/") + 1], []).append(name)
        for folder, here in ((os.fsdecode(folder), here) for folder, here in in_folder.items()):
            if folder not in suspects:
                continue
            hashes = np.fromiter(
                (xxh3_64_intdigest(name[name.rfind(b"/") + 1 :]) for name in here), np.uint64, len(here)
            )
            for i in np.flatnonzero(_look_up(hashes, suspects[folder])[1]).tolist():
                name = os.fsdecode(here[i])
                # A file system may open a name that it lists in another spelling (letter case, Unicode form, backslashes).
                if os.path.isfile(os.path.join(root, name)):
                    continue
                count += 1
                if len(shown[folder]) < MISSING_SHOWN:
                    shown[folder].append(name)
    if count:
        first = [name for names in shown.values() for name in names][:MISSING_SHOWN]
        raise DataError(
            f"{source}: {count} listed file(s) missing under {root}: {', '.join(first)}{', ...' if count > len(first) else ''}; "
            "restore them or take them out of the index"
        )


def _changed_at(root: str, folder: str) -> int | None:
    """When a folder last changed, in nanoseconds; None if that is unknown, or so recent that it may change again unseen."""
    try:
        stamp = os.stat(os.path.join(root, folder)).st_mtime_ns
    except (OSError, ValueError):
        return None
    return stamp if abs(time.time() - stamp / 1e9) > JUST_NOW else None


def _read_checked(columns: Columns, root: str) -> dict[str, int | None]:
    """{folder: when it had last changed before all its files were found}, of the same index under the same root."""
    if columns.path is None:
        return {}
    try:
        with open(f"{columns.path}.checked", "rb") as file:
            checked = json.load(file)
        return checked["folders"] if (checked["hash"], checked["root"]) == (columns.facts["hash"], root) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_checked(columns: Columns, root: str, stamps: dict[str, int | None]) -> None:
    try:
        with replacing(f"{columns.path}.checked") as path:
            path.write_text(json.dumps({"hash": columns.facts["hash"], "root": root, "folders": stamps}))
    except OSError:
        pass  # the folders are listed again next time
