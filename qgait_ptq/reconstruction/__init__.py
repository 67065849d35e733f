"""Stage 2, optional: weights learn how to round, block by block and then end to end."""
