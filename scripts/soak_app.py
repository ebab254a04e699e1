"""Many sessions of the app, and an hour of clicks, over sockets: what it takes must not grow, and no folder stays.

    python scripts/soak_app.py --log docs/soak.log
    python scripts/soak_app.py --sessions 20 --minutes 1

The app runs as people start it, in a process of its own. Sessions come five at a time: each opens a picture, a scan, a
series of DICOM slices, or a file that is refused; clicks, draws a box, takes back, adds an object, makes its files and
takes them away. Most say goodbye; some are just left, some go away in the middle of an upload. They come in ten waves.
After each the idle ones must go, within three minutes, and so must all folders; then memory and open files of the
app are looked at, those of the processes that open files included. At last two people click for --minutes, in one file
after the other, and it is looked at every two seconds. What is compared is the second quarter with the last tenth.
"""

import argparse
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from app_client import Page, Running, running
from first_day_data import as_volume, patient, write_scan, write_study
from soak import Log
from soak_growth import Taken, taken, verdict

AT_A_TIME = 5  # sessions
LOOK = 2.0  # seconds between two looks while people click
MINUTE = 60.0
WAVES = 10  # that the sessions come in
HELD = 40  # MB that what is open, and kept of it, may be more at one look than at another, while people click
GOODBYES = ("closed",) * 6 + ("left",) * 2 + ("cut off",) * 2


class Sources:
    """What people open."""

    def __init__(self, folder: Path) -> None:
        self.pictures = sorted((ROOT / "data_demo/images").glob("*.png"))
        scan, labels = map(as_volume, patient(1))
        write_scan(folder, "patient", scan, labels)
        write_study(folder / "study", 1, *patient(2))
        self.scan = folder / "images/patient.nii.gz"
        self.series = sorted((folder / "study").glob("IM*.dcm"))


def one_session(app: Running, sources: Sources, draw: random.Random) -> str:
    """A person's. -> how it ended. Raises AssertionError where the app does not do what it should."""
    page = Page(app)
    if draw.random() < 0.2:
        status, answer = page.upload("broken.png", sources.pictures[0].read_bytes()[: draw.randrange(400)])
        assert status == 400 and "broken.png" in answer["error"], answer
    kind = draw.choice(("picture", "picture", "scan", "series"))
    if kind == "series":
        for path in sources.series[:-1]:
            assert page.upload(path.name, path.read_bytes(), more=True) == (200, {})
        view = page.open(sources.series[-1])
    else:
        view = page.open(draw.choice(sources.pictures) if kind == "picture" else sources.scan)
    if view["slices"] > 1:
        view = page.act(do="slice", number=draw.randrange(view["slices"]))
    for number in range(draw.randrange(1, 4)):
        if number:
            page.act(do="add", name=f"object {number}")
        work(page, view, draw)
    status, content = page.ask("POST", "/files", b"")
    assert status in (200, 400), content  # 400: all clicks were taken back
    for number in range(len(json.loads(content).get("files", []))):
        assert page.ask("GET", f"/files/{number}")[0] == 200
    end = draw.choice(GOODBYES)
    if end == "closed":
        assert page.ask("DELETE", "/session")[0] == 200
    elif end == "cut off":
        with socket.create_connection(("127.0.0.1", app.port), timeout=30) as raw:
            head = f"PUT /upload?name=a.png HTTP/1.1\r\nHost: localhost\r\nX-Session: {page.key}\r\n"
            raw.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + bytes(5000))
    return end


def work(page: Page, view: dict, draw: random.Random) -> float:
    """A click or a box, sometimes taken back. -> the seconds until it was answered."""
    width, height = view["width"], view["height"]
    started = time.monotonic()
    if draw.random() < 0.8:
        page.act(do="click", x=draw.uniform(0, width), y=draw.uniform(0, height), on=draw.random() < 0.7)
    else:
        x, y = draw.uniform(0, width - 20), draw.uniform(0, height - 20)
        page.act(do="box", x0=x, y0=y, x1=draw.uniform(x + 8, width), y1=draw.uniform(y + 8, height))
    took = time.monotonic() - started
    if draw.random() < 0.3:
        page.act(do="undo")
    assert page.ask("GET", "/picture")[0] == 200
    return took


def sessions(app: Running, sources: Sources, count: int, idle: float) -> str:
    """-> what they took. Raises AssertionError."""
    seen: list[Taken] = []
    ends: list[str] = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for wave in range(WAVES):
            numbers = range(wave * count // WAVES, (wave + 1) * count // WAVES)
            draws = [random.Random(f"session {number}") for number in numbers]
            ends += pool.map(lambda draw: one_session(app, sources, draw), draws)
            wait_for_the_idle(app, idle)
            seen.append(taken(app.process.pid))
    told = ", ".join(f"{ends.count(end)} {end}" for end in ("closed", "left", "cut off"))
    return f"{count} sessions ({told}), no folder left, {verdict(seen, least=WAVES)}"


def wait_for_the_idle(app: Running, idle: float) -> None:
    """Until nobody's folder is left, and no scan is open. Raises AssertionError where that takes too long."""
    until = time.monotonic() + idle + 2 * MINUTE
    while [*app.folder.iterdir()]:
        assert time.monotonic() < until, f"folders are left: {[*app.folder.iterdir()][:3]}"
        time.sleep(1)
    kept = taken(app.process.pid).handles - len(handles_beside_scans(app))
    assert not kept, f"{kept} scans of sessions that are over are open"


def handles_beside_scans(app: Running) -> list[str]:
    """Each session that is open has the file of its scan open."""
    names = []
    for path in Path(f"/proc/{app.process.pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            names.append(os.readlink(path))
    return [name for name in names if "/slices.npy" not in name]


def clicks(app: Running, sources: Sources, minutes: float) -> str:
    """Of two people. -> what they took. Raises AssertionError."""
    seen: list[Taken] = []
    took: list[float] = []
    until = time.monotonic() + minutes * MINUTE
    failed: list[BaseException] = []

    def person(number: int) -> None:
        draw = random.Random(f"person {number}")
        page = Page(app)
        source = sources.scan if number else sources.pictures[0]
        view = page.open(source)
        try:
            done = 0
            while time.monotonic() < until:
                took.append(work(page, view, draw))
                done += 1
                if done % 120 == 0:  # people go on to the next file; what was kept of this one is over
                    view = page.open(source)
                elif done % 40 == 0:  # there is an end to the clicks on an object
                    page.act(do="reset")
                    if view["slices"] > 1:
                        page.act(do="slice", number=draw.randrange(view["slices"]))
            assert page.ask("DELETE", "/session")[0] == 200
        except BaseException as error:
            failed.append(error)

    people = [threading.Thread(target=person, args=[number]) for number in range(2)]
    for one in people:
        one.start()
    while any(one.is_alive() for one in people):
        seen.append(taken(app.process.pid))
        time.sleep(LOOK)
    if failed:
        raise failed[0]
    assert not [*app.folder.iterdir()]
    slowest = f"half within {statistics.median(took) * 1000:.0f} ms, the slowest {max(took):.2f} s"
    return f"{len(took)} clicks and boxes in {minutes:g} minutes, {slowest}, {verdict(seen, least=20, megabytes=HELD)}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=200, help="Number of sessions. Default: %(default)s.")
    parser.add_argument("--minutes", type=float, default=60, help="How long people click. Default: %(default)s.")
    parser.add_argument(
        "--log",
        default="workdir/soak/log.txt",
        help="File of what was seen; what is in it is not done again. Default: %(default)s.",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    log = Log(Path(args.log))
    with tempfile.TemporaryDirectory(prefix="soak_app") as temporary:
        folder = Path(temporary)
        sources = Sources(folder / "sources")
        (folder / "app").mkdir()
        with running(folder / "app", "--idle", "1") as app:
            if "app, sessions" not in log.grown and args.sessions:
                log.add(f"growth app, sessions: {sessions(app, sources, args.sessions, MINUTE)}")
            if "app, clicks" not in log.grown and args.minutes:
                log.add(f"growth app, clicks: {clicks(app, sources, args.minutes)}")
        assert "Traceback" not in app.output and "warning" not in app.output, app.output[-3000:]
        assert app.process.returncode == 143 and not [*(folder / "app").iterdir()], "files of the app are left"


if __name__ == "__main__":
    main()
