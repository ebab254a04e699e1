"""A researcher's own loss, augmentation and metric, each a function in a file of theirs, named by a flag.

    load_loss("my_loss:tversky")            # tversky of my_loss.py in the current folder, or on PYTHONPATH

What a function must take and give is tried on small tensors before any training. docs/training.md has examples.
"""

import importlib
import os
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sam_med2d.errors import UsageError
from sam_med2d.evaluation.metrics import METRICS
from segment_anything import Prediction

Loss = Callable[[Prediction, Tensor, Tensor], dict[str, Tensor]]  # as losses.objective


class MetricNames(list):
    """The choices of a flag that takes names of METRICS, or an own one as module:function."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and ":" in name)


def load_part(flag: str, name: str) -> Callable:
    """What "module:function" names. flag: that it was given to. Raises UsageError."""
    module, _, function = name.rpartition(":")
    if not module or not function:
        raise UsageError(f"--{flag} {name}: name a function as module:function")
    if os.getcwd() not in sys.path:  # where a script runs from a clone, that is not the folder it is called in
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever a person's own file runs into
        said = " ".join(str(error).splitlines())
        raise UsageError(
            f"--{flag} {name}: {module} cannot be imported ({type(error).__name__}: {said}); it is looked for in "
            f"{os.getcwd()} and on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UsageError(f"--{flag} {name}: {module} has no function {function}")
    return found


def load_loss(name: str) -> Loss:
    """Own loss: (prediction, logits, masks), as `losses.objective` takes them -> a scalar, or a dict of scalars with
    the key "loss", whose others are logged. Raises UsageError where it gives something else.
    """
    function = load_part("loss", name)

    def loss(prediction: Prediction, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
        given = function(prediction, logits, masks)
        return given if isinstance(given, dict) else {"loss": given}

    logits = torch.linspace(-3, 3, 2 * 4 * 32 * 32).view(2, 4, 32, 32).requires_grad_()
    masks = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    masks[:, :, 8:20, 8:20] = True
    small = Prediction(torch.nn.functional.avg_pool2d(logits, 4), torch.full((2, 4), 0.5, requires_grad=True))
    terms = _tried("loss", name, lambda: loss(small, logits, masks))
    total = terms.get("loss")
    if not isinstance(total, Tensor) or total.dim() or not total.requires_grad or not torch.isfinite(total):
        raise UsageError(
            f"--loss {name}: must give a finite scalar that depends on the logits, or a dict that has one as 'loss'"
        )
    if not all(isinstance(term, Tensor) and not term.dim() for term in terms.values()):
        raise UsageError(f"--loss {name}: every term of the dict must be a scalar tensor")
    return loss


class OwnAugmentation:
    """Own variation of training images: (image, masks, generator) -> (image, masks).

    image: (h, w, 3) uint8, BGR; masks: (n, h, w) bool; generator: numpy's, from which every draw has to come, so that
    an image is varied the same way whatever was done before. The image may become smaller.
    """

    def __init__(self, name: str) -> None:
        """Raises UsageError where the function is not there, or gives something else."""
        self.name = name
        self._function = load_part("augment_with", name)
        masks = np.zeros((2, 24, 32), bool)
        masks[:, 4:9, 5:20] = True
        self(np.full((24, 32, 3), 99, np.uint8), masks, np.random.default_rng(0))

    def __reduce__(self):
        return OwnAugmentation, (self.name,)

    def __call__(
        self, image: np.ndarray, masks: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        changed = _tried("augment_with", self.name, lambda: self._function(image, masks, generator))
        problem = "give a pair of image and masks" if not (isinstance(changed, tuple) and len(changed) == 2) else ""
        if not problem:
            picture, objects = changed
            of_bytes, of_bools = np.dtype(np.uint8), np.dtype(bool)
            if getattr(picture, "dtype", None) != of_bytes or picture.shape[2:] != (3,):
                problem = "give an image (h, w, 3) of uint8"
            elif getattr(objects, "dtype", None) != of_bools or objects.shape != (len(masks), *picture.shape[:2]):
                problem = "give as many masks as before, bool, of the image's size"
            elif picture.shape[0] > image.shape[0] or picture.shape[1] > image.shape[1]:
                problem = "not make the image larger"
        if problem:
            raise UsageError(f"--augment_with {self.name}: must {problem}")
        return np.ascontiguousarray(changed[0]), np.ascontiguousarray(changed[1])


def load_metrics(names: list[str]) -> None:
    """Those of a --metrics that are no names of METRICS. Raises UsageError."""
    for name in names:
        if ":" in name:
            load_metric(name)


def load_metric(name: str) -> None:
    """Own metric of the validation: (predicted, truth, *, from_logits), (n, H, W) bool -> (n,) floats, as those of
    `metrics.METRICS`, which it joins under `name`. Raises UsageError where it gives something else.
    """
    function = load_part("metrics", name)
    predicted = torch.zeros(2, 16, 16, dtype=torch.bool)
    predicted[:, 2:9, 3:7] = True
    values = _tried("metrics", name, lambda: function(predicted, predicted.roll(1, 1), from_logits=False))
    if not isinstance(values, Tensor) or values.shape != (2,):
        raise UsageError(f"--metrics {name}: must give one value an object, a tensor (n,)")
    METRICS[name] = function


def _tried(flag: str, name: str, call: Callable):
    try:
        return call()
    except Exception as error:  # whatever a person's own function runs into
        said = " ".join(str(error).splitlines())
        raise UsageError(f"--{flag} {name}: fails with {type(error).__name__}: {said}") from error
