"""ONNX graphs and files, and their comparison with PyTorch."""

import sam_med2d.errors  # noqa: F401  says so first where segment_anything is somebody else's
