"""Headers of text, of NRRD and MetaImage: looked at before ITK parses them.

Its parsers copy what they complain of into fields of fixed length: a line of 5000 letters ends the process.
"""

from sam_med2d.errors import DataError

NRRD = b"NRRD000"
LONGEST_LINE = 500  # bytes; the parsers have room for 512
LONGEST_HEADER = 1 << 24  # bytes


def check_text_header(path: str) -> None:
    """Raises DataError for an NRRD header with lines that no program writes. Raises OSError."""
    with open(path, "rb") as file:
        if not (line := file.readline(LONGEST_HEADER)).startswith(NRRD):
            return
        while line.strip(b"\r\n"):  # an empty line ends it; where the data lie in another file, the end of this one
            free = (
                line.startswith(b"#") or b":=" in line
            )  # comments, and pairs of a key and a value as long as it likes
            if len(line) > LONGEST_LINE and not free:
                raise DataError(
                    f"{path}: has a line of more than {LONGEST_LINE} letters in its header; export it again"
                )
            if file.tell() > LONGEST_HEADER:
                raise DataError(f"{path}: has a header of more than {LONGEST_HEADER >> 20} MB; export it again")
            line = file.readline(LONGEST_HEADER)
