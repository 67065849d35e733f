"""Where quantizers stand, decided before anything is calibrated, and their insertion."""
