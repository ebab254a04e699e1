from .image_encoder import Adapter, ImageEncoder, ImageEncoderViT
from .mask_decoder import MULTIPLE, SINGLE, MaskDecoder
from .prompt_encoder import ABSENT, BACKGROUND, FOREGROUND, PositionEmbeddingRandom, PromptEncoder
from .sam import Prediction, Prompts, Sam, best_of
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
    "Sam",
    "TwoWayAttentionBlock",
    "TwoWayTransformer",
    "best_of",
]
