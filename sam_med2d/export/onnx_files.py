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
import onnx
import torch
from torch import Tensor

from sam_med2d.errors import UsageError
from sam_med2d.export.graphs import DecoderGraph, EncoderGraph

OPSETS = range(14, 21)  # what the tracing exporter of this PyTorch writes; attention needs 14

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
