from .automatic_mask_generator import SamAutomaticMaskGenerator
from .build_sam import build_sam, build_sam_vit_b, build_sam_vit_h, build_sam_vit_l, sam_model_registry
from .errors import CheckpointError, ImageError, PromptError, UserError
from .modeling import ABSENT, BACKGROUND, FOREGROUND, MULTIPLE, SINGLE, Prediction, Prompts, Sam, best_of
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
    "UserError",
    "best_of",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "sam_model_registry",
]
