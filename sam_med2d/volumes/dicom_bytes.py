"""Whether a file is DICOM, told by its first bytes and not by its name; needs no package."""

import os
import struct

MARK = b"DICM"  # after a preamble of 128 bytes
FIRST_GROUPS = (0x0002, 0x0008)  # that a file without preamble can begin with
REPRESENTATIONS = (b"AE", b"CS", b"DA", b"DT", b"LO", b"OB", b"PN", b"SH", b"ST", b"TM", b"UI", b"UL", b"US")


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file begins as DICOM does, with its preamble or, as very old ones, without. False: not readable."""
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == MARK or _begins_with_an_element(start)


def has_preamble(path: str | os.PathLike) -> bool:
    """Raises OSError."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == MARK


def _begins_with_an_element(start: bytes) -> bool:
    """One of the first of a data set: its tag, then what kind it is and how long, or how long alone."""
    if len(start) < 16:
        return False
    group, element, length = struct.unpack_from("<HHI", start)
    plausible = group in FIRST_GROUPS and element <= 0x20
    return plausible and (start[4:6] in REPRESENTATIONS or (length <= 128 and length % 2 == 0 and length > 0))
