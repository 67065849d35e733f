"""From a file or a module to a graph: loading, torch.export, and what to say where it fails."""
