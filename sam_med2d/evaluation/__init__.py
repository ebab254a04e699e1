"""From scores to rows, tables, curves and the report."""

import sam_med2d.errors  # noqa: F401  says so first where segment_anything is somebody else's
