from .image_encoder import Adapter, ImageEncoder, ImageEncoderViT
from .mask_decoder import MULTIPLE, SINGLE, MaskDecoder
from .prompt_encoder import ABSENT, BACKGROUND, FOREGROUND, PositionEmbeddingRandom, PromptEncoder
from .refinement import Refinement
from .sam import Prediction, Prompts, Sam, Seen, Segmenter, answer, best_of, look, low_resolution, ranked, sure_answers
from .transformer import TwoWayAttentionBlock, TwoWayTransformer

__all__ = [
    "ABSENT",
    "BACKGROUND",
    "FOREGROUND",
    "MULTIPLE",
    "SINGLE",
    "Adapter",
    "ImageEncoder",
    "ImageEncoderViT",
    "MaskDecoder",
    "PositionEmbeddingRandom",
    "Prediction",
    "PromptEncoder",
    "Prompts",
    "Refinement",
    "Sam",
    "Seen",
    "Segmenter",
    "TwoWayAttentionBlock",
    "TwoWayTransformer",
    "answer",
    "best_of",
    "look",
    "low_resolution",
    "ranked",
    "sure_answers",
]
