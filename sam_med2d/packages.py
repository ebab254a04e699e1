"""Packages that not every machine has: what brings them, and what to say where one is missing or is somebody else's.

Loads nothing, so that a message about a missing package needs no package.
"""

import importlib.util
from pathlib import Path

# import name -> the extra of this project that brings it
EXTRAS = {
    "SimpleITK": "data",
    "pydicom": "data",
    "highdicom": "data",
    "onnx": "deploy",
    "onnxruntime": "deploy",
    "onnxscript": "deploy",
    "openvino": "deploy",
    "starlette": "app",
    "uvicorn": "app",
    "blosc2": "serve",
    "python_multipart": "serve",
    "wandb": "track",
}


class ForeignPackageError(ImportError):
    """The package `segment_anything` that was found is not the one that comes with sam_med2d."""


def missing_package(error: ImportError) -> str | None:
    """What to say of a package of an extra that is not installed, one line; None for every other failed import."""
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or name not in EXTRAS:
        return None
    extra = EXTRAS[name]
    return f'{name} is not installed: pip install "sam-med2d[{extra}]" (in a clone: pip install -e ".[{extra}]")'


def foreign_package(error: ImportError) -> ImportError:
    """`error`, of importing segment_anything -> what to raise: itself, or one that says whose package was found."""
    spec = importlib.util.find_spec("segment_anything")
    own = Path(__file__).resolve().parents[1] / "segment_anything"
    if spec is None or not spec.origin:
        return error
    found = Path(spec.origin).resolve().parent
    if found == own and error.name != "segment_anything":
        return error  # ours, and something that it needs is missing
    return ForeignPackageError(
        f"{found}: is another project's segment_anything, but {Path(__file__).resolve().parent} needs its own, "
        f"{own}; uninstall the other (pip uninstall segment-anything) and install sam-med2d again, or use an "
        "environment of its own"
    )
