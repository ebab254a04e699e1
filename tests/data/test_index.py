"""The columnar copy of a large index says what the JSON says, whatever happens to either."""

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from sam_med2d.data import arrow_copy as arrow_copy_room
from sam_med2d.data import arrow_copy as copies
from sam_med2d.data import index as index_room
from sam_med2d.data import index_build as index_build_room
from sam_med2d.data import index_check as index_check_room
from sam_med2d.data.index import Index, read_index
from sam_med2d.data.index_build import build_columns
from sam_med2d.errors import DataError

GROUPS = {f"images/{i}.png": [f"masks/{i}_{k}.png" for k in range(i % 3)] for i in range(11)}  # every third has no mask
KEPT = {image: masks for image, masks in GROUPS.items() if masks}


@pytest.fixture(autouse=True)
def large(monkeypatch, tmp_path):
    """Every index counts as large, batches are short, and folders need not rest before their time stamps count."""
    monkeypatch.setattr(copies, "COPY_FROM", 0)
    monkeypatch.setattr(index_build_room, "ROWS", 3)
    monkeypatch.setattr(index_check_room, "JUST_NOW", -1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in [*GROUPS, *(mask for masks in GROUPS.values() for mask in masks)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    write(folder, GROUPS)
    return folder


def write(folder: Path, groups: dict, kind: str = "image2label", split: str = "train", **options) -> Path:
    entries = groups if kind == "image2label" else {mask: image for image, masks in groups.items() for mask in masks}
    path = folder / f"{kind}_{split}.json"
    path.write_text(json.dumps(entries, **options), encoding="utf-8")
    return path


def copy_of(folder: Path, name: str = "image2label_train.json") -> Path:
    return folder / ".arrow" / f"{name}.arrow"


def refuse_to_build(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("built again")

    monkeypatch.setattr(index_build_room, "_build", refuse)


# ---------------------------------------------------------------- content


@pytest.mark.parametrize("options", [{}, {"indent": 4}, {"separators": (",", ":")}, {"ensure_ascii": False}])
@pytest.mark.parametrize("kind", ["image2label", "label2image"])
def test_the_copy_says_what_the_json_says(data, kind, options):
    (data / "image2label_train.json").unlink()
    path = write(data, GROUPS, kind, **options)
    for _ in range(2):  # made, then mapped
        index = read_index(data, "train")
        assert list(index) == list(KEPT.items()) and index.columns.path == str(copy_of(data, path.name))
        assert (len(index), index.mask_count) == (7, 10)
        assert index.images_without_masks == (4 if kind == "image2label" else 0)
        assert [index.first_mask(i) for i in range(8)] == [0, 1, 3, 4, 6, 7, 9, 10]
        with pytest.raises(IndexError):
            index[7]


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_masks_of_an_image_are_joined_wherever_they_stand(data, monkeypatch, size):
    monkeypatch.setattr(copies, "COPY_FROM", size)
    entries = [(mask, image) for image, masks in KEPT.items() for mask in masks]
    entries = entries[::2] + entries[1::2]
    expected: dict[str, list[str]] = {}
    for mask, image in entries:
        expected.setdefault(image, []).append(mask)
    (data / "label2image_test.json").write_text(json.dumps(dict(entries)))
    index = read_index(data, "test")
    assert list(index) == list(expected.items()) and len(index) == 7 and index.mask_count == 10
    assert not list(data.glob("**/.rows-*"))


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_an_image_listed_twice_keeps_all_its_masks(data, monkeypatch, size):
    monkeypatch.setattr(copies, "COPY_FROM", size)
    text = '{"images/1.png": ["masks/1_0.png"], "images/2.png": ["masks/2_0.png"], "images/1.png": ["masks/2_1.png"]}'
    (data / "image2label_train.json").write_text(text)
    assert list(read_index(data, "train")) == [
        ("images/1.png", ["masks/1_0.png", "masks/2_1.png"]),
        ("images/2.png", ["masks/2_0.png"]),
    ]


def test_names_outside_ascii(data):
    groups = {"images/größe 肝.png": ["masks/a b.png"]}
    for name in ("images/größe 肝.png", "masks/a b.png"):
        (data / name).touch()
    for ensure_ascii in (True, False):
        write(data, groups, ensure_ascii=ensure_ascii)
        assert list(read_index(data, "train")) == list(groups.items())


def test_a_name_that_is_no_file_name_is_refused(data, monkeypatch):
    monkeypatch.setattr(copies, "COPY_FROM", 1 << 30)
    (data / "image2label_train.json").write_text('{"images/1.png": ["\\ud800.png"]}')
    with pytest.raises(DataError, match="image2label_train.json: .*cannot be a file name"):
        read_index(data, "train")


def test_an_index_of_a_dict():
    index = Index("/root", "somewhere", KEPT)
    assert list(index) == list(KEPT.items()) and index.mask_count == 10 and index.path("a.png") == "/root/a.png"


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"images/1.png": ["b"]', "not valid JSON"),
        ('{"images/1.png": ["b"],}', "not valid JSON"),
        ('{"images/1.png": ["b"]} 3', "not valid JSON"),
        ('{"images/1.png": ["\udcff"]}', "not valid JSON"),
        ("[]", "does not start with {"),
        ("", "does not start with {"),
        ('{"images/1.png": "masks/1_0.png"}', "wrong value for 'images/1.png'"),
        ('{"images/1.png": [1]}', "wrong value for 'images/1.png'"),
        ('{"images/1.png": {}}', "wrong value for 'images/1.png'"),
        ("{}", "lists no masks"),
        ('{"images/1.png": []}', "lists no masks"),
    ],
)
def test_a_bad_index_leaves_no_copy(data, text, message):
    (data / "image2label_train.json").write_bytes(os.fsencode(text))
    with pytest.raises(DataError, match=f"image2label_train.json: {message}") as caught:
        read_index(data, "train")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (data / ".arrow").iterdir() if path.suffix != ".lock"] == []


# ---------------------------------------------------------------- the copy


def test_the_copy_is_made_once(data, monkeypatch):
    read_index(data, "train")
    refuse_to_build(monkeypatch)
    assert list(read_index(data, "train")) == list(KEPT.items())


def test_a_small_index_gets_no_copy(data, monkeypatch):
    monkeypatch.setattr(copies, "COPY_FROM", 1 << 20)
    assert list(read_index(data, "train")) == list(KEPT.items())
    assert not (data / ".arrow").exists()


def test_another_text_makes_another_copy(data):
    path = data / "image2label_train.json"
    read_index(data, "train")
    status = path.stat()
    path.write_text(path.read_text().replace("masks/10_0", "masks/10_x"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time: only the content tells
    assert path.stat().st_size == status.st_size
    (data / "masks/10_x.png").touch()
    assert read_index(data, "train")[6] == ("images/10.png", ["masks/10_x.png"])
    write(data, {"images/1.png": ["masks/1_0.png"]})
    assert len(read_index(data, "train")) == 1


@pytest.mark.parametrize("part", [0, 0.3, 0.9, 0.999])
def test_a_half_written_copy_is_made_again(data, part):
    read_index(data, "train")
    copy = copy_of(data)
    copy.write_bytes(copy.read_bytes()[: int(part * copy.stat().st_size)])
    rewritten(copy)
    assert list(read_index(data, "train")) == list(KEPT.items())
    assert list(arrow_copy_room.Columns(None, pa.memory_map(str(copy)).read_buffer()).facts)  # whole again


@pytest.mark.parametrize("place", [0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_damaged_copy_is_made_again(data, place):
    """pyarrow takes flipped bits as they come: other names, and offsets that lead out of the file."""
    read_index(data, "train")
    copy = copy_of(data)
    whole = copy.read_bytes()
    at = int(place * len(whole))
    copy.write_bytes(whole[:at] + bytes(255 - byte for byte in whole[at : at + 40]) + whole[at + 40 :])
    assert list(read_index(data, "train")) == list(KEPT.items())
    assert copy.read_bytes() == whole


def test_a_copy_without_its_hash_is_made_again(data, monkeypatch):
    """As versions before there was one left it."""
    read_index(data, "train")
    (mark,) = copy_of(data).parent.glob("*.xxh3")
    said = mark.read_text()
    for spoil in (mark.unlink, lambda: mark.write_text("another"), lambda: mark.write_bytes(b"\xff" * 1000)):
        spoil()
        assert list(read_index(data, "train")) == list(KEPT.items())
        assert mark.read_text() == said


def rewritten(copy: Path) -> None:
    """Its hash says that it is as it was written."""
    Path(f"{copy}{copies.OWN_HASH}").write_text(copies._hash_of(str(copy)))


def test_a_file_without_its_last_batch_is_made_again(data):
    """As a writer leaves it that closes its file although it was interrupted."""
    read_index(data, "train")
    with pa.ipc.new_file(str(copy_of(data)), index_build_room.SCHEMA) as writer:
        writer.write_batch(pa.record_batch([[b"x"], [[b"y"]]], schema=index_build_room.SCHEMA))
    rewritten(copy_of(data))
    assert list(read_index(data, "train")) == list(KEPT.items())


def test_a_copy_of_another_version_is_made_again(data, monkeypatch):
    monkeypatch.setattr(copies, "FORMAT", 0)
    read_index(data, "train")
    monkeypatch.undo()
    monkeypatch.setattr(copies, "COPY_FROM", 0)
    assert list(read_index(data, "train")) == list(KEPT.items())


def test_an_interrupted_build_leaves_nothing_half(data, monkeypatch):
    entries = index_build_room._entries

    def interrupted(*arguments):
        for number, entry in enumerate(entries(*arguments)):
            if number == 8:
                raise KeyboardInterrupt
            yield entry

    monkeypatch.setattr(index_build_room, "_entries", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_index(data, "train")
    assert not copy_of(data).exists()
    monkeypatch.setattr(index_build_room, "_entries", entries)
    assert list(read_index(data, "train")) == list(KEPT.items())


def test_where_the_folder_cannot_be_written_the_user_cache_is_used(data, tmp_path, monkeypatch, capfd):
    (data / ".arrow").touch()  # no folder can be made here; permissions would not stop root
    index = read_index(data, "train")
    assert list(index) == list(KEPT.items()) and index.columns.path.startswith(str(tmp_path / "cache" / "sam-med2d"))
    refuse_to_build(monkeypatch)
    assert list(read_index(data, "train")) == list(KEPT.items())
    assert "no room" not in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(data, tmp_path):
    data.chmod(0o500)
    try:
        assert read_index(data, "train").columns.path.startswith(str(tmp_path / "cache"))
    finally:
        data.chmod(0o700)


def test_where_nothing_can_be_written_memory_is_used_and_said(data, tmp_path, capfd):
    (data / ".arrow").touch()
    (tmp_path / "cache").touch()
    index = read_index(data, "train")
    assert list(index) == list(KEPT.items()) and index.columns.path is None
    said = capfd.readouterr().err
    assert said.count("no room for a copy of") == 1 and str(data / "image2label_train.json") in said
    assert list(pickle.loads(pickle.dumps(index))) == list(KEPT.items())


def test_a_full_disk_ends_in_memory(data, monkeypatch, capfd):
    class Full:
        def __init__(self, *_):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(copies.pa, "OSFile", Full)
    assert list(Index("", "", build_columns(str(data / "image2label_train.json")))) == list(KEPT.items())
    assert "No space left on device" in capfd.readouterr().err and not copy_of(data).exists()


def test_processes_started_anew_map_the_same_file(data):
    index = read_index(data, "train")
    pickled = pickle.dumps(index)
    assert b"images/1.png" not in pickled and list(pickle.loads(pickled)) == list(KEPT.items())


def build_and_count(folder: str, queue) -> None:
    built = []
    build = index_build_room._build
    index_build_room._build = lambda *arguments: built.append(1) or build(*arguments)
    queue.put((len(list(read_index(folder, "train"))), len(built)))


def test_two_processes_build_one_copy(data):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=build_and_count, args=(str(data), queue)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [length for length, _ in results] == [7] * 3 and sum(built for _, built in results) == 1


# ---------------------------------------------------------------- files that are gone


def test_folders_are_listed_once(data, monkeypatch):
    read_index(data, "train")
    monkeypatch.setattr(index_room.os, "scandir", None)
    assert len(read_index(data, "train")) == 7
    monkeypatch.undo()


def test_a_file_that_is_gone_is_noticed(data):
    read_index(data, "train")
    (data / "masks/4_0.png").unlink()
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"image2label_train.json: 1 listed file\(s\) missing under .*: masks/4_0.png;"
        ):
            read_index(data, "train")
    (data / "masks/4_0.png").touch()
    assert len(read_index(data, "train")) == 7


def test_a_moved_folder_is_looked_through_again(data):
    read_index(data, "train")
    moved = data.rename(data.with_name("moved"))
    (moved / "images/10.png").unlink()
    os.utime(moved / "images", ns=(1, 1))
    with pytest.raises(DataError, match="images/10.png"):
        read_index(moved, "train")


def test_a_folder_that_just_changed_is_listed_next_time(data, monkeypatch):
    monkeypatch.setattr(index_check_room, "JUST_NOW", 1e9)
    read_index(data, "train")
    status = (data / "masks").stat()
    (data / "masks/4_0.png").unlink()
    os.utime(data / "masks", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="masks/4_0.png"):
        read_index(data, "train")


def test_many_names_in_one_folder(tmp_path):
    """More than are compared in one go, and a few of them missing."""
    groups = {f"i{i}.png": [f"m{i}.png"] for i in range(3000)}
    for image, (mask,) in groups.items():
        (tmp_path / image).touch()
        (tmp_path / mask).touch()
    write(tmp_path, groups)
    assert len(read_index(tmp_path, "train")) == 3000
    for i in range(2990, 3000):
        (tmp_path / f"m{i}.png").unlink()
    with pytest.raises(
        DataError, match=r"10 listed file\(s\) missing under .*: m2990.png, m2991.png, m2992.png, \.\.\.;"
    ):
        read_index(tmp_path, "train")
