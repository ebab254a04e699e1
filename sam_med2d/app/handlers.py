"""What the controls of the page do: functions of (session, values), which know nothing of Gradio.

Each changes the session or raises DataError or PromptError, of one line for the person at the page; the page then shows
what the session holds. Controls that do what a method of AnnotationSession does call that (add_object, rename, undo,
reset).
"""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from sam_med2d.app.canvas import canvas_of, table_of
from sam_med2d.errors import DataError
from sam_med2d.inference.models import WITH, WITHOUT
from sam_med2d.inference.session import AnnotationSession


class View(NamedTuple):
    """What the page shows of a session.

    canvas, table: HTML; choices: the objects, numbered from 1, of which `chosen` is the current one; name: of that one;
    slices: how many there are, of which number `slice`, counted from 0, is shown.
    """

    canvas: str
    table: str
    choices: list[str]
    chosen: str
    name: str
    slices: int
    slice: int


def view_of(session: AnnotationSession) -> View:
    choices = [f"{number}: {name}" for number, name in enumerate(session.objects, start=1)]
    return View(
        canvas_of(session),
        table_of(session),
        choices,
        choices[session.current],
        session.objects[session.current],
        len(session.scan.slices) if session.scan else 1,
        session.slice,
    )


def point(
    session: AnnotationSession, start: tuple[float, float], end: tuple[float, float] | None, foreground: bool
) -> None:
    """A click at `start`, or a box from `start` to `end`.

    start, end: xy in pixels of the picture, its left and upper edges being 0, with fractions; foreground: whether
    the click is on the object.
    """
    if end is not None:
        session.draw_box(*(float(round(value)) for value in (*start, *end)))
    else:
        height, width = session.size()
        x, y = start  # the right and the lower edge still belong to the last pixels
        session.click(float(min(int(x), width - 1)), float(min(int(y), height - 1)), foreground)


def open_upload(session: AnnotationSession, path: str | None) -> None:
    """What somebody gave to the page; the file is deleted. None: it was taken away again, and what is open stays."""
    if path is not None:
        try:
            open_file(session, path)
        finally:
            Path(path).unlink(missing_ok=True)


def open_file(session: AnnotationSession, path: str | Path) -> None:
    try:
        session.open(path)
        session.predictor()  # encoded now, so that the first click is as quick as the others
    except DataError as error:  # without the folder, which is of no concern to people elsewhere
        raise DataError(str(error).replace(f"{Path(path).parent}{os.sep}", "")) from error


def turn_to(session: AnnotationSession, number: float) -> None:
    """Show another slice, the last one where there are fewer. One that cannot be shown leaves the session as it was."""
    if session.scan is not None:
        before, session.slice = session.slice, min(int(number), len(session.scan.slices) - 1)
        try:
            session.predictor()
        except DataError:
            session.slice = before
            raise


def use_adapters(session: AnnotationSession, on: bool) -> None:
    session.model = WITH if on else WITHOUT
    if session.scan is not None:
        session.predictor()


def choose(session: AnnotationSession, number: int) -> None:
    """Make an object, counted from 0, the one that clicks and boxes are for."""
    session.current = number


def save(session: AnnotationSession) -> list[str]:
    """-> files to take away, which are deleted with the session or when others are made."""
    folder = tempfile.TemporaryDirectory()
    written = session.save(Path(folder.name))
    session.saved_in = folder
    return [str(path) for path in written]
