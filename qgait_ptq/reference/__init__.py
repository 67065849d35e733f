"""What a file computes in exact integers, and what is proven of it on every processor."""
