"""Evaluation of a result: accuracy, agreement, layers, speed and memory."""
