"""nnInteractive 2 over real sockets: leases, clients side by side, and what is refused, by a server that lives on."""

import json
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("blosc2", reason='blosc2 is not installed: pip install -e ".[serve]"')

from sam_med2d.errors import DataError
from sam_med2d.serve.arrays import HEAD, head_of, packed, unpacked
from tests.serve.serving import Client, Running, blobs, serving_here

VOLUMES = [*blobs()]
SHAPE = VOLUMES[0].shape


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One with narrow limits."""
    flags = ("--max_sessions", "3", "--max_upload", "1", "--max_session", "3", "--max_voxels", "100000")
    with serving_here(*flags) as one:
        yield one


@pytest.fixture
def client(server) -> Iterator[Client]:
    one = Client(server)
    yield one
    one.ask("/release")


def test_a_session_from_claim_to_release(server, client):
    assert (client.told["idle_timeout_seconds"], client.told["liveness_timeout_seconds"]) == (600, 60)
    volume = VOLUMES[0]
    client.open(volume, spacing=[3.0, 1.0, 1.0])
    ball = volume > 500
    told = client.click(4, 20, 30)
    assert told["ran_prediction"] and client.buffer[4].any()
    assert (client.buffer & ~ball).sum() < 0.5 * client.buffer.sum()
    first = client.buffer.copy()
    assert client.box([4, 5], [10, 31], [20, 41], run_prediction=False) == {"ran_prediction": False, "bbox": None}
    assert np.array_equal(client.buffer, first)
    client.act("/predict", {"force_full_refine": False})
    assert not np.array_equal(client.buffer, first)
    client.act("/undo")
    assert np.array_equal(client.buffer, first)
    client.act("/undo")
    assert not client.buffer.any() and client.act("/undo") == {"ran_prediction": False, "bbox": None}
    line = np.zeros(SHAPE, np.uint8)
    line[4, 20, 24:36] = 1
    client.draw("scribble", line)
    whole = client.buffer.copy()
    client.act("/reset_interactions")
    client.buffer[:] = 0
    client.draw("scribble", line[4:5, 20:21, 24:36], interaction_bbox=[[4, 5], [20, 21], [24, 36]])
    assert whole.any() and np.array_equal(client.buffer, whole)
    assert client.ask("/set_do_autozoom", {"do_autozoom": False})[0] == 200
    status, told, _ = client.ask("/heartbeat", {})
    assert status == 200 and 590 < told["remaining_seconds"] <= 600


def test_two_clients_at_once_get_what_each_gets_alone(server):
    found = {}

    def work(number: int) -> None:
        client = Client(server)
        client.open(VOLUMES[number])
        client.click(*np.unravel_index(VOLUMES[number].argmax(), SHAPE))
        found.setdefault(number, []).append(client.buffer)
        client.ask("/release")

    for number in (0, 1):
        work(number)
    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(*found[number]) and found[number][0].any() for number in (0, 1))
    assert not np.array_equal(found[0][0], found[1][0])


def test_leases(server, client):
    others = [Client(server), Client(server)]
    status, _, body = server.ask("POST", "/claim", b"")
    assert status == 503 and "all 3 sessions" in json.loads(body)["detail"]
    for one in others:
        assert one.ask("/release")[:2] == (200, {"released": True})
        assert one.ask("/release")[:2] == (200, {"released": True})
        for path in ("/heartbeat", "/undo", "/set_image", "/add_point_interaction"):
            status, told, _ = one.ask(path, {})
            assert (status, told) == (410, {"detail": "the lease has expired, or there never was one; connect again"})
    assert client.ask("/heartbeat", {})[0] == 200


IMAGE = VOLUMES[0][None]
DRAWN = {"include_interaction": True, "run_prediction": True}
ELSEWHERE = {**DRAWN, "interaction_bbox": [[8, 9], [47, 49], [0, 2]]}
WRONG = {
    "an image of another version": ("/set_image", b"NNIA\x02" + packed(IMAGE)[5:], {}, 400, "version 2"),
    "no array": ("/set_image", b"PK\x03\x04 and so on", {}, 400, "begins with"),
    "nothing": ("/set_image", b"", {}, 400, "ends within its head"),
    "half an array": ("/set_image", packed(IMAGE)[:-100], {}, 400, "ends early"),
    "another codec": ("/set_image", b"NNIA\x01\x07" + packed(IMAGE)[6:], {}, 400, "codec 7"),
    "complex numbers": ("/set_image", packed(IMAGE.astype(np.complex64)), {}, 400, "complex64"),
    "texts": ("/set_image", HEAD.pack(b"NNIA", 1, 1, 1, 3) + b"<U4" + bytes(12), {}, 400, "'<U4'"),
    "three axes": ("/set_image", IMAGE[0], {}, 400, "one channel"),
    "two channels": ("/set_image", np.repeat(IMAGE, 2, 0), {}, 400, "one channel"),
    "not a number": ("/set_image", np.where(IMAGE > 500, np.nan, IMAGE), {}, 400, "finite"),
    "too many voxels": ("/set_image", np.zeros((1, 50, 50, 50), np.uint8), {}, 413, "crop it"),
    "too many bytes": ("/set_image", np.zeros((1, 100, 100, 101), np.uint8), {}, 413, "1 MB"),
    "too many bytes on the way": ("/set_image", bytes(1_000_001), {}, 413, "1 MB"),
    "a shape of 2^60": ("/set_image", b"NNIA\x01\x01\x01\x05uint8" + struct.pack("<q", 1 << 60), {}, 400, "head"),
    "a negative shape": ("/set_image", b"NNIA\x01\x01\x01\x05uint8" + struct.pack("<qI", -4, 0), {}, 400, "shape"),
    "a spacing of text": ("/set_image", IMAGE, {"image_properties": {"spacing": "1"}}, 400, "spacing"),
    "X-Meta that is not JSON": ("/set_image", IMAGE, "{", 400, "X-Meta is not JSON"),
    "X-Meta that is deep": ("/set_image", IMAGE, "[" * 5000, 400, "X-Meta is not JSON"),
    "another buffer": ("/set_target_buffer", {"shape": [1, 2, 3], "dtype": "uint8"}, None, 400, "shape"),
    "a buffer of texts": ("/set_target_buffer", {"shape": [*SHAPE], "dtype": "object"}, None, 400, "object"),
    "no coordinates": ("/add_point_interaction", {}, None, 400, "coordinates"),
    "no JSON": ("/add_point_interaction", b"{'a': 1}", None, 400, "not JSON"),
    "a list": ("/add_point_interaction", b"[1, 2]", None, 400, "object"),
    "too much JSON": ("/add_point_interaction", b'"' + b"a" * 70000, None, 413, "65536"),
    "a click far off": ("/add_point_interaction", {"coordinates": [1e8, 0, 0], **DRAWN}, None, 400, "outside"),
    "a click at NaN": ("/add_point_interaction", b'{"coordinates": [NaN, 0, 0]}', None, 400, "coordinates"),
    "an include that is none": ("/add_point_interaction", {"coordinates": [1, 1, 1]}, None, 400, "include"),
    "a flat box": ("/add_bbox_interaction", {"bbox_coords": [[1, 1], [2, 3], [2, 3]], **DRAWN}, None, 400, "empty"),
    "a box of two sides": ("/add_bbox_interaction", {"bbox_coords": [[1, 2]], **DRAWN}, None, 400, "bbox_coords"),
    "a drawing of another shape": ("/add_scribble_interaction", IMAGE[0, 1:] > 0, DRAWN, 400, "shape"),
    "a drawing elsewhere": ("/add_lasso_interaction", np.ones((1, 2, 2), bool), ELSEWHERE, 400, "outside"),
    "a drawing of nothing": ("/add_lasso_interaction", np.zeros(SHAPE, bool), DRAWN, 400, "nothing is drawn"),
    "another initial segmentation": ("/add_initial_seg_interaction", np.ones((2, 2, 2), bool), {}, 400, "shape"),
}  # fmt: skip


@pytest.fixture(scope="module")
def two(server) -> Iterator[tuple[Client, Client]]:
    """Clients that have drawn something."""
    clients = Client(server), Client(server)
    for client, volume in zip(clients, VOLUMES):
        client.open(volume)
        client.click(*np.unravel_index(volume.argmax(), SHAPE))
    yield clients
    for client in clients:
        client.ask("/release")


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_gets_one_line_and_changes_nothing(two, name):
    path, body, meta, wanted, says = WRONG[name]
    status, told, _ = two[0].ask(path, body, meta)
    assert status == wanted and says in told["detail"] and "\n" not in told["detail"], (status, told)
    is_as_before(two[0])


def is_as_before(client: Client) -> None:
    """Its object is still there."""
    before = client.buffer.copy()
    assert client.act("/predict", {}) == {"ran_prediction": True, "bbox": None}
    assert np.array_equal(client.buffer, before) and before.any()


def test_what_was_wrong_of_one_client_changed_nothing_of_another(two):
    for path, body, meta, wanted, _ in WRONG.values():
        assert two[0].ask(path, body, meta)[0] == wanted
    is_as_before(two[1])


def test_half_a_request_changes_nothing(server, two):
    for body, said in ((b"half", 1000), (b"", 10), (packed(IMAGE)[:500], len(packed(IMAGE)))):
        with socket.create_connection(("127.0.0.1", server.port)) as one:
            head = f"POST /set_image HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nX-Lease-Token: {two[0].token}\r\n"
            one.sendall(f"{head}Content-Length: {said}\r\n\r\n".encode() + body)
    for client in two:
        is_as_before(client)


def test_nobody_elses_lease_is_guessed_and_unknown_paths_say_what_there_is(server, two):
    status, _, body = server.ask("POST", "/undo", b"", X_Lease_Token=two[0].token[:-1])
    assert status == 410 and two[0].token not in body.decode()
    status, _, body = server.ask("POST", "/upload_image", b"")  # of version 1
    assert status == 404 and "nnInteractive 2" in json.loads(body)["detail"]
    status, _, _ = server.ask("POST", "/claim", b"", host="evil.example")
    assert status == 421


def test_arrays_come_back_as_they_were():
    for array in (IMAGE, np.zeros((3, 5), np.uint8), np.arange(7, dtype=np.int16), np.ones((2, 0 + 1), bool)):
        data = packed(array)
        back = unpacked(data, head_of(data, [array.dtype.name]))
        assert back.dtype == array.dtype and np.array_equal(back, array)


def test_spoiled_arrays_are_refused_or_read(tmp_path):
    random, data = np.random.default_rng(0), packed(np.arange(4000, dtype=np.int16).reshape(4, 10, 100))
    refused = 0
    for _ in range(400):
        spoiled = bytearray(data)
        for place in random.integers(0, min(len(data), random.choice([30, 80, len(data)])), 2):
            spoiled[place] = random.integers(256)
        try:
            head = head_of(bytes(spoiled), ("int16", "uint8"))
            if head.bytes <= 1 << 20:
                assert unpacked(bytes(spoiled), head).shape == head.shape
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100
