"""How training images are varied."""

import os
from typing import TYPE_CHECKING

import cv2

if TYPE_CHECKING:
    from albumentations import Compose


def build_augmentation() -> "Compose":
    """The augmentation, an albumentations Compose; seed it anew before each use (see `TrainingDataset._augment`).

    Imported here, as only augmented training needs it. Without the variable it asks the network for updates on import.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A

    return A.Compose(
        [
            # Prompts say where, not what, so left and right or up and down may be swapped.
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            # How patients and probes vary. What comes in from outside is black and no object: a reflected
            # border would show a second copy of the anatomy.
            A.Affine(
                scale=(0.85, 1.15),
                rotate=(-20, 20),
                translate_percent=(-0.06, 0.06),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                border_mode=cv2.BORDER_CONSTANT,
                fill=0,
                fill_mask=0,
                p=0.5,
            ),
            # Window settings, exposure and display curves differ between devices and hospitals.
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.5),
            A.RandomGamma(gamma_limit=(75, 135), p=0.3),
            # Dose and focus. One noise for all channels, as most images are grey and should stay so.
            A.OneOf(
                [
                    A.GaussNoise(std_range=(0.01, 0.04), per_channel=False),
                    A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.0)),
                ],
                p=0.2,
            ),
        ]
    )
