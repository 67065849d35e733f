"""Networks, checkpoints and data of the OpenGait framework."""
