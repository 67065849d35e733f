"""Files, locks, processes, devices and progress: what knows nothing of networks."""
