from .image_encoder import Adapter, ImageEncoder
from .mask_decoder import MULTIPLE, SINGLE, MaskDecoder
from .prompt_encoder import ABSENT, BACKGROUND, FOREGROUND, PromptEncoder
from .sam import Prediction, Prompts, Sam, best_of

__all__ = [
    "ABSENT",
    "Adapter",
    "BACKGROUND",
    "FOREGROUND",
    "ImageEncoder",
    "MULTIPLE",
    "MaskDecoder",
    "Prediction",
    "PromptEncoder",
    "Prompts",
    "SINGLE",
    "Sam",
    "best_of",
]
