"""Rewrites of ONNX graphs for a target."""
