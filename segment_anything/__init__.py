"""SAM with an adapter in every block of its image encoder: the model, its weights, and predictors.

What is named here is loaded when it is first asked for: whoever needs an error's class alone loads no PyTorch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .automatic_mask_generator import SamAutomaticMaskGenerator
    from .build_sam import build_sam, build_sam_vit_b, build_sam_vit_h, build_sam_vit_l, sam_model_registry
    from .errors import CheckpointError, ImageError, PromptError, UserError
    from .modeling import (
        ABSENT,
        BACKGROUND,
        FOREGROUND,
        MULTIPLE,
        SINGLE,
        Prediction,
        Prompts,
        Sam,
        Seen,
        answer,
        best_of,
        look,
        low_resolution,
        ranked,
    )
    from .predictor import Masks, ObjectPrompt, SamPredictor
    from .predictor_sammed import SammedPredictor

__all__ = [
    "ABSENT",
    "BACKGROUND",
    "FOREGROUND",
    "MULTIPLE",
    "SINGLE",
    "CheckpointError",
    "ImageError",
    "Masks",
    "ObjectPrompt",
    "Prediction",
    "PromptError",
    "Prompts",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "SammedPredictor",
    "Seen",
    "UserError",
    "answer",
    "best_of",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "look",
    "low_resolution",
    "ranked",
    "sam_model_registry",
]

_HOMES = {  # the module of each name
    "automatic_mask_generator": ("SamAutomaticMaskGenerator",),
    "build_sam": ("build_sam", "build_sam_vit_b", "build_sam_vit_h", "build_sam_vit_l", "sam_model_registry"),
    "errors": ("CheckpointError", "ImageError", "PromptError", "UserError"),
    "modeling": (
        *("ABSENT", "BACKGROUND", "FOREGROUND", "MULTIPLE", "SINGLE"),
        *("Prediction", "Prompts", "Sam", "Seen", "answer", "best_of", "look", "low_resolution", "ranked"),
    ),
    "predictor": ("Masks", "ObjectPrompt", "SamPredictor"),
    "predictor_sammed": ("SammedPredictor",),
}
_MODULES = (
    "checkpoint",
    "files",
    "geometry",
    "images",
    "sizes",
    *_HOMES,
)  # reachable as attributes, as they always were


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


class _Package(ModuleType):
    """`build_sam` is a function, and also the module that it comes from: here the function wins, whoever loads it."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "build_sam" and isinstance(value, ModuleType):
            value = value.build_sam
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
