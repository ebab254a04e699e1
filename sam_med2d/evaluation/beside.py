"""What is measured of an image while the model goes on: surface metrics of its objects, and its share of each case."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from sam_med2d.data.batch import Batch
from sam_med2d.data.description import Describer
from sam_med2d.evaluation.cases import KEYS, Pool, pool_of
from sam_med2d.evaluation.evaluate import Scored
from sam_med2d.evaluation.surface import METRICS, Spacing, Tolerance, surfaces_of
from sam_med2d.prompts.modes import SWAPPED

WAITING = 8  # images a worker, whose surface metrics are being computed while the model goes on

Described = dict[str, dict[str, object]]  # what each mask of an image is of, as a Describer says it


class Beside(NamedTuple):
    """Of one image in one mode. distances: of each object its surface metrics, by name; pools: of each class."""

    distances: list[dict[str, float]]
    pools: list[Pool]


def with_surfaces(
    scores: Iterable[tuple[Batch, list[Scored]]],
    describer: Describer,
    asked: Sequence[str],
    tolerance: Tolerance,
    threads: int,
) -> Iterator[tuple[Batch, int, list[Scored], list[Beside]]]:
    """Image by image, in order: its batch and place there, its scores mode by mode, and what belongs to these.

    asked: surface metrics by name. Computed by so many threads; only so many images wait for theirs.
    """
    waiting: deque[tuple[Batch, int, list[Scored], list[Future[Beside]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch, scored in scores:
            for image, name in enumerate(batch.image_names):
                here = [one for one in scored if one.image == image]
                names = here[0].names if here else []
                described = {mask: describer.describe(name, mask) for mask in names}
                spacing = describer.spacing(names[0]) if names else None
                futures = [pool.submit(beside, one, described, spacing, asked, tolerance) for one in here]
                waiting.append((batch, image, here, futures))
            while len(waiting) > WAITING * threads:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(
    batch: Batch, image: int, scored: list[Scored], futures: list[Future[Beside]]
) -> tuple[Batch, int, list[Scored], list[Beside]]:
    return batch, image, scored, [future.result() for future in futures]


def beside(
    scored: Scored, described: Described, spacing: Spacing | None, asked: Sequence[str], tolerance: Tolerance
) -> Beside:
    """spacing: of the picture, where it is known."""
    masks, truth = scored.masks.numpy(), scored.truth.numpy()
    each = [surfaces_of(one, other, tolerance, spacing) if asked else None for one, other in zip(masks, truth)]
    distances = [{name: METRICS[name](surfaces) for name in asked} if surfaces else {} for surfaces in each]
    pools: list[Pool] = []
    if scored.mode.scored == SWAPPED:  # another object's prompts: nothing of a case
        return Beside(distances, pools)
    for keys, members in members_of(scored.names, described, scored.mode.name):
        predicted, true = (np.logical_or.reduce(each_of[members]) for each_of in (masks, truth))
        surfaces = each[members[0]]
        if asked and len(members) > 1:
            surfaces = surfaces_of(predicted, true, tolerance, spacing)
        pools.append(pool_of(keys, predicted, true, surfaces, spacing) | {"objects": len(members)})
    return Beside(distances, pools)


def members_of(names: Sequence[str], described: Described, mode: str) -> Iterator[tuple[dict[str, object], list[int]]]:
    """The objects of an image by what they are pooled with, if their case is known: keys of cases.py, places."""
    members: dict[tuple[object, ...], list[int]] = {}
    for place, name in enumerate(names):
        if described[name]["case"]:
            members.setdefault(tuple((described[name] | {"mode": mode})[key] for key in KEYS), []).append(place)
    return ((dict(zip(KEYS, keys)), places) for keys, places in members.items())
