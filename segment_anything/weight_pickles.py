"""What torch.save wrote, read without executing any of it, and checked against the checksums it carries.

Three gates before PyTorch's restricted unpickler: the archive unpacks to no more than its file may hold; the pickle
names nothing but tensors, plain containers and what is read as something inert; and it can build nothing large.
"""

import io
import os
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError

PICKLE_LIMIT = 16 * 2**20  # bytes of the pickle alone, which holds names and shapes; SAM-Med2D's has 0.2 MB
SMALL_ARCHIVE = 64 * 2**20  # bytes to which any compressed archive may unpack
RATIO = 8  # to so many times its own size beyond that; float weights compress to 0.9
BUILT_LIMIT = 64 * 2**20  # bytes of strings that a pickle may build by repeating itself

# What tensors and plain containers are made of, of all that PyTorch's restricted unpickler would call.
PLAIN = re.compile(
    r"torch\.(cuda\.)?\w+Storage|torch\.storage\.\w+Storage|torch\.(u?int|b?float|complex|bool|half|double|long)\w*"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state|sparse_tensor|meta_tensor_no_storage)"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout|torch\.nn\.parameter\.Parameter"
    r"|torch\.(Tensor|Size|device)|collections\.(OrderedDict|Counter)|builtins\.(set|complex|dict)|_codecs\.encode"
)
# What people leave in their files, read as something inert: not even an optimizer's code runs.
INERT = re.compile(
    r"torch\.optim\.[\w.]+|torch\.torch_version\.TorchVersion|argparse\.Namespace|types\.SimpleNamespace"
    r"|pathlib\.(_local\.)?\w*Path|datetime\.\w+|builtins\.(list|int|float|str|bool|tuple)"
    r"|numpy\.(_?core\.(multiarray|numeric)\.\w+|dtype|ndarray|dtypes\.\w+|bool_?|(int|uint|float)\d+)"
)


class _Unread:
    """Stands for what is no weight. Its content is dropped."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _plain_dict(*_: object) -> dict:
    """Stands for collections.defaultdict, which PyTorch's restricted unpickler cannot fill."""
    return {}


def _plain_list(*_: object) -> list:
    """Stands for collections.deque."""
    return []


CONTAINERS: dict[str, Any] = {
    "collections.defaultdict": _plain_dict,
    "collections.deque": _plain_list,
    "builtins.dict": dict,
}


class Archive:
    """The file of a torch.save since PyTorch 1.6: a zip. Raises CheckpointError where it is none, or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.records = archive.infolist()
                self.checked = any(record.CRC for record in self.records)  # torch.save can be told to write none
                self.stored = all(record.compress_type == zipfile.ZIP_STORED for record in self.records)
                self._check_sizes()
                self.pickle = self._small_records(archive)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise _damaged(path) from error

    def _check_sizes(self) -> None:
        size = os.path.getsize(self.path)
        unpacked = sum(record.file_size for record in self.records)
        limit = size if self.stored else max(RATIO * size, SMALL_ARCHIVE)
        if unpacked > limit:
            raise CheckpointError(
                f"{self.path}: a file of {_megabytes(size)} that unpacks to {_megabytes(unpacked)}, which weights do "
                "not; get the file from its author again"
            )

    def _small_records(self, archive: zipfile.ZipFile) -> bytes:
        """-> the pickle. Its checksum and those of all that is no tensor are verified."""
        names = [record.filename for record in self.records]
        found = [record for record in self.records if re.fullmatch(r"([^/]+/)?data\.pkl", record.filename)]
        if len(found) != 1:
            raise CheckpointError(f"{self.path}: {_other_zip(names)}")
        if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
            raise CheckpointError(
                f"{self.path}: is a TorchScript program, not weights; save the state_dict of the model it was made from"
            )
        if found[0].file_size > PICKLE_LIMIT:
            raise CheckpointError(
                f"{self.path}: its list of tensors has {_megabytes(found[0].file_size)}; weights have less than "
                f"{_megabytes(PICKLE_LIMIT)}"
            )
        for record in self.records:
            if not self.checked:
                del record.CRC  # so that zipfile does not compare it
            if record is not found[0] and "/data/" not in record.filename and record.file_size < 2**20:
                archive.read(record)
        return archive.read(found[0])

    def verify(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Compare the bytes of tensors, {name: tensor}, with the checksums of the archive.

        A mapped file is read without them. Raises CheckpointError with the first tensor that differs.
        """
        if not self.checked:
            return
        known = {(record.file_size, record.CRC) for record in self.records}
        seen: set[int] = set()
        for name, tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data
                if (len(content), zlib.crc32(content)) not in known:
                    raise CheckpointError(
                        f"{self.path}: damaged: {name} differs from its checksum; download or copy it again, or go "
                        "back to an earlier file"
                    )


def read_archive(archive: Archive) -> object:
    """What an archive holds. Tensors are views of the file where it is not compressed."""
    inert = _check_pickle(io.BytesIO(archive.pickle), archive.path)
    return _load(archive.path, inert, mmap=archive.stored)


def read_old_pickle(path: Path) -> object:
    """What torch.save wrote before PyTorch 1.6: pickles, then bytes. It has no checksums."""
    inert: list[str] = []
    with path.open("rb") as file:
        limited = _Limited(file, path)
        for _ in range(5):  # a mark, a version, a system, the content, the keys of the tensors
            inert += _check_pickle(limited, path)
    return _load(path, inert, mmap=False)


def _load(path: Path, inert: list[str], mmap: bool) -> object:
    stand_ins: list[Any] = [(CONTAINERS.get(name, _Unread), name) for name in inert]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":  # of such a name torch.load believes the ending
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            # mmap: an optimizer's moments, half of such a file or more, are then never read from the disk
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged bytes end in any exception the unpickler happens to run into
        raise _damaged(path) from error


class _Limited:
    """A file of which pickles may read `PICKLE_LIMIT` bytes."""

    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        self.file, self.path, self.left = file, path, PICKLE_LIMIT

    def _count(self, content: bytes) -> bytes:
        self.left -= len(content)
        if self.left < 0:
            raise CheckpointError(f"{self.path}: not a PyTorch checkpoint: its list of tensors does not end")
        return content

    def read(self, count: int) -> bytes:
        return self._count(self.file.read(min(count, PICKLE_LIMIT + 1)))

    def readline(self) -> bytes:
        return self._count(self.file.readline(PICKLE_LIMIT + 1))

    def tell(self) -> int:
        return self.file.tell()


def _check_pickle(file: Any, path: Path) -> list[str]:
    """Read one pickle without building it. -> the names in it that need something inert in their place.

    Raises CheckpointError for names beyond `PLAIN` and `INERT`, and for what could grow beyond the file.
    """
    named: set[str] = set()
    calls, longest = 0, 0
    try:
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                named.add(f"{'builtins' if module == '__builtin__' else module}.{name}")
            elif operation.name in ("STACK_GLOBAL", "FRAME"):
                raise CheckpointError(
                    f"{path}: is a pickle of protocol 4 or later, which cannot be read without executing it; save it "
                    "with torch.save's own protocol"
                )
            elif operation.name in ("REDUCE", "NEWOBJ", "INST", "OBJ"):
                calls += 1
            elif isinstance(argument, str | bytes):
                longest = max(longest, len(argument))
    except CheckpointError:
        raise
    except Exception as error:  # of damaged bytes: whatever the standard library runs into
        raise _damaged(path) from error
    strange = sorted(name for name in named if not (PLAIN.fullmatch(name) or _inert(name)))
    if strange:
        raise CheckpointError(f"{path}: {_refusal(strange[0])}")
    if "_codecs.encode" in named and 4 * calls * longest > BUILT_LIMIT:
        raise CheckpointError(f"{path}: repeats a long string many times, which weights do not; it was not read")
    return [name for name in named if _inert(name)]


def _inert(name: str) -> bool:
    return name in CONTAINERS or INERT.fullmatch(name) is not None


def _refusal(name: str) -> str:
    if name.startswith("torch.nn.modules."):
        return (
            f"holds a whole pickled model ({name}), whose code would have to run; it was not executed. "
            "Save model.state_dict() in its place"
        )
    return (
        f"holds {name.removeprefix('builtins.')}, which weights do not need; it was not executed. "
        "Ask its author for a file with the state dict alone"
    )


def _other_zip(names: list[str]) -> str:
    if names and all(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays, not a PyTorch checkpoint; give weights of PyTorch or safetensors"
    weights = [name for name in names if name.endswith((".pth", ".pt", ".bin", ".ckpt", ".safetensors"))]
    if weights:
        return f"is a zip archive with {weights[0]} in it; unpack it and name that file"
    shown = ", ".join(names[:3]) or "nothing"
    return f"is a zip archive that holds {shown}, not a PyTorch checkpoint; download or copy it again"


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: damaged, or not a PyTorch checkpoint; download or copy it again")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
