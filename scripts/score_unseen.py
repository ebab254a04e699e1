"""Dice of small models on pictures that none of them has seen: CT organs, two tumours, nuclei.

    python scripts/score_unseen.py --data ../shared/data small pretrain_model/vit_t_phantoms.safetensors

For each set and file the exact box, one click and five clicks (one on the object, then four times one on a wrong pixel,
kept, with the last mask; --clicks says another number), each with the whole picture in the frame (zoom never) and as
the predictor looks at small objects (zoom auto): Dice at the picture's own size, the mean over objects, and how many
pictures and crops were encoded for one. Clicks depend on --seed and the object alone, so every file is asked the same
first question. One JSON line a file and set.

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
from sam_med2d.prompts.clicks import boxes_of
from sam_med2d.seeds import seed_of
from segment_anything import Sam, SamPredictor
from segment_anything.images import to_8_bits


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


class Counted:
    """A model that counts how often it encodes."""

    def __init__(self, model: Sam) -> None:
        self.model, self.encoded = model, 0

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def encode(self, images: torch.Tensor, content: torch.Tensor | None = None) -> torch.Tensor:
        self.encoded += len(images)
        return self.model.encode(images, content)


def clicks_after(predictor: SamPredictor, mask: np.ndarray, count: int, name: str, seed: int) -> dict[int, np.ndarray]:
    """The answers (H, W) bool after the first and the last of `count` clicks that are kept."""
    draw = np.random.default_rng(seed_of(seed, name))
    points, labels, answer, low_res, found = [], [], np.zeros_like(mask), None, {}
    for number in range(1, count + 1):
        wrong = np.argwhere(answer != mask)
        if len(wrong):
            y, x = wrong[int(draw.random() * len(wrong))]
            points.append((x, y))
            labels.append(int(mask[y, x]))
        masks, iou, logits = predictor.predict(points, labels, mask_input=low_res)
        answer, low_res = masks[iou.argmax()], logits[iou.argmax()]
        if number in (1, count):
            found[number] = answer
    return found


def told(clicks: int) -> str:
    return f"{clicks} click{'s' * (clicks > 1)}"


def score(
    model: Sam, objects: list[tuple[str, np.ndarray, np.ndarray]], zoom: str, seed: int, clicks: int
) -> dict[str, list[float]]:
    """Dice of each object, by kind of prompt, and how often the model encoded for each kind. clicks: the most, or 0."""
    counted, values, shown = Counted(model), {}, None
    predictor = SamPredictor(counted, zoom=zoom)
    for name, picture, mask in objects:
        if shown is not picture:
            predictor.set_image(picture, "BGR", encode=False)
            shown = picture
        before = counted.encoded
        masks, iou, _ = predictor.predict(box=boxes_of(torch.from_numpy(mask)[None, None])[0].numpy())
        answers = {"box": masks[iou.argmax()]}
        values.setdefault("encoded for a box", []).append(counted.encoded - before)
        if clicks:
            before = counted.encoded
            after = clicks_after(predictor, mask, clicks, name, seed)
            values.setdefault(f"encoded for {told(clicks)}", []).append(counted.encoded - before)
            answers |= {told(count): after[count] for count in (1, clicks)}
        for kind, answer in answers.items():
            value = dice(torch.from_numpy(answer), torch.from_numpy(mask), from_logits=False)
            values.setdefault(kind, []).append(value.item())
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("weights", nargs="+", help="Files of weights to score.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of the data, as described above.")
    parser.add_argument("--least", type=int, default=20,
        help="Number of pixels that a tumour must have in a slice. Default: %(default)s.")
    parser.add_argument("--zoom", nargs="+", default=["never", "auto"],
        help="What the predictor's --zoom is. Default: never auto.")
    parser.add_argument("--clicks", type=int, default=5,
        help="Number of clicks on each object; 0 asks the box alone. Default: %(default)s.")
    parser.add_argument("--seed", type=int, default=0,
        help="The clicks are a function of this number. Default: %(default)s.")
    parser.add_argument("--device", default="cpu", help="Where the models run. Default: %(default)s.")
    parser.add_argument("--output", type=Path, help="Write the scores into this file too, as JSON lines.")
    # fmt: on
    args = parser.parse_args()
    if args.clicks < 0:
        parser.error(f"--clicks must be at least 0, not {args.clicks}")
    torch.set_num_threads(1)
    sets = {
        "CT organs": list(organs(args.data)),
        "tumours": list(tumours(args.data, args.least)),
        "nuclei": list(nuclei(args.data)),
    }
    lines = []
    for path in args.weights:
        model = open_model(path, device=args.device).eval()
        for name, objects in sets.items():
            line = {"weights": Path(path).name, "set": name, "objects": len(objects)}
            for zoom in args.zoom:
                for kind, values in score(model, objects, zoom, args.seed, args.clicks).items():
                    line[f"{kind}, zoom {zoom}"] = round(float(np.mean(values)), 4)
            lines.append(json.dumps(line))
            print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
