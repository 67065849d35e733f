"""`State` of a run, and `Stage`s that each return the next state."""
