"""Rewrites of FX graphs; each leaves what the network computes."""
