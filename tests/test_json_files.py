"""JSON that others wrote: what is nested, endless or no JSON ends in one line, within bounded memory."""

import io
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_med2d import json_files
from sam_med2d.errors import DataError, UsageError
from sam_med2d.json_files import DEEPEST, JsonError, Nesting, entries_of, parse_json, read_json
from tests.conftest import ROOT

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('ab"\\[]{}ä肝', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a"\\{[', max_size=4), inner, max_size=4),
    max_leaves=20,
)


def depth_of(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(VALUES, st.booleans(), st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_what_json_reads_is_read_whatever_the_pieces(value: object, ascii_only: bool, size: int) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == parse_json(text.encode()) == value
    nesting = Nesting()
    data = text.encode()
    for start in range(0, len(data), size):
        nesting.add(data[start : start + size])
    assert nesting._depth == 0 and not nesting._in_string
    if isinstance(value, dict):
        assert dict(entries_of(io.BytesIO(data))) == json.loads(text, parse_float=Decimal)


@given(VALUES, st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_the_depth_is_counted_right(value: object, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "DEEPEST", limit)
        try:
            parse_json(json.dumps(value))
            assert depth_of(value) <= limit
        except JsonError:
            assert depth_of(value) > limit


@pytest.mark.parametrize("text", ["[" * (DEEPEST + 1), '{"a":' * 10**6, "[" * 10**7, '{"a": ' + "[" * 10**7])
def test_brackets_on_brackets(text: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text(text)
    with pytest.raises(DataError, match="deep.json.*nested deeper than 64") as error:
        read_json(path, "correct it")
    assert "\n" not in str(error.value)
    with pytest.raises(JsonError, match="nested deeper"):
        list(entries_of(io.BytesIO(text.encode())))


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "Expecting value"),
        (b'{"a": ', "Expecting value"),
        (b'{"a": "\xff"}', "decode"),
        (b"9" * 5000, "digits"),
        (b"\x00" * 30, "."),
    ],
)
def test_what_is_no_json(data: bytes, said: str) -> None:
    with pytest.raises(JsonError, match=said) as error:
        parse_json(data)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_and_other_encodings_are_read() -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert parse_json('{"肝": ["["]}'.encode(encoding)) == {"肝": ["["]}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path, "a\x00b"):
        with pytest.raises(UsageError, match="cannot be read.*; look again"):
            read_json(path, "look again", error=UsageError)


class Endless(io.RawIOBase):
    """A file that gives one text for ever, after another one."""

    def __init__(self, start: bytes, again: bytes) -> None:
        self.start, self.again = start, again

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "all of it is too much"
        if not size:
            return b""
        data, self.start = self.start + self.again * ((size - len(self.start)) // len(self.again)), b""
        return data


@pytest.mark.parametrize("start, again", [(b'{"a": [', b'"b",'), (b'{"a": "', b"bbbb"), (b'{"a": {', b'"b":1,')])
def test_an_entry_without_end_is_refused_soon(start: bytes, again: bytes, monkeypatch) -> None:
    monkeypatch.setattr(json_files, "LARGEST_ENTRY", 4 << 20)
    with pytest.raises(JsonError, match="one of its entries has more than 4 MB"):
        list(entries_of(Endless(start, again)))


def test_many_entries_are_no_large_entry(monkeypatch) -> None:
    monkeypatch.setattr(json_files, "LARGEST_ENTRY", 2 << 20)
    text = json.dumps({str(i): ["x" * 90] for i in range(50_000)}).encode()
    assert len(text) > 2 * (2 << 20) and sum(1 for _ in entries_of(io.BytesIO(text))) == 50_000


def test_many_brackets_beside_one_another_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(json_files, "MOST_CONTAINERS", 1000)
    assert parse_json("[" + ",".join(["[]"] * 999) + "]")
    with pytest.raises(JsonError, match="lists and objects"):
        parse_json("[" + ",".join(["[]"] * 1000) + "]")


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A file that has no end: somebody writes brackets into it as long as it is open."""
    path = tmp_path / "pipe.json"
    os.mkfifo(path)

    def write() -> None:
        try:
            with open(path, "wb") as file:
                while True:
                    file.write(b'{"a": ["b"], ' * 10_000)
        except OSError:  # the reader has had enough
            pass

    threading.Thread(target=write, daemon=True).start()
    yield path


def test_a_pipe_without_end_is_refused_in_bounded_memory(pipe: Path) -> None:
    """In a process of its own that may take 3 GB more than it has."""
    code = (
        "import sys, resource; from sam_med2d.json_files import read_json; from sam_med2d.errors import DataError\n"
        "try: read_json(sys.argv[1], 'stop')\n"
        "except DataError as error: print(error); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, pipe], cwd=ROOT, capture_output=True, text=True, timeout=100)
    said, peak = done.stdout.splitlines()
    assert "has more than 67 MB; stop" in said and int(peak) * 1024 < 3e9 + resource.getpagesize()
