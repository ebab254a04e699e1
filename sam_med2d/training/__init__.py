"""What a batch does, what it learns from, and what a checkpoint holds."""

import sam_med2d.errors  # noqa: F401  says so first where segment_anything is somebody else's
