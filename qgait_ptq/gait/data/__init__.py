"""Data sets of sequences: reading, checking, choosing and cutting."""
