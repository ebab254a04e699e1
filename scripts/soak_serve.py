"""The server for other tools under four clients that are killed, cut off and wrong: no other mask, no growth, no end.

    python scripts/soak_serve.py --log docs/soak.log
    python scripts/soak_serve.py --requests 300 --log workdir/soak/serve.txt

The server runs as people start it, in a process of its own. Each client is a process too: it takes a lease, opens one
of three volumes and draws in one of several ways, whose masks are known from a server that nobody disturbed. In between
it asks as tools do that speak other protocols, whose answers are known as well; and it sends what is refused, and
requests that end half-way. Clients are killed in the middle of whatever they do, and others take their places; the
leases of the dead run out. The memory of the server is looked at all the while: what is compared is the second quarter
with the last tenth.
"""

import argparse
import base64
import ctypes
import json
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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import cv2
import numpy as np
from app_client import Running
from serve_client import Client, blobs, serving
from soak import Log
from soak_app import handles_beside_scans
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


def line() -> np.ndarray:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[2, 12:14, 8:24] = 1
    return drawn


WAYS: list[Callable[[Client, np.ndarray], object]] = [
    lambda client, volume: (client.click(2, 12, 20), client.click(2, 30, 2, on=False), client.act("/undo")),
    lambda client, volume: (client.box([2, 3], [4, 24], [8, 32]), client.click(1, 14, 20)),
    lambda client, volume: client.draw("scribble", line()),
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

    def tell(self, method: str, path: str, body: bytes, **headers: str) -> bytes:
        """A request of another protocol, which must go well. -> what came back"""
        self.counts[DONE] += 1
        status, _, content = self._server.ask(method, path, body, **headers)
        assert status == 200, (path, content)
        return content

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


# ---------------------------------------------------------------- other protocols: what each answers of a volume


def picture_of(volume: np.ndarray) -> str:
    """A slice with its object, as base64 of a PNG."""
    shown = np.clip(volume[2] / 1000 * 255, 0, 255).astype(np.uint8)
    return base64.b64encode(cv2.imencode(".png", shown)[1].tobytes()).decode()


def samapi(client: "Counting", volume: np.ndarray) -> object:
    asked = {"b64img": picture_of(volume), "point_coords": [[20, 12]], "point_labels": [1], "bbox": [8, 4, 32, 24]}
    return json.loads(client.tell("POST", "/sam/", json.dumps(asked).encode()))


def samapi_everything(client: "Counting", volume: np.ndarray) -> object:
    thresholds = {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.1, "include_image_edge": True}
    asked = {"b64img": picture_of(volume), "points_per_side": 3, **thresholds}
    return json.loads(client.tell("POST", "/sam/automask/", json.dumps(asked).encode()))


def x_anylabeling(client: "Counting", volume: np.ndarray) -> object:
    marks = [{"type": "rectangle", "data": [8, 4, 32, 24], "label": 1}, {"type": "point", "data": [2, 2], "label": 0}]
    asked = {"model": "sam-med2d", "image": picture_of(volume), "params": {"marks": marks}}
    return json.loads(client.tell("POST", "/v1/predict", json.dumps(asked).encode()))


def label_studio(client: "Counting", volume: np.ndarray) -> object:
    config = '<View><Image name="scan" value="$image"/><BrushLabels name="brush" toName="scan"><Label value="ball"/>'
    value = {"x": 20, "y": 12, "width": 60, "height": 60, "rectanglelabels": ["ball"]}
    asked = {
        "tasks": [{"id": 1, "data": {"image": f"data:image/png;base64,{picture_of(volume)}"}}],
        "label_config": f"{config}</BrushLabels></View>",
        "params": {"context": {"result": [{"type": "rectanglelabels", "value": value}]}},
    }
    told = json.loads(client.tell("POST", "/label-studio/predict", json.dumps(asked).encode()))
    for region in told["results"][0]["result"]:
        del region["id"]  # which is drawn anew each time
    return told


def monai_label(client: "Counting", volume: np.ndarray) -> object:
    """A picture is sent once, asked about by the session's name, and taken away."""
    mark = "a-boundary"

    def form(name: str, data: bytes) -> bytes:
        return (
            f"--{mark}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode()
            + data
            + f"\r\n--{mark}--\r\n".encode()
        )

    kind = {"Content_Type": f"multipart/form-data; boundary={mark}"}
    sent = form('name="files"; filename="a.png"', base64.b64decode(picture_of(volume)))
    key = json.loads(client.tell("PUT", "/session/", sent, **kind))["session_id"]
    params = form('name="params"', json.dumps({"foreground": [[20, 12, 0]], "result_extension": ".nrrd"}).encode())
    mask = client.tell("POST", f"/infer/sam-med2d?session_id={key}&output=image", params, **kind)
    client.tell("DELETE", f"/session/{key}", b"")
    return mask


OTHERS: list[Callable[["Counting", np.ndarray], object]] = [
    samapi,
    samapi_everything,
    x_anylabeling,
    label_studio,
    monai_label,
]

# ---------------------------------------------------------------- clients


def draw_in(client: Client, way: int, volume: np.ndarray) -> np.ndarray:
    """-> the mask that comes of one of the ways."""
    client.start(volume)  # type: ignore[attr-defined]
    if way == len(WAYS) - 1:
        client.buffer[:] = volume > 500  # clients write what they send into their own
    WAYS[way](client, volume)
    return client.buffer


def alone(server: Running, counts: ctypes.Array) -> dict[tuple[int, object], Any]:
    """What each way draws in each volume, and each other protocol answers, where nobody else is there."""
    known: dict[tuple[int, object], Any] = {}
    for number, volume in enumerate(volumes()):
        client = Counting(server, counts)
        client.open(volume)
        for way in range(len(WAYS)):
            drawn = draw_in(client, way, volume).copy()
            assert drawn.any(), (number, way)
            known[number, way] = drawn
        for other in OTHERS:
            known[number, other] = other(client, volume)
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
                if draw.random() < 0.4:
                    other = draw.choice(OTHERS)
                    assert other(client, volume) == known[number, other], f"another answer: {number}, {other.__name__}"
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
    known = alone(server, RawArray(ctypes.c_longlong, 4))
    failures = folder / "failure.txt"

    def start(name: str, counts: ctypes.Array) -> multiprocessing.Process:
        process = context.Process(target=live, args=(server, name, counts, known, failures), daemon=True)
        process.start()
        return process  # type: ignore[return-value]

    slots = [Slot(number, start) for number in range(CLIENTS)]
    seen: list[Taken] = []
    until = time.monotonic() + 60 * minutes
    try:
        while (done := sum(slot.counts[DONE] for slot in slots)) < requests and time.monotonic() < until:
            seen.append(taken(server.process.pid)._replace(handles=len(handles_beside_scans(server))))
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
        f"{right} masks and answers, all of them right; {verdict(seen, least)}"
    )


def alone_again(server: Running, known: dict[tuple[int, object], Any]) -> bool:
    again = alone(server, RawArray(ctypes.c_longlong, 4))
    return all(np.array_equal(again[key], known[key]) for key in known)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("--requests", type=int, default=10_000,
        help="Number of requests that are sent. Default: %(default)s.")
    parser.add_argument("--minutes", type=float, default=600,
        help="Time after which it ends, whatever --requests says. Default: %(default)s.")
    parser.add_argument("--log", default="workdir/soak/log.txt",
        help="File that a line of what was seen is added to. Default: %(default)s.")
    parser.add_argument("--least", type=int, default=40,
        help="Number of looks at the memory that there must be. Default: %(default)s.")
    # fmt: on
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
