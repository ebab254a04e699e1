"""What the command lines of this project share: flags, checks of their values, and how a person's mistake ends."""

import argparse
import errno
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from sam_med2d.packages import ForeignPackageError, missing_package
from sam_med2d.stopping import Stopped, raising_stopped

EX_IOERR = 74  # of sysexits.h: an error while files are written
ROOM = "make room on that disk, or choose another place"
WAY = "a file stands where a folder should be, or a folder where a file should be: choose another place"
RIGHTS = "check the permissions, or choose another place"
# What the system says of files that cannot be written, and what to do. Any other OSError is a fault of the program.
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: RIGHTS,
    errno.EPERM: RIGHTS,
    errno.ENOTDIR: WAY,
    errno.EISDIR: WAY,
    errno.EEXIST: WAY,
    errno.ENOTEMPTY: WAY,
    errno.ENAMETOOLONG: "choose shorter names",
    errno.ELOOP: "links lead in a circle: choose another place",
    errno.EIO: "check the disk, or choose another place",
    errno.ESTALE: "the network disk was lost: check it, or choose another place",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser for a command, whose docstring is its description as it stands. Errors are one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """End with status 2 and the message, without the lines of usage that would stand above it."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def boolean(text: str) -> bool:
    """An argparse type for flags written as `--flag True` and `--flag False`."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")


def add_flag(group: argparse._ActionsContainer, name: str, default: bool | None, help: str) -> None:
    """A boolean that parses `--flag`, `--flag True` and `--flag False`."""
    group.add_argument(name, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=help)


def check_numbers(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    positive: tuple[str, ...],
    not_negative: tuple[str, ...],
    shares: tuple[str, ...] = (),
    rates: tuple[str, ...] = (),
) -> None:
    """End with the parser's message where a flag has a number that makes no sense; None is one that nobody gave."""
    for least, names in ((1, positive), (0, not_negative)):
        for name in names:
            value = getattr(args, name)
            if value is not None and value < least:
                parser.error(f"--{name} must be at least {least}")
    for name in shares:
        if not 0 <= (getattr(args, name) or 0) <= 1:
            parser.error(f"--{name} must be between 0 and 1, not {getattr(args, name)}")
    for name in rates:
        rate = getattr(args, name)
        if rate is not None and not 0 < rate < math.inf:
            parser.error(f"--{name} must be above 0, not {rate}")
    if args.image_size is not None and args.image_size % 32:
        parser.error(f"--image_size must be a multiple of 32, not {args.image_size}")


def impossible_values(parser: argparse.ArgumentParser, values: dict[str, Any]) -> list[str]:
    """Those of `values`, {flag: value}, that the parser would never make of words, as "--flag value".

    For values that come from a file. Flags that the parser does not know are passed over.
    """
    flags = [action for action in parser._actions if action.dest in values]
    return [f"--{flag.dest} {values[flag.dest]!r:.40}" for flag in flags if not _possible(flag, values[flag.dest])]


def _possible(flag: argparse.Action, value: object) -> bool:
    if value is None:
        return flag.default is None
    several = flag.nargs in ("+", "*") or isinstance(flag.nargs, int)
    if several != isinstance(value, list) or (flag.nargs == "+" and not value):
        return False
    if isinstance(flag.nargs, int) and isinstance(value, list) and len(value) != flag.nargs:
        return False
    kinds: dict[object, tuple[type, ...]] = {int: (int,), float: (int, float), boolean: (bool,)}
    kind = kinds.get(flag.type, (str,))
    each = value if isinstance(value, list) else [value]
    return all(
        isinstance(one, kind)
        and (bool in kind or not isinstance(one, bool))
        and (flag.choices is None or one in flag.choices)
        for one in each
    )


def finish(message: object, status: int = 1, label: str = "error: ") -> NoReturn:
    """End the script with one line for people and a failing exit status."""
    if status == 1:
        raise SystemExit(f"{label}{message}")
    with suppress(OSError):  # stderr may be a file on the disk that is full
        print(f"{label}{message}", file=sys.stderr, flush=True)
    raise SystemExit(status)


@contextmanager
def ending_in_one_line(kept: str = "") -> Iterator[None]:
    """Around a command, or as the decorator `@ending_in_one_line()` of its `main`.

    What a person can mend, a `UserError` or a package of an extra that is not installed, ends the process with the line
    `error: ...` on stderr and exit status 1; what cannot be written, with 74; Ctrl-C and SIGTERM with a line that says
    so, and 130 and 143. Every other error is a fault of the program and passes.

    kept: what to say of a command that was stopped and says nothing itself: what it leaves, and how to go on.
    """
    try:
        with raising_stopped():
            yield
    except ForeignPackageError as error:
        finish(error)
    except ModuleNotFoundError as error:
        if line := missing_package(error):
            finish(line)
        raise
    except ValueError as error:
        from sam_med2d.errors import UserError  # only now: it loads the model, which is seconds

        if isinstance(error, UserError):
            finish(error, getattr(error, "status", 1))
        raise
    except OSError as error:
        if error.errno in REMEDIES:
            finish(disk_line(error), EX_IOERR)
        raise
    except (Stopped, KeyboardInterrupt) as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        stopped.saved = stopped.saved or kept
        finish(stopped, stopped.status, label="")


def disk_line(error: OSError) -> str:
    """What the system says of a file that cannot be written, and what to do, in one line."""
    where = error.filename2 or error.filename
    said = os.strerror(error.errno or 0)
    return " ".join(f"{os.fsdecode(where) if where else 'a file'}: {said}; {REMEDIES[error.errno or 0]}".splitlines())
