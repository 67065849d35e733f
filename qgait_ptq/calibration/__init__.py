"""Finding the parameters of the quantizers."""
