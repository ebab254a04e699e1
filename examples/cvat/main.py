"""What nuclio runs for CVAT: the handler is in the package."""

from sam_med2d.serve.cvat import handler, init_context

__all__ = ["handler", "init_context"]
