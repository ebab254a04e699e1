"""Show phantoms (see sam_med2d/data/phantoms.py), and how long they take to draw.

python scripts/phantoms.py --contact_sheet out.png
"""

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sam_med2d.data.phantoms import phantom


def contact_sheet(seed: int, size: int, rows: int, columns: int, scale: int = 2) -> np.ndarray:
    """Grid of phantoms, each beside itself with mask contours. Returns (height, width, 3) uint8 BGR."""
    colours = [(60, 60, 255), (60, 220, 60), (255, 140, 40), (40, 220, 255)]
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        line = []
        for _ in range(columns):
            image, masks = phantom(rng, size, len(colours))
            plain = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            drawn = plain.copy()
            for mask, colour in zip(masks, colours, strict=True):
                large = cv2.resize(mask.view(np.uint8), drawn.shape[1::-1], interpolation=cv2.INTER_NEAREST)
                contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(drawn, contours, -1, colour, 1)
            line += [plain, drawn]
        lines.append(np.concatenate(line, axis=1))
    return np.concatenate(lines, axis=0)


def main() -> None:
    """Time the generator, and draw a contact sheet if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contact_sheet", help="Draw images with their masks into this PNG.")
    parser.add_argument("--size", type=int, default=128, help="Side of the images, in pixels. Default: %(default)s.")
    parser.add_argument(
        "--rows", type=int, default=6, help="Number of rows of the contact sheet. Default: %(default)s."
    )
    parser.add_argument(
        "--columns", type=int, default=4, help="Number of columns of the contact sheet. Default: %(default)s."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="The images are a function of this number. Default: %(default)s."
    )
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.contact_sheet:
        sheet = contact_sheet(args.seed, args.size, args.rows, args.columns)
        if not cv2.imwrite(args.contact_sheet, sheet):
            raise SystemExit(f"could not write {args.contact_sheet}")
    rng = np.random.default_rng(args.seed)
    start, cpu = time.perf_counter(), time.process_time()
    areas = np.concatenate([phantom(rng, args.size)[1].mean(axis=(1, 2)) for _ in range(200)])
    wall, cpu = (time.perf_counter() - start) / 0.2, (time.process_time() - cpu) / 0.2
    print(f"{wall:.2f} ms an image ({cpu:.2f} ms of processor time) at {args.size} px")
    quantiles = np.quantile(areas, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
    print("areas, % of the image (0, 10, 25, 50, 75, 90, 100 %):", np.round(100 * quantiles, 1))


if __name__ == "__main__":
    main()
