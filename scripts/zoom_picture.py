"""Draw docs/images/zoom.png: small objects of a large picture, answered with all of it in the frame, and closer.

    python scripts/zoom_picture.py --output docs/images/zoom.png

The picture is a sheet of the slices in data_demo, as on a film; the prompts are the exact boxes of some of their
objects, and the model is the small one of this package, which has not seen these slices.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam_med2d import drawing
from sam_med2d.data.index import read_index
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.image_files import write_png
from sam_med2d.inference.models import SMALL, open_model
from segment_anything import Prompts, SamPredictor

CELL = (240, 240)  # pixels of a slice's place, rows and columns
ACROSS = 6
SHOWN = ("left_white_matter", "cerebellum", "brain")  # the first object of each in the test split


def film() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The slices of the test split, repeated to fill four rows, and masks (H, W) bool of those that are shown."""
    index = read_index(Path(__file__).resolve().parents[1] / "data_demo", "test")
    sheet = np.zeros((4 * CELL[0], ACROSS * CELL[1], 3), np.uint8)
    masks: dict[str, np.ndarray] = {}
    for place in range(4 * ACROSS):
        name, mask_names = index[place % len(index)]
        image = read_image(index.path(name))
        height, width = image.shape[:2]
        top = place // ACROSS * CELL[0] + (CELL[0] - height) // 2
        left = place % ACROSS * CELL[1] + (CELL[1] - width) // 2
        there = np.s_[top : top + height, left : left + width]
        sheet[there] = image
        for kind in SHOWN:
            own = next((one for one in mask_names if kind in one), None)
            if own and kind not in masks:
                masks[kind] = np.zeros(sheet.shape[:2], bool)
                masks[kind][there] = read_mask(index.path(own), (height, width))
    return sheet, masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("docs/images/zoom.png"), help="The picture to write. Default: %(default)s."
    )
    args = parser.parse_args()
    picture, masks = film()
    model, tiles = open_model(SMALL, device="cpu"), []
    for zoom in ("never", "auto"):
        predictor = SamPredictor(model, zoom=zoom)
        predictor.set_image(picture, "BGR")
        for mask in masks.values():
            y, x = np.nonzero(mask)
            box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            found = predictor.predict(box=box)
            answer = found.masks[found.iou.argmax()]
            dice = 2 * (answer & mask).sum() / (answer.sum() + mask.sum())
            said = f"{'whole picture' if zoom == 'never' else 'closer'}: Dice {dice:.2f}"
            prompts = Prompts(boxes=torch.from_numpy(box)[None].float())
            tiles.append(drawing.tile(picture, torch.from_numpy(answer), torch.from_numpy(mask), prompts, 0, said, 320))
    write_png(args.output, drawing.grid(tiles, columns=len(masks)), level=9)
    print(args.output)


if __name__ == "__main__":
    main()
