"""ONNX graphs: one view that all readers share, and edits. Needs no torch."""
