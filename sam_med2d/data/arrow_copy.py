"""Columnar copies of large text files: made once, memory-mapped, shared by all processes of a machine.

The copy of data/image2label_train.json is data/.arrow/image2label_train.json.arrow, an Arrow file. Where that folder
cannot be written it lies under the user's cache folder, and where that cannot be written either the copy is made in
memory. It is a cache: it carries the size and the hash of the text it was made from, its own hash lies beside it, it
is made again when they disagree, and may be deleted. Small texts are read in less time than it takes to find a copy;
theirs is always made in memory.
"""

import json
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import pyarrow as pa
from filelock import FileLock, Timeout
from tqdm import tqdm
from xxhash import xxh3_64_hexdigest, xxh3_128

from sam_med2d.errors import DataError
from sam_med2d.json_files import parse_json
from segment_anything.files import replacing

FORMAT = 1  # of the copies; raise it when their content changes
COPY_FROM = 16 << 20  # bytes of text
WINDOW = 64 << 20  # bytes
OWN_HASH = ".xxh3"  # the ending of the file beside a copy that holds its hash
LONGEST_HASH = 64  # letters
Write = Callable[[pa.RecordBatch], None]
Build = Callable[[BinaryIO, Write, str | None], dict]


class Columns:
    """Record batches that lie in a memory-mapped file (`path`) or in memory (`path` is None).

    `facts` is what the builder said about the whole. Pickled as a path: a process started anew maps the same file.
    """

    def __init__(self, path: str | None, buffer: pa.Buffer) -> None:
        """Raises ValueError (pyarrow's ArrowInvalid among others) for anything but a whole copy of this format."""
        self.path = path
        self._buffer = buffer
        reader = pa.ipc.open_file(buffer)
        last = reader.num_record_batches - 1
        facts = reader.get_batch_with_custom_metadata(last).custom_metadata if last >= 0 else None
        if facts is None or b"facts" not in facts:
            raise ValueError("not a copy")
        self.facts: dict = parse_json(facts[b"facts"])
        if self.facts["format"] != FORMAT:
            raise ValueError("a copy of another version")
        self.batches = [reader.get_batch(i) for i in range(last)]

    def read_batches(self) -> Iterator[pa.RecordBatch]:
        """The batches one after the other, read and not mapped: touched pages of a mapping count as memory in use."""
        if self.path is None:
            yield from self.batches
            return
        with pa.OSFile(self.path) as file:
            reader = pa.ipc.open_file(file)
            for i in range(len(self.batches)):
                yield reader.get_batch(i)

    def __reduce__(self):
        return (_mapped, (self.path,)) if self.path else (Columns, (None, self._buffer))


def columns_of(source: str, schema: pa.Schema, build: Build) -> Columns:
    """The columns of a text file, from its copy; the copy is made first where there is none that fits.

    build(file, write, scratch) reads the text from a binary file, calls write with record batches of the schema and
    returns facts, a dict of plain values; scratch is a folder for temporary files, None where the copy is made in
    memory. It may raise DataError, as this does where the text cannot be read.
    """
    try:
        open(source, "rb").close()  # what follows takes an OSError for a place that cannot be written
        if os.stat(source).st_size < COPY_FROM:
            return in_memory(schema, lambda write: _build_from(source, build, write))
        refusals = []
        for path in _places(source):
            try:
                return _at(path, source, schema, build)
            except DataError:
                raise
            except OSError as error:  # read-only, full, or a file system without locks
                refusals.append(f"{path}: {error.strerror or error}")
        print(
            f"no room for a copy of {source} ({'; '.join(refusals)}): it is read into memory, each time anew",
            file=sys.stderr,
        )
        return in_memory(schema, lambda write: _build_from(source, build, write))
    except OSError as error:
        raise DataError(
            f"{source}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error


def in_memory(schema: pa.Schema, fill: Callable[[Write], dict]) -> Columns:
    """Columns without a file. fill(write) -> facts, as a builder."""
    sink = pa.BufferOutputStream()
    _write(sink, schema, fill)
    return Columns(None, sink.getvalue())


def _places(source: str) -> list[str]:
    """Where the copy may lie, the best first. The name of the second tells folders of one name apart."""
    folder, name = os.path.split(os.path.abspath(source))
    user = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [
        os.path.join(folder, ".arrow", f"{name}.arrow"),
        os.path.join(user, "sam-med2d", xxh3_64_hexdigest(os.fsencode(folder)), f"{name}.arrow"),
    ]


def _at(path: str, source: str, schema: pa.Schema, build: Build) -> Columns:
    """The copy at a place, made if it is not there. Raises OSError where it cannot be."""
    if (found := _valid(path, source)) is not None:
        return found
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with _locked(path):
        if (found := _valid(path, source)) is not None:  # another process has made it
            return found
        with replacing(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
            _write(sink, schema, lambda write: _build_from(source, build, write, os.path.dirname(path)))
        with replacing(path + OWN_HASH) as temporary:
            temporary.write_text(_hash_of(path))
    return _mapped(path)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Only one process makes a copy; the others wait for it. The lock of a killed process is free."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"waiting for another process that makes {path}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _valid(path: str, source: str) -> Columns | None:
    """None: no copy, half of one, one of another text, or one that is damaged: pyarrow takes it as it is."""
    try:
        with open(path + OWN_HASH, "rb") as file:
            if file.read(LONGEST_HASH) != _hash_of(path).encode():
                return None
        columns = _mapped(path)
    except (OSError, ValueError):
        return None
    if columns.facts["size"] != os.stat(source).st_size or columns.facts["hash"] != _hash_of(source):
        return None
    return columns


def _mapped(path: str) -> Columns:
    return Columns(path, pa.memory_map(path).read_buffer())


def _hash_of(source: str) -> str:
    """Twice as fast through mapped windows as through read; the windows keep it from counting as memory in use."""
    digest = xxh3_128()
    with open(source, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, WINDOW):
            with mmap.mmap(file.fileno(), min(WINDOW, size - start), offset=start, access=mmap.ACCESS_READ) as content:
                digest.update(content)
    return digest.hexdigest()


def _write(sink, schema: pa.Schema, fill: Callable[[Write], dict]) -> None:
    with pa.ipc.new_file(sink, schema) as writer:
        facts = fill(writer.write_batch)
        # Facts are known last. They travel with an empty batch at the end, so a file without it is half a copy.
        said = json.dumps({"format": FORMAT, **facts})
        writer.write_batch(pa.RecordBatch.from_pylist([], schema), custom_metadata={"facts": said})


def _build_from(source: str, build: Build, write: Write, scratch: str | None = None) -> dict:
    size = os.stat(source).st_size
    with (
        open(source, "rb") as file,
        tqdm(
            total=size,
            unit="B",
            unit_scale=True,
            desc=f"reading {os.path.basename(source)}",
            disable=size < COPY_FROM,
            dynamic_ncols=True,
            leave=False,
        ) as bar,
    ):
        hashing = _Hashing(file, bar)
        facts = build(cast(BinaryIO, hashing), write, scratch)  # it has what readers use
        return {**facts, "size": hashing.size, "hash": hashing.hash.hexdigest()}


class _Hashing:
    """A binary file to read from, front to back, that hashes what it gives."""

    def __init__(self, file: BinaryIO, bar: tqdm) -> None:
        self.file, self.bar = file, bar
        self.hash, self.size = xxh3_128(), 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.hash.update(data)
        self.size += len(data)
        self.bar.update(len(data))
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """The file belongs to whoever opened it."""
