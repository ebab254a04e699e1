"""What the page asks for, event by event: functions of (session, values), which know nothing of servers.

    act(session, {"do": "click", "x": 80.2, "y": 90.7, "on": True})

An event is what JSON can say, of anybody's making. Each is checked, and either changes the session or raises DataError
or PromptError, of one line for the person at the page, with the session as it was.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from sam_med2d.errors import DataError
from sam_med2d.inference.models import WITH, WITHOUT
from sam_med2d.inference.session import AnnotationSession
from segment_anything.zoom import Zoom

LARGE = 2**21  # pixels of a picture, from which masks take tens of milliseconds
FAR = 1e12  # values of a scanner beyond it are none


@dataclass(frozen=True)
class Values:
    """An event's values, each of which is checked as it is asked for. Raises DataError."""

    given: dict[str, Any]

    def number(self, name: str, low: float, high: float, kind: str = "number") -> float:
        value = self.given.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)  # NaN is not between them, and whole numbers of any length compare
        raise self._wrong(name, f"a {kind} from {low:g} to {high:g}")

    def whole(self, name: str, low: int, high: int) -> int:
        value = self.number(name, low, high, "whole number")
        if value != int(value):
            raise self._wrong(name, f"a whole number from {low} to {high}")
        return int(value)

    def truth(self, name: str) -> bool:
        value = self.given.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def line(self, name: str, size: tuple[int, int]) -> tuple[tuple[float, float], ...]:
        """Places [x, y] in a picture of this (height, width), its left and upper edges being 0 -> pixels' indexes."""
        value, (height, width) = self.given.get(name), size
        if not isinstance(value, list) or not all(isinstance(place, list) and len(place) == 2 for place in value):
            raise self._wrong(name, "a list of places [x, y]")
        places = [Values({"do": self.given.get("do"), "x": x, "y": y}) for x, y in value]
        checked = [(one.number("x", 0, width), one.number("y", 0, height)) for one in places]
        return tuple((min(max(x - 0.5, 0.0), width - 1.0), min(max(y - 0.5, 0.0), height - 1.0)) for x, y in checked)

    def text(self, name: str, default: str | None = None) -> str:
        value = self.given.get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        if any(0xD800 <= ord(letter) <= 0xDFFF or letter == "\0" for letter in value[:1000]):
            raise self._wrong(name, "a text of letters that there are")
        return value

    def _wrong(self, name: str, wanted: str) -> DataError:
        return DataError(
            f"the event {self.given.get('do')!s:.20} needs {name}, {wanted}, not {self.given.get(name)!r:.40}"
        )


def _click(session: AnnotationSession, values: Values) -> None:
    """x, y: in pixels of the picture, its left and upper edges being 0, with fractions; on: whether on the object."""
    height, width = session.size()
    x, y = values.number("x", 0, width), values.number("y", 0, height)
    foreground = values.truth("on")  # the right and the lower edge still belong to the last pixels
    session.click(float(min(int(x), width - 1)), float(min(int(y), height - 1)), foreground)


def _box(session: AnnotationSession, values: Values) -> None:
    """x0, y0, x1, y1: any two opposite corners, as of a click."""
    height, width = session.size()
    x0, x1 = (round(values.number(name, 0, width)) for name in ("x0", "x1"))
    y0, y1 = (round(values.number(name, 0, height)) for name in ("y0", "y1"))
    if x0 == x1 or y0 == y1:
        raise DataError("the box has no pixel in it; draw a larger one")
    session.draw_box(float(x0), float(y0), float(x1), float(y1))


def _scribble(session: AnnotationSession, values: Values) -> None:
    """line: places [x, y] as of a click, of a stroke; on: whether it is on the object."""
    session.draw_stroke(values.line("line", session.size()), values.truth("on"))


def _lasso(session: AnnotationSession, values: Values) -> None:
    """line: the corners of a rough outline, places [x, y] as of a click."""
    session.draw_lasso(values.line("line", session.size()))


def _slice(session: AnnotationSession, values: Values) -> None:
    session.turn_to(values.whole("number", 0, _last_slice(session)))


def _last_slice(session: AnnotationSession) -> int:
    session.size()  # says so where nothing is open
    return len(session.scan.slices) - 1 if session.scan else 0


def _choose(session: AnnotationSession, values: Values) -> None:
    """number: of an object, counted from 0, that prompts are for from now on."""
    session.current = values.whole("number", 0, len(session.objects) - 1)


def _adapters(session: AnnotationSession, values: Values) -> None:
    wanted = WITH if values.truth("on") else WITHOUT
    if wanted not in session.models:
        raise DataError(f"this model is not there {wanted}")
    session.model = wanted


def _window(session: AnnotationSession, values: Values) -> None:
    """low, high: the values that the model sees as black and white; without them each slice's own."""
    if values.given.get("low") is None and values.given.get("high") is None:
        session.set_window(None)
    else:
        session.set_window((values.number("low", -FAR, FAR), values.number("high", -FAR, FAR)))


def _carry(session: AnnotationSession, values: Values) -> None:
    """step: 1 to the next slice, -1 to the one before."""
    step = values.whole("step", -1, 1)
    if not step:
        raise DataError("the event carry needs step, 1 or -1, not 0")
    if why := session.carry(step):
        raise DataError(f"{session.objects[session.current]} ends here: {why}")


EVENTS: dict[str, Callable[[AnnotationSession, Values], None]] = {
    "look": lambda session, values: None,
    "click": _click,
    "box": _box,
    "scribble": _scribble,
    "lasso": _lasso,
    "undo": lambda session, values: session.undo(),
    "reset": lambda session, values: session.reset(),
    "add": lambda session, values: session.add_object(values.text("name", "")),
    "rename": lambda session, values: session.rename(values.text("name")),
    "choose": _choose,
    "slice": _slice,
    "window": _window,
    "adapters": _adapters,
    "carry": _carry,
}
ENCODING = ("click", "box", "scribble", "lasso")
DRAWING = (*ENCODING, "carry")


def name_of(event: object) -> str:
    """What an event asks for. Raises DataError: it is no event."""
    if not isinstance(event, dict):
        raise DataError(f'an event is an object such as {{"do": "undo"}}, not {event!r:.40}')
    name = event.get("do")
    if not isinstance(name, str) or name not in EVENTS:
        raise DataError(f"there is no event {name!r:.40}; there are {', '.join(EVENTS)}")
    return name


def act(session: AnnotationSession, event: object) -> None:
    """Do what an event asks for. Raises DataError, PromptError, with the session as it was."""
    name = name_of(event)
    assert isinstance(event, dict)
    with or_as_it_was(session):
        EVENTS[name](session, Values(event))


@contextmanager
def or_as_it_was(session: AnnotationSession) -> Iterator[None]:
    """Whatever is raised in the block leaves the session as it was before it."""
    before = {one.name: getattr(session, one.name) for one in fields(session)}
    kept = {name: value.copy() for name, value in before.items() if isinstance(value, list)}
    try:
        yield
    except BaseException:
        for name, value in {**before, **kept}.items():
            setattr(session, name, value)
        raise


def lane_of(session: AnnotationSession, event: dict[str, Any]) -> str:
    """Beside which events one is worked at: nothing quick shall wait for what takes longer.

    click: milliseconds. crop: a click on an encoded slice that may look closer, which encodes crops of it. encode: what
    may encode slices, or is of a large picture.
    """
    if session.scan is None:
        return "click"
    height, width = session.size()
    if event.get("do") == "carry" or height * width > LARGE:
        return "encode"
    if event.get("do") not in ENCODING:
        return "click"
    if not session.is_encoded():
        return "encode"
    return "crop" if Zoom.of(session.zoom).is_on else "click"
