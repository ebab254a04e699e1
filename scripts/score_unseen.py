"""Dice of small models on pictures that none of them has seen: CT organs, two tumours, nuclei.

    python scripts/score_unseen.py --data ../shared/data pretrain_model/vit_t_phantoms.safetensors other.safetensors

For each set and file, four figures: the exact box and five clicks (one on the object, then four times one on a wrong
pixel, kept, with the last mask), each with the whole picture in the frame and with a crop in the frame whose sides are
1.5 times the object's box. Dice is measured at the picture's own size, the mean over objects. Clicks depend on --seed
and the object alone, so every file is asked the same first question. One JSON line a file and set.

The sets: `sam_med2d/data_demo` (30 masks, of both index files), `scans/` (each axial slice in which the tumour has
--least pixels; a slice is scaled from its minimum and maximum), `nuclei/` (each nucleus).
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.evaluation.metrics import dice
from sam_med2d.inference.models import open_model
from sam_med2d.prompts.clicks import Clicks, boxes_of, clicks_on, corrective_clicks, join_clicks
from sam_med2d.seeds import seed_of
from segment_anything import Prompts, Sam, best_of
from segment_anything.images import to_8_bits

CROP = 1.5  # times the box
AT_ONCE = 32  # objects that go through the decoder together


def organs(data: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    folder = data / "sam_med2d"
    pairs = {
        mask: image
        for image, masks in json.loads((folder / "data_demo/image2label_train.json").read_text()).items()
        for mask in masks
    }
    pairs |= json.loads((folder / "data_demo/label2image_test.json").read_text())
    for mask, image in sorted(pairs.items()):
        picture = read_image(str(folder / image))
        yield mask, picture, read_mask(str(folder / mask), picture.shape[:2])


def tumours(data: Path, least: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    import SimpleITK

    for case in ("brain1", "lung2"):
        scan, label = (
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(data / "scans" / f"{case}_{kind}.nrrd")))
            for kind in ("image", "label")
        )
        for z in range(len(scan)):
            if (label[z] > 0).sum() >= least:
                yield f"{case} {z}", cv2.cvtColor(to_8_bits(scan[z]), cv2.COLOR_GRAY2BGR), label[z] > 0


def nuclei(data: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    picture = cv2.cvtColor(
        to_8_bits(cv2.imread(str(data / "nuclei/img2d.tif"), cv2.IMREAD_UNCHANGED)), cv2.COLOR_GRAY2BGR
    )
    label = cv2.imread(str(data / "nuclei/mask2d.tif"), cv2.IMREAD_UNCHANGED)
    for i in np.unique(label)[1:]:
        yield f"nucleus {i}", picture, label == i


def crop_around(mask: np.ndarray, factor: float) -> tuple[slice, slice]:
    """Rows and columns of the crop, its sides `factor` times those of the mask's box, within the picture."""
    sides = []
    for axis, length in enumerate(mask.shape):
        occupied = np.flatnonzero(mask.any(axis=1 - axis))
        first, end = occupied[0], occupied[-1] + 1
        margin = (factor - 1) / 2 * (end - first)
        sides.append(slice(max(0, int(np.floor(first - margin))), min(length, int(np.ceil(end + margin)))))
    return tuple(sides)


@torch.inference_mode()
def answers(
    model: Sam,
    frames: torch.Tensor,
    which: torch.Tensor,
    masks: torch.Tensor,
    names: list[str],
    seed: int,
) -> dict[str, torch.Tensor]:
    """frames: (B, 3, S, S) uint8; which: (N,) the frame of each object; masks: (N, 1, S, S) bool -> logits (N, 1, S/4,
    S/4).
    """
    embeddings = torch.cat([model.encode(part) for part in frames.split(AT_ONCE)])[which]
    generators = [np.random.default_rng(seed_of(seed, name)) for name in names]
    uniform = lambda: torch.tensor([[g.random()] for g in generators], dtype=torch.float32)
    found = {"box": best_of(model.predict(embeddings, Prompts(boxes=boxes_of(masks)), True)).logits}
    clicks: Clicks = clicks_on(masks, uniform())
    last = best_of(model.predict(embeddings, Prompts(*clicks), True)).logits
    found["1 click"] = last
    for _ in range(4):
        clicks = join_clicks(clicks, corrective_clicks(masks, model.upscale(last) > 0, uniform()))
        last = best_of(model.predict(embeddings, Prompts(*clicks, masks=last.sigmoid()), True)).logits
    found["5 clicks"] = last
    return found


def score(
    model: Sam, objects: list[tuple[str, np.ndarray, np.ndarray]], cropped: bool, seed: int
) -> dict[str, list[float]]:
    """Dice of each object, by kind of prompt."""
    size, values = model.image_size, {}
    for start in range(0, len(objects), AT_ONCE):
        some = objects[start : start + AT_ONCE]
        frames, which, masks, places, known = [], [], [], [], {}
        for _, picture, mask in some:
            rows, columns = crop_around(mask, CROP) if cropped else (slice(None), slice(None))
            key = None if cropped else picture.tobytes()
            if cropped or key not in known:
                known[key] = len(frames)
                frames.append(cv2.resize(picture[rows, columns], (size, size), interpolation=cv2.INTER_NEAREST))
            which.append(known[key])
            frame = cv2.resize(mask[rows, columns].astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
            masks.append(frame.astype(bool))
            places.append((rows, columns))
        found = answers(
            model,
            torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2),
            torch.tensor(which),
            torch.from_numpy(np.stack(masks))[:, None],
            [name for name, _, _ in some],
            seed,
        )
        for kind, logits in found.items():
            large = model.upscale(logits)[:, 0].numpy()
            for (_, _, mask), (rows, columns), answer in zip(some, places, large):
                whole = np.zeros(mask.shape, bool)
                height, width = mask[rows, columns].shape
                whole[rows, columns] = cv2.resize(answer, (width, height), interpolation=cv2.INTER_LINEAR) > 0
                value = dice(torch.from_numpy(whole), torch.from_numpy(mask), from_logits=False)
                values.setdefault(kind, []).append(value.item())
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="weight files")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--least", type=int, default=20, help="pixels of a tumour in a slice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = {
        "CT organs": list(organs(args.data)),
        "tumours": list(tumours(args.data, args.least)),
        "nuclei": list(nuclei(args.data)),
    }
    lines = []
    for path in args.weights:
        model = open_model(path, device="cpu").eval()
        for name, objects in sets.items():
            line = {"weights": Path(path).name, "set": name, "objects": len(objects)}
            for cropped in (False, True):
                for kind, values in score(model, objects, cropped, args.seed).items():
                    line[f"{kind}, {'crop' if cropped else 'whole'}"] = round(float(np.mean(values)), 4)
            lines.append(json.dumps(line))
            print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
