"""What SAM's callers import from `segment_anything.utils`: transforms, amg, onnx."""
