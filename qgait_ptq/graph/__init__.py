"""The network as an FX graph: load, capture, simplify, place, insert."""
