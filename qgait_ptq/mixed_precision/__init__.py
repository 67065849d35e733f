"""Widths layer by layer: damage of each, and a choice within a budget."""
