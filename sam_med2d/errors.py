"""What a person can mend: one family of errors, each one line that says what is wrong, where, and what to do.

`sam_med2d.cli.ending_in_one_line` turns every one of them into that line and a failing exit status.
"""

from sam_med2d.packages import foreign_package

try:
    from segment_anything import CheckpointError, ImageError, PromptError, UserError
except ImportError as error:
    raise foreign_package(error) from error

__all__ = [
    "CheckpointError",
    "DataError",
    "ImageError",
    "LostProcessError",
    "OutputError",
    "PromptError",
    "UsageError",
    "UserError",
]


class UsageError(UserError):
    """What a person asked for cannot be done. `str(error)` is one line that says why and what to do."""


class OutputError(UsageError):
    """Results cannot be written: a full or read-only disk, a file where a folder should be. Exit status 74."""

    status = 74  # EX_IOERR of sysexits.h


class LostProcessError(UserError):
    """Another process of this run is gone. Exit status 75: the same command with --resume may go on."""

    status = 75  # EX_TEMPFAIL of sysexits.h


class DataError(UserError):
    """Bad input. `str(error)` is one line that names the file and says what to do.

    A DataLoader worker's exception is raised again by torch with the worker's traceback as its message,
    as `DataError(traceback)`. The traceback's last line is the one meant for people, so only it is kept.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        """kind: "size" or "values" where a file can be read but not used, for programs that tell these apart."""
        if message.startswith("Caught DataError in "):
            message = message.rstrip().rpartition("\n")[2].partition("DataError: ")[2]
        super().__init__(" ".join(message.splitlines()))
        self.kind = kind
