"""The server for other tools in a process of its own, and a client that can also send what no tool would."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from app_client import Running, running

from sam_med2d.serve.arrays import head_of, packed, unpacked

ANY = ("uint8", "int16", "float32")


def serving(temporary: Path, *flags: str) -> AbstractContextManager[Running]:
    return running(temporary, *flags, command=("-m", "sam_med2d", "serve"), says=r"serving at (http://[^\s,;]+)")


class Client:
    """One lease. ask: status, meta and body of any request."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self.buffer = np.zeros(0, np.uint8)
        status, _, body = server.ask("POST", "/claim", b"")
        assert status == 200, body
        self.told = json.loads(body)
        self.token = self.told["lease_token"]

    def ask(self, path: str, body: object = b"", meta: object = None) -> tuple[int, dict, bytes]:
        """body: bytes as they are, an array, or what JSON can say -> status, X-Meta or the JSON of a refusal, bytes."""
        data = body if isinstance(body, bytes) else packed(body) if isinstance(body, np.ndarray) else json.dumps(body)
        sent = {"X_Meta": meta if isinstance(meta, str) else json.dumps(meta)} if meta is not None else {}
        data = data.encode() if isinstance(data, str) else data
        status, headers, content = self._server.ask("POST", path, data, X_Lease_Token=self.token, **sent)
        if status != 200 or "x-meta" not in headers:
            return status, json.loads(content), content
        return status, json.loads(headers["x-meta"]), content

    def open(self, array: np.ndarray, **properties: object) -> None:
        status, told, _ = self.ask("/set_image", array[None], {"image_properties": properties})
        assert (status, told) == (200, {"original_image_shape": [1, *array.shape]}), (status, told)
        self.buffer = np.zeros(array.shape, np.uint8)
        assert self.ask("/set_target_buffer", {"shape": [*array.shape], "dtype": "uint8"})[0] == 200

    def act(self, path: str, body: object = b"", meta: object = None) -> dict:
        """What must go well; the buffer then has what has changed. -> X-Meta"""
        status, told, content = self.ask(path, body, meta)
        assert status == 200, told
        if told.get("bbox"):
            place = tuple(slice(low, high) for low, high in told["bbox"])
            self.buffer[place] = unpacked(content, head_of(content, ANY))
        return told

    def click(self, *place: float, on: bool = True, **more: object) -> dict:
        return self.act(
            "/add_point_interaction", {"coordinates": [*map(float, place)], "include_interaction": on, **more}
        )

    def box(self, *sides: list[int], on: bool = True, **more: object) -> dict:
        return self.act("/add_bbox_interaction", {"bbox_coords": sides, "include_interaction": on, **more})

    def draw(self, what: str, mask: np.ndarray, on: bool = True, **more: object) -> dict:
        return self.act(f"/add_{what}_interaction", mask, {"include_interaction": on, **more})


def blobs(shape: tuple[int, int, int] = (9, 48, 64)) -> Iterator[np.ndarray]:
    """Volumes with one bright ball each, at another place in each, float32."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(np.float32)
    for centre in ((4, 20, 30), (4, 30, 20), (3, 24, 40)):
        away = np.linalg.norm((grid - centre) * (2.5, 1, 1), axis=-1)
        yield (1000 / (1 + np.exp(away - 10)) + 20 * np.sin(grid[..., 1] / 3)).astype(np.float32)
