from .image_encoder import Adapter, ImageEncoder
from .mask_decoder import MULTIPLE, SINGLE, MaskDecoder
from .prompt_encoder import ABSENT, BACKGROUND, FOREGROUND, PromptEncoder
from .sam import Prediction, Prompts, Sam, best_of

__all__ = [
    "ABSENT",
    "BACKGROUND",
    "FOREGROUND",
    "MULTIPLE",
    "SINGLE",
    "Adapter",
    "ImageEncoder",
    "MaskDecoder",
    "Prediction",
    "PromptEncoder",
    "Prompts",
    "Sam",
    "best_of",
]
