"""Ctrl-C and SIGTERM: how a command that is asked to stop does so. Loads nothing heavy.

`sam_med2d.cli.ending_in_one_line` lets both signals raise `Stopped` in the main thread, and ends the process with one
line and exit status 130 or 143. Code that must not be interrupted in its middle uses `at_a_good_moment`.
"""

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PARENT = 1.0  # seconds between two looks of a worker whether its parent is still there
DROPPED = 0.1  # seconds between two looks whether what a signal has raised was dropped
ECHO = 3.0  # seconds within which torchrun hands on to its processes what a terminal has sent to all of them


class Stopped(BaseException):
    """A person or the system wants this process to end. Not an Exception: nothing that mends errors catches it."""

    def __init__(self, number: int, saved: str = "") -> None:
        """number: of the signal. saved: for people, what is kept and how to go on."""
        super().__init__(number, saved)
        self.number = number
        self.saved = saved

    @property
    def status(self) -> int:
        """The exit status that shells give a process ended by this signal: 130, 143."""
        return 128 + self.number

    def __str__(self) -> str:
        name = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
        return f"stopped by {name}" + (f": {self.saved}" if self.saved else "")


class Request:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def stop(self, saved: str) -> None:
        """End now. saved: for people, what is kept and how to go on."""
        raise Stopped(self.number or signal.SIGTERM, saved)


@contextmanager
def _handling(handler) -> Iterator[None]:
    """In the block the signals go to `handler`: in the main thread, and those that were not to be ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    changed = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    for number in changed:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


@contextmanager
def raising_stopped() -> Iterator[None]:
    """In the block a signal raises Stopped, wherever the program is; in processes forked meanwhile it does nothing,
    until they say what they want (`leave_signals_to_the_parent`).

    Some code drops whatever is raised in it: NumPy where it asks for a length, Python in its hooks around a fork. Then
    the signal comes again, and a block that has ended before that raises Stopped at its end: it may have taken what
    was dropped for something else, such as a broken file.
    """
    process, came, is_over = os.getpid(), [], False

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            came.append(number)
            raise watched(number)  # which no variable here may know, or it would never be gone

    def watched(number: int) -> Stopped:
        stopped = Stopped(number)
        threading.Thread(target=come_again, args=[number, weakref.ref(stopped)], daemon=True).start()
        return stopped

    def come_again(number: int, stopped: "weakref.ref[Stopped]") -> None:
        while stopped() is not None:
            time.sleep(DROPPED)
        if not is_over:
            os.kill(process, number)

    before = sys.unraisablehook

    def say_nothing(unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            before(unraisable)

    sys.unraisablehook = say_nothing
    try:
        with _handling(handler):
            try:
                yield
            finally:
                is_over = True  # while a signal is still heard, or what comes again would end the process
        if came:
            raise Stopped(came[-1])
    except BaseException as error:
        if came and not _is_or_follows_stopped(error):
            raise Stopped(came[-1]) from error
        raise
    finally:
        sys.unraisablehook = before


def _is_or_follows_stopped(error: BaseException | None) -> bool:
    """Whether it is Stopped, or what went wrong while a command that was stopped cleaned up."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def at_a_good_moment(echoes: bool = False) -> Iterator[Request]:
    """In the block a signal is only noted, for the code to stop when it is ready; the second one raises Stopped.

    A signal that the code does not look at any more has come too late: what is done is done.
    echoes: of a process that somebody hands signals on to, which come twice: see ECHO.
    """
    request = Request()
    noted = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if request and not (echoes and time.monotonic() - noted < ECHO):
            raise Stopped(number)
        if not request:
            request.number, noted = number, time.monotonic()

    with _handling(note):
        yield request


@contextmanager
def holding_sigterm_back() -> Iterator[None]:
    """Around the start of worker processes, which get the mask of the thread that starts them: a SIGTERM that comes
    before they have said what they want (`leave_signals_to_the_parent`) waits, there and in this thread.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_parent(end_on_sigterm: bool) -> None:
    """In a worker process, which the terminal and the system ask to stop as well: its parent says when it ends, and it
    ends when its parent is gone, which a pool's workers would not notice: they wait for what one another might send.

    end_on_sigterm: whoever sends it. Workers of a pool, where one that is gone is no harm, may. Those of a DataLoader
    end by SIGTERM from their parent alone: one that is gone raises an error in the middle of a step of its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listens = not end_on_sigterm and hasattr(signal, "sigtimedwait")
    if listens:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if hasattr(signal, "pthread_sigmask"):  # one that was held back ends the process now
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with_the_parent, args=[os.getppid(), listens], daemon=True).start()


def _end_with_the_parent(parent: int, listens: bool) -> None:
    """listens: SIGTERM from the parent ends this process, one of others does not."""
    while os.getppid() == parent and _parent_lives():
        if not listens:
            time.sleep(PARENT)
        elif (told := signal.sigtimedwait([signal.SIGTERM], PARENT)) and told.si_pid == parent:
            break
    os._exit(0)


def _parent_lives() -> bool:
    """Also where it has ended before this process could ask who it is."""
    import multiprocessing  # only now: other commands start quickly without

    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None or os.name != "posix":
        return True
    try:
        os.kill(parent.pid, 0)
    except ProcessLookupError:
        return False
    return True
