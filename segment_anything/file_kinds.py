"""What a file is, by its first bytes: the endings of weight files mean nothing.

`kind_of(path)` tells the three kinds that hold weights from one another, and names what is none of them.
"""

from pathlib import Path
from typing import Literal

from .errors import CheckpointError

Kind = Literal["safetensors", "zip", "pickle"]

READ = 512  # bytes
SAFETENSORS_HEADER = 8  # bytes: the length of the JSON that follows
PICKLE = b"\x80"  # then the protocol; what torch.save wrote before PyTorch 1.6 begins so too
ZIP = b"PK\x03\x04"
OTHERS = (  # first bytes, what they are, what to do
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (b"BZh", "a bzip2 archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file", "give weights of PyTorch or safetensors"),
    (b"GGUF", "a GGUF file", "give weights of PyTorch or safetensors"),
    (b"\x93NUMPY", "a NumPy array", "give weights of PyTorch or safetensors"),
    (b"\x89PNG", "a PNG picture", "give a weight file"),
    (b"\xff\xd8\xff", "a JPEG picture", "give a weight file"),
    (b"%PDF", "a PDF", "give a weight file"),
    (b"\x08", "an ONNX file or another protobuf", "give the PyTorch weights that it was exported from"),
)


def kind_of(path: Path) -> Kind:
    """Raises CheckpointError, with what the file is, where it can hold no weights."""
    try:
        with path.open("rb") as file:
            header = file.read(READ)
        size = path.stat().st_size
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: Is a directory; {_advice_for_folder(path)}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be opened ({reason}); check the path") from error
    if not header.strip(b" \t\r\n\0"):
        empty = "the file is empty" if not size else "the file begins with nothing but zeros or blanks"
        raise CheckpointError(f"{path}: {empty}; download or copy it again")
    if header[SAFETENSORS_HEADER : SAFETENSORS_HEADER + 1] == b"{" and header[4:SAFETENSORS_HEADER] == bytes(4):
        return "safetensors"  # a header of less than 4 GB; no text has four zeros there
    if header.startswith(ZIP):
        return "zip"
    text = header.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path}: is a web page, not weights; download the file it links to")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not weights; run `git lfs pull` where it came from")
    for start, name, remedy in OTHERS:
        if header.startswith(start):
            raise CheckpointError(f"{path}: is {name}, not weights; {remedy}")
    if header[257:262] == b"ustar":
        raise CheckpointError(f"{path}: is a tar archive, not weights; unpack it first")
    if header.startswith(PICKLE):
        return "pickle"
    raise CheckpointError(f"{path}: {_described_text(header)}not a PyTorch checkpoint; download or copy it again")


def _advice_for_folder(path: Path) -> str:
    endings = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
    try:
        found = sorted(file.name for file in path.iterdir() if file.suffix in endings)
    except OSError:
        found = []
    return f"name a file in it, such as {found[0]}" if found else "name a weight file"


def _described_text(header: bytes) -> str:
    """ "is JSON, ", 'is text that begins "404: Not Found", ', or that it is damaged."""
    try:
        text = header.decode("ascii").strip()
    except UnicodeDecodeError:
        return "damaged, or "
    if text.startswith("{") and '"weight_map"' in text:
        return "is the index of a file in several parts, "
    if text.startswith(("{", "[")):
        return "is JSON, "
    return f'is text that begins "{" ".join(text.split())[:40]}", '
