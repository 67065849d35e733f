"""Placement of quantizers, which is fixed before calibration, and their insertion."""
