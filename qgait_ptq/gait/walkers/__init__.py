"""Procedural walkers: the built-in synthetic data."""
