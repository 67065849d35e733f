"""Quantizing one tensor: grid, observers, fake-quantize."""
