"""The server in a thread of this process; in one of its own, and its client: scripts/serve_client.py."""

from collections.abc import Iterator
from contextlib import contextmanager

from app_client import Running
from serve_client import Client, blobs

from sam_med2d.app.start import listen
from sam_med2d.serve import start
from tests.app.running import in_a_thread

__all__ = ["Client", "Running", "blobs", "serving_here"]


@contextmanager
def serving_here(*flags: str, token: str = "") -> Iterator[Running]:
    args = start.parse_args(["--port", "0", "--device", "cpu", *flags])
    with listen(args.host, 0) as listening:
        port = listening.getsockname()[1]
        with start.application(args, port, token) as guard, in_a_thread(guard, listening):
            yield Running(None, f"http://127.0.0.1:{port}")
