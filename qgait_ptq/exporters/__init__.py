"""Targets, and the file for a runtime."""
