"""A mini model, small data, runs of train.py on them, and what they leave: for the tests of both scripts."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train

SIZE = 64
WITH_MINI = Path(__file__).with_name("with_mini.py")  # runs a script in a process that knows MINI
RUN = "sam-med2d"  # the default --run_name
FLAGS = (
    f"--replay none --model_type mini --image_size {SIZE} --sam_checkpoint none --num_workers 0 --mask_num 2 "
    "--iter_point 2 --prompt_modes bbox --device cpu"
).split()


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", array)[1].tobytes())


def make_data(folder: Path, splits: tuple[str, ...] = ("train",), images: int = 6) -> Path:
    """Discs and squares on noise, two or three objects an image; images in turn padded, stretched and of size S."""
    draw = np.random.default_rng(0)
    groups = {}
    for i in range(images):
        height, width = [(50, 40), (90, 70), (SIZE, SIZE)][i % 3]
        picture = draw.integers(0, 90, (height, width, 3), dtype=np.uint8)
        names = [f"masks/{i}_{k}.png" for k in range(2 + i % 2)]
        for name in names:
            mask = np.zeros((height, width), np.uint8)
            x, y, r = draw.integers(12, 28), draw.integers(12, 38), draw.integers(6, 12)
            cv2.circle(mask, (int(x), int(y)), int(r), 255, -1) if draw.random() < 0.5 else mask[
                y - r : y + r, x - r : x + r
            ].fill(255)
            picture[mask > 0] += 120
            write(folder / name, mask)
        write(folder / f"images/{i}.png", picture)
        groups[f"images/{i}.png"] = names
    for split in splits:
        write_index(folder, groups, split)
    return folder


def write_index(folder: Path, groups: dict[str, list[str]], split: str) -> None:
    """image2label for training and validation, label2image for testing, as the original has them."""
    if split == "test":
        entries = {mask: image for image, masks in groups.items() for mask in masks}
        (folder / "label2image_test.json").write_text(json.dumps(entries))
    else:
        (folder / f"image2label_{split}.json").write_text(json.dumps(groups))


def fit(data: Path, work: Path, *flags: object) -> None:
    train.main([*FLAGS, "--data_path", str(data), "--work_dir", str(work), *map(str, flags)])


def saved(work: Path, name: str = "last.pth") -> dict:
    return torch.load(work / "models" / RUN / name, weights_only=True)


def differences(a: object, b: object, where: str = "") -> list[str]:
    """The places where two checkpoints differ, bitwise. Flags may differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [place for key in a if key != "flags" for place in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [place for i in range(len(a)) for place in differences(a[i], b[i], f"{where}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [where]


def board_of(work: Path) -> EventAccumulator:
    return EventAccumulator(str(work / "logs" / RUN), {"images": 0, "scalars": 0}).Reload()


class Killed(BaseException):
    """Nothing in the script catches it."""


def kill_after(owner: object, name: str, patch: pytest.MonkeyPatch, calls: int = 1) -> None:
    """End the run when owner.name has returned for the given time."""
    original, left = getattr(owner, name), [calls]

    def stop(*arguments, **keywords):
        result = original(*arguments, **keywords)
        left[0] -= 1
        if not left[0]:
            raise Killed
        return result

    patch.setattr(owner, name, stop)


# ---------------------------------------------------------------- data that is spoiled, and what is said to be


def no_index(folder: Path) -> str:
    (folder / "image2label_train.json").unlink()
    return "image2label_train.json"


def missing_mask(folder: Path) -> str:
    (folder / "masks/1_0.png").unlink()
    return "masks/1_0.png"


def truncated_image(folder: Path) -> str:
    path = folder / "images/1.png"
    path.write_bytes(path.read_bytes()[:-40])
    return "images/1.png"


def other_size(folder: Path) -> str:
    write(folder / "masks/1_0.png", np.full((20, 20), 255, np.uint8))
    write(folder / "masks/1_1.png", np.full((20, 20), 255, np.uint8))
    write(folder / "masks/1_2.png", np.full((20, 20), 255, np.uint8))
    return "images/1.png"


def three_values(folder: Path) -> str:
    for k in range(3):
        write(folder / f"masks/1_{k}.png", np.resize(np.array([0, 1, 2], np.uint8), (90, 70)))
    return "masks/1_"


def damaged_index(folder: Path) -> str:
    (folder / "image2label_train.json").write_text('{"images/0.png": [')
    return "image2label_train.json"


SPOILED = [no_index, damaged_index, missing_mask, truncated_image, other_size, three_values]
