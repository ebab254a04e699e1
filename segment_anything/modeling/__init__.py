from .image_encoder import Adapter, ImageEncoder
from .mask_decoder import MULTIPLE, SINGLE, MaskDecoder
from .prompt_encoder import ABSENT, BACKGROUND, FOREGROUND, PromptEncoder
from .refinement import Refinement
from .sam import Prediction, Prompts, Sam, Seen, Segmenter, answer, best_of, look, low_resolution, ranked

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
    "Refinement",
    "Sam",
    "Seen",
    "Segmenter",
    "answer",
    "best_of",
    "look",
    "low_resolution",
    "ranked",
]
