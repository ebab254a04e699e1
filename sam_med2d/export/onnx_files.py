"""Graphs -> ONNX files, each compared with the eager model on real images before it takes its place.

A file larger than 2 GB, which ONNX cannot hold in one, gets its weights in a second file, `{name}.data`.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from sam_med2d.errors import UsageError
from sam_med2d.export.frame1024 import GRID, LOW_RES, PADDED, WHOLE, Decoder1024, Encoder1024
from sam_med2d.export.graphs import DecoderGraph, EncoderGraph, RefinementGraph
from sam_med2d.packages import missing_package
from segment_anything.files import passing
from segment_anything.frames import SAMS_SIZE

TRACE, DYNAMO = "trace", "dynamo"
# The opsets that each writes. The tracing exporter, whose files are older runtimes' and smaller, will leave PyTorch.
EXPORTERS = {TRACE: range(14, 21), DYNAMO: range(18, 24)}
DEFAULT_OPSET = {TRACE: 17, DYNAMO: 18}

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
    with passing(path) as folder:
        folder.mkdir()
        yield folder / path.name
        written = sorted(folder.iterdir(), key=lambda file: file.name == path.name)  # the graph after its weights
        for file in written:
            os.replace(file, path.parent / file.name)


def trace_encoder(graph: EncoderGraph, opset: int | None = None, exporter: str = TRACE) -> onnx.ModelProto:
    """exporter: one of EXPORTERS; opset: None for the exporter's own. Raises UsageError."""
    size = graph.image_size
    if graph.preprocess:
        inputs = {"input_image": torch.rand(size + 3, size + 5, 3) * 255}
        axes = {"input_image": {0: "image_height", 1: "image_width"}}
    else:
        inputs = {"input_image": torch.rand(graph.batch or 2, 3, size, size)}
        axes = {} if graph.batch else {name: {0: "batch"} for name in ("input_image", "image_embeddings")}
    return _to_onnx(graph, inputs, ["image_embeddings"], axes, opset, exporter)


def trace_decoder(graph: DecoderGraph, opset: int | None = None, exporter: str = TRACE) -> onnx.ModelProto:
    """As `trace_encoder`."""
    side = graph.image_size // 16
    # what may be 1 or as many as there are objects differs here, or the newer exporter takes both for one number
    inputs = {
        "image_embeddings": torch.randn(2, 256, side, side),
        "point_coords": torch.rand(5, 3, 2) * graph.image_size,
        "point_labels": torch.ones(5, 3),
        "mask_input": torch.rand(4, 1, 4 * side, 4 * side),
        "has_mask_input": torch.zeros(6),
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
    return _to_onnx(graph, inputs, graph.output_names, axes, opset, exporter)


def trace_refinement(graph: RefinementGraph, opset: int | None = None, exporter: str = TRACE) -> onnx.ModelProto:
    """As `trace_encoder`."""
    size = graph.image_size
    inputs = {
        "input_image": torch.randn(2, 3, size, size),
        "low_res_masks": torch.randn(5, 1, size // 4, size // 4),
        "point_coords": torch.rand(5, 3, 2) * size,
        "point_labels": torch.ones(5, 3),
        "mask_input": torch.rand(4, 1, size // 4, size // 4),
        "has_mask_input": torch.ones(4),
        "strokes": torch.zeros(3, 2, size, size),
    }
    axes = {
        "input_image": {0: "images"},
        "low_res_masks": {0: "objects"},
        "point_coords": {0: "objects", 1: "points"},
        "point_labels": {0: "objects", 1: "points"},
        "mask_input": {0: "masks_given"},
        "has_mask_input": {0: "masks_given"},
        "strokes": {0: "drawings"},
        "refined_masks": {0: "objects"},
    }
    return _to_onnx(graph, inputs, ["refined_masks"], axes, opset, exporter)


def trace_encoder_1024(graph: Encoder1024, opset: int | None = None) -> onnx.ModelProto:
    """As `trace_encoder`, by the tracing exporter."""
    if graph.reads == PADDED:
        return _to_onnx(graph, {PADDED: torch.rand(1, 3, SAMS_SIZE, SAMS_SIZE)}, ["image_embeddings"], {}, opset, TRACE)
    axes = {WHOLE: {0: "image_height", 1: "image_width"}}
    return _to_onnx(graph, {WHOLE: torch.rand(684, SAMS_SIZE, 3) * 255}, ["image_embeddings"], axes, opset, TRACE)


def trace_decoder_1024(graph: Decoder1024, opset: int | None = None) -> onnx.ModelProto:
    """As `trace_encoder_1024`."""
    inputs = {
        "image_embeddings": torch.randn(1, 256, GRID, GRID).abs() * 300,  # a cell of it says where a picture ends
        "point_coords": torch.rand(5, 3, 2) * SAMS_SIZE,
        "point_labels": torch.ones(5, 3),
        "mask_input": torch.rand(1, 1, LOW_RES, LOW_RES),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([50.0, 70.0]),
    }
    axes = {
        "point_coords": {0: "objects", 1: "points"},
        "point_labels": {0: "objects", 1: "points"},
        "masks": {0: "objects", 2: "height", 3: "width"},
        "iou_predictions": {0: "objects"},
        "low_res_masks": {0: "objects"},
    }
    return _to_onnx(graph, inputs, [*graph.output_names], axes, opset, TRACE)


def _to_onnx(
    graph: torch.nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
    opset: int | None,
    exporter: str,
) -> onnx.ModelProto:
    """axes: {input or output: {dimension that may be of any length: its name}}."""
    allowed = EXPORTERS[exporter]
    opset = DEFAULT_OPSET[exporter] if opset is None else opset
    if opset not in allowed:
        raise UsageError(f"--opset {opset}: must be {allowed[0]} to {allowed[-1]} with --exporter {exporter}")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of shapes that are fixed on purpose, and that the tracing exporter is older
        write = _trace if exporter == TRACE else _export
        return write(graph.eval(), inputs, outputs, axes, opset)


def _trace(
    graph: torch.nn.Module, inputs: dict[str, Tensor], outputs: list[str], axes: dict[str, dict[int, str]], opset: int
) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "traced.onnx"
        torch.onnx.export(
            graph,
            tuple(inputs.values()),
            str(file),
            dynamo=False,
            opset_version=opset,
            input_names=[*inputs],
            output_names=outputs,
            dynamic_axes=axes,
        )
        return onnx.load(str(file))


def _export(
    graph: torch.nn.Module, inputs: dict[str, Tensor], outputs: list[str], axes: dict[str, dict[int, str]], opset: int
) -> onnx.ModelProto:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not needed
    shapes = tuple(dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in inputs)
    try:
        program = torch.export.export(graph, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[*inputs],
            output_names=outputs,
            verbose=False,
        )
    except ImportError as error:
        raise UsageError(f"--exporter {DYNAMO}: {missing_package(error) or error}") from error
    assert exported is not None, "with dynamo=True a program is returned"
    return exported.model_proto


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
