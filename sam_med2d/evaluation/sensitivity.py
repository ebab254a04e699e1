"""Whether a model listens to its prompts: what each click brings, and what another object's prompts bring.

A model that stopped listening answers the same whatever it is asked: its Dice by click is flat, and its Dice with
swapped prompts is as high as with its own.
"""

import numpy as np

from sam_med2d.evaluation.evaluate import Means, Scored
from sam_med2d.prompts.modes import SWAPPED, Mode, parse_mode

CLICK, WORSE = "click", "worse"  # before the number of a click, as the name of a value


def with_swapped(modes: list[Mode]) -> list[Mode]:
    """The modes, and each also scored with the prompts of the next object of the picture, which needs no prediction."""
    swapped = [parse_mode(f"{mode.name}@{SWAPPED}") for mode in modes if not mode.scored]
    return [*dict.fromkeys([*modes, *swapped])]


def values_of(scored: Scored) -> dict[str, list[float]]:
    """One image's objects in one mode: its metrics, and of the longest sequence of clicks Dice after each one, and
    whether each but the first made the object worse, 1 or 0. {} where an object is alone and nothing can be swapped.
    """
    if scored.mode.scored == SWAPPED and len(scored.names) == 1:
        return {}
    values = dict(scored.values)
    if scored.dice_by_click is not None:
        for number, dice in enumerate(scored.dice_by_click.T, start=1):
            values[f"{CLICK}{number}"] = dice.tolist()
        for number, change in enumerate(np.diff(scored.dice_by_click, axis=1).T, start=2):
            values[f"{WORSE}{number}"] = (change < 0).astype(float).tolist()
    return values


def sensitivity(means: Means, modes: list[Mode]) -> dict[str, float]:
    """{what TensorBoard calls it: mean over objects}, of means over `values_of` of the modes of `with_swapped`.

    dice_after_click/K, share_made_worse_by_click/K, of the mode with the most clicks; dice_of_swapped/MODE, of the
    objects that are not alone in their image.
    """
    found: dict[str, float] = {}
    clicked = [mode for mode in modes if mode.start == "click" and not mode.scored]
    if clicked:
        longest = max(clicked, key=lambda mode: mode.clicks)
        for number in range(1, longest.clicks + 1):
            for kind, title in ((CLICK, "dice_after_click"), (WORSE, "share_made_worse_by_click")):
                value = means.of(f"{kind}{number}").get(longest.name)
                if value is not None:
                    found[f"{title}/{number}"] = value
    swapped = {name.removesuffix(f"@{SWAPPED}"): value for name, value in means.of("dice").items() if SWAPPED in name}
    return found | {f"dice_of_swapped/{name}": value for name, value in swapped.items()}
