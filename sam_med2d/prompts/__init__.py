"""Clicks, boxes, modes by name, and who draws them."""

import sam_med2d.errors  # noqa: F401  says so first where segment_anything is somebody else's
