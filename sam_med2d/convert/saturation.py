"""How much of the pictures is black or white to the end: what a window or a range has cut off cannot be seen."""

from collections import Counter
from collections.abc import Iterable, Mapping

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


def lines(of_cases: Mapping[str, Ends], flat: Counter[bool]) -> list[str]:
    """What to say of them.

    of_cases: of each case by its name. flat: how many pictures are of a single value, and how many are not.
    """
    ends = total(of_cases.values())
    if ALL not in ends:
        return []
    labelled = _labelled(ends)
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
            continue
        lost = [case for case, one in of_cases.items() if (counts := _labelled(one))[end] > TOO_MUCH * counts[0]]
        if lost:  # which the others outweigh
            named = ", ".join(f"{case} {_share(_labelled(of_cases[case]), end)}" for case in lost[:SHOWN])
            said.append(
                f"warning: most labelled pixels of {len(lost)} case(s) are {value}: {named}"
                f"{', ...' if lost[SHOWN:] else ''}; is the range (--window, --percentiles) that of their images?"
            )
    if flat[True]:
        said.append(
            f"warning: {flat[True]} of {flat.total()} pictures are of one grey value, all black or all white; choose "
            "another range, or look at their source"
        )
    return said


def _labelled(ends: Ends) -> list[int]:
    """The counts of the pixels of all classes."""
    return np.sum([[0, 0, 0], *(counts for name, counts in ends.items() if name != ALL)], axis=0).tolist()


def _share(counts: list[int], which: int) -> str:
    return f"{100 * counts[which] / max(counts[0], 1):.3g} %"
