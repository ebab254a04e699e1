"""Where results may be written: names that data or flags give never lead out of the folder, nor to one another."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_med2d.errors import UsageError
from sam_med2d.outputs import below, cell, check_no_input, distinct, place, png_name, run_folder, without_endings

# Everything that some system treats in a way of its own, beside letters of any kind.
PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "...", " ", "C:", "con", "NUL", "com1", "LPT\u00b9", "aux.png", "a", "A", "-"]),
    st.sampled_from(["a.png", "A.PNG", "\u00e4.png", "a\u0308.png", "\ufb01.png", "a\u200d.png", "a .png.", "\x00"]),
    st.sampled_from(["x" * 300, "\u809d" * 120, "y" * 148 + ".png", "con" + " " * 200 + "x", "\ud800"]),
    st.text(max_size=12),
)
NAMES = st.builds(
    lambda parts, between: between.join(parts),
    st.lists(PARTS, min_size=1, max_size=12),
    st.sampled_from(["/", "\\", "//"]),
)
DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{kind}{n}" for kind in ("com", "lpt") for n in "0123456789\u00b9\u00b2\u00b3"
}


def is_fine(path: str) -> bool:
    """By the rules of Linux, macOS and Windows."""
    parts = path.split("/")
    return len(path.encode()) <= 1000 and all(
        part
        and part == part.strip(". ")
        and not set(part) & set('<>:"\\|?*')
        and not any(ord(letter) < 32 or unicodedata.category(letter) in ("Cs",) for letter in part)
        and part.split(".")[0].strip().lower() not in DEVICES
        and len(part.encode()) <= 200
        for part in parts
    )


def one_for_some_system(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


@given(NAMES)
@settings(max_examples=400, deadline=None)
def test_any_name_becomes_a_path_below_the_folder(name: str) -> None:
    path = below(name)
    assert is_fine(path), path
    assert not os.path.isabs(path) and os.path.normpath(path) == path
    assert below(path) == path


@given(st.lists(NAMES, max_size=12, unique=True))
@settings(max_examples=400, deadline=None)
def test_no_two_outputs_share_a_place(names: list[str]) -> None:
    places = distinct({name: png_name(name) for name in names})
    assert [*places] == names
    assert all(is_fine(path) for path in places.values())
    seen = [one_for_some_system(path) for path in places.values()]
    assert len({*seen}) == len(names)
    folders = {above for path in seen for above in map(str, Path(path).parents)}
    assert not folders & {*seen}  # no file stands where another one needs a folder


@given(st.lists(NAMES, max_size=8, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_a_place_does_not_depend_on_the_order(names: list[str], random) -> None:
    mixed = random.sample(names, len(names))
    assert distinct({name: name for name in names}) == distinct({name: name for name in mixed})


@given(st.lists(NAMES, min_size=1, max_size=6, unique=True))
@settings(max_examples=60, deadline=None)
def test_every_output_can_be_written_and_stays_where_it_was_put(tmp_path_factory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("names")
    for number, path in enumerate(distinct({name: name for name in names}).values()):
        whole = place(folder, path)
        whole.parent.mkdir(parents=True, exist_ok=True)
        with open(whole, "x") as file:
            file.write(str(number))
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(path.read_text() for path in written) == sorted(map(str, range(len(names))))
    assert all(path.resolve().is_relative_to(folder.resolve()) for path in written)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a/b.png", "a/b.png"),
        ("größe 肝.png", "größe 肝.png"),
        ("a.PNG", "a.PNG"),
        ("a.jpg", "a.jpg.png"),
        ("../x/a.png", "x/a.png"),
        ("/data/a.png", "data/a.png"),
        ("m/../../../etc/a.png", "m/etc/a.png"),
        (r"C:\data\..\a.png", "C_/data/a.png"),
        ("nul.png", "_nul.png"),
    ],
)
def test_a_name_alone_stays_as_it_is_where_it_can(name: str, expected: str) -> None:
    assert distinct({name: png_name(name)}) == {name: expected}


def test_names_that_would_be_one_get_a_hash_each_and_others_do_not() -> None:
    places = distinct({name: name for name in ("a.png", "A.png", "b.png", "c", "c/d.png")})
    assert places["b.png"] == "b.png" and places["c/d.png"] == "c/d.png"
    assert places["a.png"].startswith("a-") and places["A.png"].startswith("A-") and places["c"].startswith("c-")
    # one that is called like such a hash is left alone, and the hash gives way
    taken = places["a.png"]
    again = distinct({name: name for name in ("a.png", "A.png", taken)})
    assert again[taken] == taken and len({*map(str.lower, again.values())}) == 3


def test_images_that_differ_by_their_ending_keep_it() -> None:
    assert without_endings(["a.png", "a.jpg", "b.png"]) == {"a.png": "a.png", "a.jpg": "a.jpg", "b.png": "b"}


# ---------------------------------------------------------------- places


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/masks").symlink_to(tmp_path / "data")
    with pytest.raises(UsageError, match="link"):
        place(tmp_path / "out", "masks/a.png")
    (tmp_path / "out/inner").symlink_to(tmp_path / "out")
    assert place(tmp_path / "out", "inner/a.png") == tmp_path / "out/inner/a.png"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/../..", "/tmp/x", "\\\\host\\x", "..\\x", "C:\\x", "a\x00b", "x" * 300]
)
def test_what_is_no_name_of_a_run_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--run_name"):
        run_folder(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "lr=1e-4, 2026-11-25T19:20", "exp/a", "größe 肝", "..a"])
def test_names_of_runs_stay_as_they_are(name: str, tmp_path: Path) -> None:
    assert run_folder(tmp_path, name) == tmp_path / name


def test_an_input_is_never_an_output(tmp_path: Path) -> None:
    for name in ("data/a.png", "out/masks/b.png", "out/report.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    outputs = [tmp_path / "out/masks", tmp_path / "out/report.html", tmp_path / "out/new"]
    check_no_input(outputs, [tmp_path / "data/a.png", tmp_path / "nowhere"])
    (tmp_path / "link.png").symlink_to(tmp_path / "out/masks/b.png")
    (tmp_path / "folder").symlink_to(tmp_path / "out/masks")
    (tmp_path / "hard.html").hardlink_to(tmp_path / "out/report.html")
    for given_ in (
        "out/masks/b.png",
        "link.png",
        "folder/b.png",
        "out/report.html",
        "hard.html",
        "out/../out/masks/b.png",
    ):
        with pytest.raises(UsageError, match="read"):
            check_no_input(outputs, [tmp_path / "data/a.png", tmp_path / given_])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-liver", "@sum(a)", "\t=1", "\r=1"])
def test_a_spreadsheet_computes_no_name(text: str) -> None:
    assert cell(text) == f"'{text}"
    assert cell("liver -1") == "liver -1" and cell("") == ""
