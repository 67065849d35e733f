"""Runtimes that files are written for, as data, and the rules that their files keep."""
