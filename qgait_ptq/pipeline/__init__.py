"""One run from a network to its files."""
