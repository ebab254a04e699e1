"""SAM-Med2D: data, prompts, training, evaluation, use and export of the model in `segment_anything`."""

__version__ = "2.0.0"
