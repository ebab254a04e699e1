"""A JSON index -> columns: images in the order of their first appearance, each with its masks."""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from sam_med2d.data import arrow_copy as copies
from sam_med2d.data.arrow_copy import Columns, Write, columns_of, in_memory
from sam_med2d.data.names import with_slashes
from sam_med2d.errors import DataError
from sam_med2d.json_files import JsonError, entries_of, parse_json
from segment_anything.files import passing

# Names are kept as bytes: a file name need not be valid Unicode.
SCHEMA = pa.schema({"image": pa.binary(), "masks": pa.list_(pa.binary())})

ROWS = 1 << 14  # images a record batch; all but the last have so many


def build_columns(source: str | dict[str, list[str]]) -> Columns:
    """The columns of an index file, whether or not the files it lists exist, or of {image: [mask, ...]}.

    Whatever the order of a file's entries, each image comes once, where it comes first, with all its masks.
    Raises DataError as read_index does.
    """
    if not isinstance(source, str):
        return in_memory(SCHEMA, partial(_write_groups, source.items()))
    try:
        return columns_of(source, SCHEMA, partial(_build, source, _write_groups))
    except _Interleaved:  # rare, as scripts write the masks of an image together: what was begun is thrown away
        return columns_of(source, SCHEMA, partial(_build, source, _write_joined))


class _Interleaved(Exception):
    """An image comes again after another one, so its masks have to be gathered first."""


WriteGroups = Callable[[Iterable[tuple[str, list[str]]], Write, str | None], dict]


def _build(source: str, write_groups: WriteGroups, file: BinaryIO, write: Write, scratch: str | None) -> dict:
    """Either kind of index -> record batches of SCHEMA, images in the order of their first appearance."""
    by_mask = os.path.basename(source).startswith("label2image")
    shape = "{mask path: image path}" if by_mask else "{image path: [mask path, ...]}"

    def groups() -> Iterator[tuple[str, list[str]]]:
        image, members = "", list[str]()
        for key, value in _entries(source, file, shape):
            # not isinstance: an inner JSON object is a list too, of pairs
            key = with_slashes(key)
            if not by_mask and type(value) is list and all(isinstance(name, str) for name in value):
                yield key, [with_slashes(name) for name in value]
                continue
            value = with_slashes(value) if isinstance(value, str) else value
            if not by_mask or not isinstance(value, str):
                raise DataError(f"{source}: wrong value for '{key}'; the file must be {shape}")
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
            entries = parse_json(file.read(copies.COPY_FROM + 1), copies.COPY_FROM, _Pairs)
            if not isinstance(entries, _Pairs):
                raise DataError(f"{source}: holds a {type(entries).__name__}; it must be {shape}")
            yield from entries
        else:
            with open(source, "rb") as start:
                if not start.read(1 << 10).lstrip().startswith(b"{"):
                    raise DataError(f"{source}: does not start with {{; it must be {shape}")
            yield from entries_of(file)
    except DataError:
        raise
    except JsonError as error:
        raise DataError(f"{source}: not valid JSON ({error}); write the index again") from error


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
    """As _write_groups, with the masks of an image gathered from wherever they are: through a file in `scratch`."""
    seen = array("Q")
    if scratch is None:
        facts: dict = {}
        rows = in_memory(SCHEMA, lambda write: facts.update(_write_rows(groups, write, seen)) or facts)
        return facts | _write_in_order(lambda: rows.batches, seen, write)
    with passing(Path(scratch) / "rows") as file:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            facts = _write_rows(groups, writer.write_batch, seen)

        def batches() -> list[pa.RecordBatch]:
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
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
