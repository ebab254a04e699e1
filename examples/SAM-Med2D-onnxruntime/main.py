"""Segment an image with the two exported files, without PyTorch: numpy, opencv-python-headless and onnxruntime.

    cd examples/SAM-Med2D-onnxruntime
    python3 main.py --encoder_model sam-med2d_b.encoder.onnx --decoder_model sam-med2d_b.decoder.onnx
    python3 main.py --encoder_model ... --decoder_model ... --img_path scan.png --point 80 90 --background 20 30 --box
    30 40 120 150

Leaves in --work_dir a picture for a click, for the click refined by another one, and for a box. Prompts are in pixels
of the image, x before y. The image is one of the demo's where none is given. Files with and without --use-preprocess
are both read, and decoders with and without --return-single-mask.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

DEMO_IMAGE = Path(__file__).resolve().parents[2] / "data_demo/images/mni152_axial_094.png"
DEMO_POINT = (110.0, 60.0)
DEMO_BACKGROUND = (40.0, 60.0)
DEMO_BOX = (80.0, 9.0, 150.0, 181.0)  # around the left hemisphere
PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # met in this order by the channels of a BGR image
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)
MASK, CLICK_ON, CLICK_OFF = (0, 140, 255), (170, 230, 0), (60, 80, 255)


def open_session(path: Path, device: str) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise SystemExit(
            f"error: {path}: not found; make it with scripts/export_onnx_encoder_model.py or "
            "scripts/export_onnx_model.py"
        )
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        raise SystemExit("error: this onnxruntime cannot use CUDA; install onnxruntime-gpu, or leave out --device cuda")
    try:
        return onnxruntime.InferenceSession(str(path), providers=[provider])
    except Exception as error:  # onnxruntime raises a kind of its own for each thing that is wrong with a file
        raise SystemExit(
            f"error: {path}: not an ONNX model that can be run ({str(error).splitlines()[0]}); export it again"
        ) from error


class SamEncoder:
    """A BGR image (H, W, 3) uint8 -> its embedding (1, 256, S/16, S/16)."""

    def __init__(self, path: Path, device: str, input_size: int) -> None:
        """input_size: the decoder's."""
        self.session = open_session(path, device)
        inputs = self.session.get_inputs()
        if [one.name for one in inputs] != ["input_image"]:
            raise SystemExit(
                f"error: {path}: is no encoder; --encoder_model takes what scripts/export_onnx_encoder_model.py wrote"
            )
        self.geometry_inside = len(inputs[0].shape) == 3
        side = inputs[0].shape[-1]
        if not self.geometry_inside and side != input_size:
            raise SystemExit(
                f"error: {path}: is for images of {side} px, the decoder for {input_size}; export both with one "
                "--image_size"
            )
        self.input_size = input_size

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self.geometry_inside:
            ready = image.astype(np.float32)
        else:
            frame = cv2.resize(image, (self.input_size, self.input_size), interpolation=cv2.INTER_NEAREST)
            ready = ((frame - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1)[None].astype(np.float32)
        return self.session.run(["image_embeddings"], {"input_image": ready})[0]


class SamDecoder:
    """An embedding and prompts in pixels of the image -> one object's mask."""

    def __init__(self, path: Path, device: str) -> None:
        self.session = open_session(path, device)
        shapes = {one.name: one.shape for one in self.session.get_inputs()}
        if "mask_input" not in shapes:
            raise SystemExit(
                f"error: {path}: is no decoder; --decoder_model takes what scripts/export_onnx_model.py wrote"
            )
        self.input_size = 4 * shapes["mask_input"][-1]
        facts = self.session.get_modelmeta().custom_metadata_map
        self.paper = facts.get("protocol", "paper") == "paper"  # files that do not say are older than the exact way
        self.takes_logits = facts.get("mask_input") == "logits"

    def __call__(
        self,
        embedding: np.ndarray,
        size: tuple[int, int],
        points: list = (),
        labels: list = (),
        box: tuple | None = None,
        mask_input: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float, np.ndarray]:
        """points: (x, y) each; labels: 1 on the object, 0 off it; box: x0 y0 x1 y1; size: (height, width) of the image.

        mask_input: (1, 1, S/4, S/4), the logits that an earlier call returned.
        -> mask (H, W) bool, predicted IoU, logits (1, 1, S/4, S/4).
        """
        corners = [] if box is None else [box[:2], box[2:]]
        coordinates = self.to_frame(points, corners, size)
        if mask_input is not None and not self.takes_logits:
            mask_input = sigmoid(mask_input)
        kinds = np.array([[*labels, *([2, 3] if corners else [])]], np.float32)
        side = self.input_size // 4
        found = self.session.run(
            ["masks", "iou_predictions", "low_res_masks"],
            {
                "image_embeddings": embedding,
                "point_coords": coordinates,
                "point_labels": kinds,
                "mask_input": np.zeros((1, 1, side, side), np.float32) if mask_input is None else mask_input,
                "has_mask_input": np.array([mask_input is not None], np.float32),
                "orig_im_size": np.array(size, np.float32),
            },
        )
        masks, scores, logits = found
        first = 1 if scores.shape[1] == 4 else 0  # of four outputs the first is for prompts that leave no doubt
        best = first + int(scores[0, first:].argmax())
        return masks[0, best] > 0, float(scores[0, best]), logits[:, best : best + 1]

    def to_frame(self, points: list, corners: list, size: tuple[int, int]) -> np.ndarray:
        """Pixels of the image -> (1, P, 2) of the frame: to where the frame shows them, or as in the paper."""
        given = np.array([*points, *corners], np.float64).reshape(-1, 2)
        there = np.empty((1, len(given), 2), np.float32)
        for axis, side in enumerate(size[::-1]):
            if self.paper:
                there[0, :, axis] = given[:, axis] * (self.input_size / side)
                continue
            # which pixel of the image each of the frame shows: a ruler, stretched as the image is
            ruler = np.arange(side, dtype=np.float32)[None]
            ruler = cv2.resize(ruler, (self.input_size, 1), interpolation=cv2.INTER_NEAREST)[0]
            shown, first, count = np.unique(ruler, return_index=True, return_counts=True)
            pixels, edges = given[: len(points), axis], given[len(points) :, axis]
            there[0, : len(points), axis] = np.interp(pixels, shown, first + (count - 1) / 2)
            between = np.arange(side + 1)  # a box's edges lie before pixels
            there[0, len(points) :, axis] = np.interp(edges, between, np.searchsorted(ruler, between))
        return there


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (np.tanh(0.5 * logits) + 1)  # overflows nowhere


def picture_of(
    image: np.ndarray, mask: np.ndarray, points: list = (), labels: list = (), box: tuple | None = None
) -> np.ndarray:
    """The image with the mask and the prompts drawn in, enlarged where it is small."""
    scale = max(1, round(512 / max(image.shape[:2])))
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    inside = cv2.resize(mask.astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST) > 0
    picture[inside] = (0.6 * picture[inside] + 0.4 * np.array(MASK)).astype(np.uint8)
    if box is not None:
        x0, y0, x1, y1 = (round(value * scale) for value in box)
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), (0, 0, 0), 3)
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), MASK, 1)
    for (x, y), label in zip(points, labels):  # a plus on the object, a minus off it
        x, y = int((x + 0.5) * scale), int((y + 0.5) * scale)
        cv2.circle(picture, (x, y), 6, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(picture, (x, y), 5, CLICK_ON if label else CLICK_OFF, -1, cv2.LINE_AA)
        cv2.line(picture, (x - 3, y), (x + 3, y), (0, 0, 0) if label else (255, 255, 255))
        if label:
            cv2.line(picture, (x, y - 3), (x, y + 3), (0, 0, 0))
    return picture


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("--encoder_model", type=Path, required=True, help="The ONNX file of the encoder.")
    parser.add_argument("--decoder_model", type=Path, required=True, help="The ONNX file of the decoder.")
    parser.add_argument("--img_path", type=Path, help="The picture to segment. Default: an image of the demo.")
    parser.add_argument("--input_size", type=int, help="End where the files were not exported with this image size.")
    parser.add_argument("--work_dir", type=Path, default=Path("workdir"),
        help="Folder that the picture of the mask is written into. Default: %(default)s.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
        help="Where ONNX Runtime computes. Default: %(default)s.")
    parser.add_argument("--point", type=float, nargs=2, metavar=("X", "Y"), help="A click on the object.")
    parser.add_argument("--background", type=float, nargs=2, metavar=("X", "Y"),
        help="A click off the object, to refine the first one.")
    parser.add_argument("--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="A box around the object.")
    # fmt: on
    args = parser.parse_args()
    if args.img_path is None:
        args.img_path = DEMO_IMAGE
        if not (args.point or args.background or args.box):
            args.point, args.background, args.box = DEMO_POINT, DEMO_BACKGROUND, DEMO_BOX
    if not (args.point or args.box):
        parser.error("say what to segment: --point or --box, in pixels of the image")
    if args.background and not args.point:
        parser.error("--background refines a click: give --point too")
    return args


def main() -> None:
    args = parse_args()
    decoder = SamDecoder(args.decoder_model, args.device)
    if args.input_size not in (None, decoder.input_size):
        raise SystemExit(
            f"error: {args.decoder_model}: is for images of {decoder.input_size} px, not {args.input_size}"
        )
    encoder = SamEncoder(args.encoder_model, args.device, decoder.input_size)
    image = cv2.imdecode(np.fromfile(args.img_path, np.uint8), cv2.IMREAD_COLOR) if args.img_path.is_file() else None
    if image is None:
        raise SystemExit(f"error: {args.img_path}: no image that can be read; give a PNG or JPEG file with --img_path")
    size = image.shape[:2]
    for x, y in ([args.point] if args.point else []) + ([args.background] if args.background else []):
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise SystemExit(f"error: point ({x:g}, {y:g}) lies outside the image of {size[1]} x {size[0]} pixels")
    embedding = encoder(image)
    args.work_dir.mkdir(parents=True, exist_ok=True)

    def show(name: str, mask: np.ndarray, iou: float, **prompts) -> None:
        path = args.work_dir / f"{args.img_path.stem}_{name}.png"
        path.write_bytes(cv2.imencode(".png", picture_of(image, mask, **prompts))[1].tobytes())
        print(f"{name:8} predicted IoU {iou:.3f}, {int(mask.sum())} pixels: {path}")

    if args.point:
        points, labels = [args.point], [1]
        mask, iou, logits = decoder(embedding, size, points, labels)
        show("point", mask, iou, points=points, labels=labels)
    if args.background:
        points, labels = [args.point, args.background], [1, 0]
        mask, iou, logits = decoder(embedding, size, points, labels, mask_input=logits)
        show("refined", mask, iou, points=points, labels=labels)
    if args.box:
        mask, iou, _ = decoder(embedding, size, box=args.box)
        show("box", mask, iou, box=args.box)


if __name__ == "__main__":
    main()
