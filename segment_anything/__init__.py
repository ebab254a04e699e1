from .automatic_mask_generator import SamAutomaticMaskGenerator
from .build_sam import build_sam, build_sam_vit_b, build_sam_vit_h, build_sam_vit_l, sam_model_registry
from .images import ImageError
from .modeling import ABSENT, BACKGROUND, FOREGROUND, MULTIPLE, SINGLE, Prediction, Prompts, Sam, best_of
from .predictor import Masks, ObjectPrompt, PromptError, SamPredictor
from .predictor_sammed import SammedPredictor

__all__ = [
    "ABSENT",
    "BACKGROUND",
    "FOREGROUND",
    "MULTIPLE",
    "SINGLE",
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
    "best_of",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "sam_model_registry",
]
