from .image_encoder import Adapter, ImageEncoder
from .mask_decoder import MaskDecoder
from .prompt_encoder import PromptEncoder
from .sam import Prediction, Prompts, Sam, best_of

__all__ = ["Adapter", "ImageEncoder", "MaskDecoder", "Prediction", "PromptEncoder", "Prompts", "Sam", "best_of"]
