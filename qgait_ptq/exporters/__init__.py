"""Writing a calibrated network as a file for a runtime."""
