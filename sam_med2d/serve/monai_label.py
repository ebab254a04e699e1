"""MONAI Label, as far as 3D Slicer's module and OHIF's extension need it to segment with clicks and boxes.

    GET    /info/                       the model, its labels, what is in the datastore
    PUT    /session/                    files of one image -> {"session_id": ...}; GET and DELETE /session/ID
    POST   /infer/sam-med2d?image=NAME or ?session_id=ID, &output=image, json, all or dicom_seg
                                        params {"foreground": [[x, y, z]], "background": [...], "roi": [...]}: monai.py
    GET    /datastore/, /datastore/image, /datastore/label      of the folder that --studies names: studies.py
    PUT    /datastore/, /datastore/label
    GET    /auth/; POST /auth/token     whose password is the server's token

Training, active learning and scoring are not here. Images that are sent lie in a temporary folder until their session
ends; they are opened by a process of its own.
"""

import json
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import python_multipart  # noqa: F401  without it starlette reads no forms, and says so when the first one comes
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from sam_med2d import __version__
from sam_med2d.app.opening import Opener
from sam_med2d.app.server import Lane, answering, chunks_of
from sam_med2d.app.store import Held, Refused, Sessions
from sam_med2d.errors import DataError
from sam_med2d.inference.uploads import Scan
from sam_med2d.json_files import JsonError, parse_json
from sam_med2d.outputs import below
from sam_med2d.serve.monai import BACKGROUND, MODEL, OBJECT, Answer, asked_of, check_scan, infer
from sam_med2d.serve.service import Service
from sam_med2d.serve.studies import FINAL, Studies

OUTPUTS = ("image", "json", "all", "dicom_seg")
MOST_FILES = 2000  # of a series
DOORS = ("/auth/", "/auth/token")  # where a token is asked for
GONE = "there is no session of that name any more; send the image again"


@dataclass
class Opened:
    """What lies in a session. scan: once it is there."""

    scan: Scan | None = None
    name: str = ""
    since: float = 0.0

    def close(self) -> None:
        """Let go of the scan, whoever still knows the session."""
        self.scan = None


class MonaiLabel:
    """The routes, over one service, the sessions of its clients and a folder of studies."""

    def __init__(
        self,
        service: Service,
        sessions: Sessions[Opened],
        studies: Studies,
        opener: Opener,
        lane: Lane,
        labels: Sequence[str] = (OBJECT,),
        token: str = "",
    ) -> None:
        """labels: names of objects that tools offer; token: that the server asks for."""
        self._service, self._sessions, self._studies = service, sessions, studies
        self._opener, self._lane, self._labels, self._token = opener, lane, labels, token

    def routes(self) -> list[Route]:
        handlers: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "/info/", self._info),
            ("PUT", "/session/", self._create),
            ("GET", "/session/{key}", self._session),
            ("DELETE", "/session/{key}", self._end),
            ("POST", "/infer/{model}", self._infer),
            ("GET", "/datastore/", self._datastore),
            ("PUT", "/datastore/", self._add_image),
            ("PUT", "/datastore/image", self._add_image),
            ("GET", "/datastore/image", self._image),
            ("PUT", "/datastore/label", self._add_label),
            ("GET", "/datastore/label", self._label),
            ("GET", "/auth/", self._auth),
            ("POST", "/auth/token", self._login),
            ("GET", "/auth/token/valid", self._valid),
        ]
        return [Route(path, answering(to, "detail"), methods=[method]) for method, path, to in handlers]

    # ---------------------------------------------------------------- who, and what there is

    async def _auth(self, request: Request) -> Response:
        return JSONResponse({"enabled": bool(self._token)})

    async def _login(self, request: Request) -> Response:
        body = b""
        async for chunk in chunks_of(request, "the request"):
            body += chunk
            if len(body) > 1 << 12:
                raise Refused("a name and a password are shorter than that", 413)
        given = parse_qs(body.decode("latin-1")).get("password", [""])[0]
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            raise Refused("that is not the token that was printed at the start; give it as the password", 401)
        return JSONResponse({"access_token": self._token, "token_type": "Bearer"})

    async def _valid(self, request: Request) -> Response:
        return JSONResponse({})

    async def _info(self, request: Request) -> Response:
        labels = [BACKGROUND, *self._labels]
        model: dict[str, Any] = {
            "type": "deepgrow",  # so is what answers clicks called
            "labels": labels,
            "dimension": 3 if self._service.propagate else 2,
            "description": "clicks on an object and off it, and a box around it",
            "config": {},
        }
        told = {
            "name": MODEL,
            "description": "Interactive segmentation with a model of SAM-Med2D's kind",
            "version": __version__,
            "labels": labels,
            "models": {MODEL: model},
            "trainers": {},
            "strategies": {},
            "scoring": {},
            "train_stats": {},
            "datastore": await self._lane.run(self._studies.status),
        }
        return JSONResponse(told)

    # ---------------------------------------------------------------- sessions

    async def _create(self, request: Request) -> Response:
        if request.query_params.get("uncompress", "false").lower() not in ("false", "0"):
            raise DataError("uncompress: archives are not unpacked here; send the files of the series")
        held = self._sessions.create()
        try:
            async with held.turn():
                form = await self._form(request, held)
                files = _files(form, "files")
                if not files:
                    raise DataError("there is no file; send those of one image as files")
                await self._open(held, files)
        except BaseException:
            self._sessions.remove(held)
            raise
        return JSONResponse({"session_id": held.key, "session_info": self._told(held)})

    async def _open(self, held: Held[Opened], files: list[UploadFile]) -> None:
        """Raises DataError, Refused."""
        folder, room = held.new_folder("upload"), self._sessions.room(held)

        def work() -> Scan:
            path = _written(files, folder)
            target = held.new_folder("scan")
            scan = self._opener.open(path, target, room)
            check_scan(scan)
            return scan

        try:
            held.session.scan = await self._lane.run(work)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            held.measure()
        held.session.name, held.session.since = held.session.scan.name, time.time()
        if not self._sessions.room(held):
            raise Refused("the server's disk is full of what others sent; try again later", 413)

    def _told(self, held: Held[Opened]) -> dict[str, Any]:
        used = time.time() - (time.monotonic() - held.seen)
        times = {"create_ts": int(held.session.since), "last_access_ts": int(used)}
        expiry = int(self._sessions.quotas.idle)
        return {"name": held.key, "path": "", "image": held.session.name, "meta": {}, **times, "expiry": expiry}

    def _held(self, key: str) -> Held[Opened]:
        """Raises Refused."""
        try:
            return self._sessions.find(key)
        except Refused as error:
            raise Refused(str(error), 404) from error  # by which clients know that they have to send it again

    async def _session(self, request: Request) -> Response:
        held = self._held(request.path_params["key"])
        if request.query_params.get("image", "false").lower() not in ("false", "0"):
            raise Refused("an image that was sent is not given back", 404)
        return JSONResponse(self._told(held))

    async def _end(self, request: Request) -> Response:
        held = self._held(request.path_params["key"])
        told = self._told(held)
        await held.finish()
        self._sessions.remove(held)
        return JSONResponse(told)

    # ---------------------------------------------------------------- answers

    async def _infer(self, request: Request) -> Response:
        if request.path_params["model"] != MODEL:
            raise Refused(f"there is no model {request.path_params['model']!r:.40}; there is {MODEL}", 404)
        output = request.query_params.get("output") or "all"
        if output not in OUTPUTS:
            raise DataError(f"output {output!r:.20}: choose one of {', '.join(OUTPUTS)}")
        key, image = (request.query_params.get(name, "") for name in ("session_id", "image"))
        held = self._held(key) if key else self._sessions.create()
        try:
            async with held.turn():
                form = await self._form(request, held)
                values = _values(form)
                if "label" in form:
                    raise DataError("a label to correct is not heard here; send clicks and a box as params")
                if not key and (files := _files(form, "file")):
                    await self._open(held, files)
                place = held.new_folder("answer")
                try:
                    return await self._lane.run(lambda: self._answered(held.session.scan, image, values, output, place))
                finally:
                    shutil.rmtree(place, ignore_errors=True)
        finally:
            if not key:
                self._sessions.remove(held)

    def _answered(self, scan: Scan | None, image: str, values: dict[str, Any], output: str, place: Path) -> Response:
        if scan is None:
            if not image:
                raise DataError("there is neither an image, by its name, nor a file, nor a session")
            scan = self._studies.scan(image)
        answer = infer(self._service, scan, asked_of(values, scan))
        if output == "json":
            return JSONResponse(answer.told)
        if output == "dicom_seg":
            return _file(answer.write_dicom_seg(place), "application/dicom")
        path = answer.write(place)
        return _file(path) if output == "image" else _parts(answer, path)

    # ---------------------------------------------------------------- the folder of studies

    async def _datastore(self, request: Request) -> Response:
        output = request.query_params.get("output") or "stats"
        if output not in ("stats", "all"):
            raise DataError(f"output {output!r:.20}: choose stats or all")
        work = self._studies.everything if output == "all" else self._studies.status
        return JSONResponse(await self._lane.run(work))

    async def _image(self, request: Request) -> Response:
        path = await self._lane.run(lambda: self._studies.path_of(request.query_params.get("image", "")))
        if path.is_dir():
            raise DataError(f"{path.name}: is a DICOM series of several files; tools take it from where they found it")
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    async def _label(self, request: Request) -> Response:
        name, tag = (request.query_params.get(name, default) for name, default in (("label", ""), ("tag", FINAL)))
        path = await self._lane.run(lambda: self._studies.label(name, tag))
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    async def _add_image(self, request: Request) -> Response:
        name = request.query_params.get("image", "")
        added = await self._received(request, "file", lambda file, data: self._studies.add(name, file, data))
        return JSONResponse({"image": added})

    async def _add_label(self, request: Request) -> Response:
        image, tag = request.query_params.get("image", ""), request.query_params.get("tag") or FINAL
        added = await self._received(
            request, "label", lambda file, data: self._studies.add_label(image, tag, file, data)
        )
        return JSONResponse({"image": image, "label": added})

    async def _received(self, request: Request, name: str, keep: Callable[[str, bytes], str]) -> str:
        held = self._sessions.create()  # so that what arrives is counted
        try:
            files = _files(await self._form(request, held), name)
            if len(files) != 1:
                raise DataError(f"there must be one file, as {name}")
            data = await files[0].read()
            return await self._lane.run(lambda: keep(files[0].filename or "", data))
        finally:
            self._sessions.remove(held)

    # ---------------------------------------------------------------- bodies

    async def _form(self, request: Request, held: Held[Opened]) -> FormData:
        """Raises DataError, Refused: larger than a file may be, or than there is room for."""
        most, room, taken = self._sessions.quotas.file, self._sessions.room(held), 0

        async def counted():
            nonlocal taken
            async for chunk in chunks_of(request, "the request"):
                taken += len(chunk)
                if taken > most:
                    raise Refused(f"the request has more than {most / 1e6:.0f} MB, the most that is taken", 413)
                if taken > room:
                    raise Refused(f"{room / 1e6:.0f} MB are left for it on the server; try again later", 413)
                held.bytes += len(chunk)
                yield chunk

        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return FormData()
        try:
            return await MultiPartParser(request.headers, counted(), max_files=MOST_FILES, max_fields=100).parse()
        except MultiPartException as error:
            raise DataError(f"the request is no form ({error.message})") from error
        finally:
            held.bytes -= taken


def _files(form: FormData, name: str) -> list[UploadFile]:
    return [one for one in form.getlist(name) if isinstance(one, UploadFile)]


def _values(form: FormData) -> dict[str, Any]:
    """The params of a request. Raises DataError."""
    said = form.get("params") or "{}"
    if not isinstance(said, str):
        raise DataError("params must be JSON, not a file")
    try:
        values = parse_json(said.encode("utf-8", "surrogatepass"))
    except JsonError as error:
        raise DataError(f"params is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"params must be a JSON object, not {values!r:.40}")
    return values


def _written(files: Sequence[UploadFile], folder: Path) -> Path:
    """Files that were sent, in a folder -> the one, or the folder. Raises DataError."""
    for file in files:
        path = folder / below((file.filename or "image")[:1000]).rpartition("/")[2]
        try:
            with path.open("xb") as target:
                shutil.copyfileobj(file.file, target)
        except FileExistsError:
            raise DataError(f"{path.name}: two files have that name") from None
    return folder if len(files) > 1 else path


def _file(path: Path, kind: str = "application/octet-stream") -> Response:
    """Read now: its folder is gone before the answer has left."""
    return Response(
        path.read_bytes(), media_type=kind, headers={"Content-Disposition": f'attachment; filename="{path.name}"'}
    )


def _parts(answer: Answer, path: Path) -> Response:
    """JSON and a file, as a form."""
    mark = f"sam-med2d-{secrets.token_hex(16)}"
    head = 'Content-Disposition: form-data; name="{}"{}\r\nContent-Type: {}\r\n\r\n'
    parts = [
        head.format("params", "", "application/json").encode() + json.dumps(answer.told).encode(),
        head.format("image", f'; filename="{path.name}"', "application/octet-stream").encode() + path.read_bytes(),
    ]
    body = b"".join(f"--{mark}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{mark}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={mark}")
