"""The app over real sockets: who gets in, what stays on the disk, what is refused, and who waits for whom."""

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import signal
import socket
import stat
import struct
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason='uvicorn is not installed: pip install -e ".[app]"')

from sam_med2d.app import start
from sam_med2d.app.access import host_of, is_local
from sam_med2d.app.opening import Opener
from sam_med2d.app.server import Lane
from sam_med2d.data.decoding import reading_flags
from sam_med2d.errors import DataError
from sam_med2d.inference.session import AnnotationSession
from tests.app.running import Page, Running, running, running_here
from tests.inference.test_session import IMAGE, OTHER_IMAGE, WEIGHTS, expected, model

__all__ = ["model"]  # a fixture

MEGABYTE = 10**6
THIRD_IMAGE = sorted(IMAGE.parent.glob("*.png"))[0]


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[Running]:
    """One with narrow limits."""
    flags = ("--max_upload", "3", "--max_session", "6", "--max_disk", "9", "--max_pixels", "4000000", "--open_seconds")
    flags += ("20", "--open_memory", "1500", "--max_sessions", "60", "--sam_checkpoint", str(WEIGHTS))
    with running(tmp_path_factory.mktemp("app"), *flags) as one:
        yield one


@pytest.fixture
def page(app) -> Iterator[Page]:
    one = Page(app)
    yield one
    one.ask("DELETE", "/session")


def png(width: int, height: int) -> bytes:
    """All black, and as small as such a file can be."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes((width + 7) // 8 + 1)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# ---------------------------------------------------------------- who gets in

ROUTES = (
    *(("GET", path) for path in ("/", "/page.js", "/style.css", "/picture", "/files/0", "/nothing")),
    *(("POST", path) for path in ("/sessions", "/event", "/files")),
    ("PUT", "/upload?name=a.png"),
    ("DELETE", "/session"),
)


@pytest.mark.parametrize("method, path", ROUTES)
def test_no_route_answers_another_site(app, page, method, path):
    session = {"X_Session": page.key}
    for host in ("evil.example", "evil.example:7860", f"localhost.evil.example:{app.port}", "", "127.0.0.1@evil"):
        status, headers, body = app.ask(method, path, b"x", host=host or " ", **session)
        assert status in (400, 421) and b"evil" not in body, host
    origin = f"http://127.0.0.1:{app.port + 1}"
    for foreign in ("https://evil.example", "null", origin):
        status, headers, body = app.ask(method, path, b"x", Origin=foreign, **session)
        assert status == 403 and "access-control-allow-origin" not in headers, foreign
        assert headers["x-frame-options"] == "DENY" and "no-store" in headers["cache-control"]
    for site in ("cross-site", "same-site"):
        assert app.ask(method, path, b"x", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors", **session)[0] == 403
    assert page.view()["opened"] == 0  # nothing of it was done


def test_its_own_page_is_answered_by_every_name_of_this_machine(app):
    for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        host = f"{name}:{app.port}"
        status, _, _ = app.ask("POST", "/sessions", b"", host=host, Origin=f"http://{host}")
        assert status == 201, name
    status, _, _ = app.ask("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")
    assert status == 200  # a link to it


def test_two_hosts_in_one_request_are_none(app):
    with socket.create_connection(("127.0.0.1", app.port), timeout=20) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert raw.recv(100).split()[1] in (b"400", b"421")


def test_every_answer_carries_the_headers_that_keep_browsers_in(app, page):
    page.open(IMAGE)
    answers = [app.ask("GET", path, X_Session=page.key)[1] for path in ("/", "/page.js", "/picture", "/nothing")]
    answers.append(app.ask("POST", "/event", b"[", X_Session=page.key)[1])
    for headers in answers:
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store" and "server" not in headers


def test_a_token_is_needed_where_others_can_reach_it(tmp_path):
    with running(tmp_path, "--host", "0.0.0.0", "--allow_host", "seg.hospital.example") as app:
        assert len(app.token) >= 20 and socket.gethostname() in app.address
        for method, path in ROUTES:
            assert app.ask(method, path, b"x")[0] == 401, path
            assert app.ask(method, path, b"x", Cookie=f"sam_med2d_{app.port}=guess")[0] == 401, path
        assert app.ask("GET", "/?token=guess")[0] == 401
        assert app.ask("GET", f"/page.js?token={app.token}")[0] == 401  # for the page alone
        status, headers, _ = app.ask("GET", f"/?token={app.token}")
        cookie = headers["set-cookie"]
        assert status == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        own = {"Cookie": cookie.partition(";")[0]}
        assert app.ask("POST", "/sessions", b"", **own)[0] == 201
        assert app.ask("POST", "/sessions", b"", Authorization=f"Bearer {app.token}")[0] == 201
        assert app.ask("POST", "/sessions", b"", host="seg.hospital.example", **own)[0] == 201
        assert app.ask("POST", "/sessions", b"", host="evil.example", **own)[0] == 421
        with socket.create_connection((socket.gethostname(), app.port)) as there:
            arrived_at = there.getpeername()[0]
            there.sendall(f"GET / HTTP/1.1\r\nHost: {arrived_at}:{app.port}\r\nConnection: close\r\n\r\n".encode())
            assert there.recv(100).split()[1] == b"401"  # called by its address, which is no foreign name


def test_it_listens_on_this_machine_alone_unless_asked(tmp_path, app):
    args = start.parse_args([])
    assert args.host == "127.0.0.1" and app.token == ""
    assert is_local("localhost") and is_local("127.0.0.9") and is_local("::1")
    assert not is_local("0.0.0.0") and not is_local("::") and not is_local("seg.example")


def test_hosts_are_read_as_browsers_write_them():
    assert host_of("LocalHost:80") == "localhost" and host_of("[::1]:80") == "::1" and host_of("a.b.") == "a.b"
    assert host_of("[::1]x") == "" == host_of("a:b") == host_of("")


def test_a_taken_port_is_told_in_one_line(app):
    with pytest.raises(SystemExit, match=rf"^error: 127\.0\.0\.1, port {app.port} cannot be opened .*another --port$"):
        start.main(["--port", str(app.port)])


# ---------------------------------------------------------------- what is on the disk


def test_each_session_has_a_folder_that_goes_with_it(app):
    one, other = Page(app), Page(app)
    before = len([*app.folder.iterdir()])
    for page in (one, other):
        page.open(IMAGE)  # the same file, by two people
    names = app.files()
    assert len(names) == 4 and not any(
        name.endswith(".png") for name in names
    )  # uploads are deleted once they are read
    folders = [app.folder / name.partition("/")[0] for name in names]
    assert len({*folders}) == 2 and all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders)
    assert one.ask("DELETE", "/session")[0] == 200
    assert len(app.files()) == 2 and len([*app.folder.iterdir()]) == before - 1
    assert other.act(do="click", x=110, y=60, on=True)["objects"][0]["found"]
    assert one.send(b'{"do": "look"}') == (410, {"error": "this session is over; load the page again"})
    other.ask("DELETE", "/session")


def test_results_are_for_the_session_that_made_them(app, page, model):
    page.open(IMAGE)
    page.act(do="click", x=110, y=60, on=True)
    status, content = page.ask("POST", "/files", b"")
    names = json.loads(content)["files"]
    assert status == 200 and {"mni152_axial_094_labels.png", "mni152_axial_094_coco.json"} <= {*names}
    number = names.index("mni152_axial_094_labels.png")
    status, headers, data = app.ask("GET", f"/files/{number}", X_Session=page.key)
    assert status == 200 and headers["cache-control"] == "no-store" and "attachment" in headers["content-disposition"]
    labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(labels, expected(model, point_coords=[[110, 60]], point_labels=[1])[0])
    other = Page(app)
    for key in ({}, {"X_Session": other.key}, {"X_Session": page.key[:-1]}, {"X_Session": "../" + page.key}):
        for path in (f"/files/{number}", "/picture"):
            assert app.ask("GET", path, **key)[0] in (400, 404, 410)
    for path in ("/files/../../etc/passwd", f"/files/{len(names)}", "/files/-1", "/files/9999999999999999999"):
        assert app.ask("GET", path, X_Session=page.key)[0] == 404, path
    page.open(OTHER_IMAGE)  # and they are gone with the picture that they are of
    assert page.ask("GET", f"/files/{number}")[0] == 404 and not any("labels" in name for name in app.files())
    other.ask("DELETE", "/session")


def test_what_is_refused_does_not_stay(app, page):
    page.open(IMAGE)
    before, view = app.files(), page.view()
    for name, data, said in (
        ("a.png", b"no picture", "a.png: not an image"),
        ("a.nii.gz", b"\x1f\x8b no volume", "a.nii.gz: "),
        ("a.dcm", bytes(128) + b"DICM", "a.dcm: "),
        ("cut.png", IMAGE.read_bytes()[:-20], "cut.png: truncated"),
        ("a.png", bytes(3 * MEGABYTE + 1), "has more than 3 MB"),
        ("", b"", "unnamed: "),
        ("x\0" * 3000, b"", "not an image"),
        ("../../../../tmp/evil.png", b"", "evil.png: "),
    ):
        status, answer = page.upload(name, data)
        assert status in (400, 413) and said in answer["error"] and str(app.folder) not in answer["error"], name
        assert "\n" not in answer["error"] and app.files() == before and page.view() == view


def test_quotas_of_a_session_and_of_all(app):
    first, second = Page(app), Page(app)
    noise = np.random.default_rng(0).integers(0, 255, (1400, 1400, 3), np.uint8)
    data = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
    assert len(data) < 3 * MEGABYTE and noise.nbytes == 5.88 * MEGABYTE
    status, answer = first.upload("a.jpg", data)  # with the upload itself, more than the 6 MB of a session
    assert status == 400 and "a.jpg: takes 6 MB when it is opened, and" in answer["error"]
    small = cv2.imencode(".jpg", noise[:1100], [cv2.IMWRITE_JPEG_QUALITY, 30])[1].tobytes()
    assert first.upload("a.jpg", small)[0] == 200
    status, answer = second.upload("b.jpg", small)  # 9 MB in all
    assert status == 400 and "b.jpg: takes 5 MB when it is opened" in answer["error"]
    first.ask("DELETE", "/session")
    assert second.upload("b.jpg", small)[0] == 200
    second.ask("DELETE", "/session")
    assert not app.files()


def test_files_that_never_end_are_cut_off(app, page):
    with socket.create_connection(("127.0.0.1", app.port), timeout=20) as raw:
        head = f"PUT /upload?name=a.png HTTP/1.1\r\nHost: localhost\r\nX-Session: {page.key}\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        sent = 0
        try:
            while sent < 100:
                raw.sendall(chunk)
                sent += 1
        except OSError:
            pass
        assert raw.recv(100).split()[1] == b"413"
    assert not app.files()


def test_sessions_are_counted_and_end_when_nobody_uses_them(tmp_path):
    with running(tmp_path, "--max_sessions", "3") as app:
        pages = [Page(app) for _ in range(3)]
        status, _, body = app.ask("POST", "/sessions", b"")
        assert status == 503 and b"all 3 sessions are taken" in body
        pages[0].ask("DELETE", "/session")
        assert app.ask("POST", "/sessions", b"")[0] == 201
    assert not [*tmp_path.glob("sam_med2d_app_*")]  # all of it is gone with the process
    assert "stopped by SIGTERM" in app.output and "Traceback" not in app.output and app.process.returncode == 143


def test_a_session_that_nobody_uses_goes_with_its_folder(tmp_path):
    """Also where nobody asks for anything any more; one that is used stays."""
    with running_here(tmp_path, idle=1 / 30) as app:  # minutes
        left = Page(app)
        left.open(IMAGE)
        used = Page(app)
        used.open(IMAGE)
        assert len(app.files()) == 4
        end = time.monotonic() + 60
        while len(app.files()) > 2 and time.monotonic() < end:
            time.sleep(0.1)
            used.view()
        assert len([*app.folder.iterdir()]) == 1 and used.view()["file"] == IMAGE.name
        while app.files() and time.monotonic() < end:
            time.sleep(0.1)
        assert not [*app.folder.iterdir()]
        gone = (410, {"error": "this session is over; load the page again"})
        assert left.send(b'{"do": "look"}') == gone == used.send(b'{"do": "look"}')


# ---------------------------------------------------------------- memory


def test_pages_share_the_memory_and_whoever_left_longest_ago_makes_room(tmp_path, monkeypatch):
    """Nobody sees it: what was forgotten is encoded again."""
    freed = []
    forget = AnnotationSession.forget_encoded
    monkeypatch.setattr(
        AnnotationSession, "forget_encoded", lambda self: freed.append(self.encoded_bytes) or forget(self)
    )
    with running_here(tmp_path, max_memory=0.6) as app:  # MB: less than two pages hold after a few prompts
        first, second = Page(app), Page(app)
        boxes = [(100, 50, 130, 70), (20, 20, 50, 60), (60, 80, 90, 110)]
        for page in (first, second):
            page.open(IMAGE)
        shown = {page: [] for page in (first, second)}
        for x0, y0, x1, y1 in boxes:
            for page in (first, second):
                shown[page].append(page.act(do="box", x0=x0, y0=y0, x1=x1, y1=y1)["objects"])
        assert shown[first] == shown[second] and all(objects[0]["found"] for objects in shown[first])
    assert sum(count > 0 for count in freed) >= 4


def test_a_page_that_draws_more_than_its_share_is_told_to_save(tmp_path):
    with running_here(tmp_path, max_memory=0.02) as app:
        page, other = Page(app), Page(app)
        page.open(IMAGE)
        other.open(IMAGE)
        answers = [page.send(b'{"do": "click", "x": 70, "y": 90, "on": true}') for _ in range(3)]
        assert answers[0][0] == 200
        assert answers[-1][0] == 507 and "save, and open the file again" in answers[-1][1]["error"]
        assert page.view()["objects"][0]["found"]
        assert page.ask("POST", "/files")[0] == 200
        assert other.act(do="click", x=70, y=90, on=True)["objects"][0]["found"]  # which has its own share
        page.open(IMAGE)
        assert page.act(do="click", x=70, y=90, on=True)["objects"][0]["found"]


# ---------------------------------------------------------------- series


def test_a_dicom_series_is_uploaded_file_by_file(app, page, tmp_path):
    pytest.importorskip("pydicom", reason="the extra data is not installed")
    from tests.volumes.dicom_files import write_series

    volume = np.full((4, 40, 50), 30, np.uint16)
    for number in range(4):
        volume[number, 10 : 20 + number, 5:25] = 200
    series = write_series(tmp_path / "series", volume)
    for path in (series[2], series[0], series[3]):  # in any order
        assert page.upload(path.name, path.read_bytes(), more=True) == (200, {})
    assert page.view()["opened"] == 0
    status, answer = page.upload(series[1].name, series[1].read_bytes())
    assert status == 200 and answer["view"]["slices"] == 4
    assert not any("upload" in name for name in app.files())
    for number in range(4):
        page.act(do="slice", number=number)
        shown = cv2.imdecode(np.frombuffer(page.ask("GET", "/picture")[1], np.uint8), cv2.IMREAD_GRAYSCALE)
        assert shown.shape == (40, 50) and np.array_equal(shown > shown.min(), volume[number] > 30), number
    # what is refused takes all of its series with it, and leaves what was open
    before = app.files()
    other = write_series(tmp_path / "other", volume)
    assert page.upload(other[0].name, other[0].read_bytes(), more=True) == (200, {})
    status, answer = page.upload(other[0].name, other[0].read_bytes(), more=True)
    assert status == 400 and "s00: is one file too many" in answer["error"]
    assert app.files() == before and page.view()["slices"] == 4
    for path in other[:2]:
        assert page.upload(path.name, path.read_bytes(), more=True) == (200, {})
    status, answer = page.upload(other[3].name, other[3].read_bytes())  # the third is missing
    assert status == 400 and "\n" not in answer["error"] and str(app.folder) not in answer["error"]
    assert app.files() == before and page.view()["slices"] == 4


# ---------------------------------------------------------------- too large, and too slow


def test_pictures_and_volumes_beyond_the_budget_are_refused_by_their_headers(app, page, tmp_path):
    bomb = png(30_000, 30_000)
    assert len(bomb) < 200_000
    header = bytearray(400)
    header[0:4] = np.int32(348).tobytes()
    header[40:48] = np.array([3, 4000, 4000, 3000], "<i2").tobytes()
    header[70:74] = np.array([4, 16], "<i2").tobytes()
    header[76:92] = np.ones(4, "<f4").tobytes()
    header[344:348] = b"n+1\0"
    for name, data, said in (
        ("bomb.png", bomb, "bomb.png: has 30000 x 30000 pixels"),
        ("a.nii", bytes(header), "a.nii: has 4000 x 4000 x 3000 voxels, 48000 million"),
    ):
        status, answer = page.upload(name, data)
        assert status == 400 and said in answer["error"]
    assert not app.files()


def test_dicom_is_held_against_the_budget_before_it_is_decoded(app, page, tmp_path):
    pytest.importorskip("pydicom", reason="the extra data is not installed")
    from tests.volumes.dicom_files import write_slice

    plain = write_slice(tmp_path / "IM0001", np.full((40, 50), 7, np.uint16))
    assert page.open(plain)["file"] == "IM0001"  # DICOM without an ending, as a CD has it
    huge = write_slice(tmp_path / "huge", np.zeros((4, 4), np.uint16), Rows=60000, Columns=60000)
    status, answer = page.upload("huge", huge.read_bytes())
    assert status == 400 and "huge: " in answer["error"] and page.view()["file"] == "IM0001"


def test_a_slow_file_does_not_stop_clicks(app, page):
    """What opens files is stopped: clicks go on, and the files are opened when it is let go."""
    page.open(IMAGE)
    (opener,) = [pid for pid in children(app.process.pid) if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    slow, done = [Page(app) for _ in range(3)], []  # more than are opened at a time
    threads = [threading.Thread(target=lambda one=one: done.append(one.open(OTHER_IMAGE)["file"])) for one in slow]
    os.kill(opener, signal.SIGSTOP)
    try:
        for thread in threads:
            thread.start()
        for _ in range(5):
            assert page.act(do="click", x=110, y=60, on=True)["objects"][0]["found"]
            page.act(do="undo")
        assert done == [] and all(thread.is_alive() for thread in threads)
    finally:
        os.kill(opener, signal.SIGCONT)
    for thread in threads:
        thread.join(60)
    assert done == [OTHER_IMAGE.name] * 3
    for one in slow:
        one.ask("DELETE", "/session")


def test_a_slow_slice_and_slow_files_do_not_stop_clicks_of_any_kind(tmp_path, monkeypatch):
    """One person's slice takes long to encode, another's files to make: a third clicks, also with crops to encode."""
    goes_on = {"predictor": threading.Event(), "save": threading.Event()}
    arrived = {name: threading.Event() for name in goes_on}

    def holding_up(name: str, file: str):
        original = getattr(AnnotationSession, name)

        def method(session, *rest):
            if session.scan.name == file:
                arrived[name].set()
                assert goes_on[name].wait(60)
            return original(session, *rest)

        monkeypatch.setattr(AnnotationSession, name, method)

    threads_of_boxes: list[str] = []
    draw_box = AnnotationSession.draw_box

    def noting(session, *corners):
        threads_of_boxes.append(threading.current_thread().name)
        return draw_box(session, *corners)

    monkeypatch.setattr(AnnotationSession, "draw_box", noting)
    with running_here(tmp_path) as app:
        page, slow, saving = (Page(app) for _ in range(3))
        page.open(IMAGE)
        saving.open(THIRD_IMAGE)
        saving.act(do="click", x=80, y=60, on=True)
        holding_up("predictor", OTHER_IMAGE.name)
        holding_up("save", THIRD_IMAGE.name)
        done: list[object] = []
        threads = [
            threading.Thread(target=lambda: done.append(slow.open(OTHER_IMAGE)["file"])),
            threading.Thread(target=lambda: done.append(saving.ask("POST", "/files", b"")[0])),
        ]
        try:
            for thread in threads:
                thread.start()
            assert all(one.wait(60) for one in arrived.values())
            view = page.act(do="box", x0=60, y0=60, x1=90, y1=90)  # small, so that it is looked at closer
            assert view["objects"][0]["found"] and threads_of_boxes == ["crop_0"]
            page.act(do="click", x=75, y=75, on=True)
            page.act(do="undo")
            assert page.ask("GET", "/picture")[0] == 200 and done == []
            goes_on["predictor"].set()
            threads[0].join(60)
            assert done == [OTHER_IMAGE.name]  # what encodes did not wait for what saves
        finally:
            for one in goes_on.values():
                one.set()
            for thread in threads:
                thread.join(60)
        assert done == [OTHER_IMAGE.name, 200]


def children(process: int) -> list[int]:
    return [int(pid) for tasks in Path(f"/proc/{process}/task").glob("*/children") for pid in tasks.read_text().split()]


def test_half_an_upload_does_not_stop_clicks(app, page):
    page.open(IMAGE)
    half = Page(app)
    with socket.create_connection(("127.0.0.1", app.port), timeout=20) as raw:
        head = f"PUT /upload?name=a.png HTTP/1.1\r\nHost: localhost\r\nX-Session: {half.key}\r\n"
        raw.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + bytes(500))
        assert page.act(do="click", x=110, y=60, on=True)["objects"][0]["found"]
    end = time.monotonic() + 20
    while any(name.endswith("a.png") for name in app.files()) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(name.endswith("a.png") for name in app.files())  # its sender went away
    half.ask("DELETE", "/session")


@pytest.fixture(scope="module")
def quick() -> Opener:
    return Opener(seconds=3, megabytes=80, most_voxels=10**9)


def test_a_file_that_never_ends_is_given_up(quick, tmp_path):
    os.mkfifo(tmp_path / "a.png")  # which nobody writes to
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"^a\.png: takes more than 3 s to open"):
        quick.open(tmp_path / "a.png", tmp_path / "out", MEGABYTE)
    assert not multiprocessing.active_children()


def test_a_file_that_takes_its_reader_down_takes_nothing_else(quick, tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "out").mkdir()

    def kill() -> None:
        while not (there := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(there[0].pid or 0, signal.SIGSEGV)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(DataError, match=r"^a\.png: cannot be read, it took its reader down"):
        quick.open(tmp_path / "a.png", tmp_path / "out", MEGABYTE)
    thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
def test_memory_is_bounded(quick, tmp_path):
    (tmp_path / "large.png").write_bytes(png(9000, 9000))
    (tmp_path / "small.png").write_bytes(png(900, 900))
    for name, fits in (("large", False), ("small", True)):
        (tmp_path / name).mkdir()
        if fits:
            assert quick.open(tmp_path / f"{name}.png", tmp_path / name, 9 * MEGABYTE).slices.shape == (1, 900, 900)
        else:
            with pytest.raises(DataError, match=r"^large\.png: "):
                quick.open(tmp_path / f"{name}.png", tmp_path / name, 900 * MEGABYTE)


def test_a_reader_that_began_earlier_hears_of_limits(quick, tmp_path):
    """Each file is read by a fork of a process that may have been started under others."""
    (tmp_path / "a.png").write_bytes(png(900, 900))
    for number, pixels in enumerate((900 * 900, 900 * 900 - 1, None)):
        (tmp_path / f"{number}").mkdir()
        with reading_flags(argparse.Namespace(orientation=None, max_pixels=pixels)):
            refused = pytest.raises(DataError, match="more than the 809999") if number == 1 else nullcontext()
            with refused:
                scan = quick.open(tmp_path / "a.png", tmp_path / f"{number}", 9 * MEGABYTE)
                assert scan.slices.shape == (1, 900, 900)


# ---------------------------------------------------------------- malformed events

BAD = (
    *(b"", b"null", b"[]", b'""', b"7", b"{}", b"{", b"\xff\xfe", b"[" * 50_000, b'{"do": null}', b'{"do": []}'),
    *(b'{"do": "__class__"}', b'{"do": {"do": "undo"}}', b'{"do": "click"}', b'{"do": "click", "x": null, "y": 1}'),
    *(b'{"do": "click", "x": "1", "y": "1", "on": true}', b'{"do": "click", "x": NaN, "y": 1, "on": true}'),
    *(b'{"do": "click", "x": 1e400, "y": 1, "on": true}', b'{"do": "click", "x": -1, "y": 1, "on": true}'),
    *(b'{"do": "click", "x": 1' + b"0" * 400 + b', "y": 1, "on": true}', b'{"do": "click", "x": 1, "y": 1, "on": 1}'),
    *(b'{"do": "box", "x0": 1, "y0": 1, "x1": 1, "y1": 50}', b'{"do": "choose", "number": 1}'),
    *(b'{"do": "choose", "number": -1}', b'{"do": "choose", "number": 0.5}', b'{"do": "choose", "number": true}'),
    *(b'{"do": "slice", "number": 1}', b'{"do": "rename", "name": 5}', b'{"do": "rename"}'),
    b'{"do": "rename", "name": "' + b"x" * 60_000 + b'"}',
    *(b'{"do": "rename", "name": "\\ud800"}', b'{"do": "adapters", "on": true}', b'{"do": "adapters", "on": "yes"}'),
    *(b'{"do": "window", "low": 5, "high": 5}', b'{"do": "window", "low": 1e300, "high": 2}'),
    *(b'{"do": "carry", "step": 0}', b'{"do": "carry", "step": 1}', b'{"do": "example", "name": "../../etc/passwd"}'),
    *(b'{"do": "example", "name": []}', b'{"do": "look", "x": "' + b"x" * 70_000 + b'"}'),
)


def test_malformed_events_are_answered_in_words_and_change_nothing(app, page):
    for opened in (False, True):
        if opened:
            page.open(IMAGE)
        view = page.view()
        for body in BAD:
            status, answer = page.send(body)
            assert status in (400, 413) and 10 < len(answer["error"]) < 400, body[:80]
            assert "\n" not in answer["error"] and "Traceback" not in answer["error"]
            assert page.view() == view, body[:80]
    assert page.act(do="click", x=110, y=60, on=True)["objects"][0]["found"]  # and the session goes on


def test_before_a_picture_is_open_every_event_says_so_or_does_no_harm(page):
    for event in ({"do": "click", "x": 1, "y": 1, "on": True}, {"do": "box", "x0": 1, "y0": 1, "x1": 9, "y1": 9}):
        status, answer = page.send(json.dumps(event).encode())
        assert (status, answer) == (400, {"error": "open an image first"})
    assert page.ask("GET", "/picture")[0] == 400 and page.ask("POST", "/files", b"")[0] == 400
    page.act(do="undo")
    page.act(do="reset")


def test_one_page_does_not_fill_the_queue(app, page):
    page.open(IMAGE)
    statuses: list[int] = []
    body = b'{"do": "click", "x": 110, "y": 60, "on": true}'
    threads = [threading.Thread(target=lambda: statuses.append(page.send(body)[0])) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*statuses} <= {200, 429} and statuses.count(200) >= 8
    assert len(page.view()["objects"][0]["clicks"]) == statuses.count(200)


def test_an_error_keeps_nothing_open():
    class Scan:
        """What the frame knows that an error was raised in."""

    def fail(scan: Scan) -> None:
        raise DataError("it cannot be shown")

    async def refused() -> "weakref.ref[Scan]":
        lane, scan = Lane(1, "fail"), Scan()
        try:
            await lane.run(partial(fail, scan))
        except DataError:
            return weakref.ref(scan)
        finally:
            lane.close()
        raise AssertionError("it was not refused")

    gc.disable()  # the error, and what raised it, must not know each other
    try:
        assert asyncio.run(refused())() is None
    finally:
        gc.enable()
