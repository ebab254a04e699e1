from .build_sam import build_sam, sam_model_registry
from .modeling import (ABSENT, BACKGROUND, FOREGROUND, MULTIPLE, SINGLE, Prediction, Prompts, Sam, best_of)

__all__ = ["ABSENT", "BACKGROUND", "FOREGROUND", "MULTIPLE", "SINGLE", "Prediction", "Prompts", "Sam", "best_of", "build_sam",
           "sam_model_registry"]
