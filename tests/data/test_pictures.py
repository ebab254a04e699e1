"""Picture files: what a mask is, what a header says before anything is decoded, orientation, and what is refused."""

import argparse
import json
import os
import resource
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sam_med2d.data import decoding
from sam_med2d.data.decoding import INVERSE, add_reading_flags, decode, open_picture, reading_flags, turned
from sam_med2d.data.headers import read_header
from sam_med2d.data.reading import read_image, read_label_map, read_mask
from sam_med2d.errors import DataError, UsageError
from segment_anything.images import to_8_bits

SHAPE = (12, 17)
OBJECT = np.zeros(SHAPE, bool)
OBJECT[3:8, 5:9] = True


def painted(ground, shape, mask: np.ndarray = OBJECT) -> np.ndarray:
    """(H, W, C) uint8: two kinds of pixels."""
    return np.where(mask[..., None], np.uint8(shape), np.uint8(ground))


def palette(colours: list[tuple[int, int, int]], indices: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def saved(folder: Path, image: Image.Image | np.ndarray, name: str = "mask.png", **settings) -> str:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(folder / name, **settings)
    return str(folder / name)


BLACK, WHITE, RED, BLUE = (0, 0, 0), (255, 255, 255), (200, 0, 0), (0, 0, 4)


# ---------------------------------------------------------------- what a mask is


@pytest.mark.parametrize(
    "image",
    [
        painted((*WHITE, 0), (*WHITE, 255)),  # white on transparent
        painted((*BLACK, 0), (*BLACK, 255)),
        painted((*BLACK, 0), (*WHITE, 255)),
        painted((*WHITE, 0), (*BLACK, 255)),
        painted((*BLACK, 255), (*WHITE, 255)),
        painted((0, 0), (0, 255)),  # grey and alpha
        painted(BLACK, BLUE),  # brightness 0.4, which rounds to black
        painted(BLACK, RED),
        painted(WHITE, RED),  # the ground is what the border shows
        painted(RED, (0, 90, 0)),
        palette([WHITE, BLACK], OBJECT),  # index 0 is the ground, whatever its colour
        palette([BLACK, WHITE], OBJECT),
        palette([RED, BLUE, WHITE], 2 * OBJECT),
        Image.fromarray(OBJECT),  # one bit
        OBJECT.astype(np.uint8) + 1,
    ],
)
@pytest.mark.parametrize("ending", [".png", ".tif", ".webp", ".bmp"])
def test_one_object_however_it_is_drawn(image, ending: str, tmp_path: Path) -> None:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if ending == ".webp" and image.mode not in ("RGB", "RGBA"):
        pytest.skip("WebP has colours alone")
    if ending == ".bmp" and image.mode in ("RGBA", "LA"):
        pytest.skip("BMP has no alpha that readers agree on")
    path = saved(tmp_path, image, f"mask{ending}", **({"lossless": True, "exact": True} if ending == ".webp" else {}))
    assert (read_mask(path, SHAPE) == OBJECT).all()


def test_transparency_without_a_channel(tmp_path: Path) -> None:
    grey = np.where(OBJECT, 255, 0).astype(np.uint8)
    assert (read_mask(saved(tmp_path, grey, transparency=0), SHAPE) == OBJECT).all()
    inverted = np.where(OBJECT, 0, 255).astype(np.uint8)  # white is transparent: the ground
    assert (read_mask(saved(tmp_path, inverted, transparency=255), SHAPE) == OBJECT).all()
    assert (read_mask(saved(tmp_path, painted(WHITE, RED), transparency=WHITE), SHAPE) == OBJECT).all()
    indices = palette([WHITE, RED], ~OBJECT)  # index 0 is the object, and index 1 transparent
    assert (read_mask(saved(tmp_path, indices, transparency=b"\xff\x00"), SHAPE) == OBJECT).all()


BORDER = np.ones(SHAPE, bool)
BORDER[3:8, 5:9] = False
HALF = np.zeros(SHAPE, bool)
HALF[:6] = True


@pytest.mark.parametrize(
    "image",
    [
        palette([WHITE, BLACK], BORDER),  # the index says one thing, colours and border another
        painted(BLACK, RED, BORDER),  # black in the middle of red
        painted(RED, (0, 90, 0), HALF),  # no border to tell
    ],
)
def test_what_is_not_clear_is_refused(image, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mask.png: it is not clear which of its two values is the object: .* export"):
        read_mask(saved(tmp_path, image), SHAPE)


@pytest.mark.parametrize(
    "image, expected",
    [
        (np.zeros((*SHAPE, 4), np.uint8), False),
        (painted((*WHITE, 0), (*WHITE, 0)), False),  # transparent everywhere
        (painted(RED, RED), True),
        (palette([WHITE], np.zeros(SHAPE)), False),
        (palette([WHITE, BLACK], np.ones(SHAPE)), True),
    ],
)
def test_masks_of_one_value(image, expected: bool, tmp_path: Path) -> None:
    assert (read_mask(saved(tmp_path, image), SHAPE) == expected).all()


def test_a_threshold_is_named_and_takes_compressed_and_antialiased_masks(tmp_path: Path) -> None:
    large = np.roll(np.kron(OBJECT, np.ones((8, 8), bool)), (3, 2), (0, 1))  # off the blocks of a JPEG
    smooth = cv2.GaussianBlur(large.astype(np.uint8) * 255, (5, 5), 0)
    files = [
        saved(tmp_path, large.astype(np.uint8) * 255, "mask.jpg"),
        saved(tmp_path, smooth, "smooth.png"),
        saved(tmp_path, np.dstack([np.full_like(smooth, 255)] * 3 + [smooth]), "alpha.png"),
    ]
    for path in files:
        with pytest.raises(DataError, match=r"more than two values.*one object a file.*--threshold 128"):
            read_mask(path, large.shape)
        wrong = read_mask(path, large.shape, threshold=128) ^ large
        assert wrong.sum() <= 8  # at most the corners, which blurring rounds off
    assert (read_mask(saved(tmp_path, OBJECT.astype(np.uint8)), SHAPE, threshold=128) == OBJECT).all()  # 0 and 1


def test_label_maps_by_the_same_rule(tmp_path: Path) -> None:
    labels = OBJECT.astype(np.uint8) * 3
    kinds = {
        3: [labels, np.dstack([labels] * 3), palette([WHITE, RED, BLUE, BLACK], labels), labels.astype(np.int32)],
        255: [painted((*BLACK, 0), (*BLACK, 255)), painted((*WHITE, 0), (*WHITE, 255))],
        1: [Image.fromarray(OBJECT)],
    }
    for value, images in kinds.items():
        for image in images:
            name = "map.tif" if getattr(image, "dtype", None) == np.int32 else "map.png"
            found = read_label_map(saved(tmp_path, image, name), SHAPE, "its image", colours=False)
            assert found.shape == SHAPE and (found == OBJECT * value).all()
    colours = read_label_map(saved(tmp_path, painted((9, 9, 9, 0), (*RED, 255))), SHAPE, "its image", colours=True)
    assert (colours == OBJECT * 0xC80000).all()


# ---------------------------------------------------------------- orientation


def corners(size: tuple[int, int] = (9, 14)) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    image[:4, :5], image[-4:, :5], image[:4, -5:] = 60, 150, 250
    return image


def tagged(folder: Path, orientation: int, name: str, pixels: np.ndarray) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"lossless": True} if name.endswith("webp") else {}
    return saved(folder, pixels, name, exif=exif, **settings)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_and_turned(ending: str, orientation: int, tmp_path: Path) -> None:
    path = tagged(tmp_path, orientation, f"a.{ending}", corners((32, 48)))
    stored = corners((32, 48))
    tolerance = 60 if ending == "jpg" else 0
    assert read_header(Path(path).read_bytes())[1:4] == (48, 32, orientation)
    near = lambda a, b: a.shape == b.shape and (np.abs(a.astype(int) - b) <= tolerance).mean() > 0.97
    assert near(decode(open_picture(path), cv2.IMREAD_COLOR), stored)
    assert near(read_image(path), turned(stored, orientation))
    assert (turned(turned(stored, orientation), INVERSE[orientation]) == stored).all()
    if orientation >= 5:
        assert near(read_image(path, [(32, 48)]), stored)
        assert near(read_image(path, [(48, 32)]), turned(stored, orientation))


@pytest.mark.parametrize("orientation, size", [(3, (9, 14)), (2, (9, 14)), (6, (9, 9))])
def test_where_sizes_do_not_tell_it_is_said_and_the_environment_decides(
    orientation: int, size: tuple[int, int], tmp_path: Path, monkeypatch
) -> None:
    path = tagged(tmp_path, orientation, "a.png", corners(size))
    with pytest.raises(DataError, match=rf"a.png: its EXIF orientation is {orientation}.*--orientation") as caught:
        read_image(path, [size])
    assert caught.value.kind == "orientation"
    monkeypatch.setenv(decoding.ORIENTATION, "stored")
    assert (read_image(path, [size]) == corners(size)).all()
    monkeypatch.setenv(decoding.ORIENTATION, "turned")
    assert (read_image(path, [size]) == turned(corners(size), orientation)).all()
    monkeypatch.setenv(decoding.ORIENTATION, "sideways")
    with pytest.raises(UsageError, match="must be stored or turned"):
        read_image(path, [size])


# ---------------------------------------------------------------- refused before it is decoded


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_size_before_decoding(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(claiming(30000, 30000))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    for read in (read_image, lambda path: read_mask(path, (30000, 30000))):
        with pytest.raises(
            DataError, match=r"large.png: has 30000 x 30000 pixels, more than the 268435456 .*=900000000"
        ):
            read(str(path))
    data = bytearray(cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes())
    place = data.find(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65000, 65000)
    (tmp_path / "large.jpg").write_bytes(data)
    for name in ("large.tif", "large.bmp", "large.gif"):
        small = BytesIO()
        Image.fromarray(np.zeros((3, 5), np.uint8)).save(small, {"tif": "TIFF"}.get(name[-3:], name[-3:].upper()))
        packed = small.getvalue()
        if name.endswith("bmp"):
            packed = packed[:18] + struct.pack("<ii", 60000, 60000) + packed[26:]
        elif name.endswith("gif"):
            packed = packed[:6] + struct.pack("<HH", 65000, 65000) + packed[10:]
        else:
            for tag in (256, 257):
                entry = packed.find(struct.pack("<HH", tag, 4)) if packed.find(struct.pack("<HH", tag, 4)) > 0 else 0
                entry = entry or packed.find(struct.pack("<HH", tag, 3))
                packed = packed[: entry + 2] + struct.pack("<HII", 4, 1, 60000) + packed[entry + 12 :]
        (tmp_path / name).write_bytes(packed)
    for name in ("large.jpg", "large.tif", "large.bmp", "large.gif"):
        with pytest.raises(DataError, match=rf"{name}: has \d+ x \d+ pixels, more than"):
            read_image(str(tmp_path / name))


def test_the_budget_is_raised_and_lowered_by_the_environment(tmp_path: Path, monkeypatch) -> None:
    path = saved(tmp_path, np.zeros((20, 30), np.uint8), "a.png")
    monkeypatch.setenv("SAM_MED2D_MAX_PIXELS", "599")
    with pytest.raises(DataError, match="a.png: has 30 x 20 pixels, more than the 599"):
        read_image(path)
    monkeypatch.setenv("SAM_MED2D_MAX_PIXELS", "600")
    assert read_image(path).shape == (20, 30, 3)
    monkeypatch.setenv("SAM_MED2D_MAX_PIXELS", "many")
    with pytest.raises(UsageError, match="must be a number of pixels"):
        read_image(path)


def test_flags_hold_while_a_command_runs_and_no_longer(tmp_path: Path, monkeypatch, capsys) -> None:
    parser = argparse.ArgumentParser()
    add_reading_flags(parser)
    path = saved(tmp_path, np.zeros((20, 30), np.uint8), "a.png")
    monkeypatch.setenv(decoding.ORIENTATION, "stored")
    monkeypatch.delenv(decoding.VARIABLE, raising=False)
    before = dict(os.environ)
    with pytest.raises(DataError, match="more than the 599"), reading_flags(parser.parse_args(["--max_pixels", "599"])):
        assert os.environ[decoding.ORIENTATION] == "stored"
        read_image(path)
    assert dict(os.environ) == before and read_image(path).shape == (20, 30, 3)
    with reading_flags(parser.parse_args(["--orientation", "turned"])):
        assert os.environ[decoding.ORIENTATION] == "turned"
    assert dict(os.environ) == before
    for wrong in ("0", "-3", "many"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--max_pixels", wrong])
        assert f"--max_pixels: {wrong}: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [b"tEXt", b"IDAT", b"abcd", b"\x9b\xff\xff\xff"])
def test_a_chunk_that_is_longer_than_its_file(kind: bytes, tmp_path: Path) -> None:
    """OpenCV makes room for 4 GB, and clears it, before it finds that they are not there."""
    path = tmp_path / "mask.png"
    data = Path(saved(tmp_path, OBJECT.astype(np.uint8) * 255)).read_bytes()
    for length in (2**32 - 1, len(data)):
        path.write_bytes(data[:33] + struct.pack(">I", length) + kind + data[33:])
        for read in (read_image, lambda path: read_mask(path, SHAPE)):
            started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with pytest.raises(DataError, match=r"mask.png: .*export it again"):
                read(str(path))
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 100_000  # kB
    path.write_bytes(data + b"\xff" * 100)  # after its end there may be anything
    assert (read_mask(str(path), SHAPE) == OBJECT).all()


def test_several_pages_and_frames(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((9, 7), value, np.uint8)) for value in (0, 90, 200)]
    for kind in ("tif", "gif", "png", "webp"):
        path = saved(tmp_path, frames[0], f"a.{kind}", save_all=True, append_images=frames[1:])
        for read in (read_image, lambda path: read_mask(path, (9, 7))):
            with pytest.raises(DataError, match=rf"a.{kind}: has 3 pages"):
                read(path)
        assert read_image(saved(tmp_path, frames[1], f"one.{kind}")).shape == (9, 7, 3)


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint32, np.float64, np.int16, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiffs_of_all_types(kind: type, channels: int, tmp_path: Path) -> None:
    values = (np.arange(12 * 17 * channels).reshape(12, 17, -1) * 37 % 1000).astype(kind)
    (tmp_path / "a.tif").write_bytes(cv2.imencode(".tif", values)[1].tobytes())
    image = read_image(str(tmp_path / "a.tif"))
    assert (image == np.broadcast_to(to_8_bits(values), (12, 17, 3))).all()


def test_a_jpeg_that_decodes_with_warnings(tmp_path: Path, capfd) -> None:
    values = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8), (7, 7), 0)
    data = bytearray(cv2.imencode(".jpg", values)[1].tobytes())
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert read_image(str(path)).shape == (80, 90, 3)
    data[len(data) // 2] = 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a.jpg: damaged \(Corrupt JPEG data.*copy or export"):
        read_image(str(path))
    assert "Corrupt" not in capfd.readouterr().err
    assert read_image(saved(tmp_path, values, "b.jpg")).shape == (80, 90, 3)  # the next is judged by itself


def test_headers_that_are_none_raise_nothing(tmp_path: Path) -> None:
    """Truncations and flipped bytes of each kind: a header, or none, in a moment."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8))
    start = time.monotonic()
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM"):
        buffer = BytesIO()
        image.save(buffer, kind)
        whole = buffer.getvalue()
        assert read_header(whole)[1:3] == (20, 16)
        for _ in range(300):
            broken = bytearray(whole[: rng.integers(1, len(whole) + 1)])
            for place in rng.integers(0, min(len(broken), 200), 3):
                broken[place] = rng.integers(0, 256)
            (tmp_path / "a").write_bytes(broken)
            try:
                read_mask(str(tmp_path / "a"), (16, 20))
            except DataError as error:
                assert "\n" not in str(error)
    assert time.monotonic() - start < 120


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "a" * 5000 + ".png"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(DataError, match="cannot be"):
        read_image(name)


def test_indexes_written_on_windows(tmp_path: Path) -> None:
    from sam_med2d.data.index import read_index

    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        saved(tmp_path, OBJECT.astype(np.uint8), f"{name}/a.png")
    (tmp_path / "image2label_train.json").write_text(json.dumps({"images\\a.png": ["masks\\a.png"]}))
    (tmp_path / "label2image_test.json").write_text(json.dumps({"masks\\a.png": "images\\a.png"}))
    for split in ("train", "test"):
        assert read_index(tmp_path, split)[0] == ("images/a.png", ["masks/a.png"])
