"""Static int8: weights and activations of every linear layer and of the adapters' convolutions in 8 bits.

Products of activations among themselves (attention), norms and softmax stay float32. Ranges come from real images:
calibrate on pictures of the kind that the model will see.
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class _Feeds(CalibrationDataReader):
    def __init__(self, feeds: Iterator[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize(proto: onnx.ModelProto, feeds: Iterator[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """A float32 graph -> the same in int8. feeds: its inputs, for each calibration image.

    Activations are unsigned with one range a tensor, weights signed with one range a column.
    """
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, result = (Path(folder) / name for name in ("float32.onnx", "prepared.onnx", "int8.onnx"))
        large = proto.ByteSize() > 2**31 - 2**20
        onnx.save(proto, str(source), save_as_external_data=large)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True, save_as_external_data=large)
        quantize_static(
            str(prepared),
            str(result),
            _Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=_linear_layers(onnx.load(str(prepared))),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=large,
            extra_options={
                # a product is rounded on its way into the next layer, not once more on its way out of this one
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )
        return onnx.load(str(result))


def _linear_layers(proto: onnx.ModelProto) -> list[str]:
    """The names of the products with a constant matrix. Those with the tables of relative positions, of which there is
    one a row, are small and stay as they are."""
    matrices = {tensor.name for tensor in proto.graph.initializer if len(tensor.dims) == 2}
    return [node.name for node in proto.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices]
