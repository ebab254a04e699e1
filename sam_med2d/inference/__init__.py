"""Open a model or an exported file, and annotate with it."""

import sam_med2d.errors  # noqa: F401  says so first where segment_anything is somebody else's
