"""What a runtime computes, against the integer reference."""
