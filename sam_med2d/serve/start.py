"""A server for tools that people annotate with already: napari-nninteractive and 3D Slicer's nnInteractive.

    sam-med2d serve                                                     # the small model that comes with the package
    sam-med2d serve --sam_checkpoint pretrain_model/sam-med2d_b.pth --window 40 400
    sam-med2d serve --host 0.0.0.0                                      # for other machines, with the token printed

The tool is given the address that is printed, as its server. It speaks nnInteractive 2. One model answers all clients;
each has a volume and an object of its own, of which no other client sees anything. What is sent stays in memory, until
the client ends, or is silent or idle for too long. Listens on this machine alone (127.0.0.1) unless --host says more.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sam_med2d.app.access import Guard
from sam_med2d.app.server import Lane
from sam_med2d.app.start import (
    MEGABYTE,
    add_limits,
    add_server_flags,
    check_server,
    listen,
    names_of,
    serve,
    shown_host,
    token_of,
)
from sam_med2d.app.store import Quotas, Sessions
from sam_med2d.cli import Parser, add_flag, ending_in_one_line
from sam_med2d.inference.models import SMALL, add_backend_flags, add_model_flags, add_zoom_flag, load_segmenter
from sam_med2d.inference.shared import SharedModel
from sam_med2d.limits import MOST_VOXELS
from sam_med2d.serve.nninteractive import OVER, NnInteractive
from sam_med2d.serve.service import Service
from sam_med2d.serve.volume import VolumeSession
from sam_med2d.volumes.intensity import WINDOWS, Intensity, parse_window

THREADS = 4  # requests at a time; the model itself answers one after the other
LIMITS = (  # flags: name, default, unit, help
    ("max_upload", 2000, "MB", "the largest image that is taken, unpacked"),
    ("max_session", 4000, "MB", "of memory that one client may have, what it is just sending included"),
    ("max_memory", 8000, "MB", "the same of all clients together"),
    ("max_embeddings", 500, "MB", "of memory for what was encoded; the oldest is forgotten"),
    ("max_sessions", 16, "N", "clients at a time; the next one is told that the server is full"),
    ("idle", 600, "S", "after which a client that does nothing is let go"),
    ("silent", 60, "S", "after which a client that gives no sign of life is let go"),
    ("max_voxels", MOST_VOXELS, "N", "the largest volume that is taken"),
    ("seconds", 30, "S", "that one answer may take; slices that are left then wait for the next one"),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add_model_flags(parser)
    parser.set_defaults(sam_checkpoint=SMALL)
    add_backend_flags(parser)
    group = parser.add_argument_group("intensities, which should be as those of the training data")
    group.add_argument(
        "--window",
        nargs="+",
        metavar="WORD",
        help=f"centre and width, such as 40 400, or one of {', '.join(WINDOWS)}; default: minimum to maximum",
    )
    group.add_argument(
        "--scale", choices=["slice", "volume"], default="slice", help="whose minimum and maximum; default: %(default)s"
    )
    group = parser.add_argument_group("volumes")
    add_flag(group, "--propagate", True, "carry the object on from slices with prompts, as segment-volume does")
    group.add_argument(
        "--axis",
        type=int,
        choices=range(3),
        help="of the array that a client sends, that slices are cut across where no box, scribble or lasso says it; "
        "default: the one with much the coarsest spacing, or 0",
    )
    add_zoom_flag(group)
    add_server_flags(parser, port=1527)
    add_limits(parser, LIMITS)
    args = parser.parse_args(argv)
    check_server(parser, args, LIMITS)
    return args


@contextmanager
def application(args: argparse.Namespace, port: int, token: str) -> Iterator[Guard]:
    """The whole server, as ASGI. Raises CheckpointError, UsageError."""
    window = parse_window(args.window) if args.window else None
    service = Service(
        SharedModel(load_segmenter(args), args.max_embeddings * MEGABYTE),
        Intensity(window, args.scale == "volume"),
        zoom=args.zoom,
        propagate=args.propagate,
        seconds=args.seconds,
        axis=args.axis,
        most_voxels=args.max_voxels,
    )
    upload, session, total = (most * MEGABYTE for most in (args.max_upload, args.max_session, args.max_memory))
    quotas = Quotas(args.max_sessions, args.idle, upload, session, total, args.silent)
    lane = Lane(THREADS, "serve")
    with tempfile.TemporaryDirectory(prefix="sam_med2d_serve_") as folder:
        sessions = Sessions(Path(folder), lambda: VolumeSession(service), quotas, OVER)
        app = Starlette(
            routes=NnInteractive(service, sessions, lane).routes(), exception_handlers={404: _unknown, 405: _unknown}
        )
        try:
            yield Guard(app, names_of(args), token, port)
        finally:
            lane.close()


async def _unknown(request: Request, error: Exception) -> Response:
    line = f"there is no {request.method} {request.url.path} here; this server speaks nnInteractive 2"
    return JSONResponse({"detail": line}, getattr(error, "status_code", 404))


@ending_in_one_line()
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with listen(args.host, args.port) as listening:
        port, token = listening.getsockname()[1], token_of(args)
        with application(args, port, token) as app:
            needed = f", with the token (API key) {token}" if token else ""
            print(f"serving at http://{shown_host(args.host)}:{port}{needed}; Ctrl-C ends it", flush=True)
            serve(app, listening)


if __name__ == "__main__":
    main()
