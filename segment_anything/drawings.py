"""What a person draws, as prompts that every model hears: strokes as clicks along them, a lasso as its box and a mask.

Coordinates are pixels, x before y, a pixel's own index.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from .errors import PromptError
from .modeling import BACKGROUND, FOREGROUND

CLICKS_ALONG = 5  # clicks by which a stroke is heard


def points_along(lines: Sequence[np.ndarray], count: int = CLICKS_ALONG) -> np.ndarray:
    """Places equally far from one another along the pieces of a stroke, gaps not counted: (count, 2) float32, whole
    numbers.

    lines: (n, 2) each, at least one, n from 1 on.
    """
    lines = [resampled(line, int(np.ceil(_length(line))) + 1) for line in lines]
    points = np.concatenate(lines)
    along = np.cumsum(np.concatenate([np.append(0.0, np.hypot(*np.diff(line, axis=0).T)) for line in lines]))
    places = (np.arange(count) + 0.5) / count * along[-1]
    nearest = np.abs(along[None] - places[:, None]).argmin(axis=1)
    return np.rint(points[nearest]).astype(np.float32)


def resampled(line: np.ndarray, count: int) -> np.ndarray:
    """(n, 2) -> (count, 2), equally far from one another along the line."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    places = np.linspace(0, along[-1], count)
    return np.stack([np.interp(places, along, line[:, k]) for k in range(2)], axis=1).astype(np.float32)


def _length(line: np.ndarray) -> float:
    return float(np.hypot(*np.diff(line, axis=0).T).sum())


def enclosed(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What a lasso encloses, its line included: (height, width) bool. polygon: (n, 2)."""
    filled = np.zeros(size, np.uint8)
    cv2.fillPoly(filled, [np.rint(polygon).astype(np.int32).reshape(-1, 1, 2)], 1)
    return filled > 0


# ---------------------------------------------------------------- what people hand in


def clicks_of_scribbles(
    scribbles: Sequence | np.ndarray, labels: Sequence[int] | None, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Strokes of one object -> points (P, 2) float32 and labels (P,), CLICKS_ALONG for each stroke.

    scribbles: polylines (n, 2), each with its label, 1 on the object (as all are without labels), 0 on the background;
    or a mask (height, width) of the picture: above 0 on the object, below 0 on the background, each connected piece a
    stroke. size: (height, width). Raises PromptError: outside the picture, another shape, or nothing drawn.
    """
    if isinstance(scribbles, np.ndarray) and scribbles.ndim == 2 and scribbles.shape[1] != 2:
        if scribbles.shape != tuple(size):
            raise PromptError(f"scribbles of shape {scribbles.shape}; a mask of them has the image's, {tuple(size)}")
        if labels is not None:
            raise PromptError(
                "scribbles as a mask say their labels themselves, by their sign; leave scribble_labels out"
            )
        drawn = [
            (piece, label)
            for label, sign in ((FOREGROUND, 1), (BACKGROUND, -1))
            for piece in _pieces(sign * scribbles > 0)
        ]
        points = [_spread(piece) for piece, _ in drawn]
        given = [label for _, label in drawn]
    else:
        lines = [_line(line, number, size) for number, line in enumerate(scribbles)]
        given = [FOREGROUND] * len(lines) if labels is None else [int(label) for label in labels]
        if len(given) != len(lines) or not set(given) <= {FOREGROUND, BACKGROUND}:
            raise PromptError(f"scribble_labels must be 1 or 0 for each of {len(lines)} scribble(s), not {labels!r}")
        points = [points_along([line]) for line in lines]
    if not points:
        raise PromptError("scribbles: nothing is drawn")
    return np.concatenate(points), np.repeat(given, [len(part) for part in points])


def _line(line: object, number: int, size: tuple[int, int]) -> np.ndarray:
    try:
        points = np.asarray(line, np.float32)
    except (TypeError, ValueError) as error:
        raise PromptError(f"scribble {number} is not made of numbers") from error
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise PromptError(f"scribble {number} of shape {points.shape}; it must be (n, 2), places of x and y")
    _check_inside(points, f"scribble {number}", size)
    return points


def _check_inside(points: np.ndarray, what: str, size: tuple[int, int]) -> None:
    outside = ~((points >= 0) & (points <= (size[1], size[0]))).all(axis=1)  # not a number is outside as well
    if outside.any():
        x, y = points[outside][0]
        raise PromptError(
            f"{what}: ({x:g}, {y:g}) lies outside the image of {size[1]} x {size[0]} pixels; x comes before y"
        )


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected pieces of a mask, as points (n, 2)."""
    count, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [np.argwhere(regions == number)[:, ::-1].astype(np.float32) for number in range(1, count)]


def _spread(points: np.ndarray) -> np.ndarray:
    """CLICKS_ALONG of the points, far from one another: each next one is the farthest from those before it."""
    chosen = [int(np.hypot(*(points - points.mean(axis=0)).T).argmin())]
    while len(chosen) < min(CLICKS_ALONG, len(points)):
        away = np.hypot(*(points[:, None] - points[chosen]).transpose(2, 0, 1)).min(axis=1)
        chosen.append(int(away.argmax()))
    return points[chosen]


def region_of_lasso(lasso: Sequence | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A lasso around one object, a polygon (n, 2) -> what it encloses, (height, width) bool.

    Raises PromptError: outside the picture, fewer than three corners, nothing enclosed, or a line that crosses itself.
    """
    try:
        polygon = np.asarray(lasso, np.float32)
    except (TypeError, ValueError) as error:
        raise PromptError("lasso is not made of numbers") from error
    if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3:
        raise PromptError(f"lasso of shape {polygon.shape}; it must be (n, 2), at least three corners")
    _check_inside(polygon, "lasso", size)
    if len(polygon) > 3 and (polygon[0] == polygon[-1]).all():
        polygon = polygon[:-1]
    x, y = polygon.T
    if abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 < 1:
        raise PromptError("lasso encloses less than a pixel; draw it around the object")
    if _crosses_itself(polygon.astype(np.float64)):
        raise PromptError("lasso crosses itself; draw its line once around the object")
    return enclosed(polygon, size)


def _crosses_itself(polygon: np.ndarray) -> bool:
    """Whether two sides that are no neighbours cut each other."""
    start, end = polygon, np.roll(polygon, -1, axis=0)

    def side_of(a: np.ndarray, b: np.ndarray, point: np.ndarray) -> np.ndarray:
        return np.sign(
            (b[..., 0] - a[..., 0]) * (point[..., 1] - a[..., 1])
            - (b[..., 1] - a[..., 1]) * (point[..., 0] - a[..., 0])
        )

    a, b, c, d = start[:, None], end[:, None], start[None], end[None]
    cut = (side_of(a, b, c) * side_of(a, b, d) < 0) & (side_of(c, d, a) * side_of(c, d, b) < 0)
    return bool(cut.any())
