"""nnInteractive 2, as `nninteractive-client` speaks it, and so napari-nninteractive and 3D Slicer's Remote mode.

    POST /claim                     a lease: its token, which all that follows is asked for with, as X-Lease-Token
    POST /release, /heartbeat; GET /lease_status, /capabilities, /healthz
    POST /set_image                 an array (1, x, y, z), see arrays.py; X-Meta {"image_properties": {"spacing": ...}}
    POST /set_target_buffer         {"shape": [x, y, z], "dtype": "uint8"}
    POST /add_point_interaction     {"coordinates": [x, y, z], "include_interaction": true, "run_prediction": true}
    POST /add_bbox_interaction      {"bbox_coords": [[x0, x1], [y0, y1], [z0, z1]], ...}
    POST /add_scribble_interaction, /add_lasso_interaction, /add_initial_seg_interaction: an array, the rest as X-Meta
    POST /predict, /undo, /reset_interactions, /set_do_autozoom

Answers to interactions have X-Meta {"ran_prediction": ..., "bbox": where the mask has changed} and the mask there as
their body. A lease is over when its client is silent, or nobody uses it, for too long: 410. Refusals are JSON,
{"detail": one line}.
"""

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sam_med2d.app.handlers import Values
from sam_med2d.app.server import LARGEST_EVENT, Lane, answering, chunks_of
from sam_med2d.app.store import Held, Refused, Sessions
from sam_med2d.errors import DataError
from sam_med2d.json_files import JsonError, parse_json
from sam_med2d.serve.arrays import Head, head_of, packed, unpacked
from sam_med2d.serve.service import Service
from sam_med2d.serve.volume import Change, VolumeSession

VERSION = "2.6.0"  # of nnInteractive, whose clients this was tried with
META, LEASE = "x-meta", "x-lease-token"
OVER = "the lease has expired, or there never was one; connect again"
NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "float32", "float64")
MASKS = ("uint8", "bool", "int8", "uint16", "int16", "int32", "float16", "float32")
LONGEST_META = 1 << 16

CHANNELS = {"initial_seg": 0, "bbox": [1, 2], "points": [3, 4], "scribble": [5, 6], "lasso": [1, 2]}

Client = Held[VolumeSession]
Act = Callable[[VolumeSession, Values], None]


class NnInteractive:
    """The routes, over one service and the sessions of its clients."""

    def __init__(self, service: Service, sessions: Sessions[VolumeSession], lane: Lane) -> None:
        """lane: in whose threads answers are computed."""
        self._service, self._sessions, self._lane = service, sessions, lane

    def routes(self) -> list[Route]:
        posts: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/claim": self._claim,
            "/release": self._release,
            "/heartbeat": self._heartbeat,
            "/set_image": self._set_image,
            "/set_target_buffer": self._set_target_buffer,
            "/set_do_autozoom": self._set_zoom,
            "/reset_interactions": self._reset,
            "/undo": self._undo,
            "/predict": self._predict,
            "/add_point_interaction": self._said(_point),
            "/add_bbox_interaction": self._said(_box),
            "/add_scribble_interaction": self._drawn(_scribble),
            "/add_lasso_interaction": self._drawn(_lasso),
            "/add_initial_seg_interaction": self._drawn(_initial, predicts=False),
        }
        gets = {"/healthz": self._health, "/capabilities": self._capabilities, "/lease_status": self._lease_status}
        return [
            *(Route(path, answering(to, "detail"), methods=["POST"]) for path, to in posts.items()),
            *(Route(path, answering(to, "detail"), methods=["GET"]) for path, to in gets.items()),
        ]

    # ---------------------------------------------------------------- leases

    async def _claim(self, request: Request) -> Response:
        held, quotas = self._sessions.create(), self._sessions.quotas
        told = {
            "lease_token": held.key,
            "idle_timeout_seconds": quotas.idle,
            "liveness_timeout_seconds": quotas.silent,
            "max_sessions": quotas.sessions,
        }
        return JSONResponse(told)

    async def _release(self, request: Request) -> Response:
        """Of a lease that is gone already as well: clients ask for it when they end."""
        try:
            held = self._client(request, used=False)
        except Refused:
            return JSONResponse({"released": True})
        await held.finish()
        self._sessions.remove(held)
        return JSONResponse({"released": True})

    async def _heartbeat(self, request: Request) -> Response:
        return JSONResponse({"remaining_seconds": self._left(self._client(request, used=False))})

    async def _lease_status(self, request: Request) -> Response:
        left = self._left(self._client(request, used=False))
        return JSONResponse({"remaining_seconds": left, "idle_timeout_seconds": self._sessions.quotas.idle})

    def _left(self, held: Client) -> float:
        return max(0.0, self._sessions.quotas.idle - (time.monotonic() - held.seen))

    def _client(self, request: Request, used: bool = True) -> Client:
        return self._sessions.find(request.headers.get(LEASE, ""), used)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"ok": True})

    async def _capabilities(self, request: Request) -> Response:
        """channel_mapping and what is beside it are of nnInteractive's own network; its clients ask for them all."""
        told = {
            "supported_interactions": dict.fromkeys(("points", "bbox2d", "bbox3d", "scribble", "lasso"), True),
            "channel_mapping": CHANNELS,
            "num_interaction_channels": 7,
            "supports_initial_label": True,
            "supports_zero_shot_label_refinement": True,
            "preferred_scribble_thickness": [1, 1, 1],
            "interaction_decay": None,
            "patch_size": None,
            "do_autozoom": self._service.predictor().zoom.is_on,
            "inference_session_version": VERSION,
            "license": "that of the weights that this server was started with",
            "supports_undo": True,
        }
        return JSONResponse(told)

    # ---------------------------------------------------------------- the image

    async def _set_image(self, request: Request) -> Response:
        held, meta = self._client(request), _meta(request)
        spacing = _spacing(meta)
        async with held.turn():
            async with _Body(self, request, held, NUMBERS) as body:
                head = body.head
                if len(head.shape) != 4 or head.shape[0] != 1:
                    raise DataError(
                        f"the image has the shape {head.shape}; send one channel of three axes, (1, x, y, z)"
                    )
                if head.bytes // head.dtype.itemsize > self._service.most_voxels:
                    raise Refused(
                        f"the image has {' x '.join(map(str, head.shape[1:]))} voxels, more than the "
                        f"{self._service.most_voxels / 1e6:g} million that are taken; crop it",
                        413,
                    )
                await self._lane.run(lambda: held.session.take(body.array()[0], spacing))
                shape = head.shape
            held.bytes = held.session.holds
        return JSONResponse({"original_image_shape": shape})

    async def _set_target_buffer(self, request: Request) -> Response:
        held, values = self._client(request), await self._json(request)
        async with held.turn():
            wanted, dtype = values.get("shape"), values.get("dtype")
            if wanted != [*held.session.shape]:
                raise DataError(f"the target buffer has the shape {wanted!r:.60}, and the image {held.session.shape}")
            if not isinstance(dtype, str) or dtype not in MASKS:
                raise DataError(f"the target buffer holds {dtype!r:.20}; make it one of {', '.join(MASKS)}")
        return JSONResponse({})

    # ---------------------------------------------------------------- interactions

    def _said(self, act: Act) -> Callable[[Request], Awaitable[Response]]:
        """An interaction whose body is JSON."""

        async def answer(request: Request) -> Response:
            held, values = self._client(request), await self._json(request)
            async with held.turn():
                wanted = _truth(values, "run_prediction", True)
                return await self._answered(held, wanted, lambda: act(held.session, Values(values)))

        return answer

    def _drawn(self, act: Callable[[VolumeSession, np.ndarray, dict], None], predicts: bool = True):
        """An interaction whose body is an array. predicts: whether it is answered where it does not say."""

        async def answer(request: Request) -> Response:
            held, meta = self._client(request), _meta(request)
            async with held.turn(), _Body(self, request, held, MASKS) as body:
                image = held.session.shape
                if len(body.head.shape) != 3 or any(side > most for side, most in zip(body.head.shape, image)):
                    raise DataError(f"the drawing has the shape {body.head.shape}, and the image {image}")
                wanted = _truth(meta, "run_prediction", predicts)
                return await self._answered(held, wanted, lambda: act(held.session, body.array(), meta))

        return answer

    async def _answered(self, held: Client, predicts: bool, act: Callable[[], None]) -> Response:
        def work() -> Response:
            with held.session.or_as_it_was():
                act()
                return _change(held.session.predict() if predicts else None, predicts)

        return await self._lane.run(work)

    async def _predict(self, request: Request) -> Response:
        held = self._client(request)
        await self._json(request)
        async with held.turn():
            return await self._answered(held, True, lambda: None)

    async def _undo(self, request: Request) -> Response:
        held = self._client(request)
        async with held.turn():
            if not held.session.can_undo:
                return _change(None, False)
            return await self._lane.run(lambda: _change(held.session.undo(), True))

    async def _reset(self, request: Request) -> Response:
        held = self._client(request)
        async with held.turn():
            held.session.reset()
        return JSONResponse({})

    async def _set_zoom(self, request: Request) -> Response:
        held, values = self._client(request), await self._json(request)
        async with held.turn():
            held.session.zooms = _truth(values, "do_autozoom", None)
        return JSONResponse({})

    # ---------------------------------------------------------------- bodies

    async def _json(self, request: Request) -> dict[str, Any]:
        """Raises DataError, Refused."""
        body = b""
        async for chunk in chunks_of(request, "the request"):
            body += chunk
            if len(body) > LARGEST_EVENT:
                raise Refused(f"the request has more than {LARGEST_EVENT} bytes", 413)
        return _parsed(body, "the body")

    def room(self, held: Client) -> int:
        """Bytes that a client may still take."""
        return self._sessions.room(held)

    @property
    def largest(self) -> int:
        return self._sessions.quotas.file


class _Body:
    """An array that is received while the `async with` is entered, and counted to its client until it is left."""

    def __init__(self, owner: NnInteractive, request: Request, held: Client, dtypes: Sequence[str]) -> None:
        self._owner, self._request, self._held, self._dtypes = owner, request, held, dtypes
        self._data, self._counted = b"", 0
        self.head: Head

    async def __aenter__(self) -> "_Body":
        try:
            await self._receive()
            self.head = head_of(self._data, self._dtypes)
            self._count(self.head.bytes, "the array, unpacked")
            return self
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *error: object) -> None:
        self._held.bytes -= self._counted
        self._counted, self._data = 0, b""

    async def _receive(self) -> None:
        said = self._request.headers.get("content-length", "")
        if said.isdecimal() and len(said) < 19:
            self._check(int(said), "the request")
        parts = []
        async for chunk in chunks_of(self._request, "the request"):
            self._count(len(chunk), "the request")
            parts.append(chunk)
        self._data = b"".join(parts)

    def _count(self, size: int, what: str) -> None:
        self._check(size, what)
        self._held.bytes += size
        self._counted += size

    def _check(self, size: int, what: str) -> None:
        """Raises Refused."""
        if self._counted + size > 2 * self._owner.largest or size > self._owner.largest:
            raise Refused(f"{what} has more than {self._owner.largest / 1e6:.0f} MB, the most that is taken", 413)
        room = self._owner.room(self._held)
        if size > room:
            raise Refused(
                f"{what} has {size / 1e6:.0f} MB, and {room / 1e6:.0f} MB of the server's memory are left for it; try "
                "again later, or crop the image",
                413,
            )

    def array(self) -> np.ndarray:
        """Raises DataError."""
        return unpacked(self._data, self.head)


def _change(change: Change | None, ran: bool) -> Response:
    meta: dict[str, object] = {"ran_prediction": ran, "bbox": change and change.box}
    body = b""
    if change is not None:
        meta |= {"dtype": change.values.dtype.name, "shape": change.values.shape}
        body = packed(change.values)
    headers = {META: json.dumps(meta, separators=(",", ":"))}
    return Response(body, media_type="application/octet-stream", headers=headers)


def _meta(request: Request) -> dict[str, Any]:
    """Raises DataError."""
    text = request.headers.get(META, "{}")
    if len(text) > LONGEST_META:
        raise DataError(f"X-Meta has more than {LONGEST_META} letters")
    return _parsed(text.encode("latin-1"), "X-Meta")


def _parsed(data: bytes, what: str) -> dict[str, Any]:
    try:
        values = parse_json(data or b"{}")
    except JsonError as error:
        raise DataError(f"{what} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"{what} must be a JSON object, not {values!r:.40}")
    return values


def _truth(values: dict[str, Any], name: str, default: bool | None) -> bool:
    value = values.get(name, default)
    if not isinstance(value, bool):
        raise DataError(f"{name} must be true or false, not {value!r:.40}")
    return value


def _numbers(values: object, name: str, count: int) -> list[float]:
    """Raises DataError."""
    if isinstance(values, list) and len(values) == count and all(map(_is_number, values)):
        return [float(one) for one in values]
    raise DataError(f"{name} must be {count} numbers, not {values!r:.60}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # NaN is not below


def _spacing(meta: dict[str, Any]) -> list[float] | None:
    """Of the image, where it is said. Raises DataError."""
    properties = meta.get("image_properties") or {}
    said = properties.get("spacing") if isinstance(properties, dict) else None
    if said is None:
        return None
    spacing = _numbers(said, "spacing", 3)
    if min(spacing) <= 0:
        raise DataError(f"spacing must be above 0, not {said!r:.60}")
    return spacing


def _sides(values: object, name: str) -> list[list[float]]:
    if not isinstance(values, list) or len(values) != 3:
        raise DataError(f"{name} must be [[x0, x1], [y0, y1], [z0, z1]], not {values!r:.60}")
    return [_numbers(side, f"each side of {name}", 2) for side in values]


def _point(session: VolumeSession, values: Values) -> None:
    place = _numbers(values.given.get("coordinates"), "coordinates", 3)
    session.click(place, _truth(values.given, "include_interaction", None))


def _box(session: VolumeSession, values: Values) -> None:
    box = _sides(values.given.get("bbox_coords"), "bbox_coords")
    session.draw_box(box, _truth(values.given, "include_interaction", None))


def _corner(session: VolumeSession, mask: np.ndarray, meta: dict[str, Any]) -> list[int]:
    """Where the first voxel of a drawing lies. Raises DataError: it has another size than it should."""
    said = meta.get("interaction_bbox")
    if said is None:
        if mask.shape != session.shape:
            raise DataError(f"the drawing has the shape {mask.shape}, and the image {session.shape}")
        return [0, 0, 0]
    box = [[int(side) for side in sides] for sides in _sides(said, "interaction_bbox")]
    if tuple(high - low for low, high in box) != mask.shape:
        raise DataError(f"the drawing has the shape {mask.shape}, and interaction_bbox is {said!r:.60}")
    return [low for low, _ in box]


def _scribble(session: VolumeSession, mask: np.ndarray, meta: dict[str, Any]) -> None:
    session.scribble(mask != 0, _corner(session, mask, meta), _truth(meta, "include_interaction", None))


def _lasso(session: VolumeSession, mask: np.ndarray, meta: dict[str, Any]) -> None:
    session.lasso(mask != 0, _corner(session, mask, meta), _truth(meta, "include_interaction", None))


def _initial(session: VolumeSession, mask: np.ndarray, meta: dict[str, Any]) -> None:
    session.start_from(mask, refine=_truth(meta, "run_prediction", False))
