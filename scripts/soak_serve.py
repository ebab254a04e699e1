"""The server for other tools under four clients that are killed, cut off and wrong: no other mask, no growth, no end.

    python scripts/soak_serve.py --log docs/soak.log
    python scripts/soak_serve.py --requests 300 --log workdir/soak/serve.txt

The server runs as people start it, in a process of its own. Each client is a process too: it takes a lease, opens one
of three volumes and draws in one of several ways, whose masks are known from a server that nobody disturbed; in between
it sends what is refused, and requests that end half-way. Clients are killed in the middle of whatever they
do, and others take their places; the leases of the dead run out. The memory of the server is looked at all the while:
what is compared is the second quarter with the last tenth.
"""

import argparse
import ctypes
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import numpy as np
from app_client import Running
from serve_client import Client, blobs, serving
from soak import Log
from soak_growth import Taken, taken, verdict

from sam_med2d.serve.arrays import packed

CLIENTS = 4
LOOK = 1.0  # seconds between two looks at the memory
LIFE = (2.0, 20.0)  # seconds, after which a client is killed
SHAPE = (5, 32, 40)
FLAGS = (
    *("--device", "cpu", "--threads", "1"),
    *("--seconds", "600"),  # so that slow moments of the machine change nothing
    *("--max_embeddings", "16", "--max_upload", "2", "--max_sessions", "1000"),
)
DONE, RIGHT, REFUSED, HALF = range(4)  # what is counted


def volumes() -> list[np.ndarray]:
    return [np.ascontiguousarray(one[2:7, 8:40, 10:50]) for one in blobs()]


def line(volume: np.ndarray) -> np.ndarray:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[2, 12:14, 8:24] = 1
    return drawn


WAYS: list[Callable[[Client, np.ndarray], object]] = [
    lambda client, volume: (client.click(2, 12, 20), client.click(2, 30, 2, on=False), client.act("/undo")),
    lambda client, volume: (client.box([2, 3], [4, 24], [8, 32]), client.click(1, 14, 20)),
    lambda client, volume: client.draw("scribble", line(volume)),
    lambda client, volume: (
        client.draw("lasso", np.ones((1, 14, 14), np.uint8), interaction_bbox=[[2, 3], [5, 19], [12, 26]]),
        client.click(2, 2, 38, on=False),
    ),
    lambda client, volume: (
        client.draw("initial_seg", (volume > 500).astype(np.uint8)),
        client.click(2, 12, 16),
    ),
]
WRONG: list[tuple[str, object, object]] = [
    ("/set_image", b"not an array", {}),
    ("/set_image", packed(np.ones((1, 2, 3, 4), np.float32))[:-5], {}),
    ("/set_image", np.ones((2, 2, 3, 4), np.float32), {}),
    ("/set_image", np.zeros((1, 200, 100, 101), np.uint8), {}),
    ("/add_point_interaction", {"coordinates": [99, 99, 99], "include_interaction": True}, None),
    ("/add_scribble_interaction", np.ones((2, 2), np.uint8), {"include_interaction": True}),
    ("/add_bbox_interaction", b"{", None),
    ("/nothing", {}, None),
]


class Counting(Client):
    """A client whose requests are counted, in memory that outlives its process."""

    def __init__(self, server: Running, counts: ctypes.Array) -> None:
        self.counts = counts
        super().__init__(server)
        counts[DONE] += 1

    def ask(self, path: str, body: object = b"", meta: object = None) -> tuple[int, dict, bytes]:
        self.counts[DONE] += 1
        return super().ask(path, body, meta)

    def start(self, volume: np.ndarray) -> None:
        self.act("/reset_interactions")
        self.buffer = np.zeros(volume.shape, np.uint8)

    def half(self, draw: random.Random) -> None:
        """A request that ends before it is whole."""
        body = packed(np.ones((1, 8, 8, 8), np.float32))
        path = draw.choice(("/set_image", "/set_target_buffer", "/add_lasso_interaction"))
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Lease-Token: {self.token}\r\n"
        data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        with socket.create_connection(("127.0.0.1", self._server.port), timeout=30) as raw:
            raw.sendall(data[: draw.randrange(1, len(data))])
        self.counts[DONE] += 1
        self.counts[HALF] += 1


def draw_in(client: Client, way: int, volume: np.ndarray) -> np.ndarray:
    """-> the mask that comes of one of the ways."""
    client.start(volume)  # type: ignore[attr-defined]
    if way == len(WAYS) - 1:
        client.buffer[:] = volume > 500  # clients write what they send into their own
    WAYS[way](client, volume)
    return client.buffer


def alone(server: Running, counts: ctypes.Array) -> dict[tuple[int, int], np.ndarray]:
    """What each way draws in each volume where nobody else is there."""
    known = {}
    for number, volume in enumerate(volumes()):
        client = Counting(server, counts)
        client.open(volume)
        for way in range(len(WAYS)):
            known[number, way] = draw_in(client, way, volume).copy()
            assert known[number, way].any(), (number, way)
        client.ask("/release")
    return known


def live(server: Running, name: str, counts: ctypes.Array, known: dict, failures: Path) -> None:
    """A client's process, until it is killed. Leaves a file where the server does not do what it should."""
    draw = random.Random(name)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        while True:
            client, number = Counting(server, counts), draw.randrange(3)
            volume = volumes()[number]
            client.open(volume)
            for _ in range(draw.randrange(2, 12)):
                way = draw.randrange(len(WAYS))
                found = draw_in(client, way, volume)
                assert np.array_equal(found, known[number, way]), (
                    f"another mask: volume {number}, way {way}: {(found != known[number, way]).sum((1, 2))} voxels of "
                    f"{known[number, way].sum((1, 2))} differ, on each slice; {found.sum((1, 2))} were found"
                )
                counts[RIGHT] += 1
                kind = draw.random()
                if kind < 0.4:
                    path, body, meta = draw.choice(WRONG)
                    status, told, _ = client.ask(path, body, meta)
                    assert 400 <= status < 500 and "\n" not in told["detail"], (path, status, told)
                    counts[REFUSED] += 1
                elif kind < 0.6:
                    client.half(draw)
                else:
                    assert client.ask("/heartbeat", {})[0] == 200
            if draw.random() < 0.7:
                assert client.ask("/release")[0] == 200
    except BaseException:
        failures.write_text(f"{name}\n{traceback.format_exc()}", encoding="utf-8")
        raise


class Slot:
    """The place of one client, which is taken by the next one when it is killed."""

    def __init__(self, number: int, start: Callable) -> None:
        self._number, self._start, self.kills = number, start, 0
        self.counts = RawArray(ctypes.c_longlong, 4)
        self._begin()

    def _begin(self) -> None:
        name = f"client {self._number}, life {self.kills}"
        self._until = time.monotonic() + random.Random(name).uniform(*LIFE)
        self._process = self._start(name, self.counts)

    def look(self) -> None:
        """Raises AssertionError where the client has ended by itself."""
        assert self._process.is_alive(), "a client has ended"
        if time.monotonic() > self._until:
            self.kill()
            self.kills += 1
            self._begin()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()


def soak(server: Running, requests: int, minutes: float, folder: Path, least: int) -> str:
    """-> what was done, and what it took. Raises AssertionError. minutes: at most; least: looks."""
    context = multiprocessing.get_context("fork")
    first = RawArray(ctypes.c_longlong, 4)
    known = alone(server, first)
    failures = folder / "failure.txt"

    def start(name: str, counts: ctypes.Array) -> multiprocessing.Process:
        process = context.Process(target=live, args=(server, name, counts, known, failures), daemon=True)
        process.start()
        return process  # type: ignore[return-value]

    slots = [Slot(number, start) for number in range(CLIENTS)]
    seen: list[Taken] = []
    until = time.monotonic() + 60 * minutes
    assert server.process is not None
    try:
        while (done := first[DONE] + sum(slot.counts[DONE] for slot in slots)) < requests and time.monotonic() < until:
            seen.append(taken(server.process.pid))
            for slot in slots:
                slot.look()
            time.sleep(LOOK)
    except AssertionError as error:
        raise AssertionError(failures.read_text() if failures.exists() else error) from error
    finally:
        for slot in slots:
            slot.kill()
    assert not failures.exists(), failures.read_text()
    assert alone_again(server, known), "another mask, after all of them"
    right, refused, half = (sum(slot.counts[kind] for slot in slots) for kind in (RIGHT, REFUSED, HALF))
    kills = sum(slot.kills for slot in slots) + CLIENTS
    return (
        f"{done} requests of {CLIENTS} clients, {kills} of which were killed; {half} half requests, {refused} refused; "
        f"{right} masks, all of them right; {verdict(seen, least)}"
    )


def alone_again(server: Running, known: dict[tuple[int, int], np.ndarray]) -> bool:
    again = alone(server, RawArray(ctypes.c_longlong, 4))
    return all(np.array_equal(again[key], mask) for key, mask in known.items())


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="how many are sent; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=600, help="after which it ends; default: %(default)s")
    parser.add_argument("--log", default="workdir/soak/log.txt", help="where a line of what was seen is added")
    parser.add_argument("--least", type=int, default=40, help="looks at the memory; default: %(default)s")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak_serve") as temporary:
        folder = Path(temporary)
        (folder / "serve").mkdir()
        with serving(folder / "serve", *FLAGS) as server:
            Log(Path(args.log)).add(f"growth serve: {soak(server, args.requests, args.minutes, folder, args.least)}")
        assert "Traceback" not in server.output and "warning" not in server.output, server.output[-3000:]
        assert server.process is not None and server.process.returncode == 143, server.process
        assert not [*(folder / "serve").iterdir()], "files of the server are left"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
