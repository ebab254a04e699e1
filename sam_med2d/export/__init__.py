"""ONNX graphs and files, and their comparison with PyTorch."""
