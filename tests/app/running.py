"""The app in a thread of this process; in one of its own, and a person's page: scripts/app_client.py."""

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import uvicorn
from app_client import Page, Running, running

from sam_med2d.app import start
from sam_med2d.app.access import Guard

__all__ = ["Page", "Running", "running", "running_here"]


@contextmanager
def running_here(temporary: Path, **limits: float) -> Iterator[Running]:
    """In a thread, for tests that hold something up in it. limits: in place of those of the flags, also finer ones."""
    args = start.parse_args(["--port", "0"])
    for name, value in limits.items():
        setattr(args, name, value)
    with patch.object(tempfile, "tempdir", str(temporary)), start.listen(args.host, 0) as listening:
        port = listening.getsockname()[1]
        with start.application(args, port, "") as guard, in_a_thread(guard, listening):
            app = Running(None, f"http://127.0.0.1:{port}/")
            app.temporary = str(temporary)
            yield app


@contextmanager
def in_a_thread(guard: Guard, listening: socket.socket) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(guard, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
