"""How much of the pictures is black or white to the end: what a window or a range has cut off cannot be seen."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from sam_med2d.convert.cases import Picture

TOO_MUCH = 0.5  # of the pixels of a class at one end, above which it is warned of
SHOWN = 5  # classes that a warning lists
ALL = ""  # in place of a class: all pixels of all pictures

Ends = dict[str, list[int]]  # class -> pixels, those that are 0 and those that are 255


def add_picture(ends: Ends, picture: Picture) -> None:
    """Count the pixels of a picture and of its objects at either end. It has an image."""
    image = picture.image
    if image is None:
        return
    low, high = (image == value if image.ndim == 2 else (image == value).all(axis=2) for value in (0, 255))
    _add(ends, ALL, (low.size, int(low.sum()), int(high.sum())))
    for class_name, _, mask in picture.objects:
        _add(ends, class_name or " ", (int(mask.sum()), int(low[mask].sum()), int(high[mask].sum())))


def _add(ends: Ends, name: str, counts: Iterable[int]) -> None:
    ends[name] = [sum(both) for both in zip(ends.get(name, [0, 0, 0]), counts)]


def total(of_cases: Iterable[Ends]) -> Ends:
    """Of several cases."""
    ends: Ends = {}
    for one in of_cases:
        for name, counts in one.items():
            _add(ends, name, counts)
    return ends


def lines(ends: Ends, flat: Counter[bool]) -> list[str]:
    """What to say of them. flat: how many pictures are of a single value, and how many are not."""
    if ALL not in ends:
        return []
    labelled = np.sum([counts for name, counts in ends.items() if name != ALL], axis=0).tolist()
    said = [
        f"at the ends of the range: {_share(ends[ALL], 1)} of pixels are 0 and {_share(ends[ALL], 2)} are 255; of "
        f"labelled pixels {_share(labelled, 1)} and {_share(labelled, 2)}"
    ]
    for end, value in ((1, "0"), (2, "255")):
        lost = [name for name, counts in ends.items() if name != ALL and counts[end] > TOO_MUCH * counts[0]]
        if lost:
            named = ", ".join(f"{name.strip() or 'no name'} {_share(ends[name], end)}" for name in lost[:SHOWN])
            said.append(
                f"warning: most pixels of {len(lost)} class(es) are {value}: {named}{', ...' if lost[SHOWN:] else ''}; "
                "what is cut off cannot be seen: is the range (--window, --percentiles) that of these images?"
            )
    if flat[True]:
        said.append(
            f"warning: {flat[True]} of {flat.total()} pictures are of one grey value, all black or all white; choose "
            "another range, or look at their source"
        )
    return said


def _share(counts: list[int], which: int) -> str:
    return f"{100 * counts[which] / max(counts[0], 1):.3g} %"
