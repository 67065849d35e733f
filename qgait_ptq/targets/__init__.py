"""Targets: profiles of runtimes, as data, and the rules for their files."""
