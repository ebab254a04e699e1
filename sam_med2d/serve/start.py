"""A server for tools that people annotate with already: napari, 3D Slicer, QuPath, X-AnyLabeling.

    sam-med2d serve                                                     # the small model that comes with the package
    sam-med2d serve --sam_checkpoint pretrain_model/sam-med2d_b.pth --window 40 400
    sam-med2d serve --host 0.0.0.0                                      # for other machines, with the token printed

The tool is given the address that is printed, as its server. It speaks nnInteractive 2 (napari-nninteractive, and the
Remote mode of 3D Slicer's nnInteractive), MONAI Label (3D Slicer, OHIF), Label Studio, X-AnyLabeling's remote server,
and samapi (QuPath). One model answers all clients; no client sees anything of another one. What is sent stays in
memory, or in a temporary folder until it is over. Listens on this machine alone (127.0.0.1) unless --host says more.
"""

import argparse
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sam_med2d.app.access import Guard
from sam_med2d.app.opening import Opener
from sam_med2d.app.server import Lane
from sam_med2d.app.start import (
    MEGABYTE,
    MOST_PIXELS,
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
from sam_med2d.data.decoding import add_reading_flags, reading_flags
from sam_med2d.inference.models import SMALL, add_backend_flags, add_model_flags, add_zoom_flag, load_segmenter
from sam_med2d.inference.shared import SharedModel
from sam_med2d.inference.windows import add_scale_flag, add_window_flag, shown_by
from sam_med2d.limits import MOST_VOXELS
from sam_med2d.serve.label_studio import KEY, LabelStudio
from sam_med2d.serve.monai import OBJECT
from sam_med2d.serve.monai_label import DOORS, GONE, MonaiLabel, Opened
from sam_med2d.serve.nninteractive import OVER, NnInteractive
from sam_med2d.serve.pictures import Pictures
from sam_med2d.serve.samapi import SamApi
from sam_med2d.serve.service import Service
from sam_med2d.serve.studies import Studies
from sam_med2d.serve.volume import VolumeSession
from sam_med2d.serve.x_anylabeling import XAnyLabeling

THREADS = 4  # requests at a time; the model itself answers one after the other
ORIGIN = re.compile(r"https?://[^/*]+/?")
HOUR = 3600  # seconds that images of MONAI Label's clients stay unused; these give no signs of life in between
SPOKEN = "nnInteractive 2, MONAI Label, Label Studio, samapi and X-AnyLabeling's remote"
LIMITS = (  # flags: name, default, unit, help
    ("max_upload", 2000, "MB", "The largest image that is taken, unpacked."),
    ("max_session", 4000, "MB", "Memory that one client may have, what it is just sending included."),
    ("max_memory", 8000, "MB", "Memory that all clients together may have."),
    ("max_picture", 50, "MB", "The largest picture file that is taken, of tools that send one with each request."),
    ("open_seconds", 60, "S", "Time that a picture file may take to open."),
    ("open_memory", 6000, "MB", "Memory that a picture file may take to open."),
    ("max_embeddings", 500, "MB", "Memory for what was encoded; the oldest is forgotten."),
    ("max_sessions", 16, "N", "Number of clients at a time; the next one is told that the server is full."),
    ("idle", 600, "S", "Time after which a client that does nothing is let go."),
    ("silent", 60, "S", "Time after which a client that gives no sign of life is let go."),
    ("max_voxels", MOST_VOXELS, "N", "The largest volume that is taken."),
    ("seconds", 30, "S", "Time that one answer may take; slices that are left then wait for the next one."),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add_model_flags(parser)
    parser.set_defaults(sam_checkpoint=SMALL)
    add_backend_flags(parser)
    group = parser.add_argument_group("intensities, which should be as those of the training data")
    add_window_flag(group)
    add_scale_flag(group)
    group = parser.add_argument_group("volumes")
    # fmt: off
    add_flag(group, "--propagate", True, "Carry the object on from slices with prompts, as segment-volume does.")
    group.add_argument("--axis", type=int, choices=range(3),
        help="The axis of the array that a client sends which slices are cut across, where no box, scribble or "
             "lasso says it. Default: the one with much the coarsest spacing, or 0.")
    add_zoom_flag(group)
    group = parser.add_argument_group("MONAI Label")
    group.add_argument("--studies", type=Path, metavar="FOLDER",
        help="Folder of images that are asked for by name: volumes, pictures, and a folder for each DICOM series; "
             "labels that are handed in lie in labels/ below it. Default: none, and every image is sent.")
    group.add_argument("--labels", nargs="+", default=[OBJECT], metavar="NAME",
        help="Names of the objects that tools offer. Default: object.")
    group.add_argument("--allow_origin", nargs="+", default=[], metavar="URL",
        help="Addresses of pages that may ask as well, such as that of an OHIF viewer: http://localhost:3000.")
    parser.add_argument_group("Label Studio").add_argument("--label_studio", metavar="URL",
        help="Address of the Label Studio whose pictures may be asked for, such as http://localhost:8080, with the "
             f"key in the environment's {KEY}. Default: none, and pictures are data URIs in the tasks.")
    # fmt: on
    add_server_flags(parser, port=1527)
    add_reading_flags(add_limits(parser, LIMITS), MOST_PIXELS)
    args = parser.parse_args(argv)
    check_server(parser, args, LIMITS)
    for flag, origins in (("allow_origin", args.allow_origin), ("label_studio", [args.label_studio or "http://a"])):
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                parser.error(f"--{flag} {origin}: give the address of a server, such as http://localhost:3000")
    return args


@contextmanager
def application(args: argparse.Namespace, port: int, token: str) -> Iterator[Guard]:
    """The whole server, as ASGI. Raises CheckpointError, UsageError."""
    model = load_segmenter(args)
    seen = shown_by(args, model)
    seen.say()
    service = Service(
        SharedModel(model, args.max_embeddings * MEGABYTE),
        seen,
        zoom=args.zoom,
        propagate=args.propagate,
        seconds=args.seconds,
        axis=args.axis,
        most_voxels=args.max_voxels,
    )
    upload, session, total = (most * MEGABYTE for most in (args.max_upload, args.max_session, args.max_memory))
    quotas = Quotas(args.max_sessions, args.idle, upload, session, total, args.silent)
    lane, opener = Lane(THREADS, "serve"), Opener(args.open_seconds, args.open_memory, args.max_voxels)
    with reading_flags(args), tempfile.TemporaryDirectory(prefix="sam_med2d_serve_") as folder:
        places = [Path(folder) / name for name in ("sessions", "pictures", "images", "studies")]
        for place in places:
            place.mkdir()
        sessions = Sessions(places[0], lambda: VolumeSession(service), quotas, OVER)
        pictures = Pictures(opener, places[1], args.max_picture * MEGABYTE, seen.window)
        images = Sessions(places[2], Opened, replace(quotas, idle=max(args.idle, HOUR), silent=math.inf), GONE)
        studies = Studies(args.studies, opener, places[3], session)
        monai = MonaiLabel(service, images, studies, opener, lane, args.labels, token)
        routes = [
            *NnInteractive(service, sessions, lane).routes(),
            *XAnyLabeling(service, pictures, lane).routes(),
            *SamApi(service, pictures, lane).routes(),
            *monai.routes(),
            *LabelStudio(service, pictures, lane, args.label_studio).routes(),
        ]
        app = Starlette(routes=routes, exception_handlers={404: _unknown, 405: _unknown})
        try:
            yield Guard(app, names_of(args), token, port, args.allow_origin, DOORS)
        finally:
            lane.close()


async def _unknown(request: Request, error: Exception) -> Response:
    line = f"there is no {request.method} {request.url.path} here; this server speaks {SPOKEN}"
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
