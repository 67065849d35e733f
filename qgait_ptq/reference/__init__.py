"""Exact integer reference of a file, and proofs that hold on every processor."""
