"""CSV as people write it: commas, or the semicolons and tabs that spreadsheets put in their place."""

import csv
import io
from collections.abc import Iterator

from sam_med2d.errors import DataError, UserError

DELIMITERS = ",;\t"


def delimiter_of(line: str) -> str:
    """Of a table, by its first line: the one that is there most often, a comma where none is."""
    return max(DELIMITERS, key=line.count)


def rows_of(text: str, path: object, error: type[UserError] = DataError) -> Iterator[tuple[int, list[str]]]:
    """(number of the line a row ends in, its cells) of each row that is not empty. Raises `error`, naming the line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text.lstrip().partition("\n")[0]))
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as cause:  # a field of more than 131072 letters, as one quote that is never closed makes
        raise error(f"{path}, line {reader.line_num}: is no row of a table ({cause}); correct it") from cause
