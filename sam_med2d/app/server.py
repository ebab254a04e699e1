"""The routes of the app, over HTTP: what the page (page.js) asks for, and what it gets.

    POST   /sessions            a new session: its key, which all that follows is asked for with, as X-Session
    DELETE /session             it is over, and its files are gone
    PUT    /upload?name=a.png   bytes; opened when the last file is there (more=1: another one of a series follows)
    POST   /event               {"do": "click", ...}: see handlers.py; {"do": "example", "name": ...} opens one
    GET    /picture             the slice that is shown, as PNG
    POST   /files, GET /files/0 makes files to take away, and gives them

Answers are JSON with the view of the session (view.py), or {"error": a line for the person at the page}.

Lanes work side by side, so that no request waits long for another person's: processes that open files, and a thread
each for what encodes slices or paints large pictures, for clicks that look closer, for other clicks, and for files to
take away.
"""

import asyncio
import shutil
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from sam_med2d.app import handlers
from sam_med2d.app.opening import Opener
from sam_med2d.app.store import Held, Refused, Sessions
from sam_med2d.app.view import picture_of, view_of
from sam_med2d.errors import DataError, UserError
from sam_med2d.inference.session import AnnotationSession
from sam_med2d.json_files import JsonError, parse_json
from sam_med2d.outputs import below
from sam_med2d.volumes.intensity import WINDOWS

HERE = Path(__file__).parent
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}
LARGEST_EVENT = 1 << 16  # bytes
MOST_FILES = 2000  # of a series
PATIENCE = 60.0  # seconds that a request waits for its lane
STALLED = 30.0  # seconds without a byte of a body, after which nobody waits for the rest
OPENING = 2  # files at a time

Result = TypeVar("Result")
Page = Held[AnnotationSession]


class Lane:
    """Threads in which what takes time is done, one after the other in each."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)

    async def run(self, work: Callable[[], Result]) -> Result:
        """Raises Refused where its turn does not come in time, and what `work` raises."""
        future: Future[Result] = self._pool.submit(work)
        running = asyncio.wrap_future(future)
        try:
            await asyncio.wait([running], timeout=PATIENCE)
            if not running.done() and future.cancel():
                raise Refused("the app is busy with what others asked for; try again in a minute", 503)
            return await running
        finally:  # an error would know this frame, and this frame the error: such circles keep scans open for long
            del future, running

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Server:
    """The app without its guard (access.py). `app` is the ASGI application."""

    def __init__(self, sessions: Sessions[AnnotationSession], opener: Opener, examples: Sequence[Path] = ()) -> None:
        """examples: pictures that the page offers, by their names."""
        self._sessions, self._opener = sessions, opener
        self._examples = {path.name: path for path in examples}
        self._opening, self._saving = Lane(OPENING, "open"), Lane(1, "save")
        self._lanes = {name: Lane(1, name) for name in ("encode", "crop", "click")}  # of handlers.lane_of
        routes = [Route(path, self._static(*of), methods=["GET"]) for path, of in PAGE.items()]
        routes += [
            Route("/sessions", answering(self._create), methods=["POST"]),
            Route("/session", answering(self._end), methods=["DELETE"]),
            Route("/upload", answering(self._upload), methods=["PUT"]),
            Route("/event", answering(self._event), methods=["POST"]),
            Route("/picture", answering(self._picture), methods=["GET"]),
            Route("/files", answering(self._save), methods=["POST"]),
            Route("/files/{number:int}", answering(self._file), methods=["GET"]),
        ]
        self.app = Starlette(routes=routes)

    def close(self) -> None:
        for lane in (self._opening, self._saving, *self._lanes.values()):
            lane.close()

    def _static(self, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        content = (HERE / name).read_bytes()

        async def give(request: Request) -> Response:
            return Response(content, media_type=kind)

        return give

    def _held(self, request: Request) -> Page:
        return self._sessions.find(request.headers.get("x-session", ""))

    async def _view(self, held: Page) -> Response:
        lane = self._lane(held, {"do": "look"})
        return JSONResponse({"view": await lane.run(lambda: view_of(held.session))})

    def _lane(self, held: Page, event: dict[str, Any]) -> Lane:
        return self._lanes[handlers.lane_of(held.session, event)]

    # ---------------------------------------------------------------- sessions

    async def _create(self, request: Request) -> Response:
        held = self._sessions.create()
        told = {
            "session": held.key,
            "view": view_of(held.session),
            "examples": [*self._examples],
            "windows": WINDOWS,
            "largest": self._sessions.quotas.file,
        }
        return JSONResponse(told, 201)

    async def _end(self, request: Request) -> Response:
        held = self._held(request)
        await held.finish()
        self._sessions.remove(held)
        return JSONResponse({})

    # ---------------------------------------------------------------- files in

    async def _upload(self, request: Request) -> Response:
        held = self._held(request)
        name = below(request.query_params.get("name", "")[:1000]).rpartition("/")[2]
        async with held.turn():
            folder = held.folder / "upload"
            folder.mkdir(exist_ok=True)
            there = sorted(folder.iterdir())
            try:
                if len(there) >= MOST_FILES or folder / name in there:
                    raise DataError(f"{name}: is one file too many; open a series of at most {MOST_FILES} files")
                await self._receive(request, held, folder / name)
                if request.query_params.get("more") == "1":
                    return JSONResponse({})
                return await self._open(held, folder if there else folder / name)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)  # what was refused does not stay
                held.measure()
                raise

    async def _receive(self, request: Request, held: Page, path: Path) -> None:
        """Write a body. Raises Refused: too large for a file, the session, or all of them; it stalls."""
        said = request.headers.get("content-length", "0")
        self._check_room(held, path, int(said) if said.isdecimal() and len(said) < 19 else 0, 0)
        written = 0
        with path.open("xb") as file:
            async for chunk in chunks_of(request, path.name):
                self._check_room(held, path, written + len(chunk), len(chunk))
                file.write(chunk)
                written += len(chunk)
                held.bytes += len(chunk)

    def _check_room(self, held: Page, path: Path, size: int, more: int) -> None:
        """size: of the file, as far as it is known; more: bytes that are to be written now. Raises Refused."""
        quotas, room = self._sessions.quotas, self._sessions.room(held)
        if size > quotas.file:
            raise Refused(f"{path.name}: has more than {quotas.file / 1e6:.0f} MB, the most of one file", 413)
        if (more or size) > room:
            raise Refused(
                f"{path.name}: {room / 1e6:.0f} MB are left of the app's disk for this page; close other tabs, or take "
                "a smaller file",
                413,
            )

    async def _open(self, held: Page, path: Path) -> Response:
        """Open a file, or a folder with the files of a series, in place of what is open. Raises DataError."""
        folder = held.new_folder("scan")
        room = self._sessions.room(held)
        before = [one for one in held.folder.glob("scan*") if one != folder]
        try:
            scan = await self._opening.run(lambda: self._opener.open(path, folder, room))
            held.measure()
            if not self._sessions.room(held):
                raise Refused(f"{path.name}: the app's disk is full; try again later", 413)
            await self._lanes["encode"].run(lambda: show(held, scan))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(held.folder / "upload", ignore_errors=True)
            held.measure()
        for one in [*before, *held.folder.glob("results*")]:
            shutil.rmtree(one, ignore_errors=True)
        held.results = []
        held.measure()
        count_memory(held)
        return await self._view(held)

    # ---------------------------------------------------------------- what people do

    async def _event(self, request: Request) -> Response:
        held, event = self._held(request), await self._json(request)
        async with held.turn():
            if isinstance(event, dict) and event.get("do") == "example":
                return await self._example(held, event.get("name"))
            if handlers.name_of(event) in handlers.DRAWING:
                self._fit_memory(held)
            await self._lane(held, event).run(lambda: handlers.act(held.session, event))
            count_memory(held)
            return await self._view(held)

    def _fit_memory(self, held: Page) -> None:
        """As far as all pages hold too much, those that were used longest ago forget what they encoded.

        Raises Refused: that is not enough, and this page has more than its share.
        """
        pages, most = self._sessions.by_use(), self._sessions.quotas.memory
        excess = sum(one.memory for one in pages) - most
        for one in pages:
            if excess > 0 and not one.busy:
                excess -= one.session.encoded_bytes
                one.session.forget_encoded()
                count_memory(one)
        if excess > 0 and held.session.drawn_bytes > most / len(pages):
            raise Refused("the app's memory is full: save, and open the file again; it forgets the undo steps", 507)

    async def _example(self, held: Page, name: object) -> Response:
        path = self._examples.get(name) if isinstance(name, str) else None
        if path is None:
            raise DataError(f"there is no example {name!r:.40}")
        return await self._open(held, path)

    async def _json(self, request: Request) -> Any:
        """Raises DataError, Refused."""
        body = b""
        async for chunk in chunks_of(request, "the event"):
            body += chunk
            if len(body) > LARGEST_EVENT:
                raise Refused(f"an event has at most {LARGEST_EVENT} bytes", 413)
        try:
            return parse_json(body)
        except JsonError as error:
            raise DataError(f"an event is JSON, and this is not ({error})") from error

    async def _picture(self, request: Request) -> Response:
        held = self._held(request)
        async with held.turn():
            data = await self._lane(held, {"do": "look"}).run(lambda: picture_of(held.session))
        return Response(data, media_type="image/png")

    # ---------------------------------------------------------------- files out

    async def _save(self, request: Request) -> Response:
        """-> {"files": names}; those made before are gone."""
        held = self._held(request)
        async with held.turn():
            before, folder = [*held.folder.glob("results*")], held.new_folder("results")
            try:
                results = await self._saving.run(lambda: held.session.save(folder))
                held.measure()
                if not self._sessions.room(held):
                    raise Refused("the app's disk is full; close other tabs, or try again later", 413)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                held.measure()
                raise
            for one in before:
                shutil.rmtree(one, ignore_errors=True)
            held.results = results
            held.measure()
            return JSONResponse({"files": [path.name for path in results]})

    async def _file(self, request: Request) -> Response:
        held, number = self._held(request), request.path_params["number"]
        if number >= len(held.results) or not held.results[number].is_file():
            raise Refused("there is no such file any more; make the files again", 404)
        path = held.results[number]
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)


def show(held: Page, scan: Any) -> None:
    """Make a scan the session's, with its first slice encoded, so that the first click is as quick as the others."""
    with handlers.or_as_it_was(held.session):
        held.session.take(scan)
        held.session.predictor()


def count_memory(held: Page) -> None:
    held.memory = held.session.encoded_bytes + held.session.drawn_bytes


async def chunks_of(request: Request, name: str) -> AsyncIterator[bytes]:
    """The body of a request, as it comes. name: of what it is. Raises Refused: it stalls."""
    chunks = aiter(request.stream())
    while True:
        try:
            yield await asyncio.wait_for(anext(chunks), STALLED)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise Refused(f"{name}: no more of it came for {STALLED:g} s; try again", 408) from None


def answering(
    handler: Callable[[Request], Awaitable[Response]], key: str = "error"
) -> Callable[[Request], Awaitable[Response]]:
    """What goes wrong becomes a line for the person at the page; what is a fault of the app is told its terminal.

    key: under which clients look for that line.
    """

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except UserError as error:
            return JSONResponse({key: str(error)}, error.http_status if isinstance(error, Refused) else 400)
        except ClientDisconnect:
            return JSONResponse({key: "the page went away"}, 400)
        except OSError as error:
            print(f"warning: {error}", file=sys.stderr)
            return JSONResponse({key: f"the app cannot write or read its files ({error.strerror})"}, 507)
        except Exception:
            traceback.print_exc()
            return JSONResponse({key: "something is wrong with the app itself; its terminal says what"}, 500)

    return answer
