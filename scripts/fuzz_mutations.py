"""Ways to spoil a file, for scripts/fuzz.py: of its bytes, and of what its format is made of.

`spoiled(content, kind, others, rng)` is a function of its arguments alone.
"""

import csv
import gzip
import io
import json
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pydicom
import torch

Mutation = Callable[[bytes, random.Random], bytes]

ODD_BYTES = (0x00, 0xFF, 0x7F, 0x80, 0x01, 0x20, 0x0A, 0x22, 0x5B, 0x7B)
ODD_NUMBERS = (0, 1, -1, 2, 7, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1)
LARGE = 10**400  # more than a float holds
ODD_TEXTS = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\ud800",
        "\n",
        "../../x",
        "/",
        "\\",
        "C:\\x",
        "=1+1",
        "nan",
        "inf",
        "-1",
        "1e400",
        "0x10",
    ),
    *(
        "9" * 5000,
        "a" * 5000,
        "é\u202e",
        "١٢",
        "null",
        "[]",
        "{}",
        "1,5",
        "#ff8000",
        "#zzzzzz",
        "²",
        "\ufeff",
        "-0",
        "1_0",
    ),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 65536, 2**31, 2**63, 2**64, LARGE, -LARGE, 0.5, -0.0, 1e308, 3e9),
    *(float("nan"), float("inf"), float("-inf"), [], {}, [[]], [None], {"": None}, [{}], {"a": [1, 2]}),
)


def spoiled(content: bytes, kind: str, others: Sequence[bytes], rng: random.Random) -> bytes:
    """content, with one to three mutations. kind: a key of FORMATS, or "bytes"; others: files to splice with."""
    of_format = FORMATS.get(kind)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if of_format and rng.random() < 0.65:
            try:
                content = of_format(content, rng)
                continue
            except Exception:  # what was spoiled before may be no file of its format any more
                pass
        mutation = rng.choice((*BYTES, *BYTES, None))
        content = mutation(content, rng) if mutation else splice(content, rng.choice((content, *others)), rng)
    return content


# ---------------------------------------------------------------- bytes


def place(content: bytes, rng: random.Random) -> int:
    """Half of them in the first 512 bytes, where headers are."""
    return rng.randrange(max(1, min(len(content), 512) if rng.random() < 0.5 else len(content)))


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
        if data:
            data[place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def set_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        if data:
            data[place(data, rng)] = rng.choice(ODD_BYTES)
    return bytes(data)


def set_number(content: bytes, rng: random.Random) -> bytes:
    """A number of 2, 4 or 8 bytes, either way round."""
    size = rng.choice((2, 4, 8))
    number = (rng.choice(ODD_NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, rng.choice(("little", "big")))
    at = place(content, rng)
    return content[:at] + number + content[at + size :]


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: place(content, rng)]


def cut_out(content: bytes, rng: random.Random) -> bytes:
    at = place(content, rng)
    return content[:at] + content[at + rng.choice((1, 2, 4, 16, 128, 1024)) :]


def byte_run(content: bytes, rng: random.Random) -> bytes:
    """Overwritten by, or with more in between, of one byte or of noise."""
    at, length = place(content, rng), rng.choice((1, 4, 16, 64, 512, 4096))
    run = rng.randbytes(length) if rng.random() < 0.3 else bytes([rng.choice(ODD_BYTES)]) * length
    return content[:at] + run + content[at + (length if rng.random() < 0.6 else 0) :]


def swap_blocks(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 4, 16, 64, 256))
    one, other = sorted((place(content, rng), place(content, rng)))
    if other - one < size:
        return content[one:] + content[:one]
    a, b = content[one : one + size], content[other : other + size]
    return content[:one] + b + content[one + size : other] + a + content[other + size :]


def repeat_block(content: bytes, rng: random.Random) -> bytes:
    at, size = place(content, rng), rng.choice((1, 8, 64, 512))
    return content[:at] + content[at : at + size] * rng.choice((2, 3, 50)) + content[at + size :]


def splice(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """The header of one file before the rest of another."""
    header, rest = (content, other) if rng.random() < 0.5 else (other, content)
    return header[: place(header, rng)] + rest[place(rest, rng) :]


BYTES: tuple[Mutation, ...] = (
    *(flip_bits, flip_bits, set_bytes, set_number, set_number, truncate),
    *(cut_out, byte_run, swap_blocks, repeat_block),
)


def any_of_bytes(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(BYTES)(content, rng)


# ---------------------------------------------------------------- trees: JSON, and what checkpoints hold


def odd_value(rng: random.Random) -> Any:
    which = rng.random()
    if which < 0.3:
        return rng.choice(ODD_TEXTS)
    if which < 0.34:
        return nested(rng.choice((20, 70, 2000)), rng.random() < 0.5)
    return rng.choice(ODD_VALUES)


def nested(depth: int, lists: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


def _places(node: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    keys = [*node] if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        found.append((node, key))
        _places(node[key], found)
    return found


def spoil_tree(tree: Any, rng: random.Random, odd: Callable[[random.Random], Any] = odd_value) -> Any:
    """Changed in place, and returned: a value replaced, taken out, renamed, moved, repeated or wrapped."""
    places = _places(tree, [])
    if not places or rng.random() < 0.02:
        return odd(rng)
    inside, key = rng.choice(places)
    how = rng.randrange(8)
    if how < 3:
        inside[key] = odd(rng)
    elif how == 3:
        del inside[key]
    elif how == 4 and isinstance(inside, dict):
        inside[str(rng.choice(ODD_TEXTS))] = inside.pop(key)
    elif how == 5:
        there, other = rng.choice(places)
        if there is not inside or other != key:
            inside[key] = json.loads(json.dumps(there[other])) if _is_json(there[other]) else there[other]
    elif how == 6 and isinstance(inside, list):
        inside.extend([inside[key]] * rng.choice((1, 5, 300)))
    else:
        inside[key] = [inside[key]] if rng.random() < 0.5 else {"a": inside[key]}
    return tree


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def of_json(content: bytes, rng: random.Random) -> bytes:
    tree = spoil_tree(json.loads(content), rng)
    how = rng.random()
    try:
        text = json.dumps(tree, ensure_ascii=how < 0.7)
    except (ValueError, RecursionError):  # 400 digits, or nested too deep for it
        return b"[" * 5000 + b"]" * 5000
    return text.encode(rng.choice(("utf-8",) * 8 + ("utf-16", "latin-1")), "surrogatepass" if how < 0.95 else "replace")


# ---------------------------------------------------------------- tables


def of_csv(content: bytes, rng: random.Random) -> bytes:
    rows = [*csv.reader(io.StringIO(content.decode()))]
    at = 0 if rng.random() < 0.3 else rng.randrange(len(rows))
    column = rng.randrange(len(rows[at]))
    how = rng.randrange(8)
    if how < 3:
        rows[at][column] = rng.choice((*ODD_TEXTS, "z" * 200_000, '"', "3e9", "Infinity", "a\nb"))
    elif how == 3:
        del rows[at][column]
    elif how == 4:
        rows[at].insert(column, rng.choice(ODD_TEXTS))
    elif how == 5:
        rows += [rows[at]] * rng.choice((1, 100))
    elif how == 6:
        del rows[at]
    else:
        for row in rows:
            if column < len(row):
                del row[column]
    text = io.StringIO()
    csv.writer(text, delimiter=rng.choice(",,,,;\t"), lineterminator=rng.choice(("\n", "\r\n", "\r"))).writerows(rows)
    return text.getvalue().encode(rng.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16")), "surrogatepass")


# ---------------------------------------------------------------- formats of pictures, scans and weights


def of_png(content: bytes, rng: random.Random) -> bytes:
    """A chunk spoiled, taken out, repeated or moved, all of them with checksums that fit; pixels repacked."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    which = rng.randrange(len(chunks))
    name, body = chunks[which]
    how = rng.randrange(6)
    if how == 0 and name == b"IDAT":
        chunks[which] = name, zlib.compress(any_of_bytes(zlib.decompress(body), rng))
    elif how < 3:
        chunks[which] = name, any_of_bytes(body, rng)
    elif how == 3:
        del chunks[which]
    elif how == 4:
        chunks.insert(rng.randrange(len(chunks)), (name, body))
    else:
        extra = rng.choice((b"tRNS", b"PLTE", b"eXIf", b"acTL", b"iCCP", b"gAMA", b"tEXt"))
        chunks.insert(rng.randrange(1, len(chunks)), (extra, rng.randbytes(rng.choice((0, 1, 3, 8, 26, 768)))))
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def of_gzip(content: bytes, rng: random.Random) -> bytes:
    return gzip.compress(any_of_bytes(gzip.decompress(content), rng), 1, mtime=0)


def of_text_header(content: bytes, rng: random.Random) -> bytes:
    """A line of the header of NRRD and MHA: its value replaced, or the line taken out or repeated."""
    end = content.find(b"\n\n") if content.startswith(b"NRRD") else content.find(b"LOCAL\n")
    lines, rest = content[:end].split(b"\n"), content[end:]
    at = rng.randrange(len(lines))
    how = rng.randrange(5)
    if how < 3:
        key, mark, value = re.match(rb"([^=:]*)(:=?|=)?(.*)", lines[at]).groups()  # type: ignore[union-attr]
        words = value.split() or [b""]
        words[rng.randrange(len(words))] = str(rng.choice((*ODD_TEXTS, *ODD_VALUES))).encode("utf-8", "replace")
        lines[at] = key + (mark or b"") + b" " + b" ".join(words)
    elif how == 3:
        del lines[at]
    else:
        lines.insert(at, lines[at])
    return b"\n".join(lines) + rest


def of_dicom(content: bytes, rng: random.Random) -> bytes:
    """An element at any depth: another value, another kind, or none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(io.BytesIO(content))
        found: list[tuple[pydicom.Dataset, pydicom.DataElement]] = []
        data.walk(lambda dataset, element: found.append((dataset, element)))
        dataset, element = rng.choice(found)
        how = rng.randrange(4)
        if how == 0:
            del dataset[element.tag]
        elif element.VR == "SQ":
            element.value = [] if how == 1 else [pydicom.Dataset()] if how == 2 else [*element.value, *element.value]
        else:  # as bytes, so that nothing asks whether the value is one
            values = [
                b"",
                b"0",
                b"-1",
                b"nan",
                b"inf",
                b"1e400",
                b"1\\2",
                b"\\\\",
                b"9" * 64,
                b"abc",
                b"0.5\\x",
                b"\0\0",
            ]
            plain = rng.choice((*values, b"\xff" * 8, struct.pack("<d", 3e9), rng.randbytes(rng.choice((2, 4, 6, 8)))))
            dataset[element.tag] = pydicom.dataelem.RawDataElement(
                element.tag, element.VR, len(plain), plain + b" " * (len(plain) % 2), 0, False, True, True
            )
        target = io.BytesIO()
        data.save_as(target, enforce_file_format=False)
    return target.getvalue()


def of_zip(content: bytes, rng: random.Random) -> bytes:
    """A member spoiled, taken out or repeated, in an archive whose checksums fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    pickles = [i for i, (name, _) in enumerate(members) if name.endswith(".pkl")]
    at = rng.choice(pickles) if pickles and rng.random() < 0.6 else rng.randrange(len(members))
    name, body = members[at]
    how = rng.randrange(6)
    if how < 4:
        members[at] = name, any_of_bytes(body, rng)
    elif how == 4:
        del members[at]
    else:
        members[at] = rng.choice(("../x", "a/b", name.upper(), name + "\0")), body
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, body in members:
            archive.writestr(zipfile.ZipInfo(name), body)
    return target.getvalue()


def of_checkpoint(content: bytes, rng: random.Random) -> bytes:
    """What a .pth holds: a value, tensors included, of another kind, shape or place; or its archive."""
    if rng.random() < 0.4:
        return of_zip(content, rng)
    tree = torch.load(io.BytesIO(content), weights_only=True)
    target = io.BytesIO()
    torch.save(spoil_tree(tree, rng, _odd_leaf), target)
    return target.getvalue()


def _odd_leaf(rng: random.Random) -> Any:
    tensors = (
        *(lambda: torch.zeros(0), lambda: torch.tensor(float("nan")), lambda: torch.full((2, 2), float("inf"))),
        *(
            lambda: torch.zeros(3, dtype=torch.complex64),
            lambda: torch.zeros(2, 3).to_sparse(),
            lambda: torch.ones(1, 1),
        ),
        *(lambda: torch.zeros(1).expand(4, 10**6), lambda: torch.empty(3, device="meta")),
        *(lambda: torch.zeros(2, dtype=torch.bool), lambda: torch.zeros(2, dtype=torch.int64)),
    )
    return rng.choice(tensors)() if rng.random() < 0.5 else odd_value(rng)


def of_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Its header of JSON, with the length that fits."""
    (length,) = struct.unpack_from("<Q", content)
    header = of_json(content[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


FORMATS: dict[str, Mutation] = {
    "json": of_json,
    "csv": of_csv,
    "png": of_png,
    "gzip": of_gzip,
    "header": of_text_header,
    "dicom": of_dicom,
    "zip": of_zip,
    "checkpoint": of_checkpoint,
    "safetensors": of_safetensors,
}
