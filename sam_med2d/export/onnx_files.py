"""Graphs -> ONNX files, each compared with the eager model on real images before it takes its place.

A file larger than 2 GB, which ONNX cannot hold in one, gets its weights in a second file, `{name}.data`.
"""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

try:
    import onnx
except ImportError as missing:
    raise SystemExit("error: onnx is not installed: pip install -r requirements-deploy.txt") from missing
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_med2d.data.datasets import TestingDataset, test_loader
from sam_med2d.evaluation.evaluate import evaluate
from sam_med2d.evaluation.metrics import dice
from sam_med2d.export.graphs import DecoderGraph, EncoderGraph, stability_of
from sam_med2d.inference.backends import Session, decoder_inputs
from sam_med2d.prompts.modes import parse_mode
from sam_med2d.utils import UsageError
from segment_anything import FOREGROUND, Prediction, Prompts, Sam, SamPredictor, best_of

OPSETS = range(14, 21)  # what the tracing exporter of this PyTorch writes; attention needs 14
TABLE_MODES = ("bbox", "1pt", "3pts")
PARITY = 1e-4  # largest difference that a float32 file may have
LARGEST_FILE = 2**31 - 2**20  # a protobuf message ends at 2 GB; a little for what is no weight
LARGE_TENSOR = 1024  # numbers; smaller tensors stay float32 in half-size files, such as the matrix of point positions
HALF = {"float16": (torch.float16, onnx.TensorProto.FLOAT16), "bfloat16": (torch.bfloat16, onnx.TensorProto.BFLOAT16)}


# ---------------------------------------------------------------- files


@contextmanager
def placed(path: str | Path) -> Iterator[Path]:
    """Yields a path in a folder of its own beside `path`; on success all files of that folder take their places."""
    path = Path(path)
    if path.is_dir() or path.suffix != ".onnx":
        raise UsageError(f"{path}: name a file that ends in .onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        yield Path(folder) / path.name
        written = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)  # the graph after its weights
        for file in written:
            os.replace(file, path.parent / file.name)


def trace_encoder(graph: EncoderGraph, opset: int) -> onnx.ModelProto:
    size = graph.image_size
    if graph.preprocess:
        return _trace(
            graph,
            {"input_image": torch.rand(size + 3, size + 5, 3) * 255},
            ["image_embeddings"],
            {"input_image": {0: "image_height", 1: "image_width"}},
            opset,
        )
    axes = {} if graph.batch else {name: {0: "batch"} for name in ("input_image", "image_embeddings")}
    return _trace(
        graph, {"input_image": torch.rand(graph.batch or 2, 3, size, size)}, ["image_embeddings"], axes, opset
    )


def trace_decoder(graph: DecoderGraph, opset: int) -> onnx.ModelProto:
    side = graph.image_size // 16
    inputs = {
        "image_embeddings": torch.randn(1, 256, side, side),
        "point_coords": torch.rand(2, 3, 2) * graph.image_size,
        "point_labels": torch.ones(2, 3),
        "mask_input": torch.rand(1, 1, 4 * side, 4 * side),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([50.0, 70.0]),
    }
    axes = {
        "image_embeddings": {0: "images"},
        "point_coords": {0: "objects", 1: "points"},
        "point_labels": {0: "objects", 1: "points"},
        "mask_input": {0: "masks_given"},
        "has_mask_input": {0: "flags"},
        "masks": {0: "objects", 2: "height", 3: "width"},
    } | {name: {0: "objects"} for name in graph.output_names if name != "masks"}
    return _trace(graph, inputs, graph.output_names, axes, opset)


def _trace(
    graph: torch.nn.Module, inputs: dict[str, Tensor], outputs: list[str], axes: dict, opset: int
) -> onnx.ModelProto:
    if opset not in OPSETS:
        raise UsageError(f"--opset {opset}: must be {OPSETS[0]} to {OPSETS[-1]}")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # of shapes that are fixed on purpose, and that this exporter is the older one: the newer fails on the decoder's
        # attention (PyTorch 2.13), and cannot let the number of appended points depend on the labels
        warnings.simplefilter("ignore")
        file = Path(folder) / "traced.onnx"
        with torch.no_grad():
            torch.onnx.export(
                graph.eval(),
                tuple(inputs.values()),
                str(file),
                dynamo=False,
                opset_version=opset,
                input_names=[*inputs],
                output_names=outputs,
                dynamic_axes=axes,
            )
        return onnx.load(str(file))


def describe(proto: onnx.ModelProto, **facts: object) -> None:
    """Leave facts in the file, for those who find it later."""
    onnx.helper.set_model_props(proto, {name: str(value) for name, value in facts.items()})


def save(proto: onnx.ModelProto, path: Path, largest: int = LARGEST_FILE) -> None:
    large = proto.ByteSize() > largest
    onnx.save(proto, str(path), save_as_external_data=large, location=f"{path.name}.data" if large else None)


def halve(proto: onnx.ModelProto, precision: str) -> None:
    """Store the weights in 16 bits. Each is cast to float32 where it is used, so every runtime runs the file, and the
    inputs, the outputs and the arithmetic stay float32."""
    dtype, code = HALF[precision]
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < LARGE_TENSOR:
            continue
        values = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()).to(dtype)
        if not values.isfinite().all():
            raise UsageError(f"{tensor.name} has values that {precision} cannot hold; use bfloat16")
        name, tensor.name = tensor.name, f"{tensor.name}.{precision}"
        tensor.ClearField("float_data")
        tensor.data_type, tensor.raw_data = code, values.view(torch.int16).numpy().tobytes()
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


# ---------------------------------------------------------------- compared with the eager model


def encoder_difference(model: Sam, session: Session, images: list[np.ndarray]) -> float:
    """The largest difference of any embedding. images: (H, W, 3) BGR, of any sizes."""
    predictor, largest = SamPredictor(model), 0.0
    for image in images:
        predictor.set_image(image, "BGR")
        found = session(encoder_inputs(model, session, image))["image_embeddings"]
        largest = max(largest, float(np.abs(found[0] - predictor.get_image_embedding()[0].cpu().numpy()).max()))
    return largest


def encoder_inputs(model: Sam, session: Session, image: np.ndarray) -> dict[str, np.ndarray]:
    """A BGR image -> what the encoder's graph reads."""
    if len(session.inputs["input_image"]) == 3:
        return {"input_image": image.astype(np.float32)}
    frame = SamPredictor(model).transform.apply_image(image).transpose(2, 0, 1)[None]
    return {"input_image": model.preprocess(torch.from_numpy(frame.copy()).to(model.device)).cpu().numpy()}


PROMPT_KINDS = ("box", "point", "points", "box + point", "mask", "box + mask", "points + mask")


def prompts_of(kind: str, objects: int, image_size: int, seed: int = 0) -> Prompts:
    """Random prompts of one of PROMPT_KINDS in the S x S frame."""
    draw = torch.Generator().manual_seed(seed)
    boxes = (torch.rand(objects, 2, 2, generator=draw).sort(dim=1).values * image_size).flatten(1)
    points = torch.rand(objects, 3 if "points" in kind else 1, 2, generator=draw) * image_size
    labels = torch.randint(0, 2, points.shape[:2], generator=draw)
    labels[:, 0] = FOREGROUND
    masks = torch.rand(objects, 1, image_size // 4, image_size // 4, generator=draw)
    clicked = "point" in kind
    return Prompts(
        points if clicked else None,
        labels if clicked else None,
        boxes if "box" in kind else None,
        masks if "mask" in kind else None,
    )


def decoder_differences(
    model: Sam, graph: DecoderGraph, session: Session, images: list[np.ndarray], objects: tuple[int, ...] = (1, 8)
) -> dict[str, dict[str, float]]:
    """{kind of prompt: {output: largest difference}} between the file and the eager model.

    Of one set of random prompts for each image, kind and number of objects; masks are compared at the image's size.
    """
    predictor = SamPredictor(model)
    differences: dict[str, dict[str, float]] = {kind: {} for kind in PROMPT_KINDS}
    for number, image in enumerate(images):
        predictor.set_image(image, "BGR")
        embedding = predictor.get_image_embedding()
        for kind in PROMPT_KINDS:
            for rows in objects:
                prompts = prompts_of(kind, rows, model.image_size, number)
                expected = eager_outputs(
                    model, graph, embedding.expand(rows, -1, -1, -1), prompts.to(model.device), image.shape[:2]
                )
                found = session(decoder_inputs(embedding.cpu(), prompts, image.shape[:2]))
                for name, value in expected.items():
                    difference = float(np.abs(found[name] - value.cpu().numpy()).max())
                    differences[kind][name] = max(differences[kind].get(name, 0.0), difference)
    return differences


@torch.inference_mode()
def eager_outputs(
    model: Sam, graph: DecoderGraph, embeddings: Tensor, prompts: Prompts, size: tuple[int, int]
) -> dict[str, Tensor]:
    """What the file should return, by the functions that training and testing call."""
    prediction = model.predict(embeddings, prompts, True if graph.single_mask else None)
    if graph.stability_score:
        prediction = Prediction(prediction.logits, stability_of(prediction.logits))
    if graph.single_mask:
        prediction = best_of(prediction)
    masks = model.upscale(prediction.logits)
    if graph.longest_side:
        scale = model.image_size / max(size)
        masks = masks[..., : int(size[0] * scale + 0.5), : int(size[1] * scale + 0.5)]
    masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    return {"masks": masks, "iou_predictions": prediction.iou, "low_res_masks": prediction.logits}


def agreement(model: Sam, other: Sam, images: list[np.ndarray]) -> float:
    """Mean Dice between the masks of two models, for 8 random boxes an image: of outputs 1 to 3, or of the best where a file
    has no other."""
    values = []
    for number, image in enumerate(images):
        found, predictors = [], []
        for one in (model, other):
            predictors.append(SamPredictor(one))
            predictors[-1].set_image(image, "BGR")
            found.append(predictors[-1].decode(prompts_of("box", 8, model.image_size, number), True))
        if found[0].iou.shape != found[1].iou.shape:
            found = [best_of(prediction) for prediction in found]
        masks = [predictor.upscale(prediction.logits) > 0 for predictor, prediction in zip(predictors, found)]
        values.append(dice(masks[0], masks[1], from_logits=False).mean().item())
    return float(np.mean(values))


def dice_table(models: dict[str, Sam], data_path: str | Path, image_size: int) -> dict[str, dict[str, float]]:
    """Print and return the mean Dice in per cent, {model: {prompt mode: Dice}}, on the test split of a data folder.

    Raises DataError: the folder has no index.
    """
    modes = [parse_mode(name) for name in TABLE_MODES]
    dataset = TestingDataset(data_path, image_size, "test")
    batches = list(test_loader(dataset, 1, 0))
    table: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        values: dict[str, list[float]] = {mode.name: [] for mode in modes}
        for _, scored in evaluate(model, batches, modes, device=model.device):
            for one in scored:
                values[one.mode.name] += one.values["dice"]
        table[name] = {mode: 100 * float(np.mean(dices)) for mode, dices in values.items()}
    print(f"Dice on {dataset.index.mask_count} objects of {data_path}")
    print(f"{'':24}" + "".join(f"{mode:>8}" for mode in TABLE_MODES))
    for name, row in table.items():
        print(f"{name:24}" + "".join(f"{value:8.2f}" for value in row.values()))
    return table
