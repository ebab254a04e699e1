"""From a JSON index to batches: it lives in sam_med2d/data/."""

from sam_med2d.data.datasets import *  # noqa: F403
