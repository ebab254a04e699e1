"""What the tests of other tools share: files that were exported for them, CT slices, and what our predictor answers."""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, NoReturn

import cv2
import numpy as np
import pytest

from sam_med2d.export.job import Job
from sam_med2d.export.targets import export
from sam_med2d.inference.models import SMALL, open_model
from segment_anything import Sam, SamPredictor, sam_model_registry
from segment_anything.frames import SAM
from segment_anything.zoom import NEVER
from tests.conftest import ROOT, shared  # noqa: F401
from tests.segment_anything.test_model import randomise

SMALLEST = 50  # pixels of an organ


class Organ(NamedTuple):
    """image: (H, W, 3) uint8 RGB; box: x0 y0 x1 y1; click: xy, in the organ."""

    image: np.ndarray
    box: np.ndarray
    click: np.ndarray


@pytest.fixture(scope="session")
def organs(shared) -> list[Organ]:  # noqa: F811
    """Of CT slices, with the boxes of their organs' masks, by the slice."""
    folder, found = shared / "data/sam_med2d/data_demo", []
    for path in sorted((folder / "images").iterdir()):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        for mask_path in sorted((folder / "masks").glob(f"{path.stem}_*")):
            rows, columns = np.nonzero(cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE))
            if len(rows) < SMALLEST:
                continue
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            middle = len(rows) // 2
            found.append(Organ(image, box, np.array([columns[middle], rows[middle]])))
    assert len(found) > 20
    return found


@pytest.fixture(scope="session")
def general() -> Sam:
    """The small weights, as clients can run them, without the refinement network: vit_t, 192 px, SAM-Med2D's frame."""
    return open_model(SMALL, refine=False).requires_grad_(False)


@pytest.fixture(scope="session")
def exported(general, organs, tmp_path_factory) -> Callable[..., Path]:
    """A target's files of that model -> what they are called, without their endings."""

    def write(target: str, **options) -> Path:
        folder = tmp_path_factory.mktemp(target)
        images = [organs[0].image[..., ::-1]]
        export(target, Job(general, folder, "mine", images, **options))
        return folder / "mine"

    return write


@pytest.fixture(scope="session")
def plain_sam(tmp_path_factory) -> Path:
    """A SAM's own file: vit_b, 1024 px, made by the target sam-pth of a model of 64 px with random weights."""
    model = randomise(sam_model_registry["vit_b"](image_size=64, encoder_adapter=False, frame=SAM))
    folder = tmp_path_factory.mktemp("sam-pth")
    from sam_med2d.export.weight_targets import write_sam_pth

    write_sam_pth(Job(model, folder, "mine", []))
    return folder / "sam_vit_b_mine.pth"


def answers(model: Sam, organs: list[Organ], kind: str, protocol: str = "exact", multimask: bool = True) -> list:
    """The best mask of our predictor for each organ, from its box or its click."""
    predictor, found, last = SamPredictor(model, protocol, NEVER), [], None
    for organ in organs:
        if organ.image is not last:
            predictor.set_image(last := organ.image)
        asked = {"box": organ.box} if kind == "box" else {"point_coords": [organ.click], "point_labels": [1]}
        answer = predictor.predict(**asked, multimask_output=multimask)
        found.append(answer.masks[answer.iou.argmax()])
    return found


def mean_dice(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Answers that are both empty agree."""
    return float(
        np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1 for a, b in zip(ours, theirs)])
    )


def without_torchvision() -> None:
    """No registry has a torchvision for this torch on a CPU. What ISAT and micro-sam import of it stands in here, and
    fails where it is called, which what is tested does not.
    """
    functions = {
        "torchvision.ops.boxes": ("batched_nms", "box_area"),
        "torchvision.transforms.functional": ("resize", "to_pil_image"),
    }
    for name in ("torchvision", "torchvision.ops", "torchvision.transforms", *functions):
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
        for function in functions.get(name, ()):
            setattr(module, function, _missing)
        sys.modules.setdefault(name, module)


def _missing(*args: object, **options: object) -> NoReturn:
    raise AssertionError("torchvision is not installed")
