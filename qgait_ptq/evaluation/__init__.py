"""What a result is worth: accuracy, agreement, layers, speed and memory."""
