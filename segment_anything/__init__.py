from .build_sam import build_sam, sam_model_registry
from .modeling import Prediction, Prompts, Sam, best_of

__all__ = ["Prediction", "Prompts", "Sam", "best_of", "build_sam", "sam_model_registry"]
