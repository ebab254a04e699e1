"""The app in a process of its own, and a person's page without a browser, over real sockets."""

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

ROOT = Path(__file__).resolve().parents[1]


class Running:
    """address: as it is printed; output: what the process has said, when it has ended."""

    def __init__(self, process: subprocess.Popen | None, address: str) -> None:
        self.process, self.address = process, address
        parts = urlsplit(address)
        self.port = parts.port or 0
        self.token = parts.query.removeprefix("token=")
        self.output = ""

    def ask(
        self, method: str, path: str, body: bytes | None = None, host: str = "", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """-> status, headers in lower case, body. host: in place of the true one; _ in a header's name stands for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{self.port}")
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content

    def files(self) -> list[str]:
        """Below the folder of the sessions, of all of them."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    @property
    def folder(self) -> Path:
        (found,) = Path(self.temporary).glob("sam_med2d_app_*")
        return found

    temporary = ""


@contextmanager
def running(
    temporary: Path, *flags: str, command: Sequence[str] = ("app.py",), says: str = r"open (\S+) in a browser"
) -> Iterator[Running]:
    """temporary: for the files of the app; command: what Python runs; says: the line with the address."""
    words = [sys.executable, *command, "--port", "0", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(words, cwd=ROOT, text=True, env=environment, **pipes) as process:
        said, app = "", None
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said += line
                if found := re.match(says, line):
                    break
            else:
                raise AssertionError(said)
            app = Running(process, found[1])
            app.temporary = str(temporary)
            yield app
        finally:
            process.terminate()
            output = process.communicate(timeout=30)[0]
            if app:
                app.output = output


class Page:
    """What a tab asks for, and gets."""

    def __init__(self, app: Running) -> None:
        self._app = app
        status, _, body = app.ask("POST", "/sessions", b"")
        assert status == 201, body
        self.told = json.loads(body)
        self.key = self.told["session"]

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        status, _, content = self._app.ask(method, path, body, X_Session=self.key)
        return status, content

    def send(self, body: bytes) -> tuple[int, dict]:
        """The body of an event -> status and answer."""
        status, content = self.ask("POST", "/event", body)
        return status, json.loads(content)

    def act(self, **event: object) -> dict:
        """An event that must go well -> the view."""
        status, answer = self.send(json.dumps(event).encode())
        assert status == 200, answer
        return answer["view"]

    def upload(self, name: str, data: bytes, more: bool = False) -> tuple[int, dict]:
        status, content = self.ask("PUT", f"/upload?name={quote(name)}{'&more=1' * more}", data)
        return status, json.loads(content)

    def open(self, path: Path) -> dict:
        """-> the view."""
        status, answer = self.upload(path.name, path.read_bytes())
        assert status == 200, answer
        return answer["view"]

    def view(self) -> dict:
        return self.act(do="look")
