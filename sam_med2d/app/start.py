"""Segment in the browser: clicks and boxes on a picture, a DICOM file or the slices of a volume.

    sam-med2d app                                                       # the small model that comes with the package
    sam-med2d app --sam_checkpoint pretrain_model/sam-med2d_b.pth
    sam-med2d app --backend openvino --precision bfloat16 --encoder_model b.encoder.onnx --decoder_model b.decoder.onnx

In a clone, `python app.py ...` is the same.

Left click: on the object. Right click: off the object. Drag: a box. Listens on this machine alone (127.0.0.1);
nothing is sent anywhere, and what is opened is deleted with the page. `--host 0.0.0.0` opens it to the network you are
in, for those who have the address with the token that is printed.
"""

import argparse
import secrets
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from sam_med2d.app.access import Guard, is_local
from sam_med2d.app.opening import Opener
from sam_med2d.app.server import Server
from sam_med2d.app.store import Quotas, Sessions
from sam_med2d.cli import Parser, ending_in_one_line
from sam_med2d.data.decoding import add_reading_flags, reading_flags
from sam_med2d.errors import UsageError
from sam_med2d.inference.models import SMALL, add_backend_flags, add_model_flags, add_zoom_flag, models_of
from sam_med2d.inference.session import AnnotationSession
from sam_med2d.inference.windows import add_window_flag, shown_by
from sam_med2d.limits import MOST_VOXELS

EXAMPLES = Path("data_demo/images")  # in the current folder, where that is a clone
MOST_PIXELS = 2**26  # 8192 x 8192: larger pictures are for those who say so
MEGABYTE = 10**6
CONNECTIONS = 512  # at a time; the server answers the next one that it is full
Limit = tuple[str, int, str, str]
LIMITS: tuple[Limit, ...] = (  # flags: name, default, unit, help
    ("max_upload", 500, "MB", "The largest file that is taken."),
    ("max_session", 2000, "MB", "What one page may have on the disk: files, slices, results."),
    ("max_disk", 8000, "MB", "What all pages together may have on the disk."),
    ("max_memory", 4000, "MB", "Memory that all pages may hold of what was encoded, and of what was drawn."),
    ("max_sessions", 250, "N", "Number of pages that are open at a time."),
    ("idle", 120, "MINUTES", "Time after which a page that nobody touches is over, and its files are removed."),
    ("open_seconds", 60, "S", "Time that a file may take to open."),
    ("open_memory", 6000, "MB", "Memory that a file may take to open."),
    ("max_voxels", MOST_VOXELS, "N", "The largest volume that is opened."),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add_model_flags(parser)
    parser.set_defaults(sam_checkpoint=SMALL)
    add_window_flag(parser)
    add_zoom_flag(parser)
    add_backend_flags(parser)
    add_server_flags(parser, port=7860)
    add_reading_flags(add_limits(parser, LIMITS), MOST_PIXELS)
    args = parser.parse_args(argv)
    check_server(parser, args, LIMITS)
    return args


def add_server_flags(parser: argparse.ArgumentParser, port: int) -> None:
    """port: the default."""
    group = parser.add_argument_group("server")
    # fmt: off
    group.add_argument("--host", default="127.0.0.1", help="The address to listen at. Default: %(default)s.")
    group.add_argument("--port", type=int, default=port,
        help="The port to listen at; 0 takes any that is free. Default: %(default)s.")
    group.add_argument("--allow_host", nargs="+", default=[], metavar="NAME",
        help="Names that the server may be called by beside localhost and the address it is reached at, such as "
             "that of a proxy before it.")
    group.add_argument("--token",
        help="The word that people need where --host lets in others. Default: one that is made up and printed.")
    # fmt: on


def add_limits(parser: argparse.ArgumentParser, limits: Iterable[Limit]) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("limits")
    for name, default, unit, what in limits:
        group.add_argument(f"--{name}", type=int, default=default, metavar=unit, help=f"{what} Default: {default}.")
    return group


def check_server(parser: argparse.ArgumentParser, args: argparse.Namespace, limits: Iterable[Limit]) -> None:
    """End with the parser's message where flags of `add_server_flags` or `add_limits` make no sense."""
    for name, *_ in limits:
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if not 0 <= args.port < 2**16:
        parser.error("--port must be from 0 to 65535")
    if args.token is not None and (len(args.token) < 8 or not args.token.isascii() or not args.token.isalnum()):
        parser.error("--token must have 8 letters and digits or more, and nothing else")


@contextmanager
def application(args: argparse.Namespace, port: int, token: str) -> Iterator[Guard]:
    """The whole app, as ASGI, with a folder for its files that is gone afterwards.

    Raises CheckpointError, UsageError.
    """
    models = models_of(args)
    seen = shown_by(args, next(iter(models.values())))
    seen.say()
    limits = (args.max_upload, args.max_session, args.max_disk, args.max_memory)
    upload, session, total, memory = (most * MEGABYTE for most in limits)
    quotas = Quotas(args.max_sessions, args.idle * 60, upload, session, total, memory=memory)
    examples = sorted(path.resolve() for path in EXAMPLES.glob("*.png"))
    with reading_flags(args), tempfile.TemporaryDirectory(prefix="sam_med2d_app_") as folder:
        sessions = Sessions(Path(folder), lambda: AnnotationSession(models, seen.window, zoom=args.zoom), quotas)
        server = Server(sessions, Opener(args.open_seconds, args.open_memory, args.max_voxels), examples)
        try:
            yield Guard(server.app, names_of(args), token, port)
        finally:
            server.close()


def listen(host: str, port: int) -> socket.socket:
    """Raises UsageError where the port cannot be opened."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise UsageError(
            f"{host}, port {port} cannot be opened ({error.strerror or error}); choose another --port"
        ) from error


def names_of(args: argparse.Namespace) -> list[str]:
    """What the server may be called by, beside localhost."""
    return [*args.allow_host, args.host, *([] if is_local(args.host) else [socket.gethostname()])]


def shown_host(host: str) -> str:
    """As it stands in an address."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host


def address_of(host: str, port: int, token: str) -> str:
    return f"http://{shown_host(host)}:{port}/" + (f"?token={token}" if token else "")


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Answer what arrives there, until a signal ends it."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run(sockets=[listening])


def token_of(args: argparse.Namespace) -> str:
    """What clients need: nothing on this machine, unless somebody asked for it."""
    return args.token or ("" if is_local(args.host) else secrets.token_urlsafe(16))


@ending_in_one_line()
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with listen(args.host, args.port) as listening:
        port, token = listening.getsockname()[1], token_of(args)
        with application(args, port, token) as app:
            print(f"open {address_of(args.host, port, token)} in a browser; Ctrl-C ends it", flush=True)
            serve(app, listening)


if __name__ == "__main__":
    main()
