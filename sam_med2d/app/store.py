"""The sessions of all people: each with a secret key, a folder of its own, and its share of the disk, or of the memory.

    sessions = Sessions(folder, new_session, quotas)
    held = sessions.create()                            # held.key is told to one page, and to nobody else
    held = sessions.find(key)
    sessions.remove(held)                               # with its folder

All of this runs in the event loop's thread.
"""

import asyncio
import itertools
import math
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from sam_med2d.errors import DataError
from sam_med2d.memory import give_back_freed_memory

WAITING = 8  # requests of one session that wait for one another; more are refused
LOOK = 60.0  # seconds between two looks for sessions that nobody uses
SPARE = 60  # seconds, after which a session that holds nothing makes room for another one
OVER = "this session is over; load the page again"


class Opens(Protocol):
    """What people work on in a session. scan: what is open, or None; close: lets go of it."""

    @property
    def scan(self) -> object: ...

    def close(self) -> None: ...


Session = TypeVar("Session", bound=Opens)


class Refused(DataError):
    """What cannot be done now, or not here."""

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


@dataclass(frozen=True)
class Quotas:
    """sessions: how many at a time; idle: seconds, after which one that nobody uses is over.

    file, session, total: bytes of one upload, of one session, and of all of them. silent: seconds, after which one that
    gives no sign of life is over. memory: bytes that all of them hold of what the model saw and people drew, where that
    is not what the three before count.
    """

    sessions: int
    idle: float
    file: int
    session: int
    total: int
    silent: float = math.inf
    memory: float = math.inf


@dataclass
class Held(Generic[Session]):
    """One person's session, as the server keeps it. seen, alive: when it was last used, and when it last gave a sign;
    bytes: of its folder, or of what it holds in memory; memory: of what `Quotas.memory` limits; results: files to take
    away.
    """

    key: str
    session: Session
    folder: Path
    seen: float
    alive: float
    gone: str = OVER
    bytes: int = 0
    memory: int = 0
    results: list[Path] = field(default_factory=list)
    over: bool = False
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _waiting: int = 0
    _number: itertools.count = field(default_factory=itertools.count)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Requests of one session take turns, in the order that they came. Raises Refused: too many, or it is over."""
        if self._waiting >= WAITING:
            raise Refused("the app is still at work on what this page asked for before; wait a moment", 429)
        self._waiting += 1
        try:
            async with self._turn:
                if self.over:
                    raise Refused(self.gone, 410)
                yield
                self.seen = self.alive = time.monotonic()
        finally:
            self._waiting -= 1

    async def finish(self) -> None:
        """It is over: nothing that waits is begun any more, and what is at work has ended when this returns."""
        self.over = True
        async with self._turn:
            pass

    @property
    def busy(self) -> bool:
        return self._waiting > 0

    def new_folder(self, what: str) -> Path:
        folder = self.folder / f"{what}{next(self._number)}"
        folder.mkdir()
        return folder

    def measure(self) -> None:
        """Count what is on the disk."""
        self.bytes = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


class Sessions(Generic[Session]):
    """All that there are."""

    def __init__(self, folder: Path, new_session: Callable[[], Session], quotas: Quotas, gone: str = OVER) -> None:
        """folder: an empty one, where each session gets a folder of its own; gone: what to say of one that is over."""
        self.quotas = quotas
        self._folder, self._new_session, self._gone = folder, new_session, gone
        self._held: dict[str, Held[Session]] = {}
        self._looks = False  # whether it will look for idle ones by itself

    def __len__(self) -> int:
        return len(self._held)

    def by_use(self) -> list[Held[Session]]:
        """The one that was used longest ago first."""
        return sorted(self._held.values(), key=lambda held: held.seen)

    def create(self) -> Held[Session]:
        """Raises Refused where there are too many."""
        self.sweep()
        if len(self) >= self.quotas.sessions:
            self.sweep(SPARE, only_empty=True)
        if len(self) >= self.quotas.sessions:
            raise Refused(f"all {self.quotas.sessions} sessions are taken; close one, or try again later", 503)
        key = secrets.token_urlsafe(32)
        folder = self._folder / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        now = time.monotonic()
        self._held[key] = Held(key, self._new_session(), folder, now, now, self._gone)
        if not self._looks:
            self._look_later()
        return self._held[key]

    def _look_later(self) -> None:
        """Remove idle ones also where nobody asks for anything any more."""
        self._looks = bool(self._held)
        if self._looks:
            shortest = min(self.quotas.idle, self.quotas.silent)
            asyncio.get_running_loop().call_later(min(shortest / 2, LOOK), self._look)

    def _look(self) -> None:
        self.sweep()
        give_back_freed_memory()
        self._look_later()

    def find(self, key: str, used: bool = True) -> Held[Session]:
        """used: False for what shows that somebody is there, and no more. Raises Refused: none, or none any more."""
        self.sweep()
        held = self._held.get(key)
        if held is None:
            raise Refused(self._gone, 410)
        held.alive = time.monotonic()
        if used:
            held.seen = held.alive
        return held

    def remove(self, held: Held[Session]) -> None:
        self._held.pop(held.key, None)
        held.over = True
        held.session.close()  # now, not when the last request that knows it is forgotten
        shutil.rmtree(held.folder, ignore_errors=True)

    def sweep(self, idle: float | None = None, only_empty: bool = False) -> None:
        """Remove those that are silent too long, or unused for `idle` seconds, by default the quota's.

        only_empty: of those with nothing open.
        """
        now = time.monotonic()
        unused, silent = now - (self.quotas.idle if idle is None else idle), now - self.quotas.silent
        for held in [*self._held.values()]:
            over = held.seen < unused or held.alive < silent
            if over and not held.busy and not (only_empty and held.session.scan is not None):
                self.remove(held)

    def room(self, held: Held[Session]) -> int:
        """Bytes that a session may still write."""
        total = sum(one.bytes for one in self._held.values())
        return max(0, min(self.quotas.session - held.bytes, self.quotas.total - total))
