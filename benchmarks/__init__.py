"""Benchmarks: graphopt against the original model and ONNX Runtime's own quantizer, in one run."""
