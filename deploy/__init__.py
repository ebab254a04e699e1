"""From a trained model to machines without PyTorch, and to fast ones without a GPU.

    graphs.py       what is exported: encoder and decoder with the inputs and outputs that ONNX clients of SAM-Med2D know
    exporting.py    graphs -> ONNX files, in float32 or with half-size weights; the comparison that ends every export
    quantizing.py   static int8, calibrated on real images
    runtimes.py     ONNX Runtime and OpenVINO behind the interface of `Sam`
"""
